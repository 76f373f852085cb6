"""The language model against a Llama written by hand in numpy, its cache against itself without one, packed rows against single ones."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from realm_jax.models import LanguageModel, LanguageModelConfig, RotaryConfig, empty_continuation, language_model_flops
from realm_jax.training.sharding import BATCH, MeshConfig, state_shardings, traced_for

CONFIG = LanguageModelConfig(
    vocab_size=50, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=48, max_length=64
)
ODD = {
    "num_kv_heads": 1,
    "head_dim": 6,
    "tied_output": True,
    "attention_bias": True,
    "rms_norm_eps": 1e-3,
    "rotary": RotaryConfig(theta=500.0, scaling="linear", factor=2.0),
}
LENGTH = 9


def inputs(lengths=(9, 6, 1), length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, CONFIG.vocab_size, size=(len(lengths), length)).astype(np.int32)
    mask = np.arange(length) < np.asarray(lengths)[:, None]
    return jnp.asarray(np.where(mask, ids, 0)), jnp.asarray(mask.astype(np.int32))


@functools.lru_cache
def shapes_of(config):
    return jax.eval_shape(LanguageModel(config).init, jax.random.key(0), *inputs())["params"]


@functools.lru_cache
def init(config, seed=0):
    """Random parameters, biases and norms included, so that nothing can hide behind a zero or a one."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.3 + (path[-1].key == "scale"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(config))


@functools.lru_cache
def program(config, method="__call__"):
    return jax.jit(lambda params, *arrays: LanguageModel(config).apply({"params": params}, *arrays, method=method))


def run(config, *arrays, method="__call__"):
    return program(config, method)(init(config), *arrays)


