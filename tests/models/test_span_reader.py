"""The span reader: its order of spans, and its scores against the formula written out for one span at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models import SpanReader, SpanReaderConfig, Transformer, span_bounds
from tests import tiny

LENGTH = 9
CONFIG = SpanReaderConfig(tiny.encoder(), span_hidden_size=6, max_span_width=4)


def inputs(rows=2, length=LENGTH):
    ids = jax.random.randint(jax.random.key(1), (rows, length), 1, CONFIG.encoder.vocab_size)
    return ids, (jnp.arange(length) > 3).astype(jnp.int32)[None].repeat(rows, axis=0), ids > 0


@pytest.fixture(scope="module")
def params():
    params = SpanReader(CONFIG).init(jax.random.key(0), *inputs())["params"]
    leaves, tree = jax.tree.flatten(params)  # biases and norms off their initial values, so that each one shows
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def test_every_span_once_the_narrow_ones_first():
    starts, ends = span_bounds(5, 3)
    assert len(starts) == 5 + 4 + 3
    assert (ends - starts + 1).tolist() == [1] * 5 + [2] * 4 + [3] * 3
    assert len(set(zip(starts.tolist(), ends.tolist(), strict=True))) == 12
    assert starts.min() == 0 and ends.max() == 4


def test_spans_are_never_wider_than_the_input():
    starts, ends = span_bounds(2, 10)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [(0, 0), (1, 1), (0, 1)]


def test_scores_are_the_formula_of_each_span(params):
    ids, segment_ids, mask = inputs()
    logits = SpanReader(CONFIG).apply({"params": params}, ids, segment_ids, mask)
    hidden = np.asarray(Transformer(CONFIG.encoder).apply({"params": params["encoder"]}, ids, segment_ids, mask))
    kernel, bias = (np.asarray(params["span_hidden"][name], np.float64) for name in ("kernel", "bias"))
    first, last = np.split(kernel, 2, axis=1)
    starts, ends = span_bounds(LENGTH, CONFIG.max_span_width)
    assert logits.shape == (2, len(starts))
    for row in range(2):
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            both = np.maximum(hidden[row, start] @ first + hidden[row, end] @ last + bias[:6] + bias[6:], 0)
            normal = (both - both.mean()) / np.sqrt(both.var() + 1e-3)
            normal = normal * np.asarray(params["span_norm"]["scale"]) + np.asarray(params["span_norm"]["bias"])
            expected = normal @ np.asarray(params["span_output"]["kernel"])[:, 0] + params["span_output"]["bias"][0]
            np.testing.assert_allclose(logits[row, number], expected, rtol=2e-4, atol=2e-5)


def test_start_and_end_are_not_interchangeable(params):
    swapped = {**params, "span_hidden": jax.tree.map(lambda x: jnp.roll(x, 6, axis=-1), params["span_hidden"])}
    logits, others = (SpanReader(CONFIG).apply({"params": p}, *inputs()) for p in (params, swapped))
    np.testing.assert_allclose(logits[:, :LENGTH], others[:, :LENGTH], rtol=1e-4, atol=1e-5)  # one piece: both ends
    assert float(jnp.abs(logits[:, LENGTH:] - others[:, LENGTH:]).max()) > 0.01


@pytest.mark.parametrize("name", ["span_hidden_size", "max_span_width"])
def test_refuses_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"SpanReaderConfig.{name} must be at least 1, got 0"):
        SpanReaderConfig(tiny.encoder(), **{name: 0})
