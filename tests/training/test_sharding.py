"""Where arrays lie: the rules hit what they name, and rows find their process."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.inputs import SpecialIds
from realm_jax.models import LanguageModel, LanguageModelConfig, LoraConfig
from realm_jax.tasks.realm import RealmModel, init_params
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import RULES, MeshConfig, local_rows, process_rows, put_batch, spec_of, state_shardings
from tests import tiny


@functools.cache
def state():
    model = RealmModel(tiny.retriever(tied=False), tiny.encoder(), True, SpecialIds(2, 3, 4))
    language_model = LanguageModelConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=4, intermediate_size=64,
        lora=LoraConfig(rank=2, products=("query", "out", "wi", "wo")),
    )  # fmt: skip

    def init(rng):
        ids = jnp.ones((1, 4), jnp.int32)
        params = init_params(rng, model=model)
        made = LanguageModel(language_model).init(rng, ids, ids)
        params |= {"language_model": made["params"], "adapter": made["lora"]}
        return {"params": params, "opt_state": OptimizerConfig().build(10, tuple(params)).init(params)}

    return jax.eval_shape(init, jax.random.key(0))


def names(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_no_rule_is_dead_and_the_last_takes_no_kernel():
    for pattern, spec in RULES:
        hits = [name for name in names(state()) if re.search(pattern, name)]
        assert hits, f"no parameter matches {pattern}"
        if spec:
            assert {len(names(state())[name].shape) for name in hits} == {len(spec)} or "embedding" in pattern
    left = {name for path, leaf in jax.tree.leaves_with_path(state()) if not spec_of(path)
            for name in [jax.tree_util.keystr(path, simple=True, separator="/")] if leaf.ndim >= 2}  # fmt: skip
    assert all("norm" in name or "bias" in name or "segment_embedding" in name for name in left), left


@pytest.mark.parametrize(
    ("axes", "least"),
    [({"fsdp": 8, "data": 1}, 8), ({"fsdp": 2, "tensor": 4, "data": 1}, 8), ({"tensor": 4, "data": 2}, 4)],
)
def test_every_large_kernel_is_cut(axes, least):
    mesh = MeshConfig(**axes).build()
    shardings = names(state_shardings(mesh, state()))
    layers = 0
    for name, leaf in names(state()).items():
        parts = leaf.size // np.prod(shardings[name].shard_shape(leaf.shape))
        if "layers" in name and name.endswith("kernel"):
            assert parts == least, (name, shardings[name])
            layers += 1
        if name.endswith(("lora_a", "lora_b")):
            assert parts == axes.get("fsdp", 1) * axes.get("tensor", 1), (name, shardings[name])
        if name.endswith("token_embedding/embedding"):
            assert parts == axes.get("fsdp", 1)
    assert layers == 3 * (
        3 * 6 + 7
    )  # parameters and two moments, of three encoders of six kernels and a decoder of seven
    # Adam's moments lie where their parameters do
    for name, sharding in shardings.items():
        if "/mu/" in name or "/nu/" in name:
            assert sharding.spec == shardings["params/" + re.split(r"/(?:mu|nu)/", name)[1]].spec


def test_what_does_not_divide_is_replicated_not_refused():
    mesh = MeshConfig(data=1, fsdp=8).build()
    odd = {"token_embedding": {"embedding": jax.ShapeDtypeStruct((30522, 36), jnp.float32)}}
    assert names(state_shardings(mesh, odd))["token_embedding/embedding"].is_fully_replicated


def test_meshes():
    assert dict(MeshConfig().build().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(MeshConfig(data=2, fsdp=-1).build().shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    for wrong in ({"data": 3}, {"data": 3, "fsdp": -1}, {"data": -1, "fsdp": -1}, {"data": 0, "fsdp": -1}):
        with pytest.raises(ValueError, match=r"does not cover 8 devices; set one axis to -1"):
            MeshConfig(**wrong).build()


@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}])
def test_rows_go_out_and_come_back(axes):
    mesh = MeshConfig(**axes).build()
    assert process_rows(mesh, 16) == slice(0, 16)
    rows = np.arange(48).reshape(16, 3)
    placed = put_batch(mesh, {"a": rows, "b": rows[:, 0]})
    np.testing.assert_array_equal(placed["a"], rows)
    np.testing.assert_array_equal(local_rows(placed["a"]), rows)
    np.testing.assert_array_equal(local_rows(placed["b"]), rows[:, 0])


def test_a_batch_that_does_not_divide():
    with pytest.raises(
        ValueError, match=r"batch_size=12 does not divide over 8 devices \(data × fsdp\); use a multiple of 8"
    ):
        process_rows(MeshConfig().build(), 12)
