"""Embeds documents of a corpus in batches of like length: for the shards of an index, or all at once in memory."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, document_inputs
from realm_jax.retrieval.length_batches import LengthBatch

EmbedBatch = Callable[[np.ndarray, np.ndarray], Any]
"""Takes ids and segment ids, int32 [rows, length] padded with 0; gives embeddings [rows, embed]."""


class EmbeddedRows(NamedTuple):
    """Embeddings of one batch, without those of its padding rows.

    Attributes:
      rows: positions in the documents given.
      embeddings: of these, [rows, embed].
    """

    rows: Int64[np.ndarray, "rows"]
    embeddings: np.ndarray


def embed_in_batches(
    corpus: Corpus,
    documents: Int64[np.ndarray, "num_documents"],
    batches: Iterable[LengthBatch],
    embed_documents: EmbedBatch,
    special: SpecialIds,
) -> Iterator[EmbeddedRows]:
    """Embeds `[CLS] title [SEP] body [SEP]` of documents, in the order of the batches.

    Two batches are under way at any time: the device computes one while the host prepares the next.

    Args:
      corpus: the knowledge corpus.
      documents: its rows to embed.
      batches: of positions in `documents`, from `length_batches`; the next one is asked for when it is started.
      embed_documents: starts embedding a batch; it may return before the result is there, as jax does.
      special: the tokenizer's special pieces.
    """
    under_way: collections.deque[tuple[np.ndarray, Any]] = collections.deque()

    def collect() -> EmbeddedRows:
        rows, output = under_way.popleft()
        return EmbeddedRows(rows, np.asarray(output)[: len(rows)])

    for batch in batches:
        padded = np.full(batch.num_rows, -1, np.int64)
        padded[: len(batch.documents)] = documents[batch.documents]
        inputs = document_inputs(corpus, padded, batch.length, special)
        under_way.append((batch.documents, embed_documents(inputs.ids, inputs.segment_ids)))
        if len(under_way) > 1:
            yield collect()
    while under_way:
        yield collect()
