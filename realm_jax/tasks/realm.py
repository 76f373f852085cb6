"""REALM pre-training: retrieve, read, marginalize (Guu, Lee, Tung, Pasupat and Chang 2020, arXiv:2002.08909).

A masked sentence x retrieves its top documents from an index that may be stale. For those documents p(z|x) is computed
afresh with today's parameters, the reader predicts the masked pieces y from each [x; z], and the likelihood of y is
marginalized over z. Its gradient reaches the retriever through p(z|x): a document that predicts y better than average
gains score.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Int64

from realm_jax import losses
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import NO_CANDIDATE, NULL_DOCUMENT, Inputs, SpecialIds, document_inputs, joint_inputs
from realm_jax.data.masked_lm import MaskedBatch, MaskedSentences
from realm_jax.data.masking import MaskingConfig
from realm_jax.losses import WeightedSum
from realm_jax.models import KnowledgeEncoder, Retriever, RetrieverConfig, TransformerConfig
from realm_jax.retrieval.candidates import select_candidates
from realm_jax.retrieval.exact import DeviceResult
from realm_jax.retrieval.index import SearchResult
from realm_jax.retrieval.length_batches import length_histogram
from realm_jax.retrieval.resident import Pieces, ResidentDocuments, choose_candidates, occurs_in, pair_rows
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.length_groups import (
    ALL_AT_ONCE,
    LengthGroup,
    RowEncoding,
    by_length,
    fits,
    input_length,
    plan_groups,
)
from realm_jax.tasks.task import (
    EncoderPass,
    GroupedLoss,
    InStepRetrieval,
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
from realm_jax.training.rng import dropout_rngs
from realm_jax.typed import check_fields


class RealmBatch(NamedTuple):
    """Examples joined with their candidates. Candidate 0 is the null document; it has no row in `documents` and `joint`:
    its embedding is one row for the whole batch, and what is read with it is the query alone."""

    query: Inputs  # [batch, query_len]
    documents: Inputs  # [batch, num_documents, document_len]
    joint: Inputs  # [batch, num_documents, joint_len]
    mask_positions: Int32[np.ndarray, "batch num_masks"]
    mask_targets: Int32[np.ndarray, "batch num_masks"]
    mask_weights: Float32[np.ndarray, "batch num_masks"]
    candidate_mask: Bool[np.ndarray, "batch num_candidates"]
    is_gold: Bool[np.ndarray, "batch num_candidates"]  # states the answer, where that is known; only measured


class RealmModel(NamedTuple):
    """The two learners and the null document's input."""

    retriever: RetrieverConfig
    reader: TransformerConfig
    null_document: bool
    special: SpecialIds
    train_documents: bool = True


def retrieval_scores(
    params: Params,
    batch: RealmBatch,
    rng: jax.Array | None,
    model: RealmModel,
    rows: RowEncoding = ALL_AT_ONCE,
) -> Float[Array, "batch num_candidates"]:
    """f(x, z) = Embed_input(x)ᵀ Embed_doc(z) for every candidate, with the current parameters (REALM, section 3.2)."""
    retriever = Retriever(model.retriever)

    def embed(
        ids: Int32[Array, "rows length"], segment_ids: Int32[Array, "rows length"], method: str, stream: int
    ) -> Any:
        return retriever.apply(
            {"params": params["retriever"]}, ids, segment_ids, ids != 0, rng is None,
            method=method, rngs=dropout_rngs(rng, stream),
        )  # fmt: skip

    batch_size, num_documents, document_len = batch.documents.ids.shape
    query_embeds = embed(batch.query.ids, batch.query.segment_ids, "embed_queries", 0)
    documents = Inputs(*(part.reshape(-1, document_len) for part in batch.documents))
    document_embeds = rows(functools.partial(embed, method="embed_documents", stream=1), documents)
    document_embeds = document_embeds.reshape(batch_size, num_documents, -1)
    if not model.train_documents:
        document_embeds = jax.lax.stop_gradient(document_embeds)
    scores = jnp.einsum("be,bke->bk", query_embeds, document_embeds)
    if model.null_document:
        null_ids = jnp.array([[model.special.cls, model.special.sep, model.special.sep]], jnp.int32)
        null_embed = embed(null_ids, jnp.array([[0, 0, 1]], jnp.int32), "embed_documents", 2)[0]
        if not model.train_documents:
            null_embed = jax.lax.stop_gradient(null_embed)
        scores = jnp.concatenate([jnp.einsum("be,e->b", query_embeds, null_embed)[:, None], scores], axis=1)
    return scores


