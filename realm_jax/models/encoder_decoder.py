"""The generator: a sequence-to-sequence transformer, BART to the last operation (Lewis et al. 2019, arXiv:1910.13461).

A document at a time, as RAG reads them (arXiv:2005.11401, section 2.3), or many at once, as Fusion-in-Decoder (arXiv:2007.01282):
there each is encoded by itself, and the decoder is given the hidden states of all, one after the other.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.attention import Attention
from realm_jax.models.decoder import Decoder, DecoderCache, Memory, PositionedEmbedding, source_attention_flops
from realm_jax.models.transformer import TransformerConfig, forward_flops, stacked_layers
from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """Shape and numerics of encoder and decoder, and the ids that text begins and ends with; the defaults are BART-base's."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_encoder_heads: int = 12
    num_decoder_heads: int = 12
    encoder_intermediate_size: int = 3072
    decoder_intermediate_size: int = 3072
    max_length: int = 1024  # of a source and of a target; the position table has position_offset rows more
    position_offset: int = 2  # rows of the position table before that of the first position, as BART's has
    activation: str = "gelu"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    scale_embedding: bool = False  # multiply token embeddings by √hidden_size
    pad_id: int = 1
    bos_id: int = 0
    eos_id: int = 2
    decoder_start_id: int = 2  # the decoder's first input
    forced_bos_id: int | None = None  # the first token generated, if any
    forced_eos_id: int | None = 2  # the last token of a generation that reaches its full length, if any
    attention: Attention = "own"  # of the encoder, see TransformerConfig; the decoder's is always our own
    dtype: str = "float32"  # of activations; parameters are always float32
    remat: bool = False  # see TransformerConfig, as the next two
    remat_saves: Literal["nothing", "products"] = "nothing"
    unroll_layers: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("vocab_size", "hidden_size", "num_encoder_layers", "num_decoder_layers", "num_encoder_heads",
                     "num_decoder_heads", "encoder_intermediate_size", "decoder_intermediate_size", "max_length"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"EncoderDecoderConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.position_offset < 0:
            raise ValueError(f"EncoderDecoderConfig.position_offset must be at least 0, got {self.position_offset}")
        for name in ("pad_id", "bos_id", "eos_id", "decoder_start_id", "forced_bos_id", "forced_eos_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"EncoderDecoderConfig.{name}: expected an id below vocab_size={self.vocab_size}, got {value}; "
                    "take the ids of the generator's tokenizer"
                )
        for half in ("encoder", "decoder"):
            try:
                getattr(self, half)
            except ValueError as error:
                raise ValueError(f"EncoderDecoderConfig's {half}: {error}") from error

    @property
    def encoder(self) -> TransformerConfig:
        """The layers of the encoder."""
        return self._half(
            self.num_encoder_layers, self.num_encoder_heads, self.encoder_intermediate_size, self.attention
        )

    @property
    def decoder(self) -> TransformerConfig:
        """The layers of the decoder, their attention to the sources not counted."""
        return self._half(self.num_decoder_layers, self.num_decoder_heads, self.decoder_intermediate_size, "own")

    def _half(self, num_layers: int, num_heads: int, intermediate_size: int, attention: Attention) -> TransformerConfig:
        return TransformerConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=intermediate_size,
            max_length=self.max_length,
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            activation_dropout_rate=self.activation_dropout_rate,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
            attention=attention,
            dtype=self.dtype,
            remat=self.remat,
            remat_saves=self.remat_saves,
            unroll_layers=self.unroll_layers,
        )


def decoder_flops(config: EncoderDecoderConfig, source_len: int, target_len: int) -> float:
    """Multiply-adds, times two, of the decoder over one target with teacher forcing: `forward_flops` of its layers, and their
    attention to a source, whose keys and values are made once. The encoder's are `forward_flops(config.encoder, source_len)`;
    logits are not in either.
    """
    return forward_flops(config.decoder, target_len) + source_attention_flops(config.decoder, source_len, target_len)


