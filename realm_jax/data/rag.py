"""Batches of retrieval-augmented generation: questions, what the generator reads of their documents, and what it shall write.

The generator reads `[bos] title / body // question [eos]`, as released (RAG, arXiv:2005.11401), for every document apart.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_spans import AnswerFinder
from realm_jax.data.inputs import Inputs, SpecialIds, document_inputs, place_rows, query_inputs
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng
from realm_jax.data.questions import Question
from realm_jax.models import EncoderDecoderConfig
from realm_jax.text.generator_tokenizer import GeneratorTokenizer


class RagExamples(NamedTuple):
    """Some rows of a batch before anything is retrieved for them."""

    query: Inputs  # [CLS] question [SEP], for the retriever
    questions: tuple[Question, ...]
    pieces: tuple[Int32[np.ndarray, "_"], ...]  # of the questions, for the generator
    target_pieces: tuple[Int32[np.ndarray, "_"], ...]  # of the answer to write


class RagBatch(NamedTuple):
    """Questions joined with their documents, best first."""

    query: Inputs  # [batch, query_len]
    retrieved_embeds: Float32[np.ndarray, "batch num_documents embed"]  # of the index
    document_mask: Bool[np.ndarray, "batch num_documents"]
    source_ids: Int32[np.ndarray, "batch num_documents source_len"]
    target_inputs: Int32[
        np.ndarray, "batch target_len"
    ]  # what the decoder reads: its start, then the target but for the last
    targets: Int32[np.ndarray, "batch target_len"]
    target_mask: Bool[np.ndarray, "batch target_len"]
    has_answer: Bool[np.ndarray, "batch num_documents"]
    documents: Inputs  # [batch, num_encoded, document_len], what the document encoder embeds afresh; may have no rows


class SourceFormat(NamedTuple):
    """How the generator's input is put together."""

    bos: int
    eos: int
    pad: int
    after_title: Int32[np.ndarray, "_"]
    after_document: Int32[np.ndarray, "_"]

    @classmethod
    def of(cls, tokenizer: GeneratorTokenizer, after_title: str = " /", after_document: str = " //") -> "SourceFormat":
        """With the pieces of the separators; what follows one begins with its own space."""
        first, second = tokenizer.encode_batch([after_title, after_document])
        return cls(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, first.ids, second.ids)

    @property
    def overhead(self) -> int:
        """Pieces of an input beside title, body and question."""
        return 2 + len(self.after_title) + len(self.after_document)


def sources(
    pieces: DocumentPieces,
    document_ids: Int64[np.ndarray, "batch num_documents"],
    questions: Sequence[Int32[np.ndarray, "_"]],
    source_len: int,
    form: SourceFormat,
) -> Int32[np.ndarray, "batch num_documents source_len"]:
    """`[bos] title / body // question [eos]`, padded.

    What does not fit is cut from the body's end, then the title's, and only then the question's: the released code cuts the
    end of the whole, which is the question. A document without a title has no separator after it. An id of -1, no document,
    gives `[bos] question [eos]`.
    """
    num_documents = document_ids.shape[1]
    flat = document_ids.reshape(-1)
    there = flat >= 0
    question_lens = np.minimum(np.asarray([len(ids) for ids in questions], np.int64), source_len - form.overhead)
    question_rows = np.zeros((len(questions), int(question_lens.max(initial=0))), np.int32)
    for row, ids in enumerate(questions):
        question_rows[row, : question_lens[row]] = ids[: question_lens[row]]
    question_rows, question_lens = (np.repeat(array, num_documents, axis=0) for array in (question_rows, question_lens))
    room = source_len - form.overhead - question_lens
    title_lens = np.minimum(pieces.titles.lengths(flat), room)
    body_lens = np.minimum(pieces.bodies.lengths(flat), room - title_lens)
    titles = pieces.titles.gather(flat, int(title_lens.max(initial=0)))
    bodies = pieces.bodies.gather(flat, int(body_lens.max(initial=0)))
    ids = np.full((len(flat), source_len), form.pad, np.int32)
    ids[:, 0] = form.bos
    at = np.ones(len(flat), np.int64)
    for values, lengths in (
        (titles, title_lens),
        _repeated(form.after_title, title_lens > 0),
        (bodies, body_lens),
        _repeated(form.after_document, there),
        (question_rows, question_lens),
        _repeated(np.asarray([form.eos], np.int32), np.ones(len(flat), bool)),
    ):
        place_rows(ids, at, values, lengths)
        at = at + lengths
    return ids.reshape(len(questions), num_documents, source_len)


def _repeated(ids: Int32[np.ndarray, "_"], rows: Bool[np.ndarray, "rows"]) -> tuple[np.ndarray, np.ndarray]:
    """The same pieces for the chosen rows, none for the others."""
    return np.broadcast_to(ids, (len(rows), len(ids))), np.where(rows, len(ids), 0)


class Targets(NamedTuple):
    """What the decoder reads and what it shall write."""

    inputs: Int32[np.ndarray, "batch target_len"]
    ids: Int32[np.ndarray, "batch target_len"]
    mask: Bool[np.ndarray, "batch target_len"]


