"""Open-domain question answering by extraction: ORQA's fine-tuning, as REALM uses it (Lee, Chang and Toutanova 2019,
arXiv:1906.00300; Guu et al. 2020, arXiv:2002.08909, section 3.2).

A question retrieves its best documents (5000 in the papers). Those that hold an answer are raised at once (the *early
update*), and the best few (5) are read: every short span of them gets a score, its document's retrieval score is added,
and the probability of the spans that are an answer is raised, over all spans of all documents read.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64

from realm_jax import losses
from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_spans import AnswerFinder
from realm_jax.data.inputs import Inputs, SpecialIds
from realm_jax.data.open_qa import DocumentJoiner, OpenQaBatch, OpenQuestions, QuestionExamples
from realm_jax.data.question_splits import training_questions
from realm_jax.data.questions import Question
from realm_jax.losses import WeightedSum
from realm_jax.models import Retriever, RetrieverConfig, SpanReader, SpanReaderConfig, span_bounds
from realm_jax.retrieval.index import SearchResult
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.realm import embed_queries
from realm_jax.tasks.task import (
    EncoderPass,
    Metrics,
    Params,
    Program,
    Retrieval,
    Task,
    array_shape,
    fingerprints,
    input_shapes,
    untied,
)
from realm_jax.training.rng import dropout_rngs
from realm_jax.typed import check_fields


def span_mask(joint: Inputs, sep_id: int, max_span_width: int) -> Bool[Array, "*rows num_spans"]:
    """The spans that lie in the document's text: both ends of segment 1 and before its [SEP]."""
    inside = (joint.segment_ids == 1) & (joint.ids != sep_id)
    starts, ends = span_bounds(joint.ids.shape[-1], max_span_width)
    return inside[..., starts] & inside[..., ends]


def read(
    params: Params, joint: Inputs, rng: jax.Array | None, config: SpanReaderConfig
) -> Float[Array, "batch num_read num_spans"]:
    """Span logits of `[CLS] question [SEP] document [SEP]` for every document read."""
    shape = joint.ids.shape
    ids, segment_ids = joint.ids.reshape(-1, shape[-1]), joint.segment_ids.reshape(-1, shape[-1])
    logits: Any = SpanReader(config).apply(
        {"params": params["span_reader"]}, ids, segment_ids, ids != 0, rng is None, rngs=dropout_rngs(rng, 3)
    )
    return logits.reshape(*shape[:-1], -1)


