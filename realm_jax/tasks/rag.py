"""Retrieval-augmented generation (Lewis et al. 2020, arXiv:2005.11401), and Fusion-in-Decoder (Izacard and Grave 2020,
arXiv:2007.01282) on the same parts.

A question retrieves its best documents. A sequence-to-sequence generator reads each with the question and gives the
probabilities of the answer's tokens, and the documents are marginalized: over whole answers (RAG-Sequence) or token by token
(RAG-Token). Its gradient trains the generator and, through p(z|x), the question encoder.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Int64

from realm_jax import losses
from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_spans import AnswerFinder
from realm_jax.data.inputs import NULL_DOCUMENT, Inputs, SpecialIds
from realm_jax.data.question_splits import training_questions
from realm_jax.data.questions import Question
from realm_jax.data.rag import RagBatch, RagExamples, RagJoiner, RagQuestions, SourceFormat
from realm_jax.generation import GenerationConfig
from realm_jax.generation.readers import GeneratorConfig, check_lengths
from realm_jax.losses import WeightedSum
from realm_jax.models import (
    EncoderDecoder,
    EncoderDecoderConfig,
    Retriever,
    RetrieverConfig,
)
from realm_jax.retrieval.index import SearchResult
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.realm import embed_queries
from realm_jax.tasks.task import (
    EncoderPass,
    Logits,
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
from realm_jax.text.generator_tokenizer import GeneratorTokenizer, as_generator_tokenizer
from realm_jax.text.loading import load_generator_tokenizer
from realm_jax.training.rng import dropout_rngs
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)

Marginal = Literal["sequence", "token", "joint"]


def generator_logits(
    params: Params,
    source_ids: Int32[Array, "batch num_documents source_len"],
    document_mask: Bool[Array, "batch num_documents"],
    target_inputs: Int32[Array, "batch target_len"],
    rng: jax.Array | None,
    *,
    generator: EncoderDecoderConfig,
    joint: bool,
) -> Float[Array, "batch num_read target_len vocab"]:
    """Logits of the target with teacher forcing: under each document, or (num_read = 1) under all of them together."""
    model, variables = EncoderDecoder(generator), {"params": params["generator"]}
    batch, num_documents, source_len = source_ids.shape
    flat = source_ids.reshape(-1, source_len)
    mask, deterministic = flat != generator.pad_id, rng is None
    hidden: Any = model.apply(variables, flat, mask, deterministic, method="encode", rngs=dropout_rngs(rng, 2))
    if joint:
        hidden = hidden.reshape(batch, num_documents * source_len, -1)
        mask = (mask.reshape(batch, num_documents, source_len) & _read(document_mask)[:, :, None]).reshape(batch, -1)
        inputs = target_inputs
    else:
        inputs = jnp.repeat(target_inputs, num_documents, axis=0)
    logits: Any = model.apply(
        variables, inputs, hidden, mask, deterministic, method="decode", rngs=dropout_rngs(rng, 3)
    )
    return logits.reshape(batch, -1, *logits.shape[1:])


def _read(document_mask: Bool[Array, "batch num_documents"]) -> Bool[Array, "batch num_documents"]:
    """The documents read together; where nothing was found the first, which is then the question alone."""
    first = jnp.arange(document_mask.shape[1]) == 0
    return document_mask | (first[None] & ~document_mask.any(axis=1, keepdims=True))


def rag_loss(
    params: Params,
    batch: RagBatch,
    rng: jax.Array | None,
    *,
    retriever: RetrieverConfig | None,
    generator: EncoderDecoderConfig,
    marginal: Marginal,
    train_documents: bool,
    label_smoothing: float,
    exclude_bos_score: bool = False,
) -> tuple[WeightedSum, Metrics]:
    """−log p(y|x), the documents marginalized (RAG, section 2.1), read together (FiD), or absent (`retriever` None).

    Scores are those of today's question encoder; the documents' embeddings are the index's or, where the document side is
    trained, today's. A question for which nothing was found is answered from itself alone.
    """
    logits = generator_logits(
        params, batch.source_ids, batch.document_mask, batch.target_inputs, rng, generator=generator, joint=marginal == "joint"
    )  # fmt: skip
    metrics: Metrics = {}
    log_probs = jnp.zeros(logits.shape[:2], jnp.float32)  # of the one reading, where documents are not marginalized
    if retriever is not None:
        afresh = batch.documents if train_documents else None
        scores = retrieval_scores(params, batch.query, batch.retrieved_embeds, afresh, rng, retriever)
        retrieved = losses.candidate_log_probs(scores, batch.document_mask)
        if marginal != "joint":
            log_probs = retrieved
        number = jnp.float32(batch.targets.shape[0])
        answers = batch.has_answer & batch.document_mask
        metrics = {
            "answer_retrieved": WeightedSum(answers.any(axis=1).sum().astype(jnp.float32), number),
            "answer_first": WeightedSum(answers[:, 0].sum().astype(jnp.float32), number),
            "retrieval_entropy": WeightedSum(losses.retrieval_entropy(retrieved).sum(), number),
        }
    of_target = (logits, log_probs, batch.targets, batch.target_mask)
    if marginal == "token":
        loss, log_likelihood = losses.rag_token_loss(*of_target, label_smoothing=label_smoothing)
    else:
        first = jnp.arange(batch.targets.shape[1])[None] == 0
        unscored = first & (batch.targets == generator.forced_bos_id) if exclude_bos_score else None
        loss, log_likelihood = losses.rag_sequence_loss(*of_target, label_smoothing=label_smoothing, unscored=unscored)
    has_target = batch.target_mask.any(axis=1)
    metrics["token_nll"] = WeightedSum(
        -jnp.where(has_target, log_likelihood, 0.0).sum(), batch.target_mask.sum().astype(jnp.float32)
    )
    return loss, metrics


def retrieval_scores(
    params: Params,
    query: Inputs,
    retrieved_embeds: Float[Array, "batch num_documents embed"],
    documents: Inputs | None,
    rng: jax.Array | None,
    retriever: RetrieverConfig,
) -> Float[Array, "batch num_documents"]:
    """d(z)ᵀ q(x) of the documents retrieved (RAG, section 2.2).

    Args:
      params: with a "retriever".
      query: [batch, query_len].
      retrieved_embeds: of the index.
      documents: [batch, num_documents, document_len], which are embedded afresh; None: scored are those of the index.
      rng: of dropout; None without.
      retriever: shape of the retriever.
    """

    def embed(inputs: Inputs, method: str, stream: int) -> Any:
        return Retriever(retriever).apply(
            {"params": params["retriever"]}, inputs.ids, inputs.segment_ids, inputs.ids != 0, rng is None,
            method=method, rngs=dropout_rngs(rng, stream),
        )  # fmt: skip

    document_embeds = retrieved_embeds
    if documents is not None:
        flat = Inputs(*(part.reshape(-1, part.shape[-1]) for part in documents))
        document_embeds = embed(flat, "embed_documents", 1).reshape(*documents.ids.shape[:2], -1)
    return jnp.einsum("be,bke->bk", embed(query, "embed_queries", 0), document_embeds)


@dataclasses.dataclass(frozen=True)
class Rag:
    """Settings of RAG; the defaults are those that the paper trains with, where it says them.

    The retriever has a question and a document encoder of their own, as DPR. As published the document encoder and the index
    stay as they are: use `RefreshConfig.mode="frozen"`. With `train_documents` the document encoder learns too, beyond the
    paper, and the index is refreshed as in REALM.

    Attributes:
      corpus: the knowledge corpus; with pieces of the generator's tokenizer, where that is another.
      questions: files of questions with answers; any text and the text to write for it will do.
      retriever: shape of the retriever; not used without documents.
      generator: shape of the generator.
      marginal: "sequence" and "token" are RAG's two models; "joint" is FiD: the decoder reads all documents at once, and its
        loss teaches the retriever nothing.
      generator_tokenizer: directory of the generator's tokenizer; empty: the corpus's.
      num_documents: retrieved for a question; 0 for a generator without retrieval.
      query_len: pieces of `[CLS] question [SEP]`.
      source_len: pieces of `[bos] title / body // question [eos]`, what the generator reads.
      target_len: pieces of what it writes, with its special ones.
      document_len: pieces of `[CLS] title [SEP] body [SEP]`, what the document encoder reads.
      train_documents: train the document encoder, too.
      label_smoothing: see `losses.rag_sequence_loss`.
      exclude_bos_score: a first token that every target has (`generator.forced_bos_id`) does not count, as the released RAG-Sequence
        can be told; not of RAG-Token, which always counts it.
      answers: which references are written: one of all drawn afresh each time, or always the first.
      held_out, num_held_out: see `tasks.open_qa.OpenQa`.
      generation: how a trained run writes answers; training does not read it.
      max_remembered_answers: (question, document) pairs of which it is remembered whether the answer stands there.
    """

    name: ClassVar[str] = "rag"

    corpus: str
    questions: str | tuple[str, ...]
    retriever: RetrieverConfig
    generator: EncoderDecoderConfig
    marginal: Marginal = "sequence"
    generator_tokenizer: str = ""
    num_documents: int = 5
    query_len: int = 64
    source_len: int = 300
    target_len: int = 32
    document_len: int = 288
    train_documents: bool = False
    label_smoothing: float = 0.0
    exclude_bos_score: bool = False
    answers: Literal["all", "first"] = "all"
    held_out: str | tuple[str, ...] = ()
    num_held_out: int = 0
    generation: GenerationConfig = GenerationConfig()
    max_remembered_answers: int = 20_000_000

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_documents < 0 or self.num_held_out < 0:
            name = "num_documents" if self.num_documents < 0 else "num_held_out"
            raise ValueError(f"Rag.{name} must be 0 or more, got {getattr(self, name)}")
        if self.num_documents and self.retriever.tied:
            raise ValueError(
                "Rag.retriever: expected tied=False, since the question encoder is trained apart from the document encoder "
                "that the index was made with; a tied checkpoint warm-starts both halves"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"Rag.label_smoothing must lie between 0 and 1, got {self.label_smoothing}")
        if self.exclude_bos_score and self.marginal == "token":
            raise ValueError("Rag.exclude_bos_score is RAG-Sequence's; with marginal=token leave it out")
        if self.exclude_bos_score and self.generator.forced_bos_id is None:
            raise ValueError(
                "Rag.exclude_bos_score leaves out generator.forced_bos_id, and there is none; set that, or leave it out"
            )
        if self.train_documents and (self.marginal == "joint" or not self.num_documents):
            raise ValueError(
                "Rag.train_documents: no gradient reaches the retriever "
                f"{'in marginal=joint' if self.num_documents else 'without documents'}; leave it out"
            )
        for name in ("source_len", "target_len"):
            if not 8 <= getattr(self, name) <= self.generator.max_length:
                raise ValueError(
                    f"Rag.{name} must lie between 8 and the generator's max_length={self.generator.max_length}, "
                    f"got {getattr(self, name)}"
                )
        check_lengths(self.generator, self.generation)

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        tokenizer = self.open_generator_tokenizer(corpus)
        if self.num_documents:
            check_vocabulary(corpus, self.retriever.encoder.vocab_size, "retriever")
        if self.num_documents > corpus.num_documents:
            raise ValueError(
                f"Rag.num_documents={self.num_documents}, but the corpus has {corpus.num_documents} documents; retrieve fewer"
            )
        form = SourceFormat.of(tokenizer)
        if self.source_len < form.overhead + 8:
            raise ValueError(
                f"Rag.source_len={self.source_len} leaves no room beside the {form.overhead} pieces between title, text and question; "
                f"give at least {form.overhead + 8}"
            )
        examples = RagQuestions(
            self.training_questions(tokenizer), corpus, tokenizer, query_len=self.query_len, seed=seed
        )
        joiner = RagJoiner(
            corpus,
            open_pieces(corpus, tokenizer),
            AnswerFinder(corpus, lambda document: document_text(corpus, document)[1], self.max_remembered_answers),
            form,
            self.generator,
            source_len=self.source_len,
            target_len=self.target_len,
            document_len=self.document_len,
            encode_documents=self.train_documents,
        )
        retriever = self.retriever if self.num_documents else None
        return self.program(SpecialIds.of(corpus.tokenizer)).task(
            examples.batch,
            functools.partial(_closed_book, joiner=joiner) if retriever is None else _refuse_without_documents,
            data=fingerprints(corpus) | {"generator_tokenizer": tokenizer.fingerprint},
            adopt=adopt,
            retrieval=None
            if retriever is None
            else Retrieval(
                config=retriever,
                corpus=corpus,
                document_len=self.document_len,
                num_results=self.num_documents,
                queries=lambda found: found.query,
                embed_queries=functools.partial(embed_queries, config=retriever),
                retriever_params=lambda params: params["retriever"],
                select=select,
                join=_refuse_without_embeddings,
                join_embedded=joiner,
            ),
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it; the retriever's special pieces make no difference."""
        del special
        generator, reads = self.generator, max(1, self.num_documents)
        retriever = self.retriever if self.num_documents else None
        joint = self.marginal == "joint"
        decodes, read_len = (1, reads * self.source_len) if joint else (reads, self.source_len)
        passes = [
            EncoderPass(generator.encoder, reads, self.source_len),
            EncoderPass(generator.decoder, decodes, self.target_len, source_len=read_len),
        ]
        if retriever is not None:
            passes.append(EncoderPass(retriever.encoder, 1, self.query_len, trained=not joint))
        if self.train_documents:
            passes.append(EncoderPass(self.retriever.encoder, reads, self.document_len))
        frozen: tuple[str, ...] = ()
        if retriever is not None and not self.train_documents:
            frozen = ("retriever",) if joint else ("retriever/document_encoder",)
        return Program(
            name=self.name,
            init=functools.partial(init_params, retriever=retriever, generator=generator),
            loss=functools.partial(
                rag_loss,
                retriever=retriever,
                generator=generator,
                marginal=self.marginal,
                train_documents=self.train_documents,
                label_smoothing=self.label_smoothing,
                exclude_bos_score=self.exclude_bos_score,
            ),
            batch_shapes=self._batch_shapes,
            passes=tuple(passes),
            logits=Logits(decodes * self.target_len, generator.hidden_size, generator.vocab_size),
            tokens_per_example=sum(one.rows * one.length for one in passes),
            can_accumulate=True,
            frozen=frozen,
            retriever=retriever,
            query_len=self.query_len,
            document_len=self.document_len,
        )

    def _batch_shapes(self, batch_size: int) -> RagBatch:
        reads = max(1, self.num_documents)
        documents, target = (batch_size, reads), (batch_size, self.target_len)
        embed_dim = self.retriever.embed_dim if self.num_documents else 0
        return RagBatch(
            query=input_shapes(batch_size, self.query_len),
            retrieved_embeds=array_shape(jnp.float32, *documents, embed_dim),
            document_mask=array_shape(jnp.bool_, *documents),
            source_ids=array_shape(jnp.int32, *documents, self.source_len),
            target_inputs=array_shape(jnp.int32, *target),
            targets=array_shape(jnp.int32, *target),
            target_mask=array_shape(jnp.bool_, *target),
            has_answer=array_shape(jnp.bool_, *documents),
            documents=input_shapes(batch_size, reads * self.train_documents, self.document_len),
        )

    @property
    def learners(self) -> tuple[str, ...]:
        """What answers its questions."""
        return ("retriever", "generator") if self.num_documents else ("generator",)

    def known_questions(self) -> tuple[Question, ...]:
        """The questions that it was trained on, whatever their answers."""
        return training_questions(self.questions, self.held_out, self.num_held_out)

    def open_generator_tokenizer(self, corpus: Corpus) -> GeneratorTokenizer:
        """The generator's tokenizer, whose ids are those of `generator`.

        Raises:
          ValueError: when they are not.
        """
        return open_generator_tokenizer(self.generator_tokenizer, corpus, self.generator, "Rag")

    def training_questions(self, tokenizer: GeneratorTokenizer) -> tuple[Question, ...]:
        """The questions of all files with an answer that can be written; see `data.question_splits.training_questions`.

        Raises:
          ValueError: when none is left, or the answers are patterns.
        """
        questions = training_questions(
            self.questions, self.held_out, self.num_held_out, first_answer=self.answers == "first"
        )
        if any(question.is_regex for question in questions):
            raise ValueError(
                "Rag.questions: their answers are regular expressions, which no generator can learn to write; name others"
            )
        kept, num_cut, num_empty = [], 0, 0
        for question in questions:
            lengths = [len(tokenizer.encode(f" {answer}").ids) for answer in question.answers]
            num_cut += sum(length > self.target_len - 1 for length in lengths)
            num_empty += lengths.count(0)
            written = tuple(answer for answer, length in zip(question.answers, lengths, strict=True) if length)
            if written:
                kept.append(question._replace(answers=written))
        if not kept:
            raise ValueError("Rag.questions: no answer has a piece of the generator's tokenizer")
        if num_cut or num_empty:
            logger.warning(
                "Rag.questions: %d answers are longer than target_len=%d pieces and are cut; %d have no piece and are left out, "
                "and with them %d questions",
                num_cut, self.target_len, num_empty, len(questions) - len(kept),
            )  # fmt: skip
        return tuple(kept)


