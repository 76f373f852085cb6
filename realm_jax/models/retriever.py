"""The knowledge retriever: f(x, z) = Embed_input(x)ᵀ Embed_doc(z) (REALM, arXiv:2002.08909, eq. 2)."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.transformer import Transformer, TransformerConfig, layer_norm
from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class RetrieverConfig:
    """The dual encoder. The paper's REALM: one tied BERT, [CLS], projection to 128, LayerNorm, no scaling.

    Attributes:
      encoder: of the texts.
      projection_size: width of the projection and its LayerNorm; None for neither, as DPR and sentence-transformers.
      tied: one encoder for queries and documents.
      score_scale: multiplied into the query embedding, so that every index ranks by the same score.
      pooling: what of the hidden states stands for the text. "cls": the one at [CLS]; "pooler": BERT's pooler,
        tanh(W h_[CLS] + b), which the Hugging Face port of REALM projects; "mean": the mean over all tokens,
        [CLS] and [SEP] included, as sentence-transformers take it.
      normalize: scale embeddings to unit length, so that a score is score_scale times a cosine.
    """

    encoder: TransformerConfig
    projection_size: int | None = 128
    tied: bool = True
    score_scale: float = 1.0
    pooling: Literal["cls", "pooler", "mean"] = "cls"
    normalize: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.projection_size is not None and self.projection_size < 1:
            raise ValueError(
                f"RetrieverConfig.projection_size must be at least 1, or None for no projection, got {self.projection_size}"
            )

    @property
    def embed_dim(self) -> int:
        """Width of an embedding."""
        return self.encoder.hidden_size if self.projection_size is None else self.projection_size


class TextEncoder(nn.Module):
    """Hidden states, pooled, projected, LayerNorm, unit length, as configured: [batch, embed] in float32."""

    config: RetrieverConfig

    def setup(self) -> None:
        config = self.config
        kernel_init = nn.initializers.normal(config.encoder.initializer_range)
        self.encoder = Transformer(config.encoder)
        if config.pooling == "pooler":
            self.pooler = nn.Dense(config.encoder.hidden_size, kernel_init=kernel_init)
        if config.projection_size is not None:
            self.projection = nn.Dense(config.projection_size, kernel_init=kernel_init)
            self.projection_norm = layer_norm(config.encoder)

    def __call__(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, "batch embed"]:
        hidden = self.encoder(ids, segment_ids, mask, deterministic)
        if self.config.pooling == "mean":
            embeds = masked_mean(hidden.astype(jnp.float32), mask)
        else:
            embeds = hidden[:, 0].astype(jnp.float32)
        if self.config.pooling == "pooler":
            embeds = jnp.tanh(self.pooler(embeds))
        if self.config.projection_size is not None:
            embeds = self.projection_norm(self.projection(embeds))
        return unit_length(embeds) if self.config.normalize else embeds


def masked_mean(
    hidden: Float[Array, "batch length hidden"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch hidden"]:
    """Mean over the positions where the mask is true; zero for a row without any."""
    total = jnp.where(mask[:, :, None], hidden, 0.0).sum(axis=1)
    return total / jnp.maximum(mask.sum(axis=1), 1)[:, None]


def unit_length(embeds: Float[Array, "batch embed"]) -> Float[Array, "batch embed"]:
    """Each row divided by its Euclidean length; a row of zeros stays zeros."""
    squares = (embeds * embeds).sum(axis=-1, keepdims=True)
    return embeds * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


class Retriever(nn.Module):
    """Embeds queries and documents so that their inner product is the retrieval score.

    Untied encoders keep their own names in the parameters (`query_encoder`, `document_encoder`); a tied one is
    `shared_encoder`. Use with `apply(..., method="embed_queries")` or `method="embed_documents"`.
    """

    config: RetrieverConfig

    def setup(self) -> None:
        if self.config.tied:
            self.shared_encoder = TextEncoder(self.config)
        else:
            self.query_encoder = TextEncoder(self.config)
            self.document_encoder = TextEncoder(self.config)

    def embed_queries(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, "batch embed"]:
        """Embed_input of `[CLS] x [SEP]`, times score_scale."""
        encoder = self.shared_encoder if self.config.tied else self.query_encoder
        return encoder(ids, segment_ids, mask, deterministic) * self.config.score_scale

    def embed_documents(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, "batch embed"]:
        """Embed_doc of `[CLS] title [SEP] body [SEP]`."""
        encoder = self.shared_encoder if self.config.tied else self.document_encoder
        return encoder(ids, segment_ids, mask, deterministic)

    def __call__(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
    ) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
        """Both embeddings of one input: what initialisation traces so that every parameter is made."""
        return self.embed_queries(ids, segment_ids, mask), self.embed_documents(ids, segment_ids, mask)
