"""The dual encoder: names of its parameters, projection, scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.models import Retriever
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