def open_qa_loss(
    params: Params,
    batch: OpenQaBatch,
    rng: jax.Array | None,
    *,
    retriever: RetrieverConfig,
    reader: SpanReaderConfig,
    sep_id: int,
    train_documents: bool,
    contrastive_weight: float,
) -> tuple[WeightedSum, Metrics]:
    """Reader loss + early-update loss (ORQA, section 4), and with hard negatives the contrastive one beside them.

    The retriever's scores are those of today's question encoder; the documents' embeddings are the index's or, of the
    documents read by a retriever whose document side is trained, today's.
    """

    def embed(inputs: Inputs, method: str, stream: int) -> Any:
        return Retriever(retriever).apply(
            {"params": params["retriever"]}, inputs.ids, inputs.segment_ids, inputs.ids != 0, rng is None,
            method=method, rngs=dropout_rngs(rng, stream),
        )  # fmt: skip

    num_questions, num_read, _ = batch.joint.ids.shape
    query_embeds = embed(batch.query, "embed_queries", 0)
    # [batch, num_retrieved]
    retrieval_scores = jnp.einsum("be,bke->bk", query_embeds, batch.retrieved_embeds)
    num_encoded, document_len = batch.documents.ids.shape[1:]
    if num_encoded:
        flat = Inputs(*(part.reshape(-1, document_len) for part in batch.documents))
        encoded = embed(flat, "embed_documents", 1).reshape(num_questions, num_encoded, -1)
        if not train_documents:  # the document encoder of the index, as it was
            encoded = jax.lax.stop_gradient(encoded)
    if train_documents:
        fresh = jnp.einsum("be,bke->bk", query_embeds, encoded[:, :num_read])
        retrieval_scores = jnp.concatenate([fresh, retrieval_scores[:, num_read:]], axis=1)

    read_mask = span_mask(batch.joint, sep_id, reader.max_span_width) & batch.retrieved_mask[:, :num_read, None]
    span_logits = read(params, batch.joint, rng, reader)
    reader_loss, reader_learns = losses.span_marginal_loss(
        span_logits, retrieval_scores[:, :num_read], read_mask, batch.is_answer
    )
    retriever_loss, retriever_learns = losses.early_update_loss(
        retrieval_scores, batch.retrieved_mask, batch.has_answer
    )
    loss = WeightedSum(reader_loss.total + retriever_loss.total, reader_loss.weight)
    metrics: Metrics = {
        "reader_loss": WeightedSum(reader_loss.total, reader_learns.sum()),
        "early_update_loss": WeightedSum(retriever_loss.total, retriever_learns.sum()),
        "answer_read": WeightedSum(reader_learns.sum(), loss.weight),
        "answer_retrieved": WeightedSum(retriever_learns.sum(), loss.weight),
        "answer_first": WeightedSum(batch.has_answer[:, 0].sum().astype(jnp.float32), loss.weight),
        "best_span_right": _best_span_right(span_logits, retrieval_scores[:, :num_read], read_mask, batch.is_answer),
    }
    log_probs = losses.candidate_log_probs(retrieval_scores[:, :num_read], batch.retrieved_mask[:, :num_read])
    metrics["retrieval_entropy"] = WeightedSum(losses.retrieval_entropy(log_probs).sum(), loss.weight)
    if batch.contrasted_ids.shape[1]:
        contrast, hits = losses.contrastive_loss(
            query_embeds,
            encoded[:, num_encoded - batch.contrasted_ids.shape[1] :],
            batch.contrasted_ids,
            batch.contrasted_mask,
            batch.is_positive,
        )
        loss = WeightedSum(loss.total + contrastive_weight * contrast.total, loss.weight)
        positives = batch.is_positive.any(axis=1).sum().astype(jnp.float32)
        metrics |= {
            "contrastive_loss": WeightedSum(contrast.total, positives),
            "in_batch_accuracy": WeightedSum(hits.sum(), positives),
        }
    return loss, metrics


def _best_span_right(
    span_logits: Float[Array, "batch num_read num_spans"],
    retrieval_scores: Float[Array, "batch num_read"],
    mask: Bool[Array, "batch num_read num_spans"],
    is_answer: Bool[Array, "batch num_read num_spans"],
) -> WeightedSum:
    """Share of questions whose best span is an answer: exact match as the training data sees it."""
    scores = jnp.where(mask, span_logits + retrieval_scores[:, :, None], losses.MASKED_SCORE)
    rows = scores.reshape(scores.shape[0], -1)
    best = jnp.argmax(rows, axis=1)
    right = jnp.take_along_axis((is_answer & mask).reshape(rows.shape), best[:, None], axis=1)
    return WeightedSum(right.sum().astype(jnp.float32), jnp.float32(rows.shape[0]))


