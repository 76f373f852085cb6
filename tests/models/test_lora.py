"""LoRA: begins as the model that it adapts, trains as its equation says, and goes into the parameters when it is merged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.models import (
    LanguageModel,
    LanguageModelConfig,
    LoraConfig,
    empty_continuation,
    language_model_flops,
    merge_lora,
)
from realm_jax.models.lora import PRODUCTS, AdaptedDense
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import BATCH, MeshConfig, state_shardings

PLAIN = LanguageModelConfig(
    vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, max_length=64
)
LORA = LoraConfig(rank=2, alpha=6.0, products=PRODUCTS)
CONFIG = dataclasses.replace(PLAIN, lora=LORA)
IDS = jnp.asarray(np.random.default_rng(0).integers(3, 50, size=(4, 9)), jnp.int32)
ONES = jnp.ones_like(IDS)


@functools.lru_cache
def fresh(config=CONFIG):
    return jax.jit(LanguageModel(config).init)(jax.random.key(0), IDS, ONES)


@functools.lru_cache
def trained(config=CONFIG):
    """With random numbers for both matrices, and larger ones for the model's own."""
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf * 5 if leaf.std() else leaf, fresh(config)["params"])
    return {
        "params": params,
        "lora": jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, a.dtype), fresh(config)["lora"]),
    }


@functools.lru_cache
def program(config, method="__call__"):
    return jax.jit(lambda variables, *arrays: LanguageModel(config).apply(variables, *arrays, method=method))


@functools.lru_cache
def gradient_program(config):
    def loss(adapter, params, ids, segments, rngs):
        logits = LanguageModel(config).apply({"params": params, "lora": adapter}, ids, segments, rngs=rngs)
        return jax.nn.log_softmax(logits[:, :-1])[..., 3].mean()

    return jax.jit(jax.grad(loss))


def gradients(config, variables, rngs=None, arrays=(IDS, ONES)):
    return gradient_program(config)(variables["lora"], variables["params"], *arrays, rngs)


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def parts(adapter, name):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree.leaves_with_path(adapter) if path[-1].key == name}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adapter_changes_nothing(dtype):
    config = dataclasses.replace(CONFIG, dtype=dtype)
    found = program(config)(fresh(), IDS, ONES)
    base = program(dataclasses.replace(PLAIN, dtype=dtype))({"params": fresh()["params"]}, IDS, ONES)
    np.testing.assert_array_equal(found, base)
    assert jax.tree.map(jnp.shape, fresh()["params"]) == jax.tree.map(jnp.shape, fresh(PLAIN)["params"])
    for name, leaf in parts(
        fresh()["lora"], "lora_a"
    ).items():  # a number's spread is 1 / √features, in every layer its own
        features = 48 if "wo" in name else 32
        assert leaf.shape == (2, features, 2) and float(leaf.std()) == pytest.approx(features**-0.5, rel=0.2)
        assert np.abs(leaf[0] - leaf[1]).min() > 0


def test_one_product_is_that_of_the_equation():
    dense = AdaptedDense(2, use_bias=False, adapter=LoraConfig(rank=1, alpha=3.0))
    variables = {
        "params": {"kernel": jnp.asarray([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])},
        "lora": {"lora_a": jnp.asarray([[1.0], [0.0], [-1.0]]), "lora_b": jnp.asarray([[2.0, 10.0]])},
    }
    # x W = (5, 8); x A = 2 - 3 = -1; (alpha / rank) (x A) B = 3 · (-2, -10)
    found = dense.apply(variables, jnp.asarray([[2.0, 2.5, 3.0]]))
    np.testing.assert_allclose(found, [[5.0 - 6.0, 8.0 - 30.0]], rtol=1e-6)


def test_only_b_learns_in_the_first_step_and_then_both():
    """The gradient of A goes through B, which is 0; that of B through x A, which is not."""
    first = gradients(CONFIG, fresh())
    assert all(not np.any(leaf) for leaf in parts(first, "lora_a").values())
    assert all(np.abs(leaf).max(axis=(1, 2)).min() > 0 for leaf in parts(first, "lora_b").values())
    later = gradients(CONFIG, trained())
    assert len(jax.tree.leaves(later)) == 2 * len(PRODUCTS)
    assert all(np.abs(leaf).max(axis=(1, 2)).min() > 0 for leaf in jax.tree.leaves(later))


