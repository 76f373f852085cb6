"""The evaluate job: how well documents are found, by a checkpoint, by the served index, by BM25, in one table."""

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, document_inputs, query_inputs
from realm_jax.evaluation.answers import normalise_answer, normalised_contains
from realm_jax.evaluation.bm25 import Bm25Index
from realm_jax.evaluation.queries import (
    QuerySet,
    RetrievalQuery,
    check_any,
    document_text,
    known_items,
    masked_sentences,
    texts_for_search,
    window,
)
from realm_jax.evaluation.queries import (
    questions as read_questions,
)
from realm_jax.evaluation.ranking import first_occurrence, recall_at_k, reciprocal_rank, relevance
from realm_jax.models import Retriever, RetrieverConfig
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.retrieval.index import Index, SearchResult
from realm_jax.retrieval.versions import list_versions, load_version, verify, version_dir
from realm_jax.run_dir import RunDir, read_json, write_json_atomically
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.realm import Realm, check_same_tokenizer
from realm_jax.training.checkpoint import list_snapshots, load_params, load_snapshot

logger = logging.getLogger(__name__)

RECALL_AT = (1, 5, 20, 100)
_SHORTEST_LEN = 32  # documents are embedded at lengths of 32, 64, 128, … pieces: a handful of programs, little padding

SearchFunction = Callable[[Sequence[RetrievalQuery], int], SearchResult]


