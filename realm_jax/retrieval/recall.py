"""How much of exact search's answer a version finds, on a sample: figure `search_recall` of its manifest."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.retrieval.exact import brute_force
from realm_jax.retrieval.index import SearchResult, merge_results
from realm_jax.retrieval.scann_index import ScannIndex, ScannShard


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