def read(
    params: Params,
    batch: RealmBatch,
    rng: jax.Array | None,
    model: RealmModel,
    rows: RowEncoding = ALL_AT_ONCE,
) -> Float[Array, "batch num_candidates num_masks vocab"]:
    """Vocabulary logits at the masks for every candidate: the reader over [CLS] x [SEP] z [SEP] (REALM, section 3.2)."""
    reader = KnowledgeEncoder(model.reader)

    def logits(ids: Array, segment_ids: Array, mask_positions: Array, stream: int) -> Any:
        return reader.apply(
            {"params": params["knowledge_encoder"]}, ids, segment_ids, ids != 0, mask_positions, rng is None,
            rngs=dropout_rngs(rng, stream),
        )  # fmt: skip

    batch_size, num_documents, joint_len = batch.joint.ids.shape
    num_masks = batch.mask_positions.shape[1]
    joint = Inputs(*(part.reshape(-1, joint_len) for part in batch.joint))
    read_logits = rows(
        functools.partial(logits, stream=3),
        joint,
        jnp.repeat(batch.mask_positions, num_documents, axis=0),
        wider_by=batch.query.ids.shape[1],
    ).reshape(batch_size, num_documents, num_masks, -1)
    if model.null_document:
        null_joint = null_joint_inputs(batch.query.ids, model.special)
        null_logits = logits(null_joint.ids, null_joint.segment_ids, batch.mask_positions, 4)
        read_logits = jnp.concatenate([null_logits[:, None], read_logits], axis=1)
    return read_logits


def null_joint_inputs(query_ids: Int32[Array, "batch query_len"], special: SpecialIds) -> Inputs:
    """`[CLS] x [SEP] [SEP]`: the query read with an empty body, one position longer than the query input."""
    padded = jnp.pad(query_ids, ((0, 0), (0, 1)))
    is_end = jnp.arange(padded.shape[1])[None, :] == (query_ids != 0).sum(axis=1)[:, None]
    return Inputs(jnp.where(is_end, special.sep, padded), is_end.astype(jnp.int32))


def realm_loss(
    params: Params,
    batch: RealmBatch,
    rng: jax.Array | None,
    *,
    model: RealmModel,
    marginal: Literal["per_token", "per_span"],
    rows: RowEncoding = ALL_AT_ONCE,
) -> tuple[WeightedSum, Metrics]:
    """−log p(y|x), marginalized over the candidates per masked token (released code) or per span (paper)."""
    log_retrieval_probs = losses.candidate_log_probs(
        retrieval_scores(params, batch, rng, model, rows), batch.candidate_mask
    )
    gold_log_probs = losses.gold_log_probs(
        read(params, batch, rng, model, rows),
        jnp.broadcast_to(batch.mask_targets[:, None, :], (*log_retrieval_probs.shape, batch.mask_targets.shape[1])),
    )  # [batch, num_candidates, num_masks]
    marginal_log_probs = losses.marginal_per_token(log_retrieval_probs, gold_log_probs)
    if marginal == "per_token":
        loss = losses.per_token_loss(marginal_log_probs, batch.mask_weights)
    else:
        span_log_probs = losses.marginal_per_span(log_retrieval_probs, gold_log_probs, batch.mask_weights)
        loss = losses.per_span_loss(span_log_probs, batch.mask_weights)

    retrieval_probs = jnp.exp(log_retrieval_probs)
    examples = jnp.float32(retrieval_probs.shape[0])
    metrics: Metrics = {
        "retrieval_entropy": WeightedSum(losses.retrieval_entropy(log_retrieval_probs).sum(), examples),
        "gold_selected": WeightedSum(batch.is_gold.any(axis=1).sum().astype(jnp.float32), examples),
        "gold_prob": WeightedSum((retrieval_probs * batch.is_gold).sum(), examples),
    }
    if model.null_document:
        metrics["null_document_prob"] = WeightedSum(retrieval_probs[:, 0].sum(), examples)
        metrics["retrieval_utility"] = losses.retrieval_utility(marginal_log_probs, gold_log_probs, batch.mask_weights)
    return loss, metrics


