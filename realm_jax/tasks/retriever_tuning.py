"""RA-DIT's fine-tuning of the retriever by what a language model prefers (Lin et al. 2023, arXiv:2310.01352, section 2.4), and its
neighbours: REPLUG (arXiv:2301.12652), EMDR² (arXiv:2106.05346) and Atlas's perplexity distillation (arXiv:2208.03299).

A frozen language model has said how likely each retrieved document makes the answer (the `retrieve` job). The retriever learns to give
its documents the probabilities that follow from it. The language model is not needed any more.
"""

import dataclasses
import functools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from realm_jax import losses
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.data.preferences import (
    PreferenceBatch,
    PreferenceExamples,
    PreferenceGroup,
    PreferenceJoiner,
    PreferenceQueries,
)
from realm_jax.instructions.example import GROUPS
from realm_jax.instructions.retrieved import RetrievedExamples, open_retrieved, retrieved_fingerprint
from realm_jax.losses import WeightedSum
from realm_jax.models import Retriever, RetrieverConfig
from realm_jax.retrieval.index import SearchResult
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.instruction_tuning import check_shares, shares_of_groups
from realm_jax.tasks.passes import EncoderPass
from realm_jax.tasks.rag import retrieval_scores
from realm_jax.tasks.realm import embed_queries
from realm_jax.tasks.task import (
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
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)

Objective = Literal["ra_dit", "reversed_kl", "emdr2", "perplexity_distillation"]


def preference_losses(
    objective: Objective,
    log_retrieval_probs: Float[Array, "batch num_documents"],
    batch: PreferenceBatch,
    temperature: float,
) -> Float[Array, "batch"]:
    """The loss of each example; its gradient reaches the retriever alone.

    Args:
      objective: "ra_dit", KL(p_R ‖ p_LSR) (RA-DIT); "reversed_kl", KL(p_LSR ‖ p_R), p_LSR as there; "emdr2", −log Σ p_R p_LM(y)
        (EMDR²); "perplexity_distillation", KL(p ‖ p_R) with p the softmax of log p_LM(y) / τ (Atlas, section 2.2).
      log_retrieval_probs: log p_R(c|x).
      batch: with the language model's log-likelihoods.
      temperature: τ.
    """
    mask, log_likelihoods = batch.document_mask, batch.log_likelihoods
    if objective == "emdr2":
        return losses.expected_likelihood_loss(log_retrieval_probs, log_likelihoods, mask)
    if objective == "perplexity_distillation":
        preferred = losses.candidate_log_probs(log_likelihoods / temperature, mask)
        return losses.kl_divergence(preferred, log_retrieval_probs, mask)
    preferred = losses.language_model_preference(log_likelihoods, batch.num_tokens, mask, temperature)
    if objective == "reversed_kl":
        return losses.kl_divergence(preferred, log_retrieval_probs, mask)
    return losses.kl_divergence(log_retrieval_probs, preferred, mask)


def retriever_tuning_loss(
    params: Params,
    batch: PreferenceBatch,
    rng: jax.Array | None,
    *,
    retriever: RetrieverConfig,
    objective: Objective,
    temperature: float,
    train_documents: bool,
) -> tuple[WeightedSum, Metrics]:
    """Mean over the examples with documents of `preference_losses`, scores being those of today's question encoder."""
    afresh = batch.documents if train_documents else None
    scores = retrieval_scores(params, batch.query, batch.retrieved_embeds, afresh, rng, retriever)
    retrieved = losses.candidate_log_probs(scores, batch.document_mask)
    of_examples = preference_losses(objective, retrieved, batch, temperature)
    usable = batch.document_mask.any(axis=1)
    number = usable.sum().astype(jnp.float32)
    likelihoods = jnp.where(batch.document_mask, batch.log_likelihoods, losses.MASKED_SCORE)
    best = likelihoods.argmax(axis=1)
    first = (retrieved.argmax(axis=1) == best) & usable
    expected = losses.expected_likelihood_loss(retrieved, batch.log_likelihoods, batch.document_mask)
    return WeightedSum(jnp.where(usable, of_examples, 0.0).sum(), number), {
        "preferred_first": WeightedSum(first.sum().astype(jnp.float32), number),
        "answer_nll": WeightedSum(expected.sum(), number),  # −log Σ p_R p_LM(y|c∘x), by which all objectives compare
        "retrieval_entropy": WeightedSum(jnp.where(usable, losses.retrieval_entropy(retrieved), 0.0).sum(), number),
    }


