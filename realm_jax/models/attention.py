"""Scaled dot-product attention over padded rows."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED_LOGIT = -1e30

Attention = Literal["own", "xla", "cudnn"]
"""Who computes it: `attend` itself, or `jax.nn.dot_product_attention` by XLA or by cuDNN's fused kernel."""


def attend(
    query: Float[Array, "batch query_len num_heads head_dim"],
    key: Float[Array, "batch length num_heads head_dim"],
    value: Float[Array, "batch length num_heads head_dim"],
    mask: Bool[Array, "batch length"],
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    by: Attention = "own",
    causal: bool = False,
) -> Float[Array, "batch query_len num_heads head_dim"]:
    """softmax(QKᵀ / √d) V (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), each row over the keys where `mask` is true.

    The weights are divided by their sum after the product with V, as flash attention does (arXiv:2205.14135, section 3.1):
    the logits of all pairs, by far the largest array here, are then passed over once less. Against
    `jax.nn.dot_product_attention` that takes two thirds of the time on a CPU (benchmarks/encoder_throughput.py).

    Args:
      query, key, value: of one type, float32 or bfloat16. Logits, softmax and sums are float32.
      mask: true where there is a token. A row without any is the mean of all values, and means nothing.
      dropout: applied to the weights. Dropping unnormalised weights and dividing by the sum of all is the same as dropping
        normalised ones.
      by: "xla" or "cudnn" for the library's, where there is no dropout, which it does not have; tokens are then expected
        before all padding.
      causal: query i sees the keys up to i alone; there are as many of both.
    """
    if by != "own" and dropout is None:
        # cuDNN makes a bias of a mask, and skips nothing; of a row without any token the first key is read
        lengths = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)
        return jax.nn.dot_product_attention(
            query, key, value, key_value_seq_lengths=lengths, is_causal=causal, implementation=by
        )
    scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
    # [batch, num_heads, query_len, length]
    logits = jnp.einsum("bqnh,bknh->bnqk", scaled, key, preferred_element_type=jnp.float32)
    logits = logits + jnp.where(mask, 0.0, MASKED_LOGIT)[:, None, None, :]
    if causal:
        earlier = jnp.tri(query.shape[1], key.shape[1], dtype=bool)
        logits = jnp.where(earlier[None, None], logits, MASKED_LOGIT)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))).astype(value.dtype)
    sums = weights.sum(axis=-1, dtype=jnp.float32)  # of the rounded weights, so that they average
    if dropout is not None:
        weights = dropout(weights)
    context = jnp.einsum("bnqk,bknh->bqnh", weights, value, preferred_element_type=jnp.float32)
    return (context / sums.transpose(0, 2, 1)[..., None]).astype(value.dtype)