def test_gradients_are_those_of_the_merged_parameters():
    """dL/dA = (alpha / rank) dL/dW Bᵀ and dL/dB = (alpha / rank) Aᵀ dL/dW, W being the merged matrix."""
    merged = merge_lora(trained()["params"], trained()["lora"], LORA)

    def loss(params):
        logits = LanguageModel(PLAIN).apply({"params": params}, IDS, ONES)
        return jax.nn.log_softmax(logits[:, :-1])[..., 3].mean()

    of_merged, of_adapter = jax.jit(jax.grad(loss))(merged)["layers"], gradients(CONFIG, trained())["layers"]
    for part, names in (("attention", PRODUCTS[:4]), ("feed_forward", PRODUCTS[4:])):
        for name in names:
            of_kernel, adapter = of_merged[part][name]["kernel"], trained()["lora"]["layers"][part][name]
            down = 3.0 * of_kernel @ adapter["lora_b"].swapaxes(1, 2)
            up = 3.0 * adapter["lora_a"].swapaxes(1, 2) @ of_kernel
            for found, expected in zip(
                (of_adapter[part][name]["lora_a"], of_adapter[part][name]["lora_b"]), (down, up), strict=True
            ):
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": True, "tied_output": True, "head_dim": 6}], ids=["plain", "odd"]
)
def test_merged_it_is_the_same_model(changes):
    config = dataclasses.replace(CONFIG, **changes)
    variables = trained(config)
    before = jax.tree.map(np.array, variables)
    merged = jax.jit(merge_lora, static_argnums=2)(variables["params"], variables["lora"], LORA)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, variables["params"])
    adapted = program(config)(variables, IDS, ONES)
    alone = program(dataclasses.replace(config, lora=None))
    np.testing.assert_allclose(alone({"params": merged}, IDS, ONES), adapted, rtol=1e-4, atol=1e-4)
    assert np.abs(alone({"params": variables["params"]}, IDS, ONES) - adapted).max() > 0.1


def test_generation_reads_the_adapter():
    """Step by step with the cache as over whole rows, two beams after a prompt."""
    before = program(CONFIG, "read_prompts")(trained(), IDS[:, :5], jnp.ones((4, 5), bool))
    cache, whole = empty_continuation(CONFIG, 4, 2, 3), program(CONFIG)(trained(), IDS, ONES)
    for position in range(3):
        ids = jnp.repeat(IDS[:, 5 + position, None], 2, axis=1)
        logits, cache = program(CONFIG, "step")(trained(), ids, jnp.int32(position), before, cache)
        for beam in range(2):
            np.testing.assert_allclose(logits[:, beam], whole[:, 5 + position], rtol=2e-5, atol=2e-5)


def test_rematerialised_it_has_the_same_gradients():
    wanted = gradients(CONFIG, trained())
    for saves in ("nothing", "products"):
        again = gradients(dataclasses.replace(CONFIG, remat=True, remat_saves=saves, unroll_layers=2), trained())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again, wanted)


def test_of_its_wide_products_remat_keeps_none_twice():
    """What is kept by name beside the model without an adapter: x A alone, rank numbers of a position for each product."""

    config = dataclasses.replace(CONFIG, remat=True, remat_saves="products")

    def residuals(adapter):
        variables = {"params": fresh()["params"], "lora": adapter}
        return jax.vjp(lambda a: LanguageModel(config).apply({**variables, "lora": a}, IDS, ONES), adapter)[1]

    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(residuals, fresh()["lora"]))]
    # [layers, rows, length, …]: queries, keys and values, the output, gate and inner; none of them twice
    wide = sorted(shape[3:] for shape in shapes if shape[:3] == (2, 4, 9))
    assert wide.count((48,)) == 2 and wide.count((2,)) == len(PRODUCTS), wide


def test_dropout_of_what_the_adapter_reads():
    config = dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, dropout_rate=0.5))

    @jax.jit
    def logits(variables, key):
        return LanguageModel(config).apply(variables, IDS, ONES, rngs={"dropout": key})

    keys = [jax.random.key(seed) for seed in (1, 1, 2)]
    without = program(config)(trained(), IDS, ONES)  # no rng: no dropout
    np.testing.assert_allclose(without, program(CONFIG)(trained(), IDS, ONES), rtol=1e-6, atol=1e-6)
    first, again, other = (logits(trained(), key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01 and np.abs(first - without).max() > 0.01
    np.testing.assert_array_equal(logits(fresh(), keys[0]), logits(fresh(), keys[2]))  # the model itself has none
    remat = dataclasses.replace(config, remat=True)
    assert np.isfinite(
        gradients(remat, trained(), {"dropout": jax.random.key(1)})["layers"]["attention"]["query"]["lora_a"]
    ).all()


@pytest.mark.parametrize("products", [("query", "value"), ("key", "wo"), PRODUCTS])
def test_numbers_of_an_adapter_and_their_flops(products):
    lora = LoraConfig(rank=2, products=products)
    config = dataclasses.replace(PLAIN, lora=lora)
    adapter = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), IDS, ONES)["lora"]
    # rank · (features + outputs) of every layer
    sizes = {"query": 64, "key": 48, "value": 48, "out": 64, "gate": 80, "wi": 80, "wo": 80}
    numbers = 2 * 2 * sum(sizes[name] for name in products)
    assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == numbers
    assert language_model_flops(config, 9) == language_model_flops(PLAIN, 9) + 2 * 9 * numbers