def open_generator_tokenizer(
    directory: str, corpus: Corpus, generator: GeneratorConfig, task: str, field: str = "generator"
) -> GeneratorTokenizer:
    """The tokenizer of a directory, or (empty) the corpus's, whose ids must be those of the generator, the task's `field`.

    Raises:
      ValueError: naming the setting of the task, expected and got.
    """
    tokenizer = load_generator_tokenizer(directory) if directory else as_generator_tokenizer(corpus.tokenizer)
    if tokenizer.vocab_size > generator.vocab_size:
        raise ValueError(
            f"the generator's tokenizer has {tokenizer.vocab_size} pieces, {task}.{field}.vocab_size is "
            f"{generator.vocab_size}; take the tokenizer that belongs to the generator"
        )
    for name in ("pad_id", "bos_id", "eos_id"):
        expected, got = getattr(tokenizer, name), getattr(generator, name)
        if expected != got:
            raise ValueError(f"{task}.{field}.{name}: expected the tokenizer's {expected}, got {got}; set it so")
    return tokenizer


def init_params(rng: jax.Array, *, retriever: RetrieverConfig | None, generator: EncoderDecoderConfig) -> Params:
    """Random parameters of retriever and generator."""
    retriever_rng, generator_rng = jax.random.split(rng)
    ids = jnp.ones((1, 16), jnp.int32)
    params: dict[str, Any] = {"generator": EncoderDecoder(generator).init(generator_rng, ids, ids > 0, ids)["params"]}
    if retriever is not None:
        params["retriever"] = Retriever(retriever).init(retriever_rng, ids, ids * 0, ids > 0)["params"]
    return params


def adopt(found: Params) -> Params:
    """Another run's learners as those of RAG: a tied retriever becomes both encoders."""
    return untied(found)


def select(examples: RagExamples, results: SearchResult) -> Int64[np.ndarray, "batch num_documents"]:
    """All that was found, best first."""
    del examples
    return results.ids


def _closed_book(examples: RagExamples, *, joiner: RagJoiner) -> RagBatch:
    """Questions without documents: the generator reads the question alone."""
    number = len(examples.questions)
    return joiner(examples, np.full((number, 1), NULL_DOCUMENT, np.int64), np.zeros((number, 1, 0), np.float32))


def _refuse_without_documents(examples: Sequence[Any]) -> RagBatch:
    raise AssertionError("RAG joins its questions with documents; the loop must use Task.retrieval")


def _refuse_without_embeddings(examples: Any, document_ids: np.ndarray) -> RagBatch:
    raise AssertionError("RAG joins its questions with embedded documents; the loop must use join_embedded")
