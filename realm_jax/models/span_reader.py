"""The reader of open-domain question answering: scores every short span of a document as the answer (ORQA, REALM)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from realm_jax.models.transformer import Transformer, TransformerConfig
from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class SpanReaderConfig:
    """Shape of the span reader; the defaults are those of the released ORQA and REALM."""

    encoder: TransformerConfig
    span_hidden_size: int = 256
    max_span_width: int = 10  # pieces
    span_layer_norm_eps: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("span_hidden_size", "max_span_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"SpanReaderConfig.{name} must be at least 1, got {getattr(self, name)}")


def span_bounds(length: int, max_span_width: int) -> tuple[Int[np.ndarray, "num_spans"], Int[np.ndarray, "num_spans"]]:
    """First and last position (inclusive) of every span of at most `max_span_width` positions, the narrow ones first.

    >>> starts, ends = span_bounds(3, 2)
    >>> list(zip(starts.tolist(), ends.tolist()))
    [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2)]
    """
    widths = range(1, min(max_span_width, length) + 1)
    starts = np.concatenate([np.arange(length - width + 1) for width in widths])
    ends = np.concatenate([np.arange(width - 1, length) for width in widths])
    return starts, ends


class SpanReader(nn.Module):
    """w · LayerNorm(ReLU(W_s h_s + W_e h_e)) for every span (s, e) of `[CLS] x [SEP] z [SEP]`.

    The score of the paper's MLP([h_start; h_end]) (ORQA, arXiv:1906.00300, section 3; REALM, arXiv:2002.08909, section
    3.2), written as the released code computes it: one projection of each end, added before the non-linearity, so that
    spans cost additions and not matrix products.
    """

    config: SpanReaderConfig

    def setup(self) -> None:
        config = self.config
        kernel_init = nn.initializers.normal(config.encoder.initializer_range)
        self.encoder = Transformer(config.encoder)
        self.span_hidden = nn.Dense(
            2 * config.span_hidden_size, dtype=jnp.dtype(config.encoder.dtype), kernel_init=kernel_init
        )
        self.span_norm = nn.LayerNorm(epsilon=config.span_layer_norm_eps, dtype=jnp.float32)
        self.span_output = nn.Dense(1, kernel_init=kernel_init)

    def __call__(
        self,
        ids: Int32[Array, "rows length"],
        segment_ids: Int32[Array, "rows length"],
        mask: Bool[Array, "rows length"],
        deterministic: bool = True,
    ) -> Float[Array, "rows num_spans"]:
        """Logits, in float32, of the spans in the order of `span_bounds(length, max_span_width)`.

        Spans that lie in the question or over its end have logits too: leave them out with `span_mask` of the loss.
        """
        hidden = self.span_hidden(self.encoder(ids, segment_ids, mask, deterministic))
        first, last = jnp.split(hidden, 2, axis=-1)  # [rows, length, span_hidden] each
        length = ids.shape[1]
        logits = []
        for width in range(1, min(self.config.max_span_width, length) + 1):  # the same order as span_bounds
            spans = first[:, : length - width + 1] + last[:, width - 1 :]
            logits.append(self.span_output(self.span_norm(nn.relu(spans)))[..., 0])
        return jnp.concatenate(logits, axis=1)