def targets(pieces: Sequence[Int32[np.ndarray, "_"]], target_len: int, generator: EncoderDecoderConfig) -> Targets:
    """`y [eos]`, with the token in front that generation is made to begin with, if there is one; cut so that [eos] fits.

    A text without pieces is a row without target.
    """
    inputs, ids = np.full((2, len(pieces), target_len), generator.pad_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    front = [] if generator.forced_bos_id is None else [generator.forced_bos_id]
    for row, text in enumerate(pieces):
        if len(text):
            target = [*front, *text[: target_len - len(front) - 1].tolist(), generator.eos_id]
            ids[row, : len(target)] = target
            inputs[row, : len(target)] = [generator.decoder_start_id, *target[:-1]]
            mask[row, : len(target)] = True
    return Targets(inputs, ids, mask)


class RagQuestions:
    """Questions in shuffled epochs, each with one of its answers to write: a pure function of (seed, step, row)."""

    def __init__(
        self,
        questions: tuple[Question, ...],
        corpus: Corpus,
        tokenizer: GeneratorTokenizer,
        *,
        query_len: int,
        seed: int,
    ):
        self._questions, self._query_len, self._seed = questions, query_len, seed
        self._special = SpecialIds.of(corpus.tokenizer)
        self._query_pieces = [encoding.ids for encoding in corpus.tokenizer.encode_batch([q.text for q in questions])]
        self._pieces = [encoding.ids for encoding in tokenizer.encode_batch([f" {q.text}" for q in questions])]
        # with the space before it, as words in documents have it: byte-level pieces of a text's first word are others
        answers = [f" {answer}" for question in questions for answer in question.answers]
        self._answers = [encoding.ids for encoding in tokenizer.encode_batch(answers)]
        self._first = np.cumsum([0, *(len(question.answers) for question in questions)])
        self._order = ExampleOrder(len(questions), seed)

    def batch(self, step: int, batch_size: int, rows: slice) -> RagExamples:
        """The given rows of the batch of a step."""
        positions = batch_positions(step, batch_size, rows)
        chosen = self._order(positions).tolist()
        answers = []
        for position, number in zip(positions.tolist(), chosen, strict=True):
            first, stop = int(self._first[number]), int(self._first[number + 1])
            which = int(example_rng(self._seed, position).integers(first, stop)) if stop - first > 1 else first
            answers.append(self._answers[which])
        query = query_inputs([self._query_pieces[number] for number in chosen], self._query_len, self._special)
        return RagExamples(
            query,
            tuple(self._questions[number] for number in chosen),
            tuple(self._pieces[number] for number in chosen),
            tuple(answers),
        )


class RagJoiner:
    """Lays out a question's documents for the generator, and for the document encoder where that is trained."""

    def __init__(
        self,
        corpus: Corpus,
        pieces: DocumentPieces,
        finder: AnswerFinder,
        form: SourceFormat,
        generator: EncoderDecoderConfig,
        *,
        source_len: int,
        target_len: int,
        document_len: int,
        encode_documents: bool,
    ):
        """Args:
        corpus: the knowledge corpus.
        pieces: its documents, for the generator.
        finder: of answers in it, for the metrics.
        form: of the generator's input.
        generator: whose special ids the targets have.
        source_len: pieces of the generator's input.
        target_len: pieces of what it writes.
        document_len: pieces of `[CLS] title [SEP] body [SEP]`.
        encode_documents: whether documents are embedded afresh (a trained document side).
        """
        self._corpus, self._pieces, self._finder, self._form, self._generator = corpus, pieces, finder, form, generator
        self._source_len, self._target_len, self._document_len = source_len, target_len, document_len
        self._encode_documents = encode_documents
        self._special = SpecialIds.of(corpus.tokenizer)

    def __call__(
        self,
        examples: RagExamples,
        document_ids: Int64[np.ndarray, "batch num_documents"],
        embeds: Float32[np.ndarray, "batch num_documents embed"],
    ) -> RagBatch:
        """Joins questions with their retrieved documents, best first; a negative id stands for none."""
        encoded = document_ids if self._encode_documents else document_ids[:, :0]
        documents = document_inputs(self._corpus, encoded.reshape(-1), self._document_len, self._special)
        shape = (*encoded.shape, self._document_len)
        target = targets(examples.target_pieces, self._target_len, self._generator)
        return RagBatch(
            query=examples.query,
            retrieved_embeds=embeds,
            document_mask=document_ids >= 0,
            source_ids=sources(self._pieces, document_ids, examples.pieces, self._source_len, self._form),
            target_inputs=target.inputs,
            targets=target.ids,
            target_mask=target.mask,
            has_answer=np.stack(
                [
                    self._finder.has_answer(question, ids)
                    for question, ids in zip(examples.questions, document_ids, strict=True)
                ]
            ),
            documents=Inputs(documents.ids.reshape(shape), documents.segment_ids.reshape(shape)),
        )
