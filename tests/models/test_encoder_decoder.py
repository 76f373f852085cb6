"""The generator against an independent BART in numpy, and its cache against itself without one."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.models import EncoderDecoder, EncoderDecoderConfig, decoder_flops, empty_cache, forward_flops
from realm_jax.models.transformer import ACTIVATIONS
from realm_jax.training.sharding import BATCH, MeshConfig, state_shardings
from tests import tiny

SOURCE_LEN, TARGET_LEN = 9, 6
ODD = {
    "scale_embedding": True,
    "position_offset": 3,
    "activation": "relu",
    "num_encoder_layers": 3,
    "num_decoder_layers": 1,
    "num_encoder_heads": 2,
    "num_decoder_heads": 8,
}


def inputs(batch=3, source_len=SOURCE_LEN, target_len=TARGET_LEN, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 64, size=(batch, source_len)).astype(np.int32)
    lengths = np.array([source_len, source_len - 3, source_len // 2])[:batch]
    mask = np.arange(source_len) < lengths[:, None]
    target_ids = rng.integers(4, 64, size=(batch, target_len)).astype(np.int32)
    target_ids[:, 0] = 2
    return jnp.asarray(np.where(mask, ids, 1)), jnp.asarray(mask), jnp.asarray(target_ids)


@functools.lru_cache
def shapes_of(config):
    return jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), *inputs())["params"]


@functools.lru_cache
def init(config, seed=0):
    """Random parameters, biases and norms included, so that nothing can hide behind a zero or a one."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.3 + (path[-1].key == "scale"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(config))


@functools.lru_cache
def program(config, method="__call__"):
    return jax.jit(lambda params, *arrays: EncoderDecoder(config).apply({"params": params}, *arrays, method=method))


def run(config, *arrays, method="__call__"):
    return np.asarray(program(config, method)(init(config), *map(jnp.asarray, arrays)), np.float64)


# BART (arXiv:1910.13461, with the details of fairseq's bart_base), written out once more in float64


def bart(config, params, ids, mask, target_ids):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    ids, mask, target_ids = map(np.asarray, (ids, mask, target_ids))
    activations = {
        "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "relu": lambda x: np.maximum(x, 0),
    }

    def norm(x, name):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_eps)
        return scaled * name["scale"] + name["bias"]

    def linear(x, name):
        return x @ name["kernel"] + name["bias"]

    def attention(p, x, y, seen, num_heads):
        made = [linear(of, p[name]) for name, of in (("query", x), ("key", y), ("value", y))]
        query, key, value = (array.reshape(*array.shape[:2], num_heads, -1) for array in made)
        scores = np.einsum("bqnh,bknh->bnqk", query, key) / math.sqrt(query.shape[-1])
        weights = np.exp(np.where(seen[:, None], scores, -1e30))
        weights /= weights.sum(-1, keepdims=True)
        return linear(np.einsum("bnqk,bknh->bqnh", weights, value).reshape(x.shape), p["out"])

    def embed(p_half, ids):
        tokens = p["token_embedding"]["embedding"][ids] * (
            math.sqrt(config.hidden_size) if config.scale_embedding else 1
        )
        table = p_half["position_embedding"]["embedding"]
        return norm(tokens + table[config.position_offset + np.arange(ids.shape[1])], p_half["norm"])

    def feed_forward(p, x):
        return linear(activations[config.activation](linear(x, p["wi"])), p["wo"])

    hidden = embed(p["encoder"]["embedding"], ids)
    for number in range(config.num_encoder_layers):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], p["encoder"]["layers"])
        attended = attention(layer["attention"], hidden, hidden, mask[:, None, :], config.num_encoder_heads)
        hidden = norm(hidden + attended, layer["attention_norm"])
        hidden = norm(hidden + feed_forward(layer["feed_forward"], hidden), layer["output_norm"])
    x = embed(p["decoder"]["embedding"], target_ids)
    causal = np.tri(target_ids.shape[1], dtype=bool)[None]
    for number in range(config.num_decoder_layers):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], p["decoder"]["layers"])
        x = norm(x + attention(layer["attention"], x, x, causal, config.num_decoder_heads), layer["attention_norm"])
        found = attention(layer["cross_attention"], x, hidden, mask[:, None, :], config.num_decoder_heads)
        x = norm(x + found, layer["cross_attention_norm"])
        x = norm(x + feed_forward(layer["feed_forward"], x), layer["output_norm"])
    return hidden, x @ p["token_embedding"]["embedding"].T + p["output_bias"]


