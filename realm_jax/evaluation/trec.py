"""Runs and judgements as TREC has them, scored with ir-measures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from realm_jax.run_dir import write_text_atomically
from realm_jax.storage import Place

MEASURES = ("nDCG@10", "R@100", "AP@100", "RR@10")  # BEIR's own is the first

Judgements = dict[str, dict[str, int]]  # by query id and document id
Run = dict[str, dict[str, float]]  # scores by query id and document id, best first, strictly descending


class RankedDocument(NamedTuple):
    """A document by the id that judgements know, with its score."""

    id: str
    score: float


def strictly_descending(ranking: Sequence[RankedDocument]) -> dict[str, float]:
    """Scores by document, each the greatest float32 below the one before that it does not exceed.

    trec_eval, and so ir-measures, orders a run by score alone, in float32, and equal scores by document id: without this
    it would score another ranking than ours.
    """
    scores: dict[str, float] = {}
    last = np.float32(np.inf)
    for document in ranking:
        last = min(np.float32(document.score), np.nextafter(last, np.float32(-np.inf)))
        scores[document.id] = float(last)
    return scores


def score_run(run: Run, judgements: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """The means over all judged queries of `MEASURES`, by ir-measures; a query without a hit counts as 0.

    Raises:
      ValueError: when ir-measures is not installed.
    """
    ir_measures = require_ir_measures()
    measures = {name: ir_measures.parse_measure(name) for name in MEASURES}
    figures = ir_measures.calc_aggregate(list(measures.values()), {q: dict(of) for q, of in judgements.items()}, run)
    return {name: float(figures[measure]) for name, measure in measures.items()}


def require_ir_measures() -> Any:
    """The library; asked for before the slow work.

    Raises:
      ValueError: when it is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise ValueError("BEIR folders are scored with ir-measures; pip install 'realm_jax[beir]'") from error
    return ir_measures


def write_run(path: Place, run: Run, name: str) -> None:
    """Writes a TREC run: query id, Q0, document id, rank from 1, score, name of the run."""
    lines = [
        f"{query} Q0 {document} {rank} {score!r} {name}\n"
        for query, scores in run.items()
        for rank, (document, score) in enumerate(scores.items(), 1)
    ]
    write_text_atomically(path, "".join(lines))


def write_qrels(path: Place, judgements: Mapping[str, Mapping[str, int]]) -> None:
    """Writes judgements as TREC does: query id, 0, document id, judgement."""
    lines = [f"{query} 0 {document} {value}\n" for query, of in judgements.items() for document, value in of.items()]
    write_text_atomically(path, "".join(lines))
