"""BERT with a token-classification head: what tags named entities (REALM, arXiv:2002.08909, section 3.4)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.transformer import Transformer, TransformerConfig
from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class TokenTaggerConfig:
    """The tagger's encoder and how many labels it tells apart."""

    encoder: TransformerConfig
    num_labels: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_labels < 2:
            raise ValueError(f"TokenTaggerConfig.num_labels must be at least 2, got {self.num_labels}")


class TokenTagger(nn.Module):
    """A linear layer over every hidden state (Devlin et al. 2018, arXiv:1810.04805, section 5.3)."""

    config: TokenTaggerConfig

    def setup(self) -> None:
        encoder = self.config.encoder
        self.encoder = Transformer(encoder)
        self.dropout = nn.Dropout(encoder.dropout_rate)
        self.output = nn.Dense(
            self.config.num_labels, kernel_init=nn.initializers.normal(encoder.initializer_range), dtype=jnp.float32
        )

    def __call__(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, "batch length num_labels"]:
        """Label logits, in float32, at every position; see `Transformer`. Those at padding mean nothing."""
        hidden = self.encoder(ids, segment_ids, mask, deterministic)
        return self.output(self.dropout(hidden, deterministic=deterministic))
