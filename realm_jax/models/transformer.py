"""The bidirectional transformer encoder that every learner here is made of.

With the default configuration it is BERT (Devlin et al. 2018, arXiv:1810.04805) to the last operation: learned
positions, token types, LayerNorm after each residual sum. `norm="pre"` with `positions="rotary"` is the variant that
learns faster from a random initialisation (Xiong et al. 2020, arXiv:2002.04745; Su et al. 2021, arXiv:2104.09864).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.attention import Attention, attend
from realm_jax.models.products import DENSE_PRODUCT, dense_dot_general
from realm_jax.models.rotary import RotaryConfig, angles_of, turn
from realm_jax.typed import check_fields

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}

REMAT_POLICIES = {
    "nothing": None,
    "products": jax.checkpoint_policies.save_only_these_names(DENSE_PRODUCT),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of one encoder; the defaults are BERT-base uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512  # rows of the learned position table; rotary positions have no such limit
    num_segments: int = 2
    activation: str = "gelu"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    activation_dropout_rate: float = 0.0  # after the feed-forward's activation: BART's, none in BERT
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    norm: Literal["post", "pre"] = "post"
    positions: Literal["learned", "rotary"] = "learned"
    convolution_width: int = (
        0  # odd: each layer begins by mixing so many neighbours (see LocalMixing); 0: none, as BERT
    )
    attention: Attention = "own"  # cudnn: fused on NVIDIA GPUs, bfloat16, where there is no dropout
    dtype: str = "float32"  # of activations; parameters are always float32
    remat: bool = False  # recompute each layer in the backward pass instead of keeping its activations
    remat_saves: Literal["nothing", "products"] = (
        "nothing"  # products: those with weights are kept, so that attention and activations alone are made again
    )
    unroll_layers: int = 1  # layers per iteration of the scan: 1 compiles fastest, num_layers runs fastest on CPU

    def __post_init__(self) -> None:
        check_fields(self)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"TransformerConfig.hidden_size: expected a multiple of num_heads={self.num_heads}, "
                f"got {self.hidden_size}; change one of them"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"TransformerConfig.activation: got {self.activation!r}, valid: {', '.join(ACTIVATIONS)}")
        if self.positions == "rotary" and (self.hidden_size // self.num_heads) % 2:
            raise ValueError("TransformerConfig.positions='rotary' needs an even hidden_size / num_heads")
        if self.convolution_width < 0 or (self.convolution_width and self.convolution_width % 2 == 0):
            raise ValueError(
                f"TransformerConfig.convolution_width must be odd, or 0 for none, got {self.convolution_width}"
            )
        if self.remat_saves != "nothing" and not self.remat:
            raise ValueError("TransformerConfig.remat_saves says what remat keeps, and remat is False; set remat=True")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"TransformerConfig.dtype: expected 'float32' or 'bfloat16', got {self.dtype!r}")
        head_dim = self.hidden_size // self.num_heads
        if self.attention == "cudnn" and (self.dtype != "bfloat16" or head_dim % 8 or head_dim > 128):
            raise ValueError(
                "TransformerConfig.attention='cudnn' needs dtype='bfloat16' and heads of 8, 16, … 128 numbers, "
                f"got {self.dtype!r} and {head_dim}; use 'own'"
            )

    @property
    def makes_products_again(self) -> bool:
        """Whether the backward pass computes the products with weights once more."""
        return self.remat and self.remat_saves == "nothing"


def forward_flops(config: TransformerConfig, length: int) -> float:
    """Multiply-adds, times two, of one forward pass over one sequence: the matrices and the attention of every layer."""
    hidden = config.hidden_size
    matrices = 2 * length * (4 * hidden * hidden + 2 * hidden * config.intermediate_size)
    attention = 4 * length * length * hidden
    return float(config.num_layers * (matrices + attention))


def dense(config: TransformerConfig, features: int, name: str | None = None) -> nn.Dense:
    """A linear layer with the encoder's numerics."""
    return nn.Dense(
        features,
        dtype=jnp.dtype(config.dtype),
        kernel_init=nn.initializers.normal(config.initializer_range),
        dot_general=dense_dot_general,
        name=name,
    )


