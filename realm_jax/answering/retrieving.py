"""The retriever's side of answering: questions embedded, searched and weighed, documents embedded as they come."""

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from realm_jax.answering.answer import Answer
from realm_jax.answering.documents import Documents
from realm_jax.data.inputs import Inputs, SpecialIds, pair_inputs, query_inputs
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.index import Index

STEP = 16
"""Inputs are padded to multiples of this: few programs, little padding."""

_EMBEDDED_AT_ONCE = 32

Find = Callable[[Sequence[str], int], Int64[np.ndarray, "batch num_read"]]
OnStage = Callable[[str], None]


def random_documents(num_documents: int, seed: int) -> Find:
    """Finds documents by chance, of one question and seed always the same: what harm those do that do not help."""

    def find(questions: Sequence[str], num_read: int) -> Int64[np.ndarray, "batch num_read"]:
        seeds = [zlib.crc32(question.encode("utf-8", "surrogatepass")) for question in questions]
        return np.stack([np.random.default_rng([seed, own]).integers(0, num_documents, num_read) for own in seeds])

    return find


class Retrieved(NamedTuple):
    """Questions with the documents to read, best first."""

    pieces: list[Int32[np.ndarray, "_"]]  # of the questions, as the retriever reads them
    query: Inputs
    embeds: Float32[np.ndarray, "batch embed"]
    ids: Int64[np.ndarray, "batch num_read"]  # -1: none
    scores: Float32[np.ndarray, "batch num_read"]  # -inf where there is none


class RetrievingAnswerer:
    """A retriever over an index of documents; what reads them is a subclass's. May be used from several threads."""

    def __init__(
        self,
        documents: Documents,
        index: Index,
        retriever: RetrieverConfig,
        params: Mapping[str, Any],
        *,
        query_len: int,
        document_len: int,
        num_read: int,
    ):
        """Args:
        documents: what the index's ids stand for.
        index: of these documents, embedded by this retriever's document encoder.
        retriever: shape of the retriever.
        params: of the retriever.
        query_len: pieces of `[CLS] question [SEP]`; longer questions are cut.
        document_len: pieces of `[CLS] title [SEP] body [SEP]`, of documents that are embedded here.
        num_read: documents read for a question.

        Raises:
          ValueError: an index of another width, lengths beyond the position table.
        """
        for what, length in (("query_len", query_len), ("document_len", document_len)):
            encoder = retriever.encoder
            if encoder.positions == "learned" and length > encoder.max_length:
                raise ValueError(f"{what} must be at most the encoder's max_length {encoder.max_length}, got {length}")
        if num_read < 1:
            raise ValueError(f"num_read must be at least 1, got {num_read}")
        if index.embed_dim != retriever.embed_dim:
            raise ValueError(
                f"the index has embeddings of {index.embed_dim}, this retriever makes {retriever.embed_dim}; "
                "use the index that the run was trained with"
            )
        self.documents, self.index = documents, index
        self._embedder = Embedder(retriever, params)
        self._query_len, self._document_len, self._num_read = query_len, document_len, num_read
        self._special = SpecialIds.of(documents.tokenizer)

    def over(self, documents: Documents, index: Index) -> "RetrievingAnswerer":
        """The same models over other documents of the same tokenizer; shares what is compiled."""
        other = copy.copy(self)
        other.documents, other.index = documents, index
        return other

    def answer(
        self, questions: Sequence[str], find: Find | None = None, on_stage: OnStage = lambda stage: None
    ) -> list[Answer]:
        """Answers questions together.

        Args:
          questions: texts.
          find: ids of the documents to read instead of those that the retriever finds (BM25, say), -1 for none; they are
            weighed by the retriever all the same, since the reader was trained with its scores.
          on_stage: called after each of "tokenise", "embed", "search", "gather", "read" and "choose".

        Raises:
          ValueError: a question that is no Unicode text.
        """
        raise NotImplementedError("what reads the documents is a subclass's")

    def embed(self, questions: Sequence[str]) -> Float32[np.ndarray, "batch embed"]:
        """Embeddings of questions."""
        return self._embed(query_inputs(self._pieces(questions), self._query_len, self._special))

    def embed_documents(
        self, titles: Sequence[Int32[np.ndarray, "_"]], bodies: Sequence[Int32[np.ndarray, "_"]]
    ) -> Float32[np.ndarray, "documents embed"]:
        """Embeddings of documents given as pieces, as the embed job would make them."""
        parts = []
        for first in range(0, len(bodies), _EMBEDDED_AT_ONCE):
            some = slice(first, first + _EMBEDDED_AT_ONCE)
            inputs = pair_inputs(list(titles[some]), list(bodies[some]), self._document_len, self._special)
            rows = self._embedder.rounded(power_of_two(len(inputs.ids)))
            padded = _padded(_narrowed(inputs), rows, self._special.cls)
            parts.append(np.asarray(self._embedder.embed_documents(*padded))[: len(inputs.ids)])
        return np.concatenate(parts)

    def retrieve(self, questions: Sequence[str], find: Find | None, on_stage: OnStage) -> Retrieved:
        """The documents to read for each question; arguments and errors as `answer`."""
        pieces = self._pieces(questions)
        query = query_inputs(pieces, self._query_len, self._special)
        on_stage("tokenise")
        embeds = self._embed(query)
        on_stage("embed")
        ids = self.index.search(embeds, self._num_read).ids if find is None else find(questions, self._num_read)
        scores = np.einsum("be,bke->bk", embeds, self.index.embeddings(ids))
        scores = np.where(ids >= 0, scores, -np.inf).astype(np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")
        ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
        on_stage("search")
        return Retrieved(pieces, query, embeds, ids, scores)

    def pieces_left_out(self, pieces: Int32[np.ndarray, "_"]) -> int:
        """How many of a question's pieces the retriever does not read."""
        return max(0, len(pieces) + 2 - self._query_len)

    def _pieces(self, questions: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        for question in questions:
            try:
                question.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"expected a question in Unicode, got half a surrogate pair: {error}") from error
        return [encoding.ids for encoding in self.documents.tokenizer.encode_batch(list(questions))]

    def _embed(self, query: Inputs) -> np.ndarray:
        rows = self._embedder.rounded(power_of_two(len(query.ids)))  # few shapes whatever callers ask
        padded = _padded(_narrowed(query), rows, self._special.cls)
        return np.asarray(self._embedder.embed_queries(*padded))[: len(query.ids)]


def check_scores(scores: Float[np.ndarray, "batch num_documents"]) -> None:
    """Refuses what a retriever that has diverged says; −∞ stands where there is no document.

    Raises:
      FloatingPointError: a score that is no number.
    """
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise FloatingPointError(
            "a document's retrieval score is not finite; the run has diverged: take an earlier checkpoint"
        )


def power_of_two(count: int) -> int:
    """The next one."""
    return 1 << max(count - 1, 0).bit_length()


def _narrowed(inputs: Inputs) -> Inputs:
    """Without the columns that are padding in every row, but for the last few."""
    used = int((inputs.ids != 0).sum(axis=1).max(initial=1))
    width = min(-(-used // STEP) * STEP, inputs.ids.shape[1])
    return Inputs(inputs.ids[:, :width], inputs.segment_ids[:, :width])


def _padded(inputs: Inputs, rows: int, cls_id: int) -> Inputs:
    """With rows of [CLS] alone after the others."""
    count = len(inputs.ids)
    ids, segment_ids = (np.pad(part, ((0, rows - count), (0, 0))) for part in inputs)
    ids[count:, 0] = cls_id
    return Inputs(ids, segment_ids)
