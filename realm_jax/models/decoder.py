"""The transformer decoder: causal self-attention, then attention to what an encoder made of its sources.

With teacher forcing it reads whole rows of targets. Generating, it takes one position a step, and keeps the keys and values
of the earlier ones in a cache; those of the sources are made once, and several beams of one source share them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.transformer import (
    REMAT_POLICIES,
    FeedForward,
    KeysValues,
    MultiHeadAttention,
    TransformerConfig,
    layer_norm,
)


class Memory(NamedTuple):
    """What the decoder reads of its sources: keys and values of every layer, and where a source has a token."""

    keys: Float[Array, "layers sources source_len heads head_dim"]
    values: Float[Array, "layers sources source_len heads head_dim"]
    mask: Bool[Array, "sources source_len"]


class DecoderCache(NamedTuple):
    """What the decoder wrote so far: keys and values of every layer; positions to come hold zeros, and are not read."""

    keys: Float[Array, "layers sources beams target_len heads head_dim"]
    values: Float[Array, "layers sources beams target_len heads head_dim"]


def source_attention_flops(config: TransformerConfig, source_len: int, target_len: int) -> float:
    """Multiply-adds, times two, of all layers' attention to one source, whose keys and values are made once."""
    hidden = config.hidden_size
    matrices = 4 * (target_len + source_len) * hidden * hidden
    return float(config.num_layers * (matrices + 4 * target_len * source_len * hidden))


class PositionedEmbedding(nn.Module):
    """Embedded tokens with their learned positions added, normalised: what encoder and decoder of BART begin with."""

    config: TransformerConfig
    position_offset: int  # rows of the position table before that of the first position

    def setup(self) -> None:
        config = self.config
        self.position_embedding = nn.Embed(
            config.max_length + self.position_offset,
            config.hidden_size,
            embedding_init=nn.initializers.normal(config.initializer_range),
        )
        self.norm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def __call__(
        self, embedded: Float[Array, "rows length hidden"], positions: Int32[Array, "positions"], deterministic: bool
    ) -> Float[Array, "rows length hidden"]:
        """The positions are those of the second axis, or one that all of it has."""
        hidden = embedded + self.position_embedding(positions + self.position_offset)[None]
        return self.dropout(self.norm(hidden), deterministic=deterministic).astype(jnp.dtype(self.config.dtype))


class DecoderLayer(nn.Module):
    """One layer, LayerNorm after each residual sum."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.attention, self.attention_norm = MultiHeadAttention(config), layer_norm(config)
        self.cross_attention, self.cross_attention_norm = MultiHeadAttention(config), layer_norm(config)
        self.feed_forward, self.output_norm = FeedForward(config), layer_norm(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def __call__(
        self,
        hidden: Float[Array, "rows target_len hidden"],
        source: Float[Array, "rows source_len hidden"],
        source_mask: Bool[Array, "rows source_len"],
        deterministic: bool,
    ) -> Float[Array, "rows target_len hidden"]:
        """Of whole rows, each position over those up to itself."""
        everywhere = jnp.ones(hidden.shape[:2], bool)  # padding follows the tokens, and is later than all of them
        attended = self.attention(hidden, everywhere, deterministic, True)
        return self._after_self_attention(hidden, attended, self.remember(source), source_mask, deterministic)

    def remember(self, source: Float[Array, "rows source_len hidden"]) -> KeysValues:
        """Keys and values of the sources."""
        return self.cross_attention.keys_values(source.astype(jnp.dtype(self.config.dtype)))

    def step(
        self,
        hidden: Float[Array, "sources beams hidden"],
        position: Int32[Array, ""],
        layer: Int32[Array, ""],
        source: KeysValues,
        source_mask: Bool[Array, "sources source_len"],
        cache: DecoderCache,
    ) -> tuple[Float[Array, "sources beams hidden"], DecoderCache]:
        """One position of every beam; the cache is that of all layers, this one's row `layer`."""
        sources, beams, size = hidden.shape
        written = self.attention.keys_values(hidden)  # [sources, beams, heads, head_dim]
        cache = DecoderCache(
            *(
                jax.lax.dynamic_update_slice(kept, new[None, :, :, None], (layer, 0, 0, position, 0, 0))
                for kept, new in zip(cache, written, strict=True)
            )
        )
        # [sources · beams, target_len, heads, head_dim]
        earlier = KeysValues(*(kept[layer].reshape(sources * beams, *kept.shape[3:]) for kept in cache))
        seen = jnp.arange(cache.keys.shape[3], dtype=jnp.int32) <= position
        query = self.attention.queries(hidden.reshape(sources * beams, 1, size))
        attended = self.attention.read(query, earlier, jnp.tile(seen[None], (sources * beams, 1)), True)
        attended = attended.reshape(hidden.shape)
        return self._after_self_attention(hidden, attended, source, source_mask, True), cache

    def _after_self_attention(
        self,
        hidden: Float[Array, "rows queries hidden"],
        attended: Float[Array, "rows queries hidden"],
        source: KeysValues,
        source_mask: Bool[Array, "rows source_len"],
        deterministic: bool,
    ) -> Float[Array, "rows queries hidden"]:
        """The rest of the layer, of several positions or several beams that read one source."""

        def added(norm: nn.LayerNorm, hidden: jax.Array, update: jax.Array) -> jax.Array:
            return norm(hidden + self.dropout(update, deterministic=deterministic)).astype(jnp.dtype(self.config.dtype))

        hidden = added(self.attention_norm, hidden, attended)
        query = self.cross_attention.queries(hidden)
        found = self.cross_attention.read(query, source, source_mask, deterministic)
        hidden = added(self.cross_attention_norm, hidden, found)
        return added(self.output_norm, hidden, self.feed_forward(hidden, deterministic))


