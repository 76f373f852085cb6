"""The token head: a linear layer over every position, whatever lies in the padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models.token_tagger import TokenTagger, TokenTaggerConfig
from tests import tiny
from tests.models.test_transformer import bert, inputs

CONFIG = TokenTaggerConfig(tiny.encoder(), num_labels=5)


@pytest.fixture(scope="module")
def params():
    params = jax.jit(TokenTagger(CONFIG).init)(jax.random.key(0), *inputs())["params"]
    return {**params, "output": {**params["output"], "bias": jnp.linspace(-1, 1, 5)}}


def test_head_in_numpy(params):
    logits = jax.jit(lambda p, *arrays: TokenTagger(CONFIG).apply({"params": p}, *arrays))(params, *inputs())
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["output"])
    expected = bert(params["encoder"], tiny.encoder(), *inputs()) @ head["kernel"] + head["bias"]
    assert logits.dtype == jnp.float32 and logits.shape == (*inputs()[0].shape, 5)
    mask = np.asarray(inputs()[2])
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], rtol=2e-4, atol=2e-5)


def test_logits_are_float32_whatever_is_computed_in():
    config = TokenTaggerConfig(tiny.encoder(dtype="bfloat16"), num_labels=2)
    shapes = jax.eval_shape(TokenTagger(config).init_with_output, jax.random.key(0), *inputs())
    assert shapes[0].dtype == jnp.float32


def test_one_label_tells_nothing():
    with pytest.raises(ValueError, match="num_labels must be at least 2, got 1"):
        TokenTaggerConfig(tiny.encoder(), num_labels=1)
