"""The encoder against an independent BERT in numpy, and the properties of its variants."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models import Transformer, TransformerConfig, forward_flops
from realm_jax.models.transformer import MultiHeadAttention, rotate
from tests import tiny

LENGTH = 11


def inputs(batch=3, length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 64, size=(batch, length)).astype(np.int32)
    lengths = np.array([length, length - 4, length // 2])[:batch]
    ids[np.arange(length) >= lengths[:, None]] = 0
    segments = (np.arange(length) >= lengths[:, None] // 2).astype(np.int32) * (ids != 0)
    return jnp.asarray(ids), jnp.asarray(segments), jnp.asarray(ids != 0)


def init(config, seed=0):
    """Random parameters, biases and norms included, so that nothing can hide behind a zero or a one."""
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), *inputs())["params"]
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        values = rng.normal(size=leaf.shape) * 0.3 + (name == "scale")
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.lru_cache
def program(config, deterministic=True):
    @jax.jit
    def apply(params, ids, segments, mask, rngs):
        return Transformer(config).apply({"params": params}, ids, segments, mask, deterministic, rngs=rngs)

    return apply


def run(config, params, ids, segments, mask, deterministic=True, rngs=None):
    arrays = map(jnp.asarray, (ids, segments, mask))
    return np.asarray(program(config, deterministic)(params, *arrays, rngs or {}), np.float64)


# --- BERT (arXiv:1810.04805), written out once more in float64


def bert(params, config, ids, segments, mask):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    ids, segments, mask = np.asarray(ids), np.asarray(segments), np.asarray(mask)

    def norm(x, name):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_eps)
        return scaled * name["scale"] + name["bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    hidden = (
        p["token_embedding"]["embedding"][ids]
        + p["segment_embedding"]["embedding"][segments]
        + p["position_embedding"]["embedding"][np.arange(ids.shape[1])][None]
    )
    hidden = norm(hidden, p["norm"])
    head_dim = config.hidden_size // config.num_heads
    for number in range(config.num_layers):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], p["layers"])
        attention = layer["attention"]
        context = np.zeros_like(hidden)
        attended = np.zeros_like(hidden)
        for head in range(config.num_heads):
            of_head = slice(head * head_dim, (head + 1) * head_dim)
            query, key, value = (
                hidden @ attention[name]["kernel"][:, of_head] + attention[name]["bias"][of_head]
                for name in ("query", "key", "value")
            )
            scores = query @ key.transpose(0, 2, 1) / math.sqrt(head_dim)
            scores = np.where(mask[:, None, :], scores, -1e30)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            context = weights / weights.sum(-1, keepdims=True) @ value
            attended += context @ attention["out"]["kernel"][of_head]
        hidden = norm(hidden + attended + attention["out"]["bias"], layer["attention_norm"])
        inner = gelu(hidden @ layer["feed_forward"]["wi"]["kernel"] + layer["feed_forward"]["wi"]["bias"])
        outer = inner @ layer["feed_forward"]["wo"]["kernel"] + layer["feed_forward"]["wo"]["bias"]
        hidden = norm(hidden + outer, layer["output_norm"])
    return hidden


@pytest.fixture(scope="module")
def params():
    return init(tiny.encoder())


def test_defaults_are_bert_base():
    config = TransformerConfig()
    assert (config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size) == (768, 12, 12, 3072)
    assert (config.vocab_size, config.max_length, config.num_segments) == (30522, 512, 2)
    assert (config.norm, config.positions, config.activation) == ("post", "learned", "gelu")
    assert config.layer_norm_eps == 1e-12
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), *inputs())["params"]
    # bert-base-uncased has 109482240 parameters; 590592 of them are the pooler's, which no one here uses
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 109_482_240 - 590_592


def test_equals_bert_written_in_numpy(params):
    ids, segments, mask = inputs()
    mask = np.asarray(mask)
    got, expected = run(tiny.encoder(), params, ids, segments, mask), bert(params, tiny.encoder(), ids, segments, mask)
    np.testing.assert_allclose(got[mask], expected[mask], atol=1e-5)
    # and each ingredient matters, so the agreement is not by accident
    for other in (
        bert(params, tiny.encoder(), ids, 1 - segments, mask),
        bert(params, tiny.encoder(), ids, segments, mask | True),
    ):
        assert np.abs(other - expected)[mask].max() > 1e-2


def test_gelu_new_is_the_tanh_form(params):
    config = tiny.encoder(activation="gelu_new")
    difference = np.abs(run(config, params, *inputs()) - run(tiny.encoder(), params, *inputs())).max()
    assert 1e-6 < difference < 5e-2


@pytest.mark.parametrize("changes", [{}, {"norm": "pre"}, {"norm": "pre", "positions": "rotary"}])
def test_padding_changes_nothing(changes):
    config = tiny.encoder(**changes)
    params = init(config)
    ids, segments, mask = map(np.array, inputs())
    short = run(config, params, ids, segments, mask)
    longer = [np.pad(array, ((0, 0), (0, 6))) for array in (ids, segments, mask)]
    np.testing.assert_allclose(run(config, params, *longer)[:, :LENGTH][mask], short[mask], atol=1e-5)
    junk = ids.copy()
    junk[~mask] = 63  # what stands under the padding must not matter either
    np.testing.assert_allclose(run(config, params, junk, segments, mask)[mask], short[mask], atol=1e-5)


def test_rotary_scores_depend_on_distance_alone():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    length = 40
    queries, keys = (np.asarray(rotate(jnp.repeat(jnp.asarray(x), length, axis=1)))[0, :, 0] for x in (query, key))
    scores = queries @ keys.T  # [length, length]
    for distance in (-13, 0, 1, 7):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert np.ptp(scores) > 0.5
    # a turn by hand: pair (i, i + 4), angle position / 10000^(2i/8)
    angle = 3 / 10000 ** (2 * 1 / 8)
    turned = query[0, 0, 0, 1] * math.cos(angle) - query[0, 0, 0, 5] * math.sin(angle)
    assert queries[3, 1] == pytest.approx(turned, abs=1e-5)


def test_pre_norm_rotary_sees_order_only_through_distance():
    config = tiny.encoder(norm="pre", positions="rotary")
    params = init(config)
    ids = np.random.default_rng(1).integers(5, 64, size=(1, 6)).astype(np.int32)
    shifted = np.pad(ids, ((0, 0), (5, 0)))
    zeros = np.zeros_like(shifted)
    late = run(config, params, shifted, zeros, shifted != 0)[:, 5:]
    np.testing.assert_allclose(late, run(config, params, ids, zeros[:, 5:], ids != 0), atol=1e-5)
    reversed_ids = ids[:, ::-1].copy()
    turned = run(config, params, reversed_ids, zeros[:, 5:], ids != 0)[:, ::-1]
    assert np.abs(turned - late).max() > 1e-2


def test_rotary_has_no_longest_input_and_learned_positions_name_it():
    config = tiny.encoder(max_length=8)
    with pytest.raises(ValueError, match=r"input of 9 tokens.*max_length=8.*shorten the input"):
        jax.eval_shape(Transformer(config).init, jax.random.key(0), *inputs(length=9))
    jax.eval_shape(
        Transformer(dataclasses.replace(config, positions="rotary")).init, jax.random.key(0), *inputs(length=9)
    )


@pytest.mark.parametrize(
    ("dropout", "changes"),
    [
        (True, {"remat": True}),
        (False, {"remat": True, "unroll_layers": 99}),
        (True, {"remat": True, "remat_saves": "products"}),
    ],
)
def test_remat_and_unrolling_change_no_gradient(params, dropout, changes):
    ids, segments, mask = inputs()
    rngs = {"dropout": jax.random.key(5)} if dropout else {}

    def gradient(**changes):
        config = tiny.encoder(**changes)

        @jax.jit
        def loss(params):
            hidden = Transformer(config).apply({"params": params}, ids, segments, mask, not dropout, rngs=rngs)
            return (hidden[:, 0] ** 3).mean()

        return jax.value_and_grad(loss)(params)

    plain_loss, plain = gradient()
    loss, grads = gradient(**changes)
    assert float(loss) == pytest.approx(float(plain_loss), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), grads, plain)


def test_remat_keeps_what_it_says():
    """Bytes that a compiled gradient needs beside its arguments: all activations, products with weights alone, layers' inputs."""
    ids, segments, mask = (jnp.ones((8, 64), dtype) for dtype in (jnp.int32, jnp.int32, jnp.bool_))

    def temporary_bytes(**changes):
        config = tiny.encoder(num_layers=8, num_heads=8, **changes)
        params = jax.eval_shape(Transformer(config).init, jax.random.key(0), ids, segments, mask)["params"]

        def loss(params):
            return Transformer(config).apply({"params": params}, ids, segments, mask).mean()

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    everything, products, nothing = (
        temporary_bytes(**changes)
        for changes in ({}, {"remat": True, "remat_saves": "products"}, {"remat": True, "remat_saves": "nothing"})
    )
    assert everything > 1.3 * products and products > 1.3 * nothing
    with pytest.raises(ValueError, match="remat_saves says what remat keeps, and remat is False; set remat=True"):
        tiny.encoder(remat_saves="products")


