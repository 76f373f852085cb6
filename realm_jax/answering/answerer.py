"""Answers questions with a fine-tuned retriever and span reader over an index, and says which documents answered."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Int64

from realm_jax.answering.answer import Answer, Span, WeighedDocument
from realm_jax.answering.documents import Documents
from realm_jax.answering.retrieving import STEP, Find, OnStage, RetrievingAnswerer
from realm_jax.data.inputs import Inputs
from realm_jax.models import RetrieverConfig, SpanReader, SpanReaderConfig, span_bounds
from realm_jax.retrieval.index import Index
from realm_jax.training.snapshots import check_shapes

# Rows read at once: many fill an accelerator. Of a question's few documents two or three do: one alone takes a CPU with two
# cores up to twice as long a row, and more would be padded to a wider one.
_MANY_ROWS = (64, 8)


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


class Answerer(RetrievingAnswerer):
    """A retriever, an index and a span reader, ready to be asked. May be used from several threads."""

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
        document_len: int = 288,
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
        document_len: pieces of `[CLS] title [SEP] body [SEP]`, of documents that are embedded here.
        num_read: documents read for a question.

        Raises:
          ValueError: parameters of other shapes, an index of another width, lengths beyond the position tables.
        """
        missing = [name for name in ("retriever", "span_reader") if name not in params]
        if missing:
            raise ValueError(
                f"answering needs a retriever and a span reader, got {', '.join(params)} without {', '.join(missing)}; "
                "name a run that was fine-tuned on questions (task open_qa)"
            )
        if reader.encoder.positions == "learned" and joint_len > reader.encoder.max_length:
            raise ValueError(
                f"joint_len must be at most the encoder's max_length {reader.encoder.max_length}, got {joint_len}"
            )
        ids, mask = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1, 8), jnp.bool_)
        abstract = jax.eval_shape(SpanReader(reader).init, jax.random.key(0), ids, ids, mask)["params"]
        remedy = "give the job the SpanReaderConfig that the run was trained with"
        check_shapes(abstract, params["span_reader"], "span reader", remedy)
        super().__init__(
            documents, index, retriever, params["retriever"],
            query_len=query_len, document_len=document_len, num_read=num_read,
        )  # fmt: skip
        if joint_len <= query_len:
            raise ValueError(f"joint_len must exceed query_len={query_len}, got {joint_len}")
        self._reader_params = jax.device_put(params["span_reader"])
        self._max_span_width = reader.max_span_width
        self._joint_len = joint_len
        self._null_embed = self.embed_documents([np.zeros(0, np.int32)], [np.zeros(0, np.int32)])[0]
        self._read = functools.partial(read_spans, config=reader)

    def answer(
        self, questions: Sequence[str], find: Find | None = None, on_stage: OnStage = lambda stage: None
    ) -> list[Answer]:
        """Answers questions together, with spans of their documents; see `RetrievingAnswerer.answer`."""
        if not questions:
            return []
        pieces, query, embeds, ids, scores = self.retrieve(questions, find, on_stage)
        joint = self.documents.joint(query.ids, ids, self._joint_len, self._special)
        on_stage("gather")
        logits, widths = self._span_logits(joint, ids >= 0)
        on_stage("read")
        null_scores = embeds @ self._null_embed
        answers = []
        for row, question in enumerate(questions):
            inputs = Inputs(joint.ids[row], joint.segment_ids[row])
            read = (inputs, logits[row], widths[row].tolist())
            answer = self._choose(question, ids[row], scores[row], float(null_scores[row]), *read)
            answers.append(answer._replace(pieces_left_out=self.pieces_left_out(pieces[row])))
        on_stage("choose")
        return answers

    def _span_logits(self, joint: Inputs, present: np.ndarray) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """Of each question and document the logits of all spans of the width at which it was read, and these widths; none,
        and 0, of a document that is not there.

        Documents of about one length are read together: what is computed for padding is computed for nothing.
        """
        batch, num_read, length = joint.ids.shape
        ids, segment_ids = (part.reshape(batch * num_read, length) for part in joint)
        used = (ids != 0).sum(axis=1)
        rows = np.flatnonzero(present.reshape(-1))
        rows = rows[np.argsort(-used[rows], kind="stable")]
        widths = np.zeros(len(ids), np.int64)
        started = []
        for count in _row_counts(len(rows)):
            now, rows = rows[:count], rows[count:]
            width = widths[now] = min(-(-used[now[0]] // STEP) * STEP, length)
            started.append((now, self._read(self._reader_params, ids[now, :width], segment_ids[now, :width])))
        logits = [np.zeros(0, np.float32) for _ in range(len(ids))]
        for now, found in started:
            for row, row_logits in zip(now.tolist(), np.asarray(found), strict=True):
                logits[row] = row_logits
        return [logits[first : first + num_read] for first in range(0, len(logits), num_read)], widths.reshape(
            batch, -1
        )

    def _choose(
        self,
        question: str,
        ids: Int64[np.ndarray, "num_read"],
        scores: Float32[np.ndarray, "num_read"],
        null_score: float,
        joint: Inputs,
        logits: list[np.ndarray],
        widths: list[int],
    ) -> Answer:
        """The answer, from what was found and read for one question."""
        found = np.flatnonzero(ids >= 0)
        ranked = {
            row: self._usable_scores(joint.ids[row], joint.segment_ids[row], logits[row], widths[row]) + scores[row]
            for row in found.tolist()
        }
        every = np.concatenate([np.zeros(0), *ranked.values()]).astype(np.float64)
        total = np.logaddexp.reduce(every) if np.isfinite(every).any() else 0.0
        with_null = np.append(scores, null_score).astype(np.float64)
        probs = np.exp(with_null - np.logaddexp.reduce(with_null))
        documents = []
        for row, span_scores in ranked.items():
            document, text = int(ids[row]), self.documents.text(int(ids[row]))
            span = None
            if len(span_scores) and np.isfinite(span_scores.max()):
                best = int(span_scores.argmax())
                starts, ends = span_bounds(widths[row], self._max_span_width)
                body = int(joint.segment_ids[row].argmax())  # position of the document's first piece
                start, end = self.documents.characters(document, int(starts[best]) - body, int(ends[best]) - body)
                score = float(span_scores[best])
                span = Span(start, end, text.text[start:end], score, float(np.exp(score - total)))
            documents.append(
                WeighedDocument(document, text.title, text.text, float(scores[row]), float(probs[row]), span)
            )
        documents.append(WeighedDocument(-1, "", "", null_score, float(probs[-1]), None))
        answer = Answer(question, "", 0.0, tuple(documents))
        best_span = answer.document.best_span if answer.document else None
        return answer if best_span is None else answer._replace(text=best_span.text, prob=best_span.prob)

    def _usable_scores(
        self, ids: Int32[np.ndarray, "length"], segment_ids: Int32[np.ndarray, "length"], logits: np.ndarray, width: int
    ) -> np.ndarray:
        """The logits, -inf where a span does not lie in the document's text."""
        starts, ends = span_bounds(width, self._max_span_width)
        inside = ((segment_ids == 1) & (ids != self._special.sep))[:width]
        return np.where(inside[starts] & inside[ends], logits, -np.inf)


def _row_counts(num_rows: int) -> Iterator[int]:
    """How many rows are read at once, again and again, until all are: few shapes, and no row alone if there are two."""
    for count in _MANY_ROWS:
        while num_rows >= count:
            yield count
            num_rows -= count
    while num_rows:
        count = 3 if num_rows == 3 else min(2, num_rows)
        yield count
        num_rows -= count
