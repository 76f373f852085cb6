"""The knowledge-augmented encoder of pre-training: a masked LM over `[CLS] x [SEP] z [SEP]` (REALM, section 3.2)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.transformer import ACTIVATIONS, Transformer, TransformerConfig, layer_norm


class KnowledgeEncoder(nn.Module):
    """BERT with its masked-LM head, evaluated only where something is masked.

    The vocabulary matrix is the token embedding (tied, as in BERT) plus a bias. Logits are made for `num_masks`
    positions a row, not for the whole sequence: at BERT-base size that is 10 of 384.
    """

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.encoder = Transformer(config)
        self.transform = nn.Dense(
            config.hidden_size,
            dtype=jnp.dtype(config.dtype),
            kernel_init=nn.initializers.normal(config.initializer_range),
        )
        self.transform_norm = layer_norm(config)
        self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (config.vocab_size,))

    def __call__(
        self,
        ids: Int32[Array, "batch length"],
        segment_ids: Int32[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        mask_positions: Int32[Array, "batch num_masks"],
        deterministic: bool = True,
    ) -> Float[Array, "batch num_masks vocab"]:
        """Vocabulary logits, in float32, at the given positions.

        Args:
          ids, segment_ids, mask: the joint input, see `Transformer`.
          mask_positions: positions of the [MASK] tokens in the row; unused slots may hold any valid position
            (the loss weighs them with zero).
        """
        hidden = self.encoder(ids, segment_ids, mask, deterministic)
        masked = jnp.take_along_axis(hidden, mask_positions[:, :, None], axis=1)  # [batch, num_masks, hidden]
        dtype = jnp.dtype(self.config.dtype)
        transformed = ACTIVATIONS[self.config.activation](self.transform(masked.astype(dtype)))
        transformed = self.transform_norm(transformed).astype(dtype)
        table = self.encoder.token_embedding.embedding.astype(dtype)
        logits = jnp.einsum("bmh,vh->bmv", transformed, table, preferred_element_type=jnp.float32)
        return logits + self.output_bias[None, None, :]