def test_defaults_are_bart_base():
    shapes = shapes_of(EncoderDecoderConfig())
    # facebook/bart-base has 139420416 parameters, and the buffer final_logits_bias
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 139_420_416 + 50265
    assert shapes["decoder"]["embedding"]["position_embedding"]["embedding"].shape == (1026, 768)
    large = EncoderDecoderConfig(
        hidden_size=1024, num_encoder_layers=12, num_decoder_layers=12, num_encoder_heads=16, num_decoder_heads=16,
        encoder_intermediate_size=4096, decoder_intermediate_size=4096,
    )  # fmt: skip
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(large))) == 406_291_456 + 50265


@pytest.mark.parametrize("changes", [{}, ODD], ids=["bart", "odd"])
def test_equals_bart_written_in_numpy(changes):
    config = tiny.encoder_decoder(**changes)
    ids, mask, target_ids = inputs()
    hidden, logits = bart(config, init(config), ids, mask, target_ids)
    got = run(config, ids, mask, method="encode")
    np.testing.assert_allclose(got[np.asarray(mask)], hidden[np.asarray(mask)], atol=1e-5)
    np.testing.assert_allclose(run(config, ids, mask, target_ids), logits, atol=5e-5)
    # and each ingredient matters, so the agreement is not by accident
    for other in (
        bart(config, init(config), ids, mask | True, target_ids),
        bart(config, init(config), ids, mask, target_ids[:, ::-1]),
        bart(dataclasses.replace(config, scale_embedding=not config.scale_embedding), init(config), ids, mask, target_ids),
        bart(dataclasses.replace(config, position_offset=1), init(config), ids, mask, target_ids),
    ):  # fmt: skip
        assert np.abs(other[1] - logits).max() > 1e-2


@pytest.mark.parametrize(
    "changes", [{}, ODD, pytest.param({"unroll_layers": 2}, marks=pytest.mark.slow)], ids=["bart", "odd", "unrolled"]
)
def test_the_cache_changes_nothing_at_any_position(changes):
    """Three beams a source, each with a target of its own: every step's logits are those of the whole row."""
    config = tiny.encoder_decoder(**changes)
    ids, mask, _ = inputs()
    beams = 3
    targets = np.random.default_rng(5).integers(4, 64, size=(len(ids), beams, TARGET_LEN)).astype(np.int32)
    hidden = program(config, "encode")(init(config), ids, mask)
    every_beam = [np.repeat(np.asarray(array), beams, axis=0) for array in (hidden, mask)]
    expected = run(config, targets.reshape(-1, TARGET_LEN), *every_beam, method="decode")
    expected = expected.reshape(len(ids), beams, TARGET_LEN, -1)
    memory = program(config, "remember")(init(config), hidden, mask)
    assert memory.keys.shape == (config.num_decoder_layers, 3, SOURCE_LEN, config.num_decoder_heads,
                                 32 // config.num_decoder_heads)  # fmt: skip
    cache = empty_cache(config, len(ids), beams, TARGET_LEN + 2)
    assert cache.values.shape == (
        config.num_decoder_layers, 3, beams, TARGET_LEN + 2, config.num_decoder_heads, 32 // config.num_decoder_heads
    )  # fmt: skip
    for position in range(TARGET_LEN):
        step = program(config, "step")
        logits, cache = step(init(config), jnp.asarray(targets[:, :, position]), jnp.int32(position), memory, cache)
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, expected[:, :, position], atol=5e-5, err_msg=f"position {position}")
    assert not np.asarray(cache.keys)[:, :, :, TARGET_LEN:].any()
    assert np.asarray(cache.keys)[:, :, :, :TARGET_LEN].all(axis=(3, 4, 5)).any()


