"""The masked-LM head: logits at the masked positions, and nowhere else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models import KnowledgeEncoder
from tests import tiny
from tests.models.test_transformer import bert, inputs

POSITIONS = jnp.array([[1, 4], [2, 0], [3, 3]], jnp.int32)


@pytest.fixture(scope="module")
def params():
    params = jax.jit(KnowledgeEncoder(tiny.encoder()).init)(jax.random.key(0), *inputs(), POSITIONS)["params"]
    return {**params, "output_bias": jnp.linspace(-1, 1, 64)}


@functools.lru_cache
def program(config):
    return jax.jit(lambda params, *arrays: KnowledgeEncoder(config).apply({"params": params}, *arrays))


def logits(params, positions=POSITIONS, config=None):
    return np.asarray(program(config or tiny.encoder())(params, *inputs(), positions))


def test_bert_head_in_numpy(params):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = bert(params["encoder"], tiny.encoder(), *inputs())
    picked = np.stack([hidden[row, POSITIONS[row]] for row in range(3)])
    transformed = picked @ p["transform"]["kernel"] + p["transform"]["bias"]
    transformed = np.asarray(jax.nn.gelu(transformed, approximate=False), np.float64)
    normed = (transformed - transformed.mean(-1, keepdims=True)) / transformed.std(-1, keepdims=True)
    table = p["encoder"]["token_embedding"]["embedding"]
    expected = np.einsum("bmh,vh->bmv", normed, table) + p["output_bias"]
    np.testing.assert_allclose(logits(params), expected, atol=1e-4)


def test_only_the_asked_positions(params):
    whole = logits(params, jnp.tile(jnp.arange(11, dtype=jnp.int32), (3, 1)))
    for row in range(3):
        np.testing.assert_allclose(logits(params)[row], whole[row, POSITIONS[row]], atol=1e-5)
    text = str(
        jax.make_jaxpr(lambda p: KnowledgeEncoder(tiny.encoder()).apply({"params": p}, *inputs(), POSITIONS))(params)
    )
    assert "f32[3,2,64]" in text and "f32[3,11,64]" not in text


def test_the_output_matrix_is_the_token_embedding(params):
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)}
    assert {name for name in names if "encoder/layers" not in name} == {
        "encoder/token_embedding/embedding", "encoder/segment_embedding/embedding", "encoder/position_embedding/embedding",
        "encoder/norm/scale", "encoder/norm/bias", "output_bias", "transform/kernel", "transform/bias",
        "transform_norm/scale", "transform_norm/bias",
    }  # fmt: skip
    table = params["encoder"]["token_embedding"]["embedding"]
    unused = next(i for i in range(63, 0, -1) if i not in np.asarray(inputs()[0]))
    scaled = {
        **params,
        "encoder": {**params["encoder"], "token_embedding": {"embedding": table.at[unused].multiply(3.0)}},
    }
    before, after = (logits(which) - np.asarray(params["output_bias"]) for which in (params, scaled))
    np.testing.assert_allclose(after[..., unused], 3 * before[..., unused], rtol=1e-3, atol=1e-5)


def test_bfloat16_gives_float32_logits(params):
    low = logits(params, config=tiny.encoder(dtype="bfloat16"))
    assert low.dtype == np.float32
    assert np.abs(low - logits(params)).mean() < 0.1