def test_dropout_only_with_a_key(params):
    config = tiny.encoder()
    still = run(config, params, *inputs())
    np.testing.assert_array_equal(still, run(config, params, *inputs(), rngs={"dropout": jax.random.key(0)}))
    draws = [
        run(config, params, *inputs(), deterministic=False, rngs={"dropout": jax.random.key(k)}) for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.1 and np.abs(draws[0] - still).max() > 0.1
    no_rates = tiny.encoder(dropout_rate=0.0, attention_dropout_rate=0.0)
    np.testing.assert_array_equal(still, run(no_rates, params, *inputs(), deterministic=False))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_path_with_attention_dropout_computes_the_same_attention(dtype):
    """Softmax weights are made from float32 logits on both paths; a vanishing rate must change nothing."""
    config = tiny.encoder(attention_dropout_rate=1e-7, dtype=dtype)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 32)) * 4, dtype)
    mask = jnp.arange(7)[None, :] < jnp.array([7, 4])[:, None]
    layer = MultiHeadAttention(config)
    params = jax.jit(lambda h: layer.init(jax.random.key(0), h, mask, True))(hidden)
    still = jax.jit(lambda p: layer.apply(p, hidden, mask, True))(params)
    dropped = jax.jit(lambda p: layer.apply(p, hidden, mask, False, rngs={"dropout": jax.random.key(1)}))(params)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    scale = np.abs(np.asarray(still, np.float32)).max()
    difference = np.abs(np.asarray(still, np.float32) - np.asarray(dropped, np.float32)).max()
    assert difference / scale < tolerance