def test_beams_that_swap_take_their_cache_along():
    config = tiny.encoder_decoder()
    ids, mask, _ = inputs(batch=2)
    hidden = program(config, "encode")(init(config), ids, mask)
    memory = program(config, "remember")(init(config), hidden, mask)
    step, cache = program(config, "step"), empty_cache(config, 2, 2, TARGET_LEN)
    _, cache = step(init(config), jnp.asarray([[7, 8], [9, 10]], jnp.int32), jnp.int32(0), memory, cache)
    ids = jnp.asarray([[11, 12], [13, 14]], jnp.int32)
    logits, _ = step(init(config), ids, jnp.int32(1), memory, cache)
    swapped = jax.tree.map(lambda kept: kept[:, :, ::-1], cache)
    again, _ = step(init(config), ids[:, ::-1], jnp.int32(1), memory, swapped)
    np.testing.assert_allclose(again[:, ::-1], logits, atol=1e-5)
    stale, _ = step(init(config), ids[:, ::-1], jnp.int32(1), memory, cache)
    assert np.abs(np.asarray(stale[:, ::-1]) - np.asarray(logits)).max() > 1e-2


def test_padding_changes_nothing():
    config = tiny.encoder_decoder()
    ids, mask, target_ids = map(np.array, inputs())
    logits = run(config, ids, mask, target_ids)
    longer = [np.pad(array, ((0, 0), (0, 5))) for array in (ids, mask, target_ids)]
    np.testing.assert_allclose(run(config, *longer)[:, :TARGET_LEN], logits, atol=1e-5)
    junk = np.where(mask, ids, 63)  # what stands under the padding must not matter either
    np.testing.assert_allclose(run(config, junk, mask, target_ids), logits, atol=1e-5)


def test_padding_between_sources_changes_nothing():
    """Fusion-in-Decoder: the states of several documents, each with its padding, one after the other."""
    config = tiny.encoder_decoder()
    ids, mask, target_ids = map(np.array, inputs())
    hidden = run(config, ids, mask, method="encode").astype(np.float32)
    fused, fused_mask = hidden.reshape(1, -1, 32), mask.reshape(1, -1)
    logits = run(config, target_ids[:1], fused, fused_mask, method="decode")
    tight = run(config, target_ids[:1], hidden[mask][None], np.ones((1, mask.sum()), bool), method="decode")
    np.testing.assert_allclose(logits, tight, atol=1e-5)


def test_no_position_sees_a_later_one():
    config = tiny.encoder_decoder()
    ids, mask, target_ids = map(np.array, inputs())
    logits = run(config, ids, mask, target_ids)
    for position in range(TARGET_LEN):
        other = target_ids.copy()
        other[:, position] = 63 - other[:, position]
        difference = np.abs(run(config, ids, mask, other) - logits).max(axis=(0, 2))
        assert difference[:position].max(initial=0) == 0.0
        assert difference[position:].min() > 1e-3


def test_positions_begin_after_the_offset():
    config = tiny.encoder_decoder()
    ids, mask, target_ids = inputs()
    params = init(config)
    for half, length in (("encoder", SOURCE_LEN), ("decoder", TARGET_LEN)):
        table = np.array(params[half]["embedding"]["position_embedding"]["embedding"])
        assert table.shape == (64 + 2, 32)
        table[:2], table[2 + length :] = 9.0, 9.0  # rows that nothing of this length reads
        embedding = {**params[half]["embedding"], "position_embedding": {"embedding": jnp.asarray(table)}}
        changed = {**params, half: {**params[half], "embedding": embedding}}
        logits = program(config)(changed, ids, mask, target_ids)
        np.testing.assert_array_equal(logits, program(config)(params, ids, mask, target_ids))


def test_the_output_is_the_token_embedding_and_a_bias_without_gradient():
    config = tiny.encoder_decoder()
    ids, mask, target_ids = inputs()
    params = init(config)

    @jax.jit
    def gradients(params):
        return jax.grad(lambda p: program(config)(p, ids, mask, target_ids)[:, :, 50].sum())(params)

    found = gradients(params)
    assert not np.asarray(found["output_bias"]).any()
    unread = 50  # neither in the sources nor in the targets: its row is read at the output alone
    assert not (ids == unread).any() and not (target_ids == unread).any()
    assert np.abs(np.asarray(found["token_embedding"]["embedding"])[unread]).min() > 1e-3
    bias = params["output_bias"].at[7].add(1.5)
    moved = program(config)({**params, "output_bias": bias}, ids, mask, target_ids)
    difference = np.asarray(moved - program(config)(params, ids, mask, target_ids))
    np.testing.assert_allclose(difference[:, :, 7], 1.5, atol=1e-5)
    assert not np.delete(difference, 7, axis=2).any()


