"""Answers questions with a fine-tuned retriever and span reader over an index, and says which documents answered."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Int64

from realm_jax.answering.documents import Documents
from realm_jax.data.inputs import Inputs, SpecialIds, query_inputs
from realm_jax.models import RetrieverConfig, SpanReader, SpanReaderConfig, span_bounds
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.index import Index

_LENGTH_STEP = 64  # reader inputs are padded to multiples of it: few programs, little padding


class Span(NamedTuple):
    """A run of characters of a document's text."""

    start: int
    end: int
    text: str
    score: float  # span logit + retrieval score, as the reader ranks spans of all documents
    prob: float  # of all spans of all documents read


class WeighedDocument(NamedTuple):
    """A document that was read."""

    document: int  # -1: the null document
    title: str
    text: str
    retrieval_score: float
    prob: float  # p(z|x) over the documents read and the null document
    best_span: Span | None  # None of the null document, and of a document without text


class Answer(NamedTuple):
    """The best span of all documents read; `text` is empty where nothing could be read."""

    question: str
    text: str
    prob: float
    documents: tuple[WeighedDocument, ...]  # best first, the null document last

    @property
    def document(self) -> WeighedDocument | None:
        """The document that answered."""
        spans = [(found.best_span.score, -rank) for rank, found in enumerate(self.documents) if found.best_span]
        return self.documents[-max(spans)[1]] if spans else None


@functools.partial(jax.jit, static_argnames="config")
def read_spans(
    params: Mapping[str, Any],
    ids: Int32[Array, "rows length"],
    segment_ids: Int32[Array, "rows length"],
    *,
    config: SpanReaderConfig,
) -> Float[Array, "rows num_spans"]:
    """Span logits of reader inputs."""
    logits: Any = SpanReader(config).apply({"params": params}, ids, segment_ids, ids != 0)
    return logits