def by_hand(config, ids):
    """Logits of one text: arXiv:2307.09288 with grouped queries, one head and one position at a time."""
    params = jax.tree.map(np.asarray, init(config))
    size, group = config.head_size, config.num_heads // config.num_kv_heads
    theta, factor = config.rotary.theta, config.rotary.factor

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x) + config.rms_norm_eps) * scale

    def linear(x, part):
        return x @ part["kernel"] + part.get("bias", 0.0)

    def turned(head, position):
        out = np.empty(size)
        for i in range(size // 2):
            angle = position / factor / theta ** (2 * i / size)
            a, b = head[i], head[i + size // 2]
            out[i], out[i + size // 2] = (
                a * math.cos(angle) - b * math.sin(angle),
                b * math.cos(angle) + a * math.sin(angle),
            )
        return out

    hidden = [params["token_embedding"]["embedding"][token] for token in ids]
    for number in range(config.num_layers):
        layer = jax.tree.map(lambda stacked, number=number: stacked[number], params["layers"])
        attention, normal = layer["attention"], [norm(x, layer["attention_norm"]["scale"]) for x in hidden]
        made = {
            name: [linear(x, attention[name]).reshape(-1, size) for x in normal] for name in ("query", "key", "value")
        }
        for position in range(len(ids)):
            found = []
            for head in range(config.num_heads):
                query = turned(made["query"][position][head], position)
                keys = [turned(made["key"][at][head // group], at) for at in range(position + 1)]
                logits = np.array([query @ key for key in keys]) / math.sqrt(size)
                weights = np.exp(logits - logits.max())
                found.append(sum(w * made["value"][at][head // group] for at, w in enumerate(weights / weights.sum())))
            hidden[position] = hidden[position] + linear(np.concatenate(found), attention["out"])
        for position, x in enumerate(hidden):
            x, feed = norm(x, layer["output_norm"]["scale"]), layer["feed_forward"]
            gate = linear(x, feed["gate"])
            hidden[position] = hidden[position] + linear(gate / (1 + np.exp(-gate)) * linear(x, feed["wi"]), feed["wo"])
    output = params["token_embedding"]["embedding"].T if config.tied_output else params["output"]
    return np.stack([norm(x, params["norm"]["scale"]) @ output for x in hidden])


@pytest.mark.parametrize("changes", [{}, ODD], ids=["plain", "odd"])
def test_is_the_model_of_the_papers(changes):
    config = dataclasses.replace(CONFIG, **changes)
    ids, segments = inputs()
    logits = run(config, ids, segments)
    assert logits.shape == (3, LENGTH, config.vocab_size) and logits.dtype == jnp.float32
    for row, length in enumerate((9, 6, 1)):
        np.testing.assert_allclose(
            logits[row, :length], by_hand(config, np.asarray(ids[row, :length])), rtol=2e-4, atol=2e-4
        )


def test_packed_texts_know_nothing_of_each_other():
    ids, segments = inputs((4, 5), 5)
    alone = run(CONFIG, ids, segments)
    packed = jnp.concatenate([ids[0, :4], ids[1], jnp.zeros(2, jnp.int32)])[None]
    of_row = jnp.asarray([[1] * 4 + [2] * 5 + [0] * 2], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1]], jnp.int32)
    together = run(CONFIG, packed, of_row, positions)[0]
    np.testing.assert_allclose(together[:4], alone[0, :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together[4:9], alone[1], rtol=1e-5, atol=1e-5)
    # positions count: with those of the row the second text would be another
    assert np.abs(run(CONFIG, packed, of_row)[0, 5:9] - alone[1, 1:]).max() < 1e-3  # rotary positions are relative
    assert np.abs(run(CONFIG, packed, jnp.minimum(of_row, 1), positions)[0, 4:9] - alone[1]).max() > 0.1


@pytest.mark.parametrize("changes", [{}, ODD], ids=["plain", "odd"])
def test_the_cache_changes_nothing(changes):
    """Two beams with texts of their own after a prompt that they share."""
    config = dataclasses.replace(CONFIG, **changes)
    prompt_ids, segments = inputs((6, 3, 1), 6)
    lengths, steps, beams = np.asarray(segments.sum(axis=1)), 4, 2
    rng = np.random.default_rng(5)
    own = rng.integers(3, config.vocab_size, size=(3, beams, steps)).astype(np.int32)
    last = jnp.asarray(np.asarray(prompt_ids)[np.arange(3), lengths - 1])
    before = jnp.arange(6)[None] < lengths[:, None] - 1
    prompt = run(config, jnp.where(before, prompt_ids, 0), before, method="read_prompts")
    cache = empty_continuation(config, 3, beams, steps)
    found = []
    for position in range(steps):
        tokens = jnp.repeat(last[:, None], beams, axis=1) if position == 0 else jnp.asarray(own[:, :, position - 1])
        logits, cache = run(config, tokens, jnp.int32(position), prompt, cache, method="step")
        found.append(np.asarray(logits))
    for row in range(3):
        for beam in range(beams):
            text = np.concatenate([np.asarray(prompt_ids[row, : lengths[row]]), own[row, beam]])
            ids = jnp.asarray(np.pad(text, (0, 6 + steps - len(text))))[None].astype(jnp.int32)
            whole = run(config, ids, (jnp.arange(ids.shape[1]) < len(text)).astype(jnp.int32)[None])[0]
            expected = whole[lengths[row] - 1 : lengths[row] - 1 + steps]
            np.testing.assert_allclose(np.stack([step[row, beam] for step in found]), expected, rtol=2e-5, atol=2e-5)


def test_groups_of_heads_are_heads_that_share_their_keys():
    whole = dataclasses.replace(CONFIG, num_kv_heads=4)
    params = init(CONFIG)
    attention = dict(params["layers"]["attention"])
    for name in ("key", "value"):
        kernel = attention[name]["kernel"].reshape(3, 32, 2, 8)
        attention[name] = {"kernel": jnp.repeat(kernel, 2, axis=2).reshape(3, 32, 32)}
    shared = {**params, "layers": {**params["layers"], "attention": attention}}
    np.testing.assert_allclose(program(whole)(shared, *inputs()), run(CONFIG, *inputs()), rtol=1e-5, atol=1e-5)


def test_rotary_positions_are_stretched_as_llama_3_1_does():
    config = RotaryConfig(theta=500000.0, scaling="llama3", factor=8.0, original_max_length=8192)
    found, plain = config.frequencies(128), RotaryConfig(theta=500000.0).frequencies(128)
    for new, old in zip(np.asarray(found, np.float64), np.asarray(plain, np.float64), strict=True):
        wavelength = 2 * math.pi / old
        if wavelength < 8192 / 4:
            expected = old
        elif wavelength > 8192:
            expected = old / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * old / 8 + smooth * old
        assert new == pytest.approx(expected, rel=1e-5)
    assert (found == plain).sum() > 20 and (np.abs(found * 8 / plain - 1) < 1e-6).sum() > 20  # both ends are there


def test_rematerialised_and_unrolled_it_is_the_same_and_in_bfloat16_near():
    ids, segments = inputs()

    def loss(params, config):
        return (LanguageModel(config).apply({"params": params}, ids, segments) * segments[..., None]).std()

    wanted = jax.jit(jax.grad(loss), static_argnums=1)(init(CONFIG), CONFIG)
    other = dataclasses.replace(CONFIG, remat=True, remat_saves="products", unroll_layers=3)
    same = jax.jit(jax.grad(loss), static_argnums=1)(init(CONFIG), other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), same, wanted)
    near = program(dataclasses.replace(CONFIG, dtype="bfloat16"))(init(CONFIG), ids, segments)
    exact = run(CONFIG, ids, segments)
    assert near.dtype == jnp.float32
    difference = np.abs(near - exact)[np.asarray(segments) > 0]
    assert 0 < difference.mean() < 0.05 * np.abs(exact).mean()


def test_eight_devices_compute_what_one_does():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    ids, segments = inputs((9, 6, 1, 4))
    params = jax.device_put(init(CONFIG), state_shardings(mesh, shapes_of(CONFIG)))
    specs = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec
             for path, leaf in jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip
    assert (
        specs["layers/feed_forward/gate/kernel"] == specs["layers/feed_forward/wi/kernel"] == P(None, "fsdp", "tensor")
    )
    assert specs["output"] == P("fsdp", "tensor") and specs["token_embedding/embedding"] == P(None, "fsdp")
    rows = jax.sharding.NamedSharding(mesh, BATCH)
    found = program(CONFIG)(params, jax.device_put(ids, rows), jax.device_put(segments, rows))
    np.testing.assert_allclose(found, run(CONFIG, ids, segments), rtol=1e-5, atol=1e-5)


def test_rows_lie_apart_where_the_program_is_traced_for_a_mesh():
    """The same numbers, forward and backward, and every device has its rows of the last layer's output, whole."""
    mesh = MeshConfig(data=2, fsdp=4).build()
    ids, segments = inputs((9, 6, 1, 4, 9, 2, 7, 5))

    def loss(params, ids, segments):
        hidden = LanguageModel(CONFIG).apply({"params": params}, ids, segments, method="hidden_states")
        return (hidden * segments[..., None]).std(), hidden

    gradient = jax.grad(loss, has_aux=True)
    wanted, expected = jax.jit(gradient)(init(CONFIG), ids, segments)
    placed = jax.device_put(init(CONFIG), state_shardings(mesh, shapes_of(CONFIG)))
    rows = jax.sharding.NamedSharding(mesh, BATCH)
    arrays = jax.device_put((ids, segments), rows)
    found, hidden = jax.jit(traced_for(mesh, gradient))(placed, *arrays)
    assert hidden.sharding.shard_shape(hidden.shape) == (1, LENGTH, 32)
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)
    # rows that do not divide over the devices lie as the compiler likes
    traced = jax.jit(traced_for(mesh, LanguageModel(CONFIG).apply))
    np.testing.assert_allclose(
        traced({"params": init(CONFIG)}, ids[:3], segments[:3]), run(CONFIG, ids, segments)[:3], rtol=1e-5, atol=1e-5
    )


def test_flops_are_those_of_the_compiled_matrices():
    config = dataclasses.replace(CONFIG, unroll_layers=3, num_layers=1, vocab_size=3)
    shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), *inputs())["params"]
    ids = jax.ShapeDtypeStruct((1, 512), jnp.int32)
    compiled = (
        jax.jit(lambda p, i, s: LanguageModel(config).apply({"params": p}, i, s)).lower(shapes, ids, ids).compile()
    )
    assert language_model_flops(config, 512) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.15)


def test_what_makes_no_model_is_refused():
    for changes, message in (
        ({"num_kv_heads": 3}, "expected a divisor of num_heads=4, got 3"),
        ({"hidden_size": 30}, "expected a multiple of num_heads=4, got 30"),
        ({"head_dim": 5}, "heads must have an even size, got 5"),
        ({"eos_id": 50}, "expected an id below vocab_size=50, got 50"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"dtype": "float16"}, "got 'float16'"),
        ({"remat_saves": "products"}, "remat is False"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **changes)
    for changes, message in (
        ({"factor": 2.0}, "scaling is 'none'"),
        ({"theta": -1.0}, "theta must be above 0"),
        ({"scaling": "llama3", "high_frequency_factor": 1.0}, "must exceed low_frequency_factor"),
    ):
        with pytest.raises(ValueError, match=message):
            RotaryConfig(**changes)
