"""Matrix products of 16-bit operands that are summed in float32, forward and backward."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

DENSE_PRODUCT = "dense_product"


@jax.custom_vjp
def dense_product(
    inputs: Float[Array, "*rows features"], kernel: Float[Array, "features outputs"]
) -> Float[Array, "*rows outputs"]:
    """inputs · kernel, summed in float32 and rounded once to the inputs' type; so are both gradients.

    TPUs and GPUs sum so in any case. On CPUs with bfloat16 instructions (AVX-512 BF16, AMX) XLA uses them for products with
    a float32 result alone, which makes them about twice as fast as float32's; a product with a bfloat16 result is computed
    in float32 throughout.
    """
    return _summed_in_float32("...f,fo->...o", inputs, kernel)


def _summed_in_float32(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32).astype(left.dtype)


def _forward(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dense_product(inputs, kernel), (inputs, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    return (
        _summed_in_float32("...o,fo->...f", cotangent, kernel),
        _summed_in_float32("...f,...o->fo", inputs, cotangent),
    )


dense_product.defvjp(_forward, _backward)


def dense_dot_general(inputs: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`dense_product` in the form that `flax.linen.Dense(dot_general=…)` calls; the contraction is that of Dense.

    The result has a name, by which a rematerialisation policy can keep it.
    """
    return checkpoint_name(dense_product(inputs, kernel), DENSE_PRODUCT)
