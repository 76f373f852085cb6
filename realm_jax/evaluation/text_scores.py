"""How near a written text comes to its references: ROUGE-L and BLEU, by the packages that published figures are made with."""

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_NEEDED = {"rouge_score": "rouge-score", "sacrebleu": "sacrebleu"}


class TextScores(NamedTuple):
    """Of a set of texts, between 0 and 1."""

    rouge_l: float  # mean F-measure, of each text the best over its references (Lin 2004; stemmed, as for summaries)
    bleu: float  # of all texts together (Papineni et al. 2002; sacrebleu's tokenisation 13a)


def check_packages() -> None:
    """Refuses to begin without the packages.

    Raises:
      ValueError: naming what is missing.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"ROUGE and BLEU need {' and '.join(missing)}: pip install 'realm_jax[text-scores]'")


def text_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Scores texts against their references, of which each may have another number.

    Raises:
      ValueError: no texts, or one without a reference.
    """
    from sacrebleu.metrics import BLEU

    rouge = rouge_l(texts, references)
    # sacrebleu takes the first references of all texts, then the second ones, with None where there is none
    most = max(map(len, references))
    streams: Any = [[known[place] if place < len(known) else None for known in references] for place in range(most)]
    return TextScores(float(np.mean(rouge)), BLEU().corpus_score(list(texts), streams).score / 100)


def rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The F-measure of each text, the best over its references; see `TextScores`.

    Raises:
      ValueError: no texts, or one without a reference.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if not texts or not all(references):
        raise ValueError(f"expected texts with a reference each, got {len(texts)} and {sum(map(bool, references))}")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        max(float(scorer.score(reference, text)["rougeL"].fmeasure) for reference in known)
        for text, known in zip(texts, references, strict=True)
    ]
