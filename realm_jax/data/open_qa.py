"""Batches of open-domain question answering: questions, and what retriever and reader see of their documents."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_spans import AnswerFinder, answer_spans
from realm_jax.data.inputs import Inputs, SpecialIds, document_inputs, joint_inputs, query_inputs
from realm_jax.data.order import ExampleOrder, batch_positions
from realm_jax.data.questions import Question


class QuestionExamples(NamedTuple):
    """Some rows of a batch before anything is retrieved for them."""

    query: Inputs  # [CLS] question [SEP]
    questions: tuple[Question, ...]


class OpenQaBatch(NamedTuple):
    """Questions joined with their documents."""

    query: Inputs  # [batch, query_len]
    retrieved_embeds: Float32[np.ndarray, "batch num_retrieved embed"]  # of the index; those read come first
    retrieved_mask: Bool[np.ndarray, "batch num_retrieved"]
    has_answer: Bool[np.ndarray, "batch num_retrieved"]
    joint: Inputs  # [batch, num_read, joint_len]
    is_answer: Bool[np.ndarray, "batch num_read num_spans"]
    documents: Inputs  # [batch, num_encoded, document_len] what the document encoder embeds afresh; may have no rows
    is_positive: Bool[np.ndarray, "batch num_contrasted"]  # of the contrasted documents, the last of `documents`
    contrasted_mask: Bool[np.ndarray, "batch num_contrasted"]
    contrasted_ids: Int32[np.ndarray, "batch num_contrasted"]


class OpenQuestions:
    """Questions in shuffled epochs: a pure function of (seed, step, row)."""

    def __init__(self, questions: tuple[Question, ...], corpus: Corpus, *, query_len: int, seed: int):
        tokenizer = corpus.tokenizer
        self._questions, self._query_len = questions, query_len
        self._special = SpecialIds.of(tokenizer)
        self._pieces = [encoding.ids for encoding in tokenizer.encode_batch([question.text for question in questions])]
        self._order = ExampleOrder(len(questions), seed)

    def batch(self, step: int, batch_size: int, rows: slice) -> QuestionExamples:
        """The given rows of the batch of a step."""
        chosen = self._order(batch_positions(step, batch_size, rows)).tolist()
        query = query_inputs([self._pieces[number] for number in chosen], self._query_len, self._special)
        return QuestionExamples(query, tuple(self._questions[number] for number in chosen))


class DocumentJoiner:
    """Lays out a question's documents for the reader and the document encoder, and marks the answers in them."""

    def __init__(
        self,
        corpus: Corpus,
        finder: AnswerFinder,
        *,
        num_read: int,
        joint_len: int,
        max_span_width: int,
        document_len: int,
        encode_read: bool,
        num_hard_negatives: int,
    ):
        """Args:
        corpus: the knowledge corpus.
        finder: of answers in it.
        num_read: documents that the reader reads (its beam).
        joint_len: pieces of `[CLS] x [SEP] z [SEP]`.
        max_span_width: pieces of the widest span.
        document_len: pieces of `[CLS] title [SEP] body [SEP]`.
        encode_read: whether the documents read are embedded afresh (a trained document side).
        num_hard_negatives: retrieved documents without an answer that each question is contrasted with; 0 for none.
        """
        self._corpus, self._finder = corpus, finder
        self._num_read, self._joint_len, self._max_span_width = num_read, joint_len, max_span_width
        self._document_len, self._encode_read = document_len, encode_read
        self._num_contrasted = 1 + num_hard_negatives if num_hard_negatives else 0
        self._special = SpecialIds.of(corpus.tokenizer)

    def __call__(
        self,
        examples: QuestionExamples,
        document_ids: Int64[np.ndarray, "batch num_retrieved"],
        embeds: Float32[np.ndarray, "batch num_retrieved embed"],
    ) -> OpenQaBatch:
        """Joins questions with their retrieved documents, best first; -1 stands for none."""
        has_answer = np.stack(
            [
                self._finder.has_answer(question, ids)
                for question, ids in zip(examples.questions, document_ids, strict=True)
            ]
        )
        read = document_ids[:, : self._num_read]
        joint = joint_inputs(examples.query.ids, self._corpus, read, self._joint_len, self._special)
        contrasted = np.stack([
            self._contrast(question, ids, flags)
            for question, ids, flags in zip(examples.questions, document_ids, has_answer, strict=True)
        ])  # fmt: skip
        encoded = np.concatenate([read if self._encode_read else read[:, :0], contrasted], axis=1)
        documents = document_inputs(self._corpus, encoded.reshape(-1), self._document_len, self._special)
        shape = (*encoded.shape, self._document_len)
        return OpenQaBatch(
            query=examples.query,
            retrieved_embeds=embeds,
            retrieved_mask=document_ids >= 0,
            has_answer=has_answer,
            joint=joint,
            is_answer=self._answers(examples.questions, read, joint),
            documents=Inputs(documents.ids.reshape(shape), documents.segment_ids.reshape(shape)),
            is_positive=np.broadcast_to(np.arange(self._num_contrasted) == 0, contrasted.shape) & (contrasted >= 0),
            contrasted_mask=contrasted >= 0,
            contrasted_ids=contrasted.astype(np.int32),
        )

    def gold_blocks(self, question: Question) -> Int64[np.ndarray, "blocks"]:
        """The blocks of a question's gold passage that hold an answer; none where no passage is known."""
        if question.gold_passage is None:
            return np.zeros(0, np.int64)
        blocks = self._corpus.documents_of(question.gold_passage)
        return blocks[self._finder.has_answer(question, blocks)]

    def _answers(self, questions: tuple[Question, ...], read: np.ndarray, joint: Inputs) -> np.ndarray:
        in_document = (joint.segment_ids == 1) & (joint.ids != self._special.sep)
        return np.stack([
            answer_spans(
                ids, inside, self._finder.pieces(question, documents.tolist()), self._max_span_width, self._finder.edges
            )
            & (documents >= 0)[:, None]
            for question, documents, ids, inside in zip(questions, read, joint.ids, in_document, strict=True)
        ])  # fmt: skip

    def _contrast(self, question: Question, ids: np.ndarray, has_answer: np.ndarray) -> np.ndarray:
        """The positive (a gold block that holds an answer, else the best retrieved one that does), then hard negatives."""
        chosen = np.full(self._num_contrasted, -1, np.int64)
        if self._num_contrasted:
            gold = self.gold_blocks(question)
            answering = gold if len(gold) else ids[has_answer]
            negatives = ids[(ids >= 0) & ~has_answer & ~np.isin(ids, gold)][: self._num_contrasted - 1]
            chosen[: min(1, len(answering))] = answering[:1]
            chosen[1 : 1 + len(negatives)] = negatives
        return chosen
