"""Attention against the library's, and against numbers worked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models import TransformerConfig
from realm_jax.models.attention import attend
from realm_jax.models.transformer import Transformer
from tests import tiny


def random_heads(dtype=jnp.float32, batch=3, length=7, num_heads=2, head_dim=4):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (batch, length, num_heads, head_dim)).astype(dtype) for key in keys]


def lengths_mask(lengths, length=7):
    return jnp.arange(length, dtype=jnp.int32)[None] < jnp.asarray(lengths, jnp.int32)[:, None]


def test_by_hand():
    query = jnp.array([2.0, 0.0]).reshape(1, 2, 1, 1)
    key = jnp.array([jnp.log(3.0) / 2, 0.0]).reshape(1, 2, 1, 1)
    value = jnp.array([4.0, 8.0]).reshape(1, 2, 1, 1)
    found = attend(query, key, value, jnp.array([[True, True]]))
    # logits of the first row: ln 3 and 0, weights 3/4 and 1/4; of the second: 0 and 0
    np.testing.assert_allclose(found.reshape(-1), [4.0 * 0.75 + 8.0 * 0.25, 6.0], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_equals_the_librarys(dtype, tolerance):
    query, key, value = random_heads(dtype)
    mask = lengths_mask([7, 3, 1])
    expected = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
    found = attend(query, key, value, mask)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance)


def test_the_librarys_is_chosen_where_nothing_is_dropped():
    heads = random_heads()
    mask = lengths_mask([7, 3, 0])  # of the row without tokens only that it is finite matters
    found, own = attend(*heads, mask, by="xla"), attend(*heads, mask)
    np.testing.assert_allclose(found[:2], own[:2], atol=1e-6)
    assert np.isfinite(found).all()
    gradient = jax.grad(lambda value: attend(*heads[:2], value, mask, by="xla").sum())(heads[2])
    assert np.isfinite(gradient).all()

    def drop(weights):
        return weights * 0.5

    dropped = attend(*heads, mask, dropout=drop, by="xla")
    np.testing.assert_array_equal(dropped, attend(*heads, mask, dropout=drop))
    assert not np.allclose(dropped, found)


def test_who_computes_it_is_a_setting_of_the_encoder():
    config = tiny.encoder()
    ids = jnp.array([[5, 6, 7, 8], [5, 6, 0, 0]], jnp.int32)
    inputs = ids, ids * 0, ids != 0
    params = Transformer(config).init(jax.random.key(0), *inputs)
    own = Transformer(config).apply(params, *inputs)
    by_xla = dataclasses.replace(config, attention="xla")
    found = Transformer(by_xla).apply(params, *inputs)
    np.testing.assert_allclose(found[0], own[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :2], own[1, :2], atol=1e-5)
    programs = [str(jax.make_jaxpr(Transformer(c).apply)(params, *inputs)) for c in (config, by_xla)]
    assert programs[0] != programs[1]


def test_cudnn_needs_its_types():
    with pytest.raises(
        ValueError, match=r"attention='cudnn' needs dtype='bfloat16' .* got 'float32' and 64; use 'own'"
    ):
        TransformerConfig(attention="cudnn")
    assert TransformerConfig(attention="cudnn", dtype="bfloat16").attention == "cudnn"
    heads = random_heads(jnp.bfloat16, head_dim=8)
    with pytest.raises(RuntimeError, match=r"(?i)cudnn"):  # no silent fallback
        jax.jit(lambda *heads: attend(*heads, lengths_mask([7, 3, 1]), by="cudnn"))(*heads)


def test_gradients_equal_the_librarys():
    heads, mask = random_heads(), lengths_mask([7, 3, 1])
    weights = jax.random.normal(jax.random.key(1), heads[0].shape)

    def ours(heads):
        return (attend(*heads, mask) * weights).sum()

    def librarys(heads):
        return (jax.nn.dot_product_attention(*heads, mask=mask[:, None, None, :]) * weights).sum()

    for found, expected in zip(jax.grad(ours)(heads), jax.grad(librarys)(heads), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_masked_changes_nothing():
    query, key, value = random_heads()
    mask = lengths_mask([7, 3, 1])
    there = mask[:, :, None, None]
    expected = attend(query, key, value, mask)
    found = attend(query, jnp.where(there, key, 50.0), jnp.where(there, value, -9e9), mask)
    np.testing.assert_array_equal(found, expected)


def test_large_logits_do_not_overflow():
    query, key, value = random_heads()
    found = attend(query * 1e3, key * 1e3, value, lengths_mask([7, 7, 7]))
    assert np.isfinite(found).all()


def test_dropout_of_weights_leaves_the_sum_of_all():
    query, key, value = random_heads(batch=1, length=2, num_heads=1, head_dim=1)
    mask = jnp.array([[True, True]])
    kept_first = attend(query, key, value, mask, dropout=lambda weights: weights.at[..., 1].set(0.0))
    only_first = attend(query, key, value.at[:, 1].set(0.0), mask)
    np.testing.assert_allclose(kept_first, only_first, rtol=1e-6)