def test_bfloat16_keeps_float32_where_it_matters():
    config = tiny.encoder_decoder(dtype="bfloat16")
    ids, mask, target_ids = inputs()
    hidden = program(config, "encode")(init(config), ids, mask)
    assert hidden.dtype == jnp.bfloat16
    low = program(config)(init(config), ids, mask, target_ids)
    assert low.dtype == jnp.float32
    exact = run(tiny.encoder_decoder(), ids, mask, target_ids)
    error = np.abs(np.asarray(low, np.float64) - exact)
    assert error.mean() < 0.03 * exact.std() and error.max() < 0.2 * exact.std()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init(config)))
    memory = program(config, "remember")(init(config), hidden, mask)
    cache = empty_cache(config, 3, 1, TARGET_LEN)
    assert memory.keys.dtype == cache.keys.dtype == jnp.bfloat16
    for position in range(TARGET_LEN):
        logits, cache = program(config, "step")(
            init(config), target_ids[:, position, None], jnp.int32(position), memory, cache
        )
        error = np.abs(np.asarray(logits)[:, 0] - np.asarray(low)[:, position])
        assert cache.keys.dtype == jnp.bfloat16 and error.max() < 0.1 * exact.std()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"remat": True}, {"remat": True, "remat_saves": "products", "unroll_layers": 9}])
def test_remat_and_unrolling_change_no_gradient(changes):
    ids, mask, target_ids = inputs()
    rngs = {"dropout": jax.random.key(5)}

    def gradient(**changes):
        rates = {"attention_dropout_rate": 0.1, "activation_dropout_rate": 0.1}
        config = tiny.encoder_decoder(**rates, **changes)

        @jax.jit
        def loss(params):
            logits = EncoderDecoder(config).apply({"params": params}, ids, mask, target_ids, False, rngs=rngs)
            return (jax.nn.log_softmax(logits)[:, :, 5] ** 2).mean()

        return jax.value_and_grad(loss)(init(tiny.encoder_decoder()))

    plain_loss, plain = gradient()
    loss, grads = gradient(**changes)
    assert float(loss) == pytest.approx(float(plain_loss), rel=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), grads, plain)


@pytest.mark.parametrize(
    "rate",
    [
        "activation_dropout_rate",
        pytest.param("dropout_rate", marks=pytest.mark.slow),
        pytest.param("attention_dropout_rate", marks=pytest.mark.slow),
    ],
)
def test_each_dropout_drops(rate):
    none = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "activation_dropout_rate": 0.0}
    config = tiny.encoder_decoder(**{**none, rate: 0.5})
    ids, mask, target_ids = inputs()
    still = run(tiny.encoder_decoder(**none), ids, mask, target_ids)
    np.testing.assert_array_equal(run(config, ids, mask, target_ids), still)

    @jax.jit
    def dropped(params, key):
        model = EncoderDecoder(config)
        hidden = model.apply({"params": params}, ids, mask, False, method="encode", rngs={"dropout": key})
        rngs = {"dropout": jax.random.fold_in(key, 1)}
        return hidden, model.apply({"params": params}, target_ids, hidden, mask, False, method="decode", rngs=rngs)

    draws = [dropped(init(config), jax.random.key(number)) for number in (0, 0, 1)]
    for half in (0, 1):  # the encoder by itself, and both
        same, other = (np.abs(np.asarray(draws[0][half] - draws[k][half])).max() for k in (1, 2))
        assert same == 0.0 and other > 0.1


AXES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}, {"data": 1, "fsdp": 8}]


def divided(axes, function, config):
    """The function's result on one device, and on a mesh with rows and parameters where the rules put them."""
    arrays = [jnp.tile(array, (3, 1))[:8] for array in inputs()]
    mesh = MeshConfig(**{"data": -1, **axes}).build()
    rows = jax.sharding.NamedSharding(mesh, BATCH)
    shardings = (state_shardings(mesh, shapes_of(config)), rows, rows, rows)
    return jax.jit(function)(init(config), *arrays), jax.jit(function, in_shardings=shardings)(init(config), *arrays)