def layer_norm(config: TransformerConfig, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm whose statistics are taken in float32 whatever the compute dtype."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, name=name)


def rotate(
    heads: Float[Array, "batch length num_heads head_dim"],
) -> Float[Array, "batch length num_heads head_dim"]:
    """Rotary positions: pairs (i, i + head_dim / 2) turned by position / 10000^(2 i / head_dim) (arXiv:2104.09864, eq. 34)."""
    positions = jnp.arange(heads.shape[1], dtype=jnp.int32)
    return turn(heads, angles_of(positions, RotaryConfig(), heads.shape[-1])[None])


class KeysValues(NamedTuple):
    """What is attended to: keys, and the values that stand for them."""

    keys: Float[Array, "*rows num_heads head_dim"]
    values: Float[Array, "*rows num_heads head_dim"]


class MultiHeadAttention(nn.Module):
    """Multi-head attention of a row to itself, or in parts, where keys and values are of other rows or were made before."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.query, self.key, self.value, self.out = (dense(config, config.hidden_size) for _ in range(4))

    def queries(self, hidden: Float[Array, "*rows hidden"]) -> Float[Array, "*rows num_heads head_dim"]:
        return self._heads(self.query(hidden))

    def keys_values(self, hidden: Float[Array, "*rows hidden"]) -> KeysValues:
        return KeysValues(self._heads(self.key(hidden)), self._heads(self.value(hidden)))

    def _heads(self, projected: Float[Array, "*rows hidden"]) -> Float[Array, "*rows num_heads head_dim"]:
        return projected.reshape(*projected.shape[:-1], self.config.num_heads, -1)

    @nn.compact
    def read(
        self,
        query: Float[Array, "batch query_len num_heads head_dim"],
        read: KeysValues,
        mask: Bool[Array, "batch length"],
        deterministic: bool,
        causal: bool = False,
    ) -> Float[Array, "batch query_len hidden"]:
        """What the queries find where `mask` is true; see `attend`."""
        config = self.config
        dropout = None
        if config.attention_dropout_rate > 0 and not deterministic:
            dropout = nn.Dropout(config.attention_dropout_rate, deterministic=False)
        context = attend(query, read.keys, read.values, mask, dropout, config.attention, causal)
        return self.out(context.reshape(*context.shape[:2], config.hidden_size))

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        mask: Bool[Array, "batch length"],
        deterministic: bool,
        causal: bool = False,
    ) -> Float[Array, "batch length hidden"]:
        """Self-attention."""
        query, read = self.queries(hidden), self.keys_values(hidden)
        if self.config.positions == "rotary":
            query, read = rotate(query), KeysValues(rotate(read.keys), read.values)
        return self.read(query, read, mask, deterministic, causal)


class FeedForward(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "batch length hidden"], deterministic: bool
    ) -> Float[Array, "batch length hidden"]:
        config = self.config
        inner = ACTIVATIONS[config.activation](dense(config, config.intermediate_size, "wi")(hidden))
        if config.activation_dropout_rate > 0 and not deterministic:
            inner = nn.Dropout(config.activation_dropout_rate, deterministic=False)(inner)
        return dense(config, config.hidden_size, "wo")(inner)


class LocalMixing(nn.Module):
    """A depthwise convolution over neighbouring positions: each channel sees its own value at the tokens around.

    A token then knows its neighbours before any attention, which is what looking up an earlier occurrence of a phrase
    needs first; small models started from random parameters learn to copy far sooner with it (compare the convolutions
    of Primer, So et al. 2021, arXiv:2109.08668).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "batch length hidden"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length hidden"]:
        width, reach = self.config.convolution_width, self.config.convolution_width // 2
        shape = (width, self.config.hidden_size)
        kernel = self.param("kernel", nn.initializers.normal(self.config.initializer_range), shape).astype(hidden.dtype)
        length = hidden.shape[1]
        padded = jnp.pad(hidden * mask[:, :, None].astype(hidden.dtype), ((0, 0), (reach, reach), (0, 0)))
        mixed = jnp.zeros_like(hidden)
        for offset in range(width):
            mixed += padded[:, offset : offset + length] * kernel[offset][None, None, :]
        return mixed


class TransformerLayer(nn.Module):
    """One layer, shaped for `nn.scan`: returns the carried hidden states and no per-layer output."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        mask: Bool[Array, "batch length"],
        deterministic: bool,
    ) -> tuple[Float[Array, "batch length hidden"], None]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        attention, feed_forward = MultiHeadAttention(config, name="attention"), FeedForward(config, name="feed_forward")
        attention_norm, output_norm = layer_norm(config, "attention_norm"), layer_norm(config, "output_norm")
        dropout = nn.Dropout(config.dropout_rate, deterministic=deterministic)
        if config.convolution_width:
            mixing = LocalMixing(config, name="local_mixing")
            hidden = hidden + mixing(layer_norm(config, "mixing_norm")(hidden).astype(dtype), mask)
        if config.norm == "pre":
            hidden = hidden + dropout(attention(attention_norm(hidden).astype(dtype), mask, deterministic))
            hidden = hidden + dropout(feed_forward(output_norm(hidden).astype(dtype), deterministic))
        else:
            hidden = attention_norm(hidden + dropout(attention(hidden, mask, deterministic))).astype(dtype)
            hidden = output_norm(hidden + dropout(feed_forward(hidden, deterministic))).astype(dtype)
        return hidden, None


def stacked_layers(config: TransformerConfig) -> nn.Module:
    """All layers of an encoder, one after the other; their parameters are stacked on a leading axis of size num_layers."""
    layer = TransformerLayer
    if config.remat:
        layer = nn.remat(layer, static_argnums=(3,), prevent_cse=False, policy=REMAT_POLICIES[config.remat_saves])
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=config.num_layers,
        unroll=min(config.unroll_layers, config.num_layers),
    )
    return scanned(config)


class Transformer(nn.Module):
    """Token ids to hidden states. Parameters of the layers are stacked on a leading axis of size num_layers."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, config.hidden_size, embedding_init=nn.initializers.normal(config.initializer_range))

        self.token_embedding = table(config.vocab_size)
        self.segment_embedding = table(config.num_segments)
        if config.positions == "learned":
            self.position_embedding = table(config.max_length)
        # post-norm: applied to the embeddings, as BERT does; pre-norm: applied to the last layer's output
        self.norm = layer_norm(config)
        self.embedding_dropout = nn.Dropout(config.dropout_rate)
        self.layers = stacked_layers(config)

    def __call__(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, "batch length hidden"]:
        """Encodes a batch.

        Args:
          ids: token ids.
          segment_ids: 0 for the first text, 1 for the second (BERT's token types).
          mask: true where there is a token, false on padding.
          deterministic: false applies dropout from the `dropout` rng.

        Returns:
          Hidden states; those at padding mean nothing.
        """
        config = self.config
        length = ids.shape[1]
        hidden = self.token_embedding(ids) + self.segment_embedding(segment_ids)
        if config.positions == "learned":
            if length > config.max_length:
                raise ValueError(
                    f"input of {length} tokens, but the position table has max_length={config.max_length} rows; "
                    "shorten the input or enlarge TransformerConfig.max_length"
                )
            hidden = hidden + self.position_embedding(jnp.arange(length, dtype=jnp.int32))[None]
        if config.norm == "post":
            hidden = self.norm(hidden)
        hidden = self.embedding_dropout(hidden, deterministic=deterministic).astype(jnp.dtype(config.dtype))
        hidden, _ = self.layers(hidden, mask, deterministic)
        return self.norm(hidden) if config.norm == "pre" else hidden