@dataclasses.dataclass(frozen=True)
class OpenQa:
    """Settings of open-domain QA; the defaults are ORQA's and REALM's (with learning rate 1e-5, 20 epochs, batch 1).

    The retriever has a question and a document encoder of their own (`RetrieverConfig.tied=False`); a tied one that was
    pre-trained warm-starts both. With `train_documents=False`, as published, the document encoder and the index stay as
    they are: use `RefreshConfig.mode="frozen"`.
    """

    name: ClassVar[str] = "open_qa"

    corpus: str
    questions: str | tuple[str, ...]
    retriever: RetrieverConfig
    reader: SpanReaderConfig
    num_retrieved: int = 5000  # the retriever's beam
    num_read: int = 5  # the reader's beam
    query_len: int = 64
    joint_len: int = 320
    document_len: int = 288
    train_documents: bool = False
    answers: Literal["all", "first"] = "all"  # which reference answers are looked for in documents
    answers_are_regex: bool | None = None  # for files of patterns that do not say so; None believes the files
    held_out: str | tuple[str, ...] = ()  # files of questions that are left out of training wherever they are asked
    num_held_out: int = 0  # of each file, chosen by a hash of the question, left out too (ORQA's 361 and 133)
    gold_passages: bool = (
        False  # beyond the papers: a gold block that was not found is read in the place of the last one
    )
    num_hard_negatives: int = (
        0  # beyond the papers: documents of the current index without an answer, contrasted as in DPR
    )
    contrastive_weight: float = 1.0  # of that loss
    max_remembered_answers: int = 20_000_000  # (question, document) pairs whose answer is remembered, 9 bytes each

    def __post_init__(self) -> None:
        check_fields(self)
        if self.retriever.tied:
            raise ValueError(
                "OpenQa.retriever: expected tied=False, since the question encoder is trained apart from the document "
                "encoder that the index was made with; a tied checkpoint warm-starts both halves"
            )
        if not 1 <= self.num_read <= self.num_retrieved:
            raise ValueError(
                f"OpenQa.num_read must lie between 1 and num_retrieved={self.num_retrieved}, got {self.num_read}"
            )
        if self.joint_len <= self.query_len:
            raise ValueError(f"OpenQa.joint_len must exceed query_len={self.query_len}, got {self.joint_len}")
        if self.num_held_out < 0:
            raise ValueError(f"OpenQa.num_held_out must be 0 or more, got {self.num_held_out}")
        if self.num_hard_negatives < 0:
            raise ValueError(f"OpenQa.num_hard_negatives must be 0 or more, got {self.num_hard_negatives}")

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        check_vocabulary(corpus, self.retriever.encoder.vocab_size, "retriever")
        check_vocabulary(corpus, self.reader.encoder.vocab_size, "reader")
        if self.num_retrieved > corpus.num_documents:
            raise ValueError(
                f"OpenQa.num_retrieved={self.num_retrieved}, but the corpus has {corpus.num_documents} documents; "
                "retrieve fewer"
            )
        examples = OpenQuestions(self.training_questions(), corpus, query_len=self.query_len, seed=seed)
        joiner = DocumentJoiner(
            corpus,
            AnswerFinder(corpus, lambda document: document_text(corpus, document)[1], self.max_remembered_answers),
            num_read=self.num_read,
            joint_len=self.joint_len,
            max_span_width=self.reader.max_span_width,
            document_len=self.document_len,
            encode_read=self.train_documents,
            num_hard_negatives=self.num_hard_negatives,
        )
        return self.program(SpecialIds.of(corpus.tokenizer)).task(
            examples.batch,
            _refuse_without_documents,
            data=fingerprints(corpus),
            adopt=adopt,
            retrieval=Retrieval(
                config=self.retriever,
                corpus=corpus,
                document_len=self.document_len,
                num_results=self.num_retrieved,
                queries=lambda found: found.query,
                embed_queries=functools.partial(embed_queries, config=self.retriever),
                retriever_params=lambda params: params["retriever"],
                select=functools.partial(select, joiner=joiner if self.gold_passages else None, num_read=self.num_read),
                join=_refuse_without_embeddings,
                join_embedded=joiner,
            ),
        )

    @property
    def learners(self) -> tuple[str, ...]:
        """What answers its questions."""
        return ("retriever", "span_reader")

    def known_questions(self) -> tuple[Question, ...]:
        """The questions that it was trained on."""
        return self.training_questions()

    def training_questions(self) -> tuple[Question, ...]:
        """See `data.question_splits.training_questions`."""
        return training_questions(
            self.questions,
            self.held_out,
            self.num_held_out,
            answers_are_regex=self.answers_are_regex,
            first_answer=self.answers == "first",
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it."""
        retriever, reader, num_encoded = self.retriever, self.reader, self._num_encoded()
        passes = [EncoderPass(retriever.encoder, 1, self.query_len)]
        if num_encoded:
            passes.append(EncoderPass(retriever.encoder, num_encoded, self.document_len))
        passes.append(EncoderPass(reader.encoder, self.num_read, self.joint_len))
        return Program(
            name=self.name,
            init=functools.partial(init_params, retriever=retriever, reader=reader),
            loss=functools.partial(
                open_qa_loss,
                retriever=retriever,
                reader=reader,
                sep_id=special.sep,
                train_documents=self.train_documents,
                contrastive_weight=self.contrastive_weight,
            ),
            batch_shapes=self._batch_shapes,
            passes=tuple(passes),
            tokens_per_example=sum(one.rows * one.length for one in passes),
            can_accumulate=self.num_hard_negatives == 0,
            frozen=() if self.train_documents else ("retriever/document_encoder",),
            retriever=retriever,
            query_len=self.query_len,
            document_len=self.document_len,
        )

    def _batch_shapes(self, batch_size: int) -> OpenQaBatch:
        num_spans = len(span_bounds(self.joint_len, self.reader.max_span_width)[0])

        def flags(*shape: int) -> Any:
            return array_shape(jnp.bool_, batch_size, *shape)

        return OpenQaBatch(
            query=input_shapes(batch_size, self.query_len),
            retrieved_embeds=array_shape(jnp.float32, batch_size, self.num_retrieved, self.retriever.embed_dim),
            retrieved_mask=flags(self.num_retrieved),
            has_answer=flags(self.num_retrieved),
            joint=input_shapes(batch_size, self.num_read, self.joint_len),
            is_answer=flags(self.num_read, num_spans),
            documents=input_shapes(batch_size, self._num_encoded(), self.document_len),
            is_positive=flags(self._num_contrasted()),
            contrasted_mask=flags(self._num_contrasted()),
            contrasted_ids=array_shape(jnp.int32, batch_size, self._num_contrasted()),
        )

    def _num_contrasted(self) -> int:
        """Documents of a question that DPR's loss contrasts: one with an answer, and those without."""
        return 1 + self.num_hard_negatives if self.num_hard_negatives else 0

    def _num_encoded(self) -> int:
        """Documents of a question that the document encoder embeds in a step."""
        return self.num_read * self.train_documents + self._num_contrasted()


def select(
    examples: QuestionExamples, results: SearchResult, *, joiner: DocumentJoiner | None = None, num_read: int = 0
) -> Int64[np.ndarray, "batch num_retrieved"]:
    """All that was found, best first: a question has no document of its own that must be left out.

    With a `joiner`, which knows where answers stand, the first of a question's gold blocks that holds an answer takes the
    place of the last document read if none of them is read. The document that stood there moves to the gold block's place,
    or is left out.
    """
    if joiner is None:
        return results.ids
    ids = results.ids.copy()
    for row, question in zip(ids, examples.questions, strict=True):
        gold = joiner.gold_blocks(question)
        if len(gold) and not np.isin(row[:num_read], gold).any():
            row[row == gold[0]] = row[num_read - 1]
            row[num_read - 1] = gold[0]
    return ids


def init_params(rng: jax.Array, *, retriever: RetrieverConfig, reader: SpanReaderConfig) -> Params:
    """Random parameters of retriever and reader."""
    retriever_rng, reader_rng = jax.random.split(rng)
    ids = jnp.ones((1, 16), jnp.int32)
    inputs = (ids, ids * 0, ids > 0)
    return {
        "retriever": Retriever(retriever).init(retriever_rng, *inputs)["params"],
        "span_reader": SpanReader(reader).init(reader_rng, *inputs)["params"],
    }


def adopt(found: Params) -> Params:
    """Another run's learners as those of open QA: a tied retriever becomes both encoders, and where there is no span reader
    the pre-trained knowledge-augmented encoder becomes the reader's (REALM, section 4.3)."""
    adopted = untied(found)
    if "span_reader" not in found and "knowledge_encoder" in found:
        adopted["span_reader"] = {"encoder": found["knowledge_encoder"]["encoder"]}
    return adopted


def _refuse_without_documents(examples: QuestionExamples) -> OpenQaBatch:
    raise AssertionError("open QA joins its questions with documents; the loop must use Task.retrieval")


def _refuse_without_embeddings(examples: Any, document_ids: np.ndarray) -> OpenQaBatch:
    raise AssertionError("open QA joins its questions with embedded documents; the loop must use join_embedded")