def test_eight_devices_compute_what_one_does():
    config = tiny.encoder_decoder(num_encoder_heads=4, num_decoder_heads=4)
    alone, together = divided(AXES[0], lambda params, *arrays: program(config)(params, *arrays), config)
    np.testing.assert_allclose(together, alone, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
def test_eight_devices_learn_what_one_does(axes):
    config = tiny.encoder_decoder(num_encoder_heads=4, num_decoder_heads=4)

    def loss(params, *arrays):
        logits = EncoderDecoder(config).apply({"params": params}, *arrays)
        return (jax.nn.log_softmax(logits)[:, :, 5] ** 2).mean()

    alone, together = divided(axes, jax.value_and_grad(loss), config)
    assert float(together[0]) == pytest.approx(float(alone[0]), rel=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), together[1], alone[1])


def test_every_kernel_is_cut():
    config = tiny.encoder_decoder(num_encoder_heads=4, num_decoder_heads=4)
    mesh = MeshConfig(data=1, fsdp=2, tensor=4).build()
    kernels = 0
    for path, leaf in jax.tree.leaves_with_path(shapes_of(config)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        (sharding,) = jax.tree.leaves(state_shardings(mesh, {name: leaf}))
        parts = leaf.size // np.prod(sharding.shard_shape(leaf.shape))
        if name.endswith("kernel"):
            assert parts == 8, name
            kernels += 1
        if name.endswith("embedding/embedding"):
            assert parts == 2, name
    assert kernels == 6 + 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30}, r"EncoderDecoderConfig's encoder: .*multiple of num_heads=4, got 30"),
        ({"num_decoder_heads": 5}, r"EncoderDecoderConfig's decoder: .*multiple of num_heads=5, got 32"),
        ({"activation": "swish"}, rf"got 'swish', valid: {', '.join(ACTIVATIONS)}"),
        ({"dtype": "float16"}, r"expected 'float32' or 'bfloat16', got 'float16'"),
        ({"num_decoder_layers": 0}, r"EncoderDecoderConfig.num_decoder_layers must be at least 1, got 0"),
        ({"position_offset": -1}, r"EncoderDecoderConfig.position_offset must be at least 0, got -1"),
        ({"eos_id": 64}, r"EncoderDecoderConfig.eos_id: expected an id below vocab_size=64, got 64; take the ids"),
        ({"forced_bos_id": -1}, r"EncoderDecoderConfig.forced_bos_id: expected an id .*, got -1"),
        ({"remat_saves": "products"}, r"remat_saves says what remat keeps, and remat is False; set remat=True"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.encoder_decoder(**changes)


def test_inputs_that_are_too_long():
    config = tiny.encoder_decoder(max_length=8)
    model = EncoderDecoder(config)
    with pytest.raises(ValueError, match=r"a source of 9 tokens.*max_length=8 rows; shorten the source or enlarge"):
        jax.eval_shape(model.init, jax.random.key(0), *inputs())
    with pytest.raises(ValueError, match=r"a target of 10 tokens.*max_length=8 rows; shorten the target"):
        jax.eval_shape(model.init, jax.random.key(0), *inputs(source_len=8, target_len=10))
    params = init(config.__class__(**{**dataclasses.asdict(config), "max_length": 9}))
    memory = program(tiny.encoder_decoder(max_length=9), "remember")(
        params, jnp.zeros((1, 4, 32)), jnp.ones((1, 4), bool)
    )
    with pytest.raises(ValueError, match=r"a target of 10 tokens.*max_length=9"):
        program(tiny.encoder_decoder(max_length=9), "step")(
            params, jnp.zeros((1, 1), jnp.int32), jnp.int32(0), memory, empty_cache(config, 1, 1, 10)
        )


def test_flops_of_bart_base():
    config = EncoderDecoderConfig()
    hidden, inner, source, target = 768, 3072, 300, 50
    assert forward_flops(config.encoder, source) == 6 * (
        source * (8 * hidden**2 + 4 * hidden * inner) + 4 * source**2 * hidden
    )
    own = 2 * target * 4 * hidden**2 + 4 * target**2 * hidden + 2 * target * 2 * hidden * inner
    # queries and what comes out of a target's tokens, keys and values of a source's
    cross = 2 * (2 * target + 2 * source) * hidden**2 + 4 * target * source * hidden
    assert decoder_flops(config, source, target) == 6 * (own + cross)