class RealmGroups(NamedTuple):
    """REALM's loss with the candidates in groups of like length, whatever their number.

    What is read with a document is at most the query longer than the document's own input, so that one order and one choice
    of groups serve both encoders.
    """

    document_lengths: Int64[np.ndarray, "lengths"]  # how many documents of the corpus have each
    num_groups: int

    def fits(self, batch: RealmBatch, num_parts: int) -> Bool[Array, ""]:
        lengths = input_length(batch.documents.ids).reshape(-1)
        return fits(lengths, self._groups(len(lengths), num_parts), num_parts)

    def loss(
        self, params: Params, batch: RealmBatch, rng: jax.Array | None, num_parts: int, **settings: Any
    ) -> tuple[WeightedSum, Metrics]:
        """`realm_loss`, of a batch that fits."""
        lengths = input_length(batch.documents.ids).reshape(-1)
        rows = RowEncoding(by_length(lengths, num_parts), self._groups(len(lengths), num_parts))
        return realm_loss(params, batch, rng, rows=rows, **settings)

    def _groups(self, num_rows: int, num_parts: int) -> tuple[LengthGroup, ...]:
        if num_rows % num_parts:
            raise ValueError(
                f"Realm.length_groups: {num_rows} candidates do not divide over {num_parts} devices (data × fsdp); "
                "use a greater batch, fewer accumulation steps, or length_groups = 1"
            )
        return plan_groups(self.document_lengths, num_rows // num_parts, self.num_groups, num_parts)


@dataclasses.dataclass(frozen=True)
class Realm:
    """Settings of REALM pre-training; the defaults are the paper's.

    With `train_documents=False` the document encoder stays as it is and one index serves the whole run
    (`RefreshConfig.mode="frozen"`), as in RAG (arXiv:2005.11401): for corpora that take too long to embed again.
    """

    corpus: str  # Z, the knowledge corpus
    retriever: RetrieverConfig
    reader: TransformerConfig
    x_corpus: str | None = None  # X, the sentences to mask; none: X = Z
    num_candidates: int = 8  # the null document included
    null_document: bool = True
    train_documents: bool = True  # beyond the paper: False trains the query encoder and the reader alone
    marginal: Literal["per_token", "per_span"] = "per_token"
    masking: MaskingConfig = MaskingConfig()
    query_len: int = 96
    document_len: int = 288
    joint_len: int = 384
    length_groups: int = 1  # candidates are encoded in so many groups of like length; 1: all at their full length
    extra_results: int = 8  # searched beyond num_candidates, to replace excluded documents
    heldout_corpus: str | None = None  # sentences with gold documents, on which the loop measures recall
    num_heldout: int = 500

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_candidates < 2:
            raise ValueError(
                f"Realm.num_candidates must be at least 2 (null document included), got {self.num_candidates}"
            )
        if self.length_groups < 1:
            raise ValueError(f"Realm.length_groups must be at least 1, got {self.length_groups}")
        if self.retriever.tied and not self.train_documents:
            raise ValueError(
                "Realm.train_documents=False trains the query encoder alone, so the retriever needs tied=False; a tied "
                "checkpoint warm-starts both encoders"
            )
        if self.joint_len <= self.query_len:
            raise ValueError(f"Realm.joint_len must exceed query_len={self.query_len}, got {self.joint_len}")

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        x_corpus = Corpus.open(self.x_corpus) if self.x_corpus else corpus
        check_same_tokenizer(corpus, x_corpus)
        check_vocabulary(corpus, self.retriever.encoder.vocab_size, "retriever")
        check_vocabulary(corpus, self.reader.vocab_size, "reader")
        sentences = MaskedSentences(
            x_corpus,
            query_len=self.query_len,
            masking=self.masking,
            seed=seed,
            is_knowledge_corpus=self.x_corpus is None,
        )
        special = SpecialIds.of(corpus.tokenizer)
        evaluate = None
        if self.heldout_corpus is not None:
            from realm_jax.evaluation.masked_spans import (
                MaskedSpanEvaluation,
            )  # it evaluates this task: a cycle otherwise

            evaluate = MaskedSpanEvaluation(self, self.heldout_corpus, self.num_heldout).recall
        return self.program(special).task(
            sentences.batch,
            _refuse_without_candidates,
            grouped=self._grouped(corpus, special),
            data=fingerprints(corpus, x_corpus),
            adopt=dict if self.retriever.tied else untied,
            retrieval=Retrieval(
                config=self.retriever,
                corpus=corpus,
                document_len=self.document_len,
                num_results=self.num_candidates + self.extra_results,
                queries=lambda examples: examples.query,
                embed_queries=functools.partial(embed_queries, config=self.retriever),
                retriever_params=lambda params: params["retriever"],
                select=functools.partial(self.select, corpus=corpus),
                join=functools.partial(self.join, corpus=corpus, special=special),
                evaluate=evaluate,
                in_step=InStepRetrieval(
                    arrays=in_step_arrays,
                    join=functools.partial(self.join_in_step, special=special),
                    max_title_len=self.document_len - 3,
                ),
            ),
        )

    def _grouped(self, corpus: Corpus, special: SpecialIds) -> GroupedLoss | None:
        if self.length_groups == 1:
            return None
        groups = RealmGroups(length_histogram(corpus, self.document_len), self.length_groups)
        loss = functools.partial(groups.loss, model=self._model(special), marginal=self.marginal)
        return GroupedLoss(groups.fits, loss)

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it: query, documents and joint inputs; the null document is the query read once more."""
        model = self._model(special)
        passes = [
            EncoderPass(self.retriever.encoder, 1, self.query_len),
            EncoderPass(self.retriever.encoder, self._num_documents, self.document_len, self.train_documents),
            EncoderPass(self.reader, self._num_documents, self.joint_len),
        ]
        if self.null_document:  # its embedding is one row for the whole batch
            passes.append(EncoderPass(self.reader, 1, self.query_len + 1))
        num_logits = self.num_candidates * self.masking.max_masks
        return Program(
            name="realm",
            init=functools.partial(init_params, model=model),
            loss=functools.partial(realm_loss, model=model, marginal=self.marginal),
            batch_shapes=self._batch_shapes,
            passes=tuple(passes),
            logits=Logits(num_logits, self.reader.hidden_size, self.reader.vocab_size),
            tokens_per_example=self.query_len + self.num_candidates * (self.document_len + self.joint_len),
            can_accumulate=True,
            frozen=() if self.train_documents else ("retriever/document_encoder",),
            retriever=self.retriever,
            query_len=self.query_len,
            document_len=self.document_len,
        )

    @property
    def _num_documents(self) -> int:
        return self.num_candidates - int(self.null_document)

    def _batch_shapes(self, batch_size: int) -> RealmBatch:
        masks, candidates = (batch_size, self.masking.max_masks), (batch_size, self.num_candidates)
        return RealmBatch(
            query=input_shapes(batch_size, self.query_len),
            documents=input_shapes(batch_size, self._num_documents, self.document_len),
            joint=input_shapes(batch_size, self._num_documents, self.joint_len),
            mask_positions=array_shape(jnp.int32, *masks),
            mask_targets=array_shape(jnp.int32, *masks),
            mask_weights=array_shape(jnp.float32, *masks),
            candidate_mask=array_shape(jnp.bool_, *candidates),
            is_gold=array_shape(jnp.bool_, *candidates),
        )

    def evaluation_masking(self) -> MaskingConfig:
        """Held-out sentences always have one salient span masked, whatever the run trains on, so that runs compare."""
        return dataclasses.replace(self.masking, kind="salient", spans_per_sentence=1)

    def model(self, corpus: Corpus) -> RealmModel:
        return self._model(SpecialIds.of(corpus.tokenizer))

    def _model(self, special: SpecialIds) -> RealmModel:
        return RealmModel(self.retriever, self.reader, self.null_document, special, self.train_documents)

    def select(
        self, examples: MaskedBatch, results: SearchResult, *, corpus: Corpus
    ) -> Int64[np.ndarray, "batch num_candidates"]:
        """Candidates of each example: the null document, then the best documents that do not give x away."""
        return select_candidates(
            results,
            self.num_candidates,
            corpus=corpus,
            source_documents=examples.source_documents,
            sentences=examples.sentences,
            null_document=self.null_document,
        )

    def join(
        self,
        examples: MaskedBatch,
        candidate_ids: Int64[np.ndarray, "batch num_candidates"],
        *,
        corpus: Corpus,
        special: SpecialIds,
    ) -> RealmBatch:
        """Gathers the candidates' pieces by id and lays out what retriever and reader see."""
        document_ids = candidate_ids[:, 1:] if self.null_document else candidate_ids
        batch_size, num_documents = document_ids.shape
        documents = document_inputs(corpus, document_ids.reshape(-1), self.document_len, special)
        shape = (batch_size, num_documents, self.document_len)
        return RealmBatch(
            query=examples.query,
            documents=Inputs(documents.ids.reshape(shape), documents.segment_ids.reshape(shape)),
            joint=joint_inputs(examples.query.ids, corpus, document_ids, self.joint_len, special),
            mask_positions=examples.mask_positions,
            mask_targets=examples.mask_targets,
            mask_weights=examples.mask_weights,
            candidate_mask=candidate_ids != NO_CANDIDATE,
            is_gold=(candidate_ids == examples.gold_documents[:, None]) & (candidate_ids >= 0),
        )

    def join_in_step(
        self, examples: MaskedBatch, found: DeviceResult, gathered: ResidentDocuments, *, special: SpecialIds
    ) -> tuple[RealmBatch, Int32[Array, "batch num_candidates"]]:
        """`select` and `join` in a compiled step, from arrays.

        Args:
          examples: `in_step_arrays`.
          found: of the search, with whatever gives x away.
          gathered: the documents found: [batch, num_results] rows.
          special: the tokenizer's special pieces.

        Returns:
          The batch, and the candidates' ids.
        """
        query = Pieces(examples.query.ids[:, 1:], (examples.query.ids != 0).sum(axis=1) - 2)
        allowed = (found.ids >= 0) & (found.ids != examples.source_documents[:, None])
        allowed &= ~occurs_in(_unmasked(examples, query), gathered.bodies)
        document_ids, columns = choose_candidates(found.ids, allowed, self._num_documents)
        present = document_ids >= 0

        def chosen(pieces: Pieces) -> Pieces:
            ids = jnp.take_along_axis(pieces.ids, columns[:, :, None], axis=1)
            return Pieces(ids, jnp.where(present, jnp.take_along_axis(pieces.lengths, columns, axis=1), 0))

        titles, bodies = chosen(gathered.titles), chosen(gathered.bodies)
        wide = (*document_ids.shape, query.ids.shape[1])
        queries = Pieces(
            jnp.broadcast_to(query.ids[:, None], wide), jnp.broadcast_to(query.lengths[:, None], document_ids.shape)
        )
        candidate_ids = document_ids
        if self.null_document:
            null = jnp.full((document_ids.shape[0], 1), NULL_DOCUMENT, jnp.int32)
            candidate_ids = jnp.concatenate([null, document_ids], axis=1)
        batch = RealmBatch(
            query=examples.query,
            documents=pair_rows(titles, bodies, self.document_len, special),
            joint=pair_rows(queries, bodies, self.joint_len, special),
            mask_positions=examples.mask_positions,
            mask_targets=examples.mask_targets,
            mask_weights=examples.mask_weights,
            candidate_mask=candidate_ids != NO_CANDIDATE,
            is_gold=(candidate_ids == examples.gold_documents[:, None]) & (candidate_ids >= 0),
        )
        return batch, candidate_ids


def in_step_arrays(examples: MaskedBatch) -> MaskedBatch:
    """Of masked sentences what a compiled step needs: x unmasked is the query with its targets put back."""
    return examples._replace(
        source_documents=examples.source_documents.astype(np.int32),
        gold_documents=examples.gold_documents.astype(np.int32),
        sentences=[],
    )


def _unmasked(examples: MaskedBatch, query: Pieces) -> Pieces:
    rows = jnp.arange(query.ids.shape[0])[:, None]
    # unused slots are written beyond the last column, and left out
    columns = jnp.where(examples.mask_weights > 0, examples.mask_positions - 1, query.ids.shape[1])
    return Pieces(query.ids.at[rows, columns].set(examples.mask_targets, mode="drop"), query.lengths)


def init_params(rng: jax.Array, *, model: RealmModel) -> Params:
    """Random parameters of both learners."""
    retriever_rng, reader_rng = jax.random.split(rng)
    ids = jnp.ones((1, 8), jnp.int32)
    inputs = (ids, ids * 0, ids > 0)
    return {
        "retriever": Retriever(model.retriever).init(retriever_rng, *inputs)["params"],
        "knowledge_encoder": KnowledgeEncoder(model.reader).init(reader_rng, *inputs, ids[:, :1])["params"],
    }


def embed_queries(params: Params, queries: Inputs, *, config: RetrieverConfig) -> Float[Array, "batch embed"]:
    """Embed_input(x), without dropout: what the index is searched with."""
    embeds: Any = Retriever(config).apply(
        {"params": params["retriever"]}, queries.ids, queries.segment_ids, queries.ids != 0, method="embed_queries"
    )
    return embeds


def check_same_tokenizer(corpus: Corpus, x_corpus: Corpus) -> None:
    """Refuses X and Z cut into different pieces.

    Raises:
      ValueError: with both fingerprints and the remedy.
    """
    expected, got = corpus.info.tokenizer_fingerprint, x_corpus.info.tokenizer_fingerprint
    if expected != got:
        raise ValueError(
            f"x_corpus was cut with tokenizer {got[:12]}, the knowledge corpus with {expected[:12]}; "
            "build x_corpus again with the knowledge corpus's tokenizer directory"
        )


def _refuse_without_candidates(examples: MaskedBatch) -> RealmBatch:
    raise AssertionError("REALM joins its examples with candidates; the loop must use Task.retrieval")
