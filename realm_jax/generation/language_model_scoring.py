"""Reads finished hypotheses after every prompt: what `scoring` does step by step with a decoder, in one pass for each hypothesis.

A language model's step over all prompts costs the keys and values of all of them, whatever it reads; a pass reads a whole hypothesis for
that. Hypotheses are read one after the other, for their logits are what takes memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.generation.marginal import log_sum
from realm_jax.generation.scoring import for_documents
from realm_jax.generation.stepping import Params
from realm_jax.models import LanguageModel, LanguageModelConfig
from realm_jax.models.language_model import LanguageModelLayer, Prompt
from realm_jax.models.rotary import angles_of
from realm_jax.models.transformer import KeysValues


def read_with_prompts(
    params: Params,
    config: LanguageModelConfig,
    prompt: Prompt,
    last: Int32[Array, "prompts"],
    target_ids: Int32[Array, "batch hypotheses target_len"],
    lengths: Int32[Array, "batch hypotheses"],
    num_read: Int32[Array, ""],
) -> Float[Array, "batch hypotheses num_documents"]:
    """log p(y|x, z) of hypotheses after every prompt of their question; all their tokens count.

    Args:
      params: of `LanguageModel(config)`, an adapter merged.
      config: shape of the model.
      prompt, last: of `language_model_stepping.read_prompts`, the prompts of a question one after the other.
      target_ids: tokens of the hypotheses, those to be read first.
      lengths: their lengths; 0 of what is not to be read.
      num_read: how many are read at most of any question; the others get 0.
    """
    batch, hypotheses, target_len = target_ids.shape
    num_documents = len(last) // batch
    model, variables = LanguageModel(config), {"params": params}
    offsets = jnp.arange(target_len, dtype=jnp.int32)[None]
    angles = angles_of(prompt.mask.sum(axis=1, dtype=jnp.int32)[:, None] + offsets, config.rotary, config.head_size)
    in_prompt = jnp.broadcast_to(prompt.mask[:, None], (len(last), target_len, prompt.mask.shape[1]))
    earlier = jnp.broadcast_to(jnp.tri(target_len, dtype=bool)[None], (len(last), target_len, target_len))

    def layer(hidden: jax.Array, of_layer: tuple[Params, KeysValues]) -> tuple[jax.Array, None]:
        own, read = of_layer
        arguments = (hidden, angles, read, (in_prompt, earlier))
        after: Any = LanguageModelLayer(config).apply({"params": own}, *arguments, method=_read_after)
        return after, None

    def read(number: jax.Array, table: jax.Array) -> jax.Array:
        one = functools.partial(jax.lax.dynamic_index_in_dim, index=number, axis=1, keepdims=False)
        targets = for_documents(one(target_ids), num_documents)  # [prompts, target_len]
        embedded: Any = model.apply(
            variables, jnp.concatenate([last[:, None], targets[:, :-1]], axis=1), method="embed"
        )
        of_layers = (params["layers"], KeysValues(prompt.keys, prompt.values))
        hidden, _ = jax.lax.scan(layer, embedded, of_layers, unroll=min(config.unroll_layers, config.num_layers))
        logits: Any = model.apply(variables, hidden, method="next_token")
        gold = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - log_sum(logits, axis=-1)
        counted = offsets < for_documents(one(lengths), num_documents)[:, None]
        sums = jnp.where(counted, gold, 0.0).sum(axis=1).reshape(batch, 1, num_documents)
        return jax.lax.dynamic_update_slice_in_dim(table, sums, number, axis=1)

    table = jnp.zeros((batch, hypotheses, num_documents), jnp.float32)
    return jax.lax.fori_loop(0, num_read, read, table)


def _read_after(
    layer: LanguageModelLayer,
    hidden: Float[Array, "prompts target_len hidden"],
    angles: Float[Array, "prompts target_len half"],
    prompt: KeysValues,
    seen: tuple[Bool[Array, "prompts target_len _"], ...],
) -> Float[Array, "prompts target_len hidden"]:
    """One layer over what follows a prompt, the prompt's keys and values being there; `seen` of the prompt and of what follows."""
    query, made = layer.attention.queries_keys_values(layer.attention_norm(hidden), angles)
    hidden = hidden + layer.attention.read(query, (prompt, made), seen)
    return hidden + layer.feed_forward(layer.output_norm(hidden))
