"""Generates answers: from one source, from documents marginalised, or from documents joined.

The generator is an encoder-decoder, which reads its sources with an encoder, or a language model, which continues them: prompts, tokens
before padding.

Each function is one program a shape and setting: jitted, nothing of the search leaves the device. A batch may be sharded by its first
axis and the parameters by the rules of training.sharding; the result is the same on any number of devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Key

from realm_jax.generation import marginal
from realm_jax.generation.beam_search import Found, Hypotheses, NextToken, Prediction, beam_search, first, take_rows
from realm_jax.generation.readers import GeneratorConfig, Ready, check_lengths, read_sources, token_ids
from realm_jax.generation.sampling import sample
from realm_jax.generation.scoring import for_documents
from realm_jax.generation.settings import GenerationConfig
from realm_jax.generation.stepping import (
    Caches,
    Params,
    apply,
    empty_caches,
    remember,
    reorder,
    stepper,
)
from realm_jax.models import EncoderDecoderConfig


class Answers(NamedTuple):
    """Hypotheses and the documents that speak for them. Documents that are not there have posterior 0."""

    hypotheses: Hypotheses
    document_posteriors: Float[Array, "batch num_hypotheses num_documents"]  # p(z|x, y)
    token_posteriors: Float[Array, "batch num_hypotheses target_len num_documents"] | None = None
    # RAG-Token: p(z | x, y_≤i), the share of each document in each token; 0 after the end


@functools.partial(jax.jit, static_argnames=("config", "generation"))
def generate(
    params: Params,
    ids: Int32[Array, "batch source_len"],
    mask: Bool[Array, "batch source_len"],
    rng: Key[Array, ""] | None = None,
    *,
    config: GeneratorConfig,
    generation: GenerationConfig,
) -> Hypotheses:
    """Generates from one source a question: the generator alone.

    Args:
      params: of `EncoderDecoder(config)` or `LanguageModel(config)`.
      ids: token ids of the sources.
      mask: true where there is a token. A source without any, such as a row that fills a batch, gets no hypothesis.
      rng: for `generation.sample`, and only for it.
      config: shape of the model.
      generation: settings.

    Returns:
      `generation.num_hypotheses` hypotheses a question.

    Raises:
      ValueError: max_length beyond the model's positions; sampling without a key.
    """
    _check(config, generation, rng, ids.shape[1])
    ready = read_sources(params, config, ids, mask, generation)
    found = _search(ready, config, generation, mask.any(axis=1), rng)
    return first(found, generation.num_hypotheses).hypotheses


@functools.partial(jax.jit, static_argnames=("config", "generation"))
def fusion_in_decoder(
    params: Params,
    ids: Int32[Array, "batch num_documents source_len"],
    mask: Bool[Array, "batch num_documents source_len"],
    rng: Key[Array, ""] | None = None,
    *,
    config: EncoderDecoderConfig,
    generation: GenerationConfig,
) -> Hypotheses:
    """Fusion-in-Decoder (Izacard & Grave 2020, arXiv:2007.01282): documents encoded apart, the decoder reads all of them at once.

    Args:
      params: of `EncoderDecoder(config)`.
      ids: the question with each of its documents.
      mask: true where there is a token; a document that is not there has none, and a question without any document gets no
        hypothesis.
      rng, config, generation: see `generate`.

    Returns:
      `generation.num_hypotheses` hypotheses a question.

    Raises:
      ValueError: see `generate`; num_documents = 0.
    """
    _check(config, generation, rng, ids.shape[2], ids.shape[1])
    rows = _rows(ids), _rows(mask)
    hidden = apply(params, config, "encode", *rows)
    joined = hidden.reshape(len(ids), -1, hidden.shape[-1])  # [batch, num_documents · source_len, hidden]
    sources = remember(params, config, joined, mask.reshape(len(ids), -1))
    caches = empty_caches(config, len(ids), generation.num_found, generation.target_len)
    ready = Ready(stepper(params, config, sources), caches)
    found = _search(ready, config, generation, sources.mask.any(axis=1), rng)
    return first(found, generation.num_hypotheses).hypotheses


@functools.partial(jax.jit, static_argnames=("config", "generation"))
def rag_token(
    params: Params,
    ids: Int32[Array, "batch num_documents source_len"],
    mask: Bool[Array, "batch num_documents source_len"],
    log_doc_probs: Float[Array, "batch num_documents"],
    rng: Key[Array, ""] | None = None,
    *,
    config: GeneratorConfig,
    generation: GenerationConfig,
) -> Answers:
    """RAG-Token: one search on the marginal next-token distribution (Lewis et al. 2020, arXiv:2005.11401, section 2.5).

    Args:
      params: of `EncoderDecoder(config)` or `LanguageModel(config)`.
      ids: the question with each of its documents.
      mask: true where there is a token. A document that is not there has none, or log p(z|x) = −∞ (or below −1e8); a question
        without any document gets no hypothesis: to have the generator answer it alone, give it the question as one document.
      log_doc_probs: log p(z|x), or retrieval scores; normalised over the documents that are there.
      rng, config, generation: see `generate`.

    Returns:
      `generation.num_hypotheses` hypotheses a question, with scores as transformers' `sequences_scores`.

    Raises:
      ValueError: see `generate`; num_documents = 0.
    """
    _check(config, generation, rng, ids.shape[2], ids.shape[1])
    priors = _priors(mask, log_doc_probs)
    batch, num_documents = priors.shape
    step, caches, _ = read_sources(params, config, _rows(ids), _rows(mask), generation)
    beams = generation.num_found

    def next_token(tokens: jax.Array, position: jax.Array, caches: Caches) -> Prediction:
        logits, caches = step(for_documents(tokens, num_documents), position, caches)
        logits = logits.reshape(batch, num_documents, beams, -1)
        totals = marginal.log_sum(logits, axis=-1)
        log_probs = marginal.marginal_next_token(priors, logits - totals[..., None])

        def details(chosen_beams: jax.Array, chosen: jax.Array) -> jax.Array:
            at = (
                jnp.arange(batch)[:, None, None], jnp.arange(num_documents)[None, None], chosen_beams[..., None],
            )  # fmt: skip
            return logits[*at, chosen[..., None]] - totals[at]  # [batch, choices, num_documents]

        return Prediction(log_probs, caches, details)

    found = _decode(
        next_token,
        lambda caches, indices: reorder(caches, for_documents(indices, num_documents)),
        caches,
        (priors > -jnp.inf).any(axis=1), rng, config, generation, num_documents,
    )  # fmt: skip
    hypotheses, token_log_probs = first(found, generation.num_hypotheses)
    forced = _forced_places(config, generation)[None, None, :, None]
    token_log_probs = jnp.where(forced, 0.0, token_log_probs)  # it was certain, whatever the document
    inside = jnp.arange(generation.target_len, dtype=jnp.int32)[None, None] < hypotheses.lengths[..., None]
    there = (hypotheses.lengths > 0)[..., None]
    return Answers(
        hypotheses,
        jnp.where(there, marginal.answer_posteriors(priors, token_log_probs.sum(axis=2)), 0.0),
        jnp.where(inside[..., None], marginal.token_posteriors(priors, token_log_probs), 0.0),
    )


@functools.partial(jax.jit, static_argnames=("config", "generation"))
def rag_sequence(
    params: Params,
    ids: Int32[Array, "batch num_documents source_len"],
    mask: Bool[Array, "batch num_documents source_len"],
    log_doc_probs: Float[Array, "batch num_documents"],
    rng: Key[Array, ""] | None = None,
    *,
    config: GeneratorConfig,
    generation: GenerationConfig,
) -> Answers:
    """RAG-Sequence: a search with each document, then log p(y|x) = log Σ_z p(z|x) p(y|x, z) of what was found (section 2.5).

    `generation.decoding = "thorough"`: every distinct hypothesis is read with every document, in passes of `num_beams` hypotheses, as
    many as there are distinct ones. As in transformers' class, the first token does not count where all hypotheses of a question begin
    with bos, nor do padding tokens inside a hypothesis. Unlike there, p(z|x) counts for a hypothesis of one token as for any other.
    `"fast"`: p(y|x, z) = 0 where y is not among the document's own hypotheses; no further pass.

    Args:
      params, ids, mask, log_doc_probs, rng, config, generation: see `rag_token`.

    Returns:
      `generation.num_hypotheses` distinct hypotheses a question where there are so many; scores are log p(y|x), without
      length penalty.

    Raises:
      ValueError: see `rag_token`.
    """
    _check(config, generation, rng, ids.shape[2], ids.shape[1])
    priors = _priors(mask, log_doc_probs)
    batch, num_documents = priors.shape
    ready = read_sources(params, config, _rows(ids), _rows(mask), generation)
    found = _search(ready, config, generation, (priors > -jnp.inf).reshape(-1), rng).hypotheses
    # [batch, num_documents · beams, …]: what the documents' searches found, one after the other
    target_ids, scores, lengths = (array.reshape(batch, -1, *array.shape[2:]) for array in found)
    kinds = marginal.distinct(target_ids, lengths > 0)
    if generation.decoding == "fast":
        sums = scores * jnp.maximum(lengths, 1).astype(jnp.float32) ** generation.length_penalty
        table = marginal.fast_log_probs(sums.reshape(batch, num_documents, -1), kinds.equals)
        table = take_rows(table, kinds.order)
    target_ids, lengths = take_rows(target_ids, kinds.order), take_rows(lengths, kinds.order)
    kept = jnp.arange(target_ids.shape[1], dtype=jnp.int32)[None] < kinds.num_kinds[:, None]
    lengths = jnp.where(kept, lengths, 0)
    if generation.decoding == "thorough":
        assert ready.score is not None  # read_sources
        table = ready.score(target_ids, lengths, kinds.num_kinds.max())
    totals = jnp.where(kept, marginal.marginal_sequence(priors, table), -jnp.inf)
    scores, best = jax.lax.top_k(totals, generation.num_hypotheses)
    posteriors = marginal.answer_posteriors(priors, take_rows(table, best))
    there = scores > -jnp.inf
    return Answers(
        Hypotheses(
            jnp.where(there[..., None], take_rows(target_ids, best), config.pad_id),
            scores,
            jnp.where(there, take_rows(lengths, best), 0),
        ),
        jnp.where(there[..., None], posteriors, 0.0),
    )


def _check(
    config: GeneratorConfig,
    generation: GenerationConfig,
    rng: jax.Array | None,
    source_len: int,
    num_documents: int = 1,
) -> None:
    check_lengths(config, generation, source_len)
    if generation.sample and rng is None:
        raise ValueError("GenerationConfig.sample=True draws tokens, and got no rng; give a key, jax.random.key(seed)")
    if num_documents == 0:
        raise ValueError(
            "expected at least one document a question, got 0; give the question alone as a document to have it answered from nothing else"
        )


def _forced_places(config: GeneratorConfig, generation: GenerationConfig) -> Bool[Array, "target_len"]:
    """Where a token is generated whatever the model says."""
    tokens, places = token_ids(config), jnp.zeros(generation.target_len, bool)
    if tokens.forced_bos is not None:
        places = places.at[0].set(True)
    if tokens.forced_eos is not None:
        places = places.at[-1].set(True)
    return places


def _rows(array: jax.Array) -> jax.Array:
    return array.reshape(-1, array.shape[-1])


def _priors(mask: jax.Array, log_doc_probs: jax.Array) -> jax.Array:
    return marginal.document_log_probs(log_doc_probs, mask.any(axis=-1) & (log_doc_probs > -1e8))


def _decode(
    next_token: NextToken,
    reorder: Callable[[Any, jax.Array], Any],
    caches: Caches,
    active: jax.Array,
    rng: jax.Array | None,
    config: GeneratorConfig,
    generation: GenerationConfig,
    num_details: int = 0,
) -> Found:
    settings: Any = {"config": generation, "tokens": token_ids(config), "num_details": num_details}
    if generation.sample:
        assert rng is not None  # _check
        return sample(next_token, caches, active, rng, **settings)
    return beam_search(next_token, reorder, caches, active, **settings)


def _search(
    ready: Ready, config: GeneratorConfig, generation: GenerationConfig, active: jax.Array, rng: jax.Array | None
) -> Found:
    """Of each source by itself."""

    def next_token(tokens: jax.Array, position: jax.Array, caches: Caches) -> Prediction:
        logits, caches = ready.step(tokens, position, caches)
        return Prediction(jax.nn.log_softmax(logits, axis=-1), caches)

    return _decode(next_token, reorder, ready.caches, active, rng, config, generation)