def empty_cache(config: EncoderDecoderConfig, sources: int, beams: int, target_len: int) -> DecoderCache:
    """The cache before the first of `target_len` steps."""
    heads = config.num_decoder_heads
    shape = (config.num_decoder_layers, sources, beams, target_len, heads, config.hidden_size // heads)
    zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
    return DecoderCache(zeros, zeros)


class Encoder(nn.Module):
    """Embedded tokens to hidden states; their parameters are stacked on a leading axis of size num_layers."""

    config: TransformerConfig
    position_offset: int

    def setup(self) -> None:
        self.embedding = PositionedEmbedding(self.config, self.position_offset)
        self.layers = stacked_layers(self.config)

    def __call__(
        self, embedded: Float[Array, "rows length hidden"], mask: Bool[Array, "rows length"], deterministic: bool
    ) -> Float[Array, "rows length hidden"]:
        positions = jnp.arange(embedded.shape[1], dtype=jnp.int32)
        hidden, _ = self.layers(self.embedding(embedded, positions, deterministic), mask, deterministic)
        return hidden


class EncoderDecoder(nn.Module):
    """One table of token embeddings is the input of both halves and, with a bias, the output.

    Use with `apply(..., method="encode")` and so on. In training `__call__`, or `encode` and `decode`; generating, `encode`,
    `remember` once, and `step` for each position.
    """

    config: EncoderDecoderConfig

    def setup(self) -> None:
        config = self.config
        self.token_embedding = nn.Embed(
            config.vocab_size, config.hidden_size, embedding_init=nn.initializers.normal(config.initializer_range)
        )
        self.encoder = Encoder(config.encoder, config.position_offset)
        self.decoder = Decoder(config.decoder, config.position_offset)
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (config.vocab_size,))

    def encode(
        self,
        ids: Int32[Array, "sources source_len"],
        mask: Bool[Array, "sources source_len"],
        deterministic: bool = True,
    ) -> Float[Array, "sources source_len hidden"]:
        """Hidden states of the sources.

        Args:
          ids: token ids, special ones included.
          mask: true where there is a token, false on padding; hidden states there mean nothing.
          deterministic: false applies dropout from the `dropout` rng.
        """
        return self.encoder(self.embed(ids, "source"), mask, deterministic)

    def decode(
        self,
        target_ids: Int32[Array, "rows target_len"],
        hidden: Float[Array, "rows source_len hidden"],
        source_mask: Bool[Array, "rows source_len"],
        deterministic: bool = True,
    ) -> Float[Array, "rows target_len vocab"]:
        """Logits of the next token at every position, in float32, with teacher forcing.

        Args:
          target_ids: the decoder's inputs: decoder_start_id, then the target but for its last token, then padding. Causal: what
            stands at a position changes nothing before it.
          hidden: of `encode`; those of several sources one after the other, for a decoder that reads them all at once.
          source_mask: true where there is a token.
          deterministic: false applies dropout.
        """
        return self.logits(self.decoder(self.embed(target_ids, "target"), hidden, source_mask, deterministic))

    def remember(
        self, hidden: Float[Array, "sources source_len hidden"], source_mask: Bool[Array, "sources source_len"]
    ) -> Memory:
        """What every step reads of the sources; see `decode`."""
        return self.decoder.remember(hidden, source_mask)

    def step(
        self,
        ids: Int32[Array, "sources beams"],
        position: Int32[Array, ""],
        memory: Memory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "sources beams vocab"], DecoderCache]:
        """Logits of the next token of every beam, in float32, and the cache with this position written.

        Args:
          ids: the decoder's inputs at the position.
          position: from 0, below the cache's target_len; the cache holds those before.
          memory: of `remember`; the beams of a source share it.
          cache: of the step before, or `empty_cache`.
        """
        self._check_length(cache.keys.shape[3], "target")
        hidden, cache = self.decoder.step(self.embed(ids), position, memory, cache)
        return self.logits(hidden), cache

    def __call__(
        self,
        ids: Int32[Array, "rows source_len"],
        mask: Bool[Array, "rows source_len"],
        target_ids: Int32[Array, "rows target_len"],
        deterministic: bool = True,
    ) -> Float[Array, "rows target_len vocab"]:
        """`encode` and `decode`: logits in float32."""
        return self.decode(target_ids, self.encode(ids, mask, deterministic), mask, deterministic)

    def embed(self, ids: Int32[Array, "rows length"], what: str = "") -> Float[Array, "rows length hidden"]:
        """Embedded tokens, of sources and targets alike, their positions not added; `what` they are, where their length counts."""
        if what:
            self._check_length(ids.shape[1], what)
        embedded = self.token_embedding(ids)
        return embedded * self.config.hidden_size**0.5 if self.config.scale_embedding else embedded

    def _check_length(self, length: int, what: str) -> None:
        if length > self.config.max_length:
            raise ValueError(
                f"a {what} of {length} tokens, but the position table has max_length={self.config.max_length} rows; "
                f"shorten the {what} or enlarge EncoderDecoderConfig.max_length"
            )

    def logits(self, hidden: Float[Array, "rows length hidden"]) -> Float[Array, "rows length vocab"]:
        """Of the next token, in float32, from the decoder's hidden states."""
        table = self.token_embedding.embedding.astype(hidden.dtype)
        logits = jnp.einsum("blh,vh->blv", hidden, table, preferred_element_type=jnp.float32)
        # BART trains without an output bias, and its class keeps one that no gradient reaches
        return logits + jax.lax.stop_gradient(self.output_bias)[None, None, :]
