"""The knowledge retriever: f(x, z) = Embed_input(x)ᵀ Embed_doc(z) (REALM, arXiv:2002.08909, eq. 2)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.transformer import Transformer, TransformerConfig, layer_norm
from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class RetrieverConfig:
    """The dual encoder. Released REALM: one tied BERT, projection to 128, LayerNorm, no scaling."""

    encoder: TransformerConfig
    projection_size: int = 128
    tied: bool = True  # one encoder for queries and documents
    score_scale: float = 1.0  # multiplied into the query embedding, so that every index ranks by the same score

    def __post_init__(self) -> None:
        check_fields(self)


class ProjectedEncoder(nn.Module):
    """Hidden state at [CLS], projected, then LayerNorm: [batch, projection_size] in float32."""

    config: RetrieverConfig

    def setup(self) -> None:
        self.encoder = Transformer(self.config.encoder)
        self.projection = nn.Dense(
            self.config.projection_size,
            kernel_init=nn.initializers.normal(self.config.encoder.initializer_range),
        )
        self.projection_norm = layer_norm(self.config.encoder)

    def __call__(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, "batch embed"]:
        hidden = self.encoder(ids, segment_ids, mask, deterministic)
        return self.projection_norm(self.projection(hidden[:, 0].astype(jnp.float32)))


class Retriever(nn.Module):
    """Embeds queries and documents so that their inner product is the retrieval score.

    Untied encoders keep their own names in the parameters (`query_encoder`, `document_encoder`); a tied one is
    `shared_encoder`. Use with `apply(..., method="embed_queries")` or `method="embed_documents"`.
    """

    config: RetrieverConfig

    def setup(self) -> None:
        if self.config.tied:
            self.shared_encoder = ProjectedEncoder(self.config)
        else:
            self.query_encoder = ProjectedEncoder(self.config)
            self.document_encoder = ProjectedEncoder(self.config)

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
