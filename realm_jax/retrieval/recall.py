"""How much of exact search's answer a version finds, on a sample: figure `search_recall` of its manifest."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.retrieval.ball_tree import BallTreeIndex
from realm_jax.retrieval.exact import ExactIndex, brute_force
from realm_jax.retrieval.index import SearchResult, merge_results
from realm_jax.retrieval.manifest import Backend, Shard
from realm_jax.retrieval.scann_index import ScannIndex, ScannShard
from realm_jax.retrieval.shards import load_scann_shard, map_embeddings
from realm_jax.storage import Place

logger = logging.getLogger(__name__)

WORTH_A_TREE = 0.95
"""Share of documents that a ball tree must prune to be faster than a product of matrices (docs/results/index_backends.md)."""


def recall_of_version(
    directory: Place,
    shards: Sequence[Shard],
    backend: Backend,
    parameters: Mapping[str, Any],
    queries: Float32[np.ndarray, "queries embed"],
    num_results: int,
) -> float:
    """Recall of a version as it will be served. A ball tree is exact: of it the share of pruned documents is reported.

    Args:
      directory: of the version.
      shards: all of it.
      backend: of the version.
      parameters: of that backend, as the manifest has them.
      queries: the sample.
      num_results: how many of the best documents are compared.
    """
    embed_dim = queries.shape[1]
    rows = [map_embeddings(directory, shard, embed_dim) for shard in shards]
    if backend == "scann":
        searchers = (load_scann_shard(directory, shard, embed_dim, parameters) for shard in shards)
        return recall_of_shards(queries, searchers, rows, num_results)
    if backend == "ball_tree":
        pruned = BallTreeIndex(rows, **parameters).pruned_share(queries, num_results)
        logger.info(
            "ball tree: %.1f %% of the documents are pruned for the %d sampled queries%s",
            100 * pruned, len(queries),
            "" if pruned > WORTH_A_TREE else "; the backend 'exact' will search this index faster",
        )  # fmt: skip
        return 1.0
    found = ExactIndex(rows, **parameters).search(queries, num_results)
    parts = zip(shards, rows, strict=True)
    expected = [brute_force(queries, np.asarray(part), num_results, shard.first_document) for shard, part in parts]
    return search_recall(found, merge_results(expected, num_results))


def recall_of_shards(
    queries: Float32[np.ndarray, "queries embed"],
    searchers: Iterable[ScannShard],
    embeddings: Iterable[np.ndarray],
    num_results: int,
) -> float:
    """Recall of ScaNN shards against exact search of their embeddings; only one shard is in memory at a time.

    Args:
      queries: the sample.
      searchers: the shards, made when they are asked for.
      embeddings: the rows of each shard in the same order, such as memory maps.
      num_results: how many of the best documents are compared.
    """
    found, expected = [], []
    for searcher, rows in zip(searchers, embeddings, strict=True):
        found.append(ScannIndex([searcher]).search(queries, num_results))
        expected.append(brute_force(queries, np.asarray(rows), num_results, searcher.first_document))
    return search_recall(merge_results(found, num_results), merge_results(expected, num_results))


def search_recall(found: SearchResult, expected: SearchResult) -> float:
    """Share of the expected documents that were found; one that scores like the last expected one counts as found.

    >>> found = SearchResult(np.array([[4, 9]]), np.array([[3.0, 1.0]], np.float32))
    >>> search_recall(found, SearchResult(np.array([[4, 7]]), np.array([[3.0, 2.0]], np.float32)))
    0.5
    """
    there = expected.ids >= 0
    border = np.where(there, expected.scores, np.inf).min(axis=1, keepdims=True)
    hits = (found.ids[:, :, None] == expected.ids[:, None, :]).any(axis=2)
    hits |= found.scores >= border - 1e-6 * np.abs(border)
    return float((hits & (found.ids >= 0)).sum() / there.sum())


def sample_documents(num_documents: int, count: int, seed: int = 0) -> Int64[np.ndarray, "sample"]:
    """At most `count` different documents, ascending; always the same ones."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(num_documents, min(count, num_documents), replace=False)).astype(np.int64)


def random_sentences(corpus: Corpus, documents: Int64[np.ndarray, "sample"], seed: int = 0) -> list[np.ndarray]:
    """The pieces of one sentence of each document."""
    rng = np.random.default_rng(seed)
    sentences = []
    for document in documents:
        body, ends = corpus.bodies[document], corpus.sentence_ends[document]
        number = int(rng.integers(max(1, len(ends))))
        sentences.append(body[ends[number - 1] if number else 0 : ends[number] if len(ends) else len(body)])
    return sentences


def embed_sentences(
    sentences: list[np.ndarray],
    embed_queries: Callable[[np.ndarray, np.ndarray], Any],
    query_len: int,
    batch_size: int,
    special: SpecialIds,
) -> Float32[np.ndarray, "sample embed"]:
    """Query embeddings of sentences, in batches of one shape."""
    parts = []
    for start in range(0, len(sentences), batch_size):
        part = sentences[start : start + batch_size]
        padding = [np.zeros(0, np.int32)] * (batch_size - len(part))
        inputs = query_inputs(part + padding, query_len, special)
        parts.append(np.asarray(embed_queries(inputs.ids, inputs.segment_ids), np.float32)[: len(part)])
    return np.concatenate(parts)