@dataclasses.dataclass(frozen=True)
class RetrieverTuning:
    """Settings of the retriever's fine-tuning; the defaults are RA-DIT's.

    As published the document encoder and the index stay as they are: use `RefreshConfig.mode="frozen"`. With `train_documents` the
    document encoder learns too (the paper's ablation), and the index is refreshed as in REALM.

    Attributes:
      corpus: the knowledge corpus.
      retrieved: a folder RUN/retrieved/NAME of the retrieve job, judged by a language model; or several.
      retriever: shape of the retriever that is fine-tuned.
      objective: see `preference_losses`.
      temperature: τ of the language model's preference; None: 0.01 of probabilities, as published, and 1 of the log-probabilities of
        perplexity distillation.
      num_documents: of each example, the first so many that were retrieved and judged.
      query_len: pieces of `[CLS] query [SEP]`.
      document_len: pieces of `[CLS] title [SEP] body [SEP]`, what the document encoder reads.
      train_documents: train the document encoder, too.
      shares: of examples, by group; what they leave is drawn from all other groups, by their numbers. "plain_text" are the corpus's own
        documents, the beginning of which asks for the end. () draws all groups by their numbers.
    """

    name: ClassVar[str] = "retriever_tuning"

    corpus: str
    retrieved: str | tuple[str, ...]
    retriever: RetrieverConfig
    objective: Objective = "ra_dit"
    temperature: float | None = None
    num_documents: int = 10
    query_len: int = 64
    document_len: int = 288
    train_documents: bool = False
    shares: tuple[tuple[str, float], ...] = (("plain_text", 0.95),)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.retrieved:
            raise ValueError(
                "RetrieverTuning.retrieved: expected a folder RUN/retrieved/NAME of the retrieve job, or several, got none"
            )
        if self.retriever.tied:
            raise ValueError(
                "RetrieverTuning.retriever: expected tied=False, since the question encoder is trained apart from the document encoder "
                "that the index was made with; a tied checkpoint warm-starts both halves"
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"RetrieverTuning.temperature must be above 0, got {self.temperature}")
        if self.num_documents < 2:
            raise ValueError(
                f"RetrieverTuning.num_documents must be at least 2, since one document has nothing to compare with, got {self.num_documents}"
            )
        check_shares("RetrieverTuning", self.shares)

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        check_vocabulary(corpus, self.retriever.encoder.vocab_size, "retriever")
        places = (self.retrieved,) if isinstance(self.retrieved, str) else self.retrieved
        found = [open_retrieved(place, corpus) for place in places]
        groups = self._groups(corpus, found, places)
        sizes = {name: len(group.num_tokens) for name, group in groups.items()}
        shares = shares_of_groups("RetrieverTuning", sizes, self.shares)
        logger.info("judged examples: %s", ", ".join(f"{name} {size}" for name, size in sizes.items()))
        special = SpecialIds.of(corpus.tokenizer)
        queries = PreferenceQueries(
            list(groups.values()),
            [shares[name] for name in groups],
            query_len=self.query_len,
            special=special,
            seed=seed,
        )
        return self.program(special).task(
            queries.batch,
            _refuse_without_documents,
            data=fingerprints(corpus) | {"retrieved": retrieved_fingerprint(found)},
            adopt=adopt,
            retrieval=Retrieval(
                config=self.retriever,
                corpus=corpus,
                document_len=self.document_len,
                num_results=0,  # the documents are those that were judged
                queries=lambda found: found.query,
                embed_queries=functools.partial(embed_queries, config=self.retriever),
                retriever_params=lambda params: params["retriever"],
                select=select,
                join=_refuse_without_embeddings,
                join_embedded=PreferenceJoiner(
                    corpus, document_len=self.document_len, encode_documents=self.train_documents
                ),
            ),
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it; the special pieces make no difference."""
        del special
        passes = [EncoderPass(self.retriever.encoder, 1, self.query_len)]
        if self.train_documents:
            passes.append(EncoderPass(self.retriever.encoder, self.num_documents, self.document_len))
        return Program(
            name=self.name,
            init=functools.partial(init_params, retriever=self.retriever),
            loss=functools.partial(
                retriever_tuning_loss,
                retriever=self.retriever,
                objective=self.objective,
                temperature=self.temperature or (1.0 if self.objective == "perplexity_distillation" else 0.01),
                train_documents=self.train_documents,
            ),
            batch_shapes=self._batch_shapes,
            passes=tuple(passes),
            tokens_per_example=sum(one.rows * one.length for one in passes),
            can_accumulate=True,
            frozen=() if self.train_documents else ("retriever/document_encoder",),
            retriever=self.retriever,
            query_len=self.query_len,
            document_len=self.document_len,
        )

    def _batch_shapes(self, batch_size: int) -> PreferenceBatch:
        documents = (batch_size, self.num_documents)
        return PreferenceBatch(
            query=input_shapes(batch_size, self.query_len),
            retrieved_embeds=array_shape(jnp.float32, *documents, self.retriever.embed_dim),
            document_mask=array_shape(jnp.bool_, *documents),
            log_likelihoods=array_shape(jnp.float32, *documents),
            num_tokens=array_shape(jnp.int32, batch_size),
            documents=input_shapes(batch_size, self.num_documents * self.train_documents, self.document_len),
        )

    def _groups(
        self, corpus: Corpus, found: Sequence[RetrievedExamples], places: Sequence[str]
    ) -> dict[str, PreferenceGroup]:
        """The judged examples that a preference can be learned of: with two documents or more, and an answer."""
        queries: dict[str, list[str]] = {}
        rows: dict[str, list[tuple[np.ndarray, np.ndarray, int]]] = {}
        left_out: Counter[str] = Counter()
        for one, place in zip(found, places, strict=True):
            if one.preferences is None:
                raise ValueError(
                    f"{place} has not been judged by a language model; run the retrieve job with a judge (retrieve.judge)"
                )
            if one.documents.shape[1] < self.num_documents:
                raise ValueError(
                    f"RetrieverTuning.num_documents={self.num_documents}, but {place} has {one.documents.shape[1]} documents for each "
                    "example; retrieve more (retrieve.num_documents), or learn of fewer"
                )
            documents = one.documents[:, : self.num_documents]
            known = one.preferences.log_likelihoods[:, : self.num_documents]
            answered = one.preferences.num_tokens > 0
            usable = one.preferences.comparable(self.num_documents)
            left_out["have no answer in the language model's pieces"] += int((~answered).sum())
            left_out["have fewer than two judged documents"] += int((answered & ~usable).sum())
            for number in np.flatnonzero(usable).tolist():
                group = one.examples[number].group
                queries.setdefault(group, []).append(one.examples[number].query)
                there = (documents[number] >= 0) & np.isfinite(known[number])
                row = np.where(there, documents[number], -1), np.where(there, known[number], 0.0)
                rows.setdefault(group, []).append((*row, int(one.preferences.num_tokens[number])))
        for cause, count in left_out.items():
            if count:
                logger.warning("%d examples %s, and are left out", count, cause)
        if not rows:
            raise ValueError(
                f"RetrieverTuning.retrieved: no example of {', '.join(places)} has an answer and two judged documents"
            )
        made = {}
        for name in (name for name in GROUPS if name in rows):
            made[name] = PreferenceGroup(
                [encoding.ids for encoding in corpus.tokenizer.encode_batch(queries[name])],
                np.stack([row[0] for row in rows[name]]).astype(np.int64),
                np.stack([row[1] for row in rows[name]]).astype(np.float32),
                np.asarray([row[2] for row in rows[name]], np.int32),
            )
        return made


def init_params(rng: jax.Array, *, retriever: RetrieverConfig) -> Params:
    """Random parameters of the retriever: a run should be given better ones (train.warm_start)."""
    ids = jnp.ones((1, 16), jnp.int32)
    return {"retriever": Retriever(retriever).init(rng, ids, ids * 0, ids > 0)["params"]}


def adopt(found: Params) -> Params:
    """Another run's retriever: a tied one becomes both encoders."""
    return untied({name: part for name, part in found.items() if name == "retriever"})


def select(examples: PreferenceExamples, results: SearchResult) -> Int64[np.ndarray, "batch num_documents"]:
    """The documents that were judged, whatever a search finds today: of others it is not known what the language model makes of them."""
    del results
    return examples.documents


def _refuse_without_documents(examples: Any) -> PreferenceBatch:
    raise AssertionError(
        "the retriever's fine-tuning joins its queries with documents; the loop must use Task.retrieval"
    )


def _refuse_without_embeddings(examples: Any, document_ids: np.ndarray) -> PreferenceBatch:
    raise AssertionError("the retriever's fine-tuning needs embedded documents; the loop must use join_embedded")