class Decoder(nn.Module):
    """All layers; their parameters are stacked on a leading axis of size num_layers."""

    config: TransformerConfig
    position_offset: int

    def setup(self) -> None:
        config = self.config
        self.embedding = PositionedEmbedding(config, self.position_offset)
        layer = DecoderLayer
        if config.remat:
            layer = nn.remat(layer, static_argnums=(4,), prevent_cse=False, policy=REMAT_POLICIES[config.remat_saves])
        self.layers = layer(config)

    def _over_layers(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """`body(layer, carry, *of the layer)`, layer after layer."""
        scanned = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.config.num_layers,
            unroll=min(self.config.unroll_layers, self.config.num_layers),
        )
        return lambda *arguments: scanned(self.layers, *arguments)

    def __call__(
        self,
        embedded: Float[Array, "rows target_len hidden"],
        source: Float[Array, "rows source_len hidden"],
        source_mask: Bool[Array, "rows source_len"],
        deterministic: bool,
    ) -> Float[Array, "rows target_len hidden"]:
        def body(layer: DecoderLayer, hidden: jax.Array) -> tuple[jax.Array, None]:
            return layer(hidden, source, source_mask, deterministic), None

        positions = jnp.arange(embedded.shape[1], dtype=jnp.int32)
        hidden, _ = self._over_layers(body)(self.embedding(embedded, positions, deterministic))
        return hidden

    def remember(
        self, source: Float[Array, "sources source_len hidden"], source_mask: Bool[Array, "sources source_len"]
    ) -> Memory:
        def body(layer: DecoderLayer, nothing: None) -> tuple[None, KeysValues]:
            return nothing, layer.remember(source)

        _, made = self._over_layers(body)(None)
        return Memory(made.keys, made.values, source_mask)

    def step(
        self,
        embedded: Float[Array, "sources beams hidden"],
        position: Int32[Array, ""],
        memory: Memory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "sources beams hidden"], DecoderCache]:
        # The cache is carried whole, not scanned over: one position of it is written, and the rest copied nowhere.
        def body(
            layer: DecoderLayer, carry: tuple[jax.Array, DecoderCache], number: jax.Array, source: KeysValues
        ) -> tuple[tuple[jax.Array, DecoderCache], None]:
            hidden, cache = carry
            return layer.step(hidden, position, number, source, memory.mask, cache), None

        hidden = self.embedding(embedded, position[None], True)
        numbers = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        carry, _ = self._over_layers(body)((hidden, cache), numbers, KeysValues(memory.keys, memory.values))
        return carry
