"""The dual encoder: names of its parameters, projection, scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models import Retriever
from realm_jax.models.retriever import unit_length
from tests import tiny
from tests.models.test_transformer import bert, inputs


@functools.lru_cache
def jitted_init(config):
    return jax.jit(Retriever(config).init)


def init(config):
    return jitted_init(config)(jax.random.key(0), *inputs())["params"]


@functools.lru_cache
def program(config, method):
    return jax.jit(lambda params, *arrays: Retriever(config).apply({"params": params}, *arrays, method=method))


def embed(config, params, method, *arrays):
    return np.asarray(program(config, method)(params, *(arrays or inputs())))


def test_projected_cls_with_layer_norm():
    config = tiny.retriever()
    params = init(config)
    encoder = params["shared_encoder"]
    cls = bert(encoder["encoder"], config.encoder, *inputs())[:, 0]
    projected = cls @ np.asarray(encoder["projection"]["kernel"], np.float64)
    expected = (projected - projected.mean(-1, keepdims=True)) / projected.std(-1, keepdims=True)
    np.testing.assert_allclose(embed(config, params, "embed_documents"), expected, atol=1e-4)
    np.testing.assert_allclose(embed(config, params, "embed_queries"), 0.25 * expected, atol=1e-4)


def test_tied_is_one_encoder_and_untied_are_two_with_their_own_names():
    assert set(init(tiny.retriever())) == {"shared_encoder"}
    config = tiny.retriever(tied=False, score_scale=1.0)
    params = init(config)
    assert set(params) == {"query_encoder", "document_encoder"}
    shapes = [jax.tree.map(jnp.shape, params[name]) for name in sorted(params)]
    assert shapes[0] == shapes[1]
    # each embedding reads its own encoder and nothing of the other
    for method, own, other in (
        ("embed_queries", "query_encoder", "document_encoder"),
        ("embed_documents", "document_encoder", "query_encoder"),
    ):
        before = embed(config, params, method)
        without = {**params, other: jax.tree.map(jnp.zeros_like, params[other])}
        np.testing.assert_array_equal(embed(config, without, method), before)
        swapped = {own: params[other], other: params[own]}
        assert np.abs(embed(config, swapped, method) - before).max() > 0.1


def test_padding_and_length_do_not_move_an_embedding():
    config = tiny.retriever()
    params = init(config)
    longer = [jnp.pad(array, ((0, 0), (0, 9))) for array in inputs()]
    np.testing.assert_allclose(
        embed(config, params, "embed_documents", *longer), embed(config, params, "embed_documents"), atol=1e-5
    )


def test_embeddings_are_float32_also_when_the_encoder_is_not():
    config = tiny.retriever(encoder=tiny.encoder(dtype="bfloat16"))
    assert embed(config, init(config), "embed_queries").dtype == np.float32


def test_pooler_is_the_tanh_of_a_dense_layer_on_cls():
    config = tiny.retriever(pooling="pooler", score_scale=1.0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, init(config))  # biases off zero, norms off one
    encoder = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["shared_encoder"])
    cls = bert(encoder["encoder"], config.encoder, *inputs())[:, 0]
    pooled = np.tanh(cls @ encoder["pooler"]["kernel"] + encoder["pooler"]["bias"])
    projected = pooled @ encoder["projection"]["kernel"] + encoder["projection"]["bias"]
    normal = (projected - projected.mean(-1, keepdims=True)) / projected.std(-1, keepdims=True)
    expected = normal * encoder["projection_norm"]["scale"] + encoder["projection_norm"]["bias"]
    np.testing.assert_allclose(embed(config, params, "embed_documents"), expected, atol=1e-4)


def test_mean_is_over_the_tokens_and_not_over_the_padding():
    config = tiny.retriever(pooling="mean", projection_size=None, score_scale=1.0)
    params = init(config)
    assert set(params["shared_encoder"]) == {"encoder"}  # no projection, no LayerNorm
    hidden = bert(params["shared_encoder"]["encoder"], config.encoder, *inputs())
    mask = np.asarray(inputs()[2])
    assert sorted(mask.sum(axis=1)) == [5, 7, 11]
    expected = [row[used].mean(axis=0) for row, used in zip(hidden, mask, strict=True)]
    np.testing.assert_allclose(embed(config, params, "embed_queries"), expected, atol=1e-5)
    longer = [jnp.pad(array, ((0, 0), (0, 9))) for array in inputs()]
    np.testing.assert_allclose(embed(config, params, "embed_queries", *longer), expected, atol=1e-5)


def test_unit_length_keeps_the_direction_and_scales_the_query_alone():
    config = tiny.retriever(normalize=True, score_scale=20.0)
    params = init(config)
    plain = embed(tiny.retriever(score_scale=1.0), params, "embed_documents")
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(config, params, "embed_documents"), expected, atol=1e-6)
    np.testing.assert_allclose(embed(config, params, "embed_queries"), 20 * expected, atol=1e-5)


def test_the_unit_length_of_zeros_is_zero_and_has_a_finite_gradient():
    rows = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit_length(rows), [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit_length(x)[:, 0].sum())(rows)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[1], [0.128, -0.096], rtol=1e-5)  # (1 - 0.36) / 5, -0.6 * 0.8 / 5


def test_embed_dim_is_the_width_of_the_embeddings():
    assert (tiny.retriever().embed_dim, tiny.retriever(projection_size=None).embed_dim) == (16, 32)
    config = tiny.retriever(projection_size=None)
    assert embed(config, init(config), "embed_documents").shape == (3, 32)


def test_refuses_a_projection_to_nothing():
    with pytest.raises(ValueError, match=r"RetrieverConfig.projection_size must be at least 1, or None .* got 0"):
        tiny.retriever(projection_size=0)