def test_bfloat16_keeps_float32_where_it_matters(params):
    config = tiny.encoder(dtype="bfloat16")
    ids, segments, mask = inputs()
    low = program(config)(params, ids, segments, mask, {})
    assert low.dtype == jnp.bfloat16
    exact = run(tiny.encoder(), params, ids, segments, mask)
    error = np.abs(np.asarray(low, np.float64) - exact)[np.asarray(mask)]
    assert error.mean() < 0.02 and error.max() < 0.25  # unit variance after the last norm; bfloat16 has 8 bits
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init(config)))
    jaxpr = str(jax.make_jaxpr(lambda p: Transformer(config).apply({"params": p}, ids, segments, mask))(params))
    reductions = [line for line in jaxpr.splitlines() if "rsqrt" in line or " exp " in line or "reduce_max" in line]
    assert len(reductions) >= 3 and not [line for line in reductions if "bf16" in line.split("=")[0]]
    lowered = program(config).lower(params, ids, segments, mask, {}).as_text()
    products = [line.split(" : ")[1] for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 8  # six of the parameters, two of attention, in one layer
    for operands in products:
        assert re.findall(r"tensor<[\dx]*x(\w+)>", operands) == ["bf16", "bf16", "f32"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30}, r"multiple of num_heads=4, got 30"),
        ({"activation": "swish"}, r"got 'swish', valid: gelu, gelu_new, relu"),
        ({"dtype": "float16"}, r"expected 'float32' or 'bfloat16', got 'float16'"),
        ({"hidden_size": 36, "num_heads": 12, "positions": "rotary"}, r"even hidden_size / num_heads"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.encoder(**changes)


def test_forward_flops_of_bert_base():
    # 12 layers × (8 h² + 4 h f) × L + 12 × 4 L² h
    assert forward_flops(TransformerConfig(), 128) == 12 * (128 * (8 * 768**2 + 4 * 768 * 3072) + 4 * 128**2 * 768)