def evaluate(
    *,
    run_dir: str,
    corpus: str,
    retriever: RetrieverConfig | None = None,
    x_corpus: str | None = None,
    questions: str | None = None,
    name: str = "retrieval",
    step: int | None = None,
    index_version: int | None = None,
    stages: tuple[str, ...] = ("ict",),
    query_len: int = 96,
    document_len: int = 288,
    batch_size: int = 64,
    max_queries: int | None = None,
    bm25: bool = True,
    reading: Realm | None = None,
    num_masked_sentences: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures retrieval: recall@1/5/20/100 and MRR by gold document and by contained answer.

    Rows of the table: BM25; warm starts of the run; the checkpoint with all documents embedded afresh and searched
    exactly; and, if the run serves an index, the checkpoint's queries searched in it, with its own search recall.

    Args:
      run_dir: the run; the figures go to RUN/evaluation/NAME.json.
      corpus: directory of the knowledge corpus.
      retriever: shape of the run's retriever; None measures BM25 alone.
      x_corpus: directory of a sentence stream; its answers are masked. Either this or `questions`. The knowledge corpus
        itself: sentences of the documents, each of which should find its own document.
      questions: JSON-lines file (may be .gz) of {"question", "answer"}, "gold_id" or "passage_id" if known.
      name: of the evaluation.
      step: which checkpoint or snapshot; None for the newest.
      index_version: which index version; None for the one that the run serves, or its newest.
      stages: warm starts to measure beside it, those that the run has (RUN/stages/NAME).
      query_len: pieces of `[CLS] x [SEP]`.
      document_len: pieces of `[CLS] title [SEP] body [SEP]`.
      batch_size: documents embedded at once.
      max_queries: how many queries, drawn by `seed`; None for all.
      bm25: whether to measure BM25.
      reading: the settings of a `realm` run; given them, how well masked spans of `x_corpus` are filled is measured too,
        and written to RUN/evaluation/reading.json and RUN/examples.json.
      num_masked_sentences: how many for that.
      seed: of the draw.

    Returns:
      What was written: "rows" holds one object a row.

    Raises:
      ValueError: for corpora, indexes and models that do not fit each other, before any slow work.
      FileNotFoundError: when the run has no such checkpoint.
    """
    begin = time.monotonic()
    run = RunDir.of(run_dir)
    if (x_corpus is None) == (questions is None):
        raise ValueError("evaluate needs either x_corpus (sentences to mask) or questions (a JSON-lines file)")
    knowledge = Corpus.open(corpus)
    if x_corpus is not None:
        sentences = Corpus.open(x_corpus)
        check_same_tokenizer(knowledge, sentences)
        if sentences.directory.resolve() == knowledge.directory.resolve():
            query_set = known_items(knowledge, max_queries, seed)
        else:
            query_set = masked_sentences(sentences, max_queries, seed)
    else:
        query_set = read_questions(str(questions), knowledge, knowledge.tokenizer, max_queries, seed)
    queries = check_any(query_set)
    learned: dict[str, tuple[int, Mapping[str, Any]]] = {}
    version = None
    if retriever is not None:
        check_vocabulary(knowledge, retriever.encoder.vocab_size, "retriever")
        for stage in stages:
            if run.stage(stage).checkpoints.is_dir() or list_snapshots(run.stage(stage)):
                learned[stage] = retriever_params(run.stage(stage))
        learned["checkpoint"] = retriever_params(run, step)
        version = _served_version(run, index_version)
        if version is not None:
            manifest = verify(
                version_dir(run.index, version),
                corpus_fingerprint=knowledge.fingerprint,
                embed_dim=retriever.projection_size,
                num_documents=knowledge.num_documents,
            )

    judge = Judge(knowledge)
    rows: dict[str, dict[str, Any]] = {}
    if bm25:
        index = Bm25Index(texts_for_search(knowledge))
        rows["bm25"] = evaluate_rankings(queries, bm25_search(index), judge)
    special = SpecialIds.of(knowledge.tokenizer)
    for row, (at_step, params) in learned.items():
        assert retriever is not None
        embeddings = embed_corpus(params, retriever, knowledge, document_len, batch_size, special)
        exact = retriever_search(params, retriever, ExactIndex(embeddings), query_len, special)
        rows[row] = {"step": at_step, **evaluate_rankings(queries, exact, judge)}
    if retriever is not None and version is not None:
        at_step, params = learned["checkpoint"]
        served = load_version(version_dir(run.index, version), manifest=manifest)
        search = retriever_search(params, retriever, served, query_len, special)
        rows["served_index"] = {
            "step": at_step,
            "version": version,
            "search_recall": manifest.search_recall,
            **evaluate_rankings(queries, search, judge),
        }
    result = {
        "name": name,
        "queries": {"source": query_set.source, "count": len(queries), "dropped": query_set.dropped},
        "corpus": {"directory": str(knowledge.directory), "documents": knowledge.num_documents},
        "rows": rows,
        "wall_secs": round(time.monotonic() - begin, 3),
    }
    write_json_atomically(run.evaluation(name), result)
    print(table(rows, query_set))
    if reading is not None:
        from realm_jax.evaluation.reading import evaluate_reading, reading_table  # it uses this module

        spans, examples = evaluate_reading(
            run, reading, x_corpus or corpus, num_sentences=num_masked_sentences, seed=seed
        )
        write_json_atomically(run.evaluation("reading"), {"name": "reading", "rows": spans})
        write_json_atomically(run.examples, examples)
        print(reading_table(spans))
    return result


class Judge:
    """Says which ranked documents are right, by gold document and by contained answer."""

    def __init__(self, corpus: Corpus, cached_documents: int = 100_000):
        self._text = functools.lru_cache(cached_documents)(
            lambda document: normalise_answer(document_text(corpus, document)[1])
        )

    def contains(
        self, ranked_ids: Int64[np.ndarray, "batch num_results"], answers: Sequence[tuple[str, ...]]
    ) -> Bool[np.ndarray, "batch num_results"]:
        """Which ranks hold a document whose text contains one of the query's answers; see `contains_answer`."""
        found = np.zeros(ranked_ids.shape, bool)
        for row, (ids, wanted) in enumerate(zip(ranked_ids, answers, strict=True)):
            normal = [normalise_answer(answer) for answer in wanted]
            for rank in np.flatnonzero((ids >= 0) & first_occurrence(ids)):
                found[row, rank] = normalised_contains(self._text(int(ids[rank])), normal)
        return found


def evaluate_rankings(
    queries: Sequence[RetrievalQuery],
    search: SearchFunction,
    judge: Judge | None,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    batch_size: int = 256,
) -> dict[str, float | int]:
    """Searches every query and measures the rankings.

    Args:
      queries: with gold documents, answers, or both; a figure counts the queries for which it is defined.
      search: from queries and a number of results to a SearchResult.
      judge: looks answers up in documents; None leaves the figures by contained answer out (a search takes
        milliseconds, reading a hundred documents a query does not: in the training loop use None).
      recall_at: the k of recall@k; the greatest is how many results are searched.
      batch_size: queries searched at once.

    Returns:
      `queries_with_gold` and, if any, `recall_at_K` and `mrr`; with a judge `queries_with_answers` and, if any,
      `answer_recall_at_K` and `answer_mrr`. MRR counts the ranks up to the greatest K.
    """
    by_gold = np.array([bool(query.gold) for query in queries], bool)
    by_answer = np.array([bool(query.answers) for query in queries], bool)
    gold_hits, answer_hits = [], []
    for first in range(0, len(queries), batch_size):
        part = queries[first : first + batch_size]
        ids = search(part, max(recall_at)).ids
        gold_hits.append(relevance(ids, [query.gold for query in part]))
        if judge is not None:
            answer_hits.append(judge.contains(ids, [query.answers for query in part]))
    figures: dict[str, float | int] = {"queries_with_gold": int(by_gold.sum())}
    if by_gold.any():
        figures |= _figures("", np.concatenate(gold_hits)[by_gold], recall_at)
    if judge is not None:
        figures["queries_with_answers"] = int(by_answer.sum())
        if by_answer.any():
            figures |= _figures("answer_", np.concatenate(answer_hits)[by_answer], recall_at)
    return figures


def _figures(prefix: str, relevant: np.ndarray, recall_at: Sequence[int]) -> dict[str, float]:
    found = {f"{prefix}recall_at_{k}": float(recall_at_k(relevant, k).mean()) for k in recall_at}
    return found | {f"{prefix}mrr": float(reciprocal_rank(relevant).mean())}


def bm25_search(index: Bm25Index) -> SearchFunction:
    return lambda queries, num_results: index.search([query.text for query in queries], num_results)


def retriever_search(
    params: Mapping[str, Any], config: RetrieverConfig, index: Index, query_len: int, special: SpecialIds
) -> SearchFunction:
    """Search with queries embedded by the retriever's parameters, in any index."""

    def search(queries: Sequence[RetrievalQuery], num_results: int) -> SearchResult:
        inputs = query_inputs([window(q.pieces, query_len - 2, special.mask) for q in queries], query_len, special)
        padded = [_padded_rows(part, 64) for part in _slices(inputs, 64)]
        embeds = [np.asarray(_embed(params, part.ids, part.segment_ids, config, "embed_queries")) for part in padded]
        return index.search(np.concatenate(embeds)[: len(queries)], num_results)

    return search


def embed_corpus(
    params: Mapping[str, Any],
    config: RetrieverConfig,
    corpus: Corpus,
    document_len: int,
    batch_size: int,
    special: SpecialIds,
) -> Float32[np.ndarray, "num_documents embed"]:
    """Embeds every document with the retriever's parameters, in batches of about equal length."""
    params = jax.device_put(params)
    lengths = np.minimum(corpus.titles.lengths() + corpus.bodies.lengths() + 3, document_len)
    order = np.argsort(lengths, kind="stable")
    embeddings = np.empty((corpus.num_documents, config.projection_size), np.float32)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        longest = int(lengths[rows[-1]])
        width = min(document_len, max(_SHORTEST_LEN, 1 << math.ceil(math.log2(longest))))
        inputs = _padded_rows(document_inputs(corpus, rows, width, special), batch_size)
        embedded = np.asarray(_embed(params, inputs.ids, inputs.segment_ids, config, "embed_documents"))
        embeddings[rows] = embedded[: len(rows)]  # without the rows that padded the last batch
    return embeddings


@functools.partial(jax.jit, static_argnames=("config", "method"))
def _embed(
    params: Mapping[str, Any],
    ids: Int32[Array, "batch length"],
    segment_ids: Int32[Array, "batch length"],
    config: RetrieverConfig,
    method: str,
) -> Float[Array, "batch embed"]:
    embeds = Retriever(config).apply({"params": params}, ids, segment_ids, ids != 0, method=method)
    assert isinstance(embeds, jax.Array)
    return embeds


def _slices(inputs: Inputs, size: int) -> list[Inputs]:
    starts = range(0, len(inputs.ids), size)
    return [Inputs(inputs.ids[i : i + size], inputs.segment_ids[i : i + size]) for i in starts]


def _padded_rows(inputs: Inputs, batch_size: int) -> Inputs:
    """Repeats the last row up to batch_size: one program for all batches."""
    missing = ((0, batch_size - len(inputs.ids)), (0, 0))
    return Inputs(np.pad(inputs.ids, missing, "edge"), np.pad(inputs.segment_ids, missing, "edge"))


def retriever_params(run: RunDir, step: int | None = None) -> tuple[int, Mapping[str, Any]]:
    """The retriever's parameters of a checkpoint or, where there is none of that step, of a snapshot.

    Returns:
      (step, parameters).

    Raises:
      FileNotFoundError: when the run has neither.
    """
    try:
        found, params = load_params(run, step)
        return found, params["retriever"]
    except FileNotFoundError:
        snapshots = list_snapshots(run)
        wanted = snapshots[-1] if step is None and snapshots else step
        if wanted not in snapshots:
            raise
        assert wanted is not None
        return wanted, load_snapshot(run, wanted)


def _served_version(run: RunDir, index_version: int | None) -> int | None:
    """The version asked for; else the one that the trainer says it uses; else the newest; None without any."""
    published = list_versions(run.index)
    if index_version is not None:
        if index_version not in published:
            raise ValueError(f"{run.index} has no version {index_version}; it has {published or 'none'}")
        return index_version
    if run.trainer_status(0).exists():
        in_use = read_json(run.trainer_status(0)).get("index_version", -1)
        if in_use in published:
            return int(in_use)
    return published[-1] if published else None


def table(rows: Mapping[str, Mapping[str, Any]], query_set: QuerySet) -> str:
    """The figures as aligned text, in per cent; a row's gold figures left, its answer figures right."""
    kinds = [("", "gold document"), ("answer_", "contained answer")]
    kinds = [(prefix, title) for prefix, title in kinds if any(f"{prefix}mrr" in row for row in rows.values())]
    columns = [f"recall_at_{k}" for k in RECALL_AT] + ["mrr"]
    heads = [f"R@{k}" for k in RECALL_AT] + ["MRR"]
    label = max(len(_label(name, row)) for name, row in rows.items())
    groups = " | ".join(f"{title:^{7 * len(columns) - 1}}" for _, title in kinds)
    names = " | ".join(" ".join(f"{head:>6}" for head in heads) for _ in kinds)
    lines = [f"{len(query_set.queries)} queries of {query_set.source}", f"{'':{label}} | {groups}"]
    lines.append(f"{'':{label}} | {names} | search recall")
    for name, row in rows.items():
        cells = " | ".join(" ".join(_percent(row.get(prefix + column)) for column in columns) for prefix, _ in kinds)
        lines.append(f"{_label(name, row):{label}} | {cells} | {_percent(row.get('search_recall'))}".rstrip())
    return "\n".join(lines)


def _label(name: str, row: Mapping[str, Any]) -> str:
    if "version" in row:
        return f"{name} {row['version']}"
    return f"{name} {row['step']}" if "step" in row else name


def _percent(value: float | None) -> str:
    return f"{'':>6}" if value is None else f"{100 * value:6.1f}"
