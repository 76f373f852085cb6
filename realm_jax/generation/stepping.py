"""A decoder made ready to take many steps: every layer's parameters, sources and cache as arrays of their own.

`EncoderDecoder.step` runs over layers stacked on one axis. In a loop over positions that takes each layer's matrices out of the
stack again at every step, a copy that takes longer than the products themselves where the rows are few; here they are taken out
once, before the loop.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models import DecoderCache, EncoderDecoder, EncoderDecoderConfig, Memory, empty_cache
from realm_jax.models.decoder import DecoderLayer, PositionedEmbedding
from realm_jax.models.transformer import KeysValues

Params = Mapping[str, Any]

Caches = tuple[DecoderCache, ...]
"""What each layer wrote so far; arrays [1, sources, beams, target_len, heads, head_dim]."""

Step = Callable[
    [Int32[Array, "sources beams"], Int32[Array, ""], Caches], tuple[Float[Array, "sources beams vocab"], Caches]
]
"""`step(ids, position, caches)` gives the logits of the next token of every beam, and the caches with this position written."""


class Sources(NamedTuple):
    """What the decoder reads of its sources, layer by layer."""

    layers: tuple[KeysValues, ...]
    mask: Bool[Array, "sources source_len"]


def apply(params: Params, config: EncoderDecoderConfig, method: str, *arguments: Any) -> Any:
    """A method of the model."""
    return EncoderDecoder(config).apply({"params": params}, *arguments, method=method)


def remember(
    params: Params,
    config: EncoderDecoderConfig,
    hidden: Float[Array, "sources source_len hidden"],
    mask: Bool[Array, "sources source_len"],
) -> Sources:
    """What every step reads of encoded sources."""
    memory: Memory = apply(params, config, "remember", hidden, mask)
    both = KeysValues(memory.keys, memory.values)
    return Sources(tuple(row_of(both, layer) for layer in range(config.num_decoder_layers)), memory.mask)


def encoded(
    params: Params,
    config: EncoderDecoderConfig,
    ids: Int32[Array, "sources source_len"],
    mask: Bool[Array, "sources source_len"],
) -> Sources:
    """`remember` of what the encoder makes of the sources."""
    return remember(params, config, apply(params, config, "encode", ids, mask), mask)


def empty_caches(config: EncoderDecoderConfig, sources: int, beams: int, target_len: int) -> Caches:
    """The caches before the first step."""
    whole = empty_cache(config, sources, beams, target_len)
    return tuple(jax.tree.map(lambda array: array[:1], whole) for _ in range(config.num_decoder_layers))


def stepper(params: Params, config: EncoderDecoderConfig, sources: Sources) -> Step:
    """The decoder over these sources; equal to `EncoderDecoder.step`."""
    decoder = params["decoder"]
    of_layers = [row_of(decoder["layers"], layer) for layer in range(config.num_decoder_layers)]
    embedding = PositionedEmbedding(config.decoder, config.position_offset)
    layers = DecoderLayer(config.decoder)

    def step(ids: jax.Array, position: jax.Array, caches: Caches) -> tuple[jax.Array, Caches]:
        embedded = apply(params, config, "embed", ids)
        hidden = embedding.apply({"params": decoder["embedding"]}, embedded, position[None], True)
        written = []
        for own, source, cache in zip(of_layers, sources.layers, caches, strict=True):
            made: Any = layers.apply(
                {"params": own}, hidden, position, jnp.int32(0), source, sources.mask, cache, method="step"
            )
            hidden, new = made
            written.append(new)
        return apply(params, config, "logits", hidden), tuple(written)

    return step


def row_of(stacked: Any, layer: int) -> Any:
    """One layer of arrays that hold all of them."""
    return jax.tree.map(lambda array: array[layer], stacked)


def reorder(caches: Caches, beam_indices: Int32[Array, "sources beams"]) -> Caches:
    """Beams change places within their source."""
    sources = jnp.arange(beam_indices.shape[0])[:, None]
    return jax.tree.map(lambda array: array[:, sources, beam_indices], caches)
