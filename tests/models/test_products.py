"""Products of 16-bit operands are summed in float32, forward and backward."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models.products import dense_product


def operands(dtype, rows=(2, 3), features=512, outputs=4):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (*rows, features)).astype(dtype)
    kernel = jax.random.normal(keys[1], (features, outputs)).astype(dtype)
    return inputs, kernel, jax.random.normal(keys[2], (*rows, outputs)).astype(dtype)


def test_float32_is_the_plain_product_with_its_gradients():
    inputs, kernel, cotangent = operands(jnp.float32)
    expected, expected_grads = jax.vjp(lambda a, b: jnp.einsum("...f,fo->...o", a, b), inputs, kernel)
    found, found_grads = jax.vjp(dense_product, inputs, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for one, other in zip(found_grads(cotangent), expected_grads(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_once():
    inputs, kernel, cotangent = operands(jnp.bfloat16)
    wide = [np.asarray(operand, np.float32) for operand in (inputs, kernel, cotangent)]
    found, pullback = jax.vjp(dense_product, inputs, kernel)
    to_inputs, to_kernel = pullback(cotangent)
    flat_inputs, flat_cotangent = wide[0].reshape(-1, 512), wide[2].reshape(-1, 4)
    for result, exact in (
        (found, wide[0] @ wide[1]),
        (to_inputs, wide[2] @ wide[1].T),
        (to_kernel, flat_inputs.T @ flat_cotangent),
    ):
        assert result.dtype == jnp.bfloat16
        # half a unit in the last place of 8 bits, and float32's own sum
        np.testing.assert_allclose(result.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_every_product_of_a_step_has_narrow_operands_and_a_wide_sum(platform):
    """The backward pass too: a product of float32 by bfloat16 would run at float32's speed."""
    inputs, kernel, _ = operands(jnp.bfloat16)

    def loss(inputs, kernel):
        return dense_product(inputs, kernel).astype(jnp.float32).sum()

    exported = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1))), platforms=[platform])(inputs, kernel)
    products = [line for line in exported.mlir_module().splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 2
    for line in products:
        types = re.findall(r"tensor<[\dx]*x(\w+)>", line.split(" : ")[1])
        assert types == ["bf16", "bf16", "f32"], line