class Answerer:
    """A retriever, an index and a reader, ready to be asked."""

    def __init__(
        self,
        documents: Documents,
        index: Index,
        retriever: RetrieverConfig,
        reader: SpanReaderConfig,
        params: Mapping[str, Any],
        *,
        query_len: int = 64,
        joint_len: int = 320,
        num_read: int = 5,
    ):
        """Args:
        documents: what the index's ids stand for.
        index: of these documents, embedded by this retriever's document encoder.
        retriever: shape of the retriever.
        reader: shape of the reader.
        params: of both, as a checkpoint of open QA holds them.
        query_len: pieces of `[CLS] question [SEP]`; longer questions are cut.
        joint_len: pieces of `[CLS] question [SEP] document [SEP]`; longer documents are cut.
        num_read: documents read for a question.

        Raises:
          ValueError: parameters of other shapes, or an index of another width.
        """
        missing = [name for name in ("retriever", "span_reader") if name not in params]
        if missing:
            raise ValueError(
                f"answering needs a retriever and a span reader, got {', '.join(params)} without {', '.join(missing)}; "
                "name a run that was fine-tuned on questions (task open_qa)"
            )
        self.documents, self.index = documents, index
        self._embedder = Embedder(retriever, params["retriever"])
        self._reader_params = jax.device_put(params["span_reader"])
        self._reader = reader
        self._query_len, self._joint_len, self._num_read = query_len, joint_len, num_read
        self._special = SpecialIds.of(documents.tokenizer)
        null_ids = np.array([[self._special.cls, self._special.sep, self._special.sep]], np.int32)
        rows = self._embedder.rounded(1)
        null = self._embedder.embed_documents(
            np.repeat(null_ids, rows, 0), np.repeat([[0, 0, 1]], rows, 0).astype(np.int32)
        )
        self._null_embed = np.asarray(null)[0]
        self._read = functools.partial(read_spans, config=reader)
        if index.embed_dim != len(self._null_embed):
            raise ValueError(
                f"the index has embeddings of {index.embed_dim}, this retriever makes {len(self._null_embed)}; "
                "use the index that the run was trained with"
            )

    def embed(self, questions: Sequence[str]) -> Float32[np.ndarray, "batch embed"]:
        """Embeddings of questions."""
        return self._embed(self._query(questions))

    def answer(
        self,
        questions: Sequence[str],
        find: Callable[[Sequence[str], int], Int64[np.ndarray, "batch num_read"]] | None = None,
    ) -> list[Answer]:
        """Answers questions together.

        Args:
          questions: texts; padding with none.
          find: ids of the documents to read instead of those that the retriever finds (BM25, say); they are weighed by the
            retriever all the same, since the reader was trained with its scores.
        """
        if not questions:
            return []
        query = self._query(questions)
        embeds = self._embed(query)
        ids = self.index.search(embeds, self._num_read).ids if find is None else find(questions, self._num_read)
        scores = np.einsum("be,bke->bk", embeds, self.index.embeddings(ids))
        scores = np.where(ids >= 0, scores, -np.inf).astype(np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")
        ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
        joint = self.documents.joint(query.ids, ids, self._joint_len, self._special)
        logits = self._span_logits(joint)
        null_scores = embeds @ self._null_embed
        return [
            self._one(
                question,
                ids[row],
                scores[row],
                float(null_scores[row]),
                joint.ids[row],
                joint.segment_ids[row],
                logits[row],
            )
            for row, question in enumerate(questions)
        ]

    def _query(self, questions: Sequence[str]) -> Inputs:
        pieces = [encoding.ids for encoding in self.documents.tokenizer.encode_batch(list(questions))]
        return query_inputs(pieces, self._query_len, self._special)

    def _embed(self, query: Inputs) -> np.ndarray:
        count = len(query.ids)
        rows = self._embedder.rounded(1 << max(count - 1, 0).bit_length())  # few shapes whatever callers ask
        padded = [np.pad(part, ((0, rows - count), (0, 0))) for part in query]
        padded[0][count:, 0] = self._special.cls
        return np.asarray(self._embedder.embed_queries(*padded))[:count]

    def _span_logits(self, joint: Inputs) -> np.ndarray:
        """[batch, num_read, num_spans] of the whole joint length, spans beyond the padded part at −inf."""
        batch, num_read, length = joint.ids.shape
        used = int((joint.ids != 0).any(axis=(0, 1)).nonzero()[0].max(initial=0)) + 1
        width = min(length, -(-used // _LENGTH_STEP) * _LENGTH_STEP)
        flat = [part[..., :width].reshape(batch * num_read, width) for part in joint]
        rows = 1 << max(batch - 1, 0).bit_length()
        padded = [np.pad(part, ((0, (rows - batch) * num_read), (0, 0))) for part in flat]
        padded[0][batch * num_read :, 0] = self._special.cls
        logits = np.asarray(self._read(self._reader_params, *padded))[: batch * num_read]
        return logits.reshape(batch, num_read, -1)

    def _one(
        self,
        question: str,
        ids: Int64[np.ndarray, "num_read"],
        scores: Float32[np.ndarray, "num_read"],
        null_score: float,
        joint_ids: Int32[np.ndarray, "num_read length"],
        segment_ids: Int32[np.ndarray, "num_read length"],
        logits: Float32[np.ndarray, "num_read num_spans"],
    ) -> Answer:
        width = _width_of(logits.shape[1], self._reader.max_span_width)
        inside = ((segment_ids == 1) & (joint_ids != self._special.sep))[:, :width]
        starts, ends = span_bounds(width, self._reader.max_span_width)
        usable = inside[:, starts] & inside[:, ends] & (ids >= 0)[:, None]
        ranked = np.where(usable, logits + np.where(ids >= 0, scores, 0.0)[:, None], -np.inf)
        total = np.logaddexp.reduce(ranked.reshape(-1).astype(np.float64)) if usable.any() else 0.0
        with_null = np.append(scores, null_score).astype(np.float64)
        probs = np.exp(with_null - np.logaddexp.reduce(with_null))
        documents = []
        for row in np.flatnonzero(ids >= 0):
            text = self.documents.text(int(ids[row]))
            span = None
            if usable[row].any():
                best = int(ranked[row].argmax())
                body = int(segment_ids[row].argmax())  # position of the document's first piece
                start, end = self.documents.characters(int(ids[row]), int(starts[best]) - body, int(ends[best]) - body)
                score = float(ranked[row, best])
                span = Span(start, end, text.text[start:end], score, float(np.exp(score - total)))
            documents.append(
                WeighedDocument(int(ids[row]), text.title, text.text, float(scores[row]), float(probs[row]), span)
            )
        documents.append(WeighedDocument(-1, "", "", null_score, float(probs[-1]), None))
        answer = Answer(question, "", 0.0, tuple(documents))
        best_span = answer.document.best_span if answer.document else None
        return answer if best_span is None else answer._replace(text=best_span.text, prob=best_span.prob)


def _width_of(num_spans: int, max_span_width: int) -> int:
    """The input length that has so many spans: the inverse of `len(span_bounds(length, max_span_width)[0])`."""
    width = 1
    while sum(max(width - w + 1, 0) for w in range(1, max_span_width + 1)) < num_spans:
        width += 1
    return width
