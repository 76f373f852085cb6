"""How well a pre-trained reader fills masked spans with the documents that different retrievers bring it."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.data.masked_lm import MaskedBatch
from realm_jax.evaluation.bm25 import Bm25Index
from realm_jax.evaluation.masked_spans import MaskedSpanEvaluation, Search
from realm_jax.evaluation.queries import texts_for_search
from realm_jax.retrieval.build_version import BatchSettings
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.retrieval.index import Index, SearchResult
from realm_jax.run_dir import RunDir
from realm_jax.tasks.realm import Realm
from realm_jax.tasks.task import Params
from realm_jax.training.checkpoint import learners, load_params

logger = logging.getLogger(__name__)


def evaluate_reading(
    run: RunDir,
    task: Realm,
    x_corpus: str,
    *,
    num_sentences: int = 1000,
    num_examples: int = 12,
    batch_size: int = 32,
    seed: int = 0,
    indexes: Mapping[str, Index] = MappingProxyType({}),
    bm25: Bm25Index | None = None,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Masked-span accuracy of a pre-training run's newest checkpoint.

    Rows: `realm`, the checkpoint; `ict`, the warm starts that it began from (where RUN/stages has both); `bm25`, the
    checkpoint's reader with candidates found by BM25 and weighed by the checkpoint's p(z|x). Every row also tells what
    the reader does with the null document alone.

    Args:
      run: a run of the `realm` task.
      task: its settings.
      x_corpus: directory of sentences; the knowledge corpus itself, or a stream of sentences apart from it.
      num_sentences: how many, evenly spread over the rows.
      num_examples: how many are kept for looking at.
      batch_size: sentences read at once.
      seed: of the choice of the span in a sentence that has several.
      indexes: of all documents as a row's retriever embeds them, where somebody has made them already (`realm`, `ict`).
      bm25: likewise.

    Returns:
      (figures by row, examples).
    """
    evaluation = MaskedSpanEvaluation(task, x_corpus, num_sentences, batch_size, seed)
    _, params = load_params(run)

    def search(row: str, params: Params) -> Search:
        index = indexes[row] if row in indexes else _exact_index(evaluation.corpus, params, task)
        return evaluation.search_in(params, index)

    found = evaluation.evaluate(params, search("realm", params), num_examples)
    rows = {"realm": found.figures}
    logger.info("reading of realm measured")
    stages = [run.stage(name) for name in ("ict", "reader")]
    if all(stage.checkpoints.is_dir() for stage in stages):
        warm: dict[str, Any] = {}
        for stage in stages:
            warm |= load_params(stage)[1]
        rows["ict"] = evaluation.evaluate(warm, search("ict", warm)).figures
        logger.info("reading of ict measured")
    rows["bm25"] = evaluation.evaluate(params, bm25_search(evaluation.corpus, bm25)).figures
    return rows, found.examples


def check_reader(run: RunDir) -> None:
    """Refuses a run whose newest checkpoint has nothing that could read, such as one of ICT; loads nothing.

    Raises:
      ValueError: naming what there is and the remedy.
      FileNotFoundError: the run has no checkpoint.
    """
    missing = {"retriever", "knowledge_encoder"} - set(found := learners(run))
    if missing:
        raise ValueError(
            f"evaluate.reading expects a checkpoint of the realm task, got {run.path}, which has trained "
            f"{', '.join(found)} and no {' and no '.join(sorted(missing))}; name a run that has, or measure retrieval alone "
            "with --gin.evaluate.reading=None"
        )


def _exact_index(corpus: Corpus, params: Params, task: Realm) -> Index:
    """All documents embedded afresh with the parameters."""
    batches = BatchSettings(document_len=task.document_len, query_len=task.query_len)
    return ExactIndex(Embedder(task.retriever, params["retriever"]).embed_corpus(corpus, batches))


def bm25_search(corpus: Corpus, index: Bm25Index | None = None) -> Search:
    """BM25 with the words of the sentence outside the mask, in an index of the corpus that there is, or a new one."""
    index = index or Bm25Index(texts_for_search(corpus))
    tokenizer = corpus.tokenizer

    def search(batch: MaskedBatch, num_results: int) -> SearchResult:
        texts = []
        for row, sentence in enumerate(batch.sentences):
            masked = set((batch.mask_positions[row] - 1)[batch.mask_weights[row] > 0].tolist())
            parts = np.array([position not in masked for position in range(len(sentence))])
            texts.append(tokenizer.decode(sentence[parts]))
        return index.search(texts, num_results)

    return search


def reading_table(rows: dict[str, dict[str, float]]) -> str:
    """The figures as aligned text."""
    names = ["with_retrieval", "null_only", "retrieval_utility", "null_document_prob", "gold_selected"]
    lines = [f"{int(rows['realm']['sentences'])} masked spans", f"{'':8}" + "".join(f"{name:>20}" for name in names)]
    for row, figures in rows.items():
        cells = (f"{figures[name]:20.3f}" if name in figures else " " * 20 for name in names)
        lines.append(f"{row:8}" + "".join(cells))
    return "\n".join(lines)
