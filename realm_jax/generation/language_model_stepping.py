"""A language model made ready to continue prompts, layer by layer, as `stepping` makes a decoder ready to read sources.

A prompt is read once, all of it but its last token: that is what the first step reads, in the place of a decoder's start token. So a
prompt's beams share its keys and values, and what searches and marginalizes over an encoder-decoder does over a language model.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from realm_jax.generation.stepping import Caches, Params, Step, row_of
from realm_jax.models import LanguageModel, LanguageModelConfig
from realm_jax.models.language_model import LanguageModelLayer, Prompt, empty_continuation
from realm_jax.models.rotary import angles_of
from realm_jax.models.transformer import KeysValues


def read_prompts(
    params: Params,
    config: LanguageModelConfig,
    ids: Int32[Array, "prompts prompt_len"],
    mask: Bool[Array, "prompts prompt_len"],
) -> tuple[Prompt, Int32[Array, "prompts"]]:
    """What every step reads of the prompts, and the last token of each.

    Args:
      params: of `LanguageModel(config)`, an adapter merged.
      config: shape of the model.
      ids: the prompts' tokens.
      mask: true where there is a token; tokens come before padding. Of a prompt without any the last token is padding.
    """
    lengths = mask.sum(axis=1, dtype=jnp.int32)
    last = jnp.take_along_axis(ids, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    earlier = jnp.arange(ids.shape[1], dtype=jnp.int32)[None] < lengths[:, None] - 1
    prompt: Any = LanguageModel(config).apply({"params": params}, ids, earlier, method="read_prompts")
    return prompt, last


def empty_caches(config: LanguageModelConfig, prompts: int, beams: int, target_len: int) -> Caches:
    """The caches before the first step."""
    whole = empty_continuation(config, prompts, beams, target_len)
    return tuple(jax.tree.map(lambda array: array[:1], whole) for _ in range(config.num_layers))


def stepper(params: Params, config: LanguageModelConfig, prompt: Prompt, last: Int32[Array, "prompts"]) -> Step:
    """The language model after these prompts; equal to `LanguageModel.step`. At position 0 it reads each prompt's last token, whatever
    it is given."""
    of_layers = [row_of(params["layers"], layer) for layer in range(config.num_layers)]
    both = KeysValues(prompt.keys, prompt.values)
    of_prompts = [row_of(both, layer) for layer in range(config.num_layers)]
    begins = prompt.mask.sum(axis=1, dtype=jnp.int32)

    def step(ids: jax.Array, position: jax.Array, caches: Caches) -> tuple[jax.Array, Caches]:
        ids = jnp.where(position == 0, jnp.broadcast_to(last[:, None], ids.shape), ids)
        angles = angles_of(begins + position, config.rotary, config.head_size)[:, None]
        hidden: Any = LanguageModel(config).apply({"params": params}, ids, method="embed")
        written = []
        for own, read, cache in zip(of_layers, of_prompts, caches, strict=True):
            made: Any = LanguageModelLayer(config).apply(
                {"params": own}, hidden, angles, position, jnp.int32(0), read, prompt.mask, cache, method="step"
            )
            hidden, new = made
            written.append(new)
        logits: Any = LanguageModel(config).apply({"params": params}, hidden, method="next_token")
        return logits, tuple(written)

    return step