def test_eight_devices_compute_what_one_does():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    placed = jax.device_put(trained(), state_shardings(mesh, shapes(trained())))
    rows = NamedSharding(mesh, BATCH)
    arrays = jax.device_put((IDS, ONES), rows)
    np.testing.assert_allclose(
        program(CONFIG)(placed, *arrays), program(CONFIG)(trained(), IDS, ONES), rtol=1e-5, atol=1e-5
    )

    found, wanted = gradients(CONFIG, placed, arrays=arrays), gradients(CONFIG, trained())
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
    ):  # sums of parts that cancel, in another order
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    merged = jax.jit(merge_lora, static_argnums=2)(placed["params"], placed["lora"], LORA)
    expected = merge_lora(trained()["params"], trained()["lora"], LORA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged, expected)


def test_an_adapter_is_cut_along_its_long_side_and_its_rank_is_whole():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    placed = state_shardings(mesh, shapes({"adapter": fresh()["lora"]}))
    wide = ("fsdp", "tensor")
    assert {leaf.spec for leaf in parts(placed, "lora_a").values()} == {P(None, wide, None)}
    assert {leaf.spec for leaf in parts(placed, "lora_b").values()} == {P(None, None, wide)}
    odd = {"layers": {"attention": {"query": {"lora_a": jax.ShapeDtypeStruct((2, 30, 4), jnp.float32)}}}}
    assert parts(state_shardings(mesh, odd), "lora_a")["layers/attention/query/lora_a"].is_fully_replicated


def test_a_frozen_model_has_no_moments_and_the_adapter_decays():
    params = {"language_model": fresh()["params"], "adapter": trained()["lora"]}
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, decay="constant", weight_decay=0.1)
    optimizer = config.build(10, ("language_model", "adapter"), ("language_model",))
    state = jax.eval_shape(optimizer.init, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params["adapter"]))
    moments = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(moments) == 2 * size
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(lambda params: optimizer.update(zeros, optimizer.init(params), params))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates["language_model"]))
    jax.tree.map(
        lambda u, p: np.testing.assert_allclose(u, -0.05 * p, rtol=1e-5), updates["adapter"], params["adapter"]
    )


def test_what_makes_no_adapter_is_refused():
    for changes, message in (
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, r"alpha must be above 0, got 0.0; without an adapter set lora=None"),
        ({"products": ("query", "up")}, r"expected some of query, key, value, out, gate, wi, wo, each once, got \('query', 'up'\)"),
        ({"products": ()}, r"each once, got \(\)"),
        ({"products": ("wi", "wi")}, "each once, got"),
        ({"dropout_rate": 1.0}, "expected at least 0 and below 1, got 1.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            LoraConfig(**changes)


def test_an_adapter_that_is_missing_or_another_s_is_refused():
    with pytest.raises(ValueError, match=r"has an adapter for 'query', and none was given; apply the model with"):
        LanguageModel(CONFIG).apply({"params": fresh()["params"]}, IDS, ONES)
    wide = dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, rank=4))
    with pytest.raises(ValueError, match=r"'query': expected A and B of shapes \(32, 4\) and \(4, 32\), got \(32, 2\)"):
        LanguageModel(wide).apply(trained(), IDS, ONES)
    params, adapter = trained()["params"], trained()["lora"]
    with pytest.raises(
        ValueError, match=r"layers/attention/key/ is of .* rank 2; .* and LoraConfig.rank is 4; merge an"
    ):
        merge_lora(params, adapter, wide.lora)
    other = fresh(dataclasses.replace(PLAIN, num_layers=1))["params"]
    with pytest.raises(ValueError, match=r"a matrix of shape \(2, 32, 16\) .* the model's is \(1, 32, 16\)"):
        merge_lora(other, adapter, LORA)
    with pytest.raises(ValueError, match=r"the model has no layers, for which there is an adapter; .* has norm"):
        merge_lora({"norm": params["norm"]}, adapter, LORA)
