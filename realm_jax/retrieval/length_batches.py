"""Batches of documents of like length: a few static shapes, so that short documents do not pay for padding."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from realm_jax.corpus.store import Corpus

LENGTH_MULTIPLE = 16
"""Static lengths are multiples of this, the rows of a bfloat16 tile on TPU."""


class LengthBatch(NamedTuple):
    """Documents that are embedded at once.

    Attributes:
      length: width of their inputs.
      num_rows: of the batch; those beyond the documents are padding.
      documents: positions in the lengths given, at most num_rows.
    """

    length: int
    num_rows: int
    documents: Int64[np.ndarray, "documents"]


def input_lengths(corpus: Corpus, documents: Int64[np.ndarray, "rows"], document_len: int) -> Int64[np.ndarray, "rows"]:
    """Pieces of `[CLS] title [SEP] body [SEP]` of each document, cut to document_len."""
    return np.minimum(corpus.titles.lengths(documents) + corpus.bodies.lengths(documents) + 3, document_len)


def length_histogram(corpus: Corpus, document_len: int, at_once: int = 1 << 20) -> Int64[np.ndarray, "lengths"]:
    """How many documents of the corpus have an input of 0, 1, …, document_len pieces."""
    counts = np.zeros(document_len + 1, np.int64)
    for start in range(0, corpus.num_documents, at_once):
        documents = np.arange(start, min(start + at_once, corpus.num_documents), dtype=np.int64)
        counts += np.bincount(input_lengths(corpus, documents, document_len), minlength=document_len + 1)
    return counts


def choose_lengths(counts: Int64[np.ndarray, "lengths"], num_lengths: int) -> tuple[int, ...]:
    """The static lengths that cost the least padding in all.

    >>> choose_lengths(np.bincount([20, 20, 20, 30, 100, 104]), num_lengths=2)
    (32, 104)

    Args:
      counts: of documents of each length; the last entry is the greatest length allowed.
      num_lengths: at most this many are chosen.

    Returns:
      Ascending lengths, multiples of 16 but for the greatest allowed; the last one fits every document.
    """
    if num_lengths < 1:
        raise ValueError(f"num_lengths must be at least 1, got {num_lengths}")
    longest = len(counts) - 1
    used = np.flatnonzero(counts)
    rounded = np.minimum(-(-used // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, longest)
    places = np.unique(rounded)
    if not len(places):
        return (longest,)
    documents = np.array([counts[used][rounded == place].sum() for place in places])
    before = np.concatenate([[0], np.cumsum(documents)])
    # cost[c, j]: fewest padded pieces of the documents up to place j, with c + 1 lengths of which the last is place j
    count = min(num_lengths, len(places))
    cost = np.full((count, len(places)), np.inf)
    previous = np.zeros((count, len(places)), np.int64)
    cost[0] = places * before[1:]
    for c in range(1, count):
        for j in range(c, len(places)):
            with_last = cost[c - 1, :j] + places[j] * (before[j + 1] - before[1 : j + 1])
            previous[c, j] = int(np.argmin(with_last))
            cost[c, j] = with_last[previous[c, j]]
    chosen, j = [], len(places) - 1
    for c in reversed(range(count)):
        chosen.append(int(places[j]))
        j = int(previous[c, j])
    return tuple(reversed(chosen))


def length_batches(
    lengths: Int64[np.ndarray, "documents"], static_lengths: Sequence[int], batch_size: int
) -> Iterator[LengthBatch]:
    """Splits documents into batches, longest first, so that only the very last batch holds padding rows.

    Args:
      lengths: of each document's input.
      static_lengths: ascending; the last is at least as great as every length.
      batch_size: rows of a batch of the greatest length; batches of shorter inputs have a whole multiple of it.
    """
    order = np.argsort(-lengths, kind="stable")
    fits = np.asarray(static_lengths)
    start = 0
    while start < len(order):
        length = int(fits[np.searchsorted(fits, lengths[order[start]])])
        num_rows = batch_size * (int(fits[-1]) // length)
        yield LengthBatch(length, num_rows, order[start : start + num_rows])
        start += num_rows
