"""The steps at the paper's size, compiled by the real TPU compiler for a slice that is not there.

64 TPU v4 chips, the two cores of a chip working as one device, as a TPU machine presents them: a device is a chip.
"""

import os
import re
import time

import jax
import pytest

from realm_jax.models import RetrieverConfig
from realm_jax.plan.collectives import read_collectives
from realm_jax.plan.compiling import check_compiler, devices_of, prepare_compiler
from realm_jax.plan.hardware import GENERATIONS
from tests import abstract_steps

prepare_compiler(os.environ)  # before libtpu starts

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("default"),
]

GIB = 1 << 30
TOPOLOGY, HBM_GIB = "v4:4x4x4", 32  # of a chip
CUT = re.compile(r"layers/.*/kernel$|(token|position)_embedding/embedding$|(transform|projection)/kernel$")


def slice_of_64_chips():
    try:
        check_compiler()
    except ValueError as error:
        pytest.skip(str(error))
    jax.config.update("jax_disable_most_optimizations", False)  # the other tests' setting
    return devices_of(GENERATIONS["v4"], "4x4x4")


def assert_lies_where_the_rules_say(compiled, values, mesh):
    """Large parameters and their moments are cut over fsdp, going in and coming out; the batch over data × fsdp."""
    state, batch, _ = values
    (state_in, batch_in, _), _ = compiled.input_shardings
    state_out, _ = compiled.output_shardings
    num_cut = whole_size = 0
    for (path, leaf), one, other in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(state_in), jax.tree.leaves(state_out), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if CUT.search(name):
            shape = one.shard_shape(leaf.shape)
            assert jax.tree_util.tree_reduce(int.__mul__, shape, 1) * mesh.shape["fsdp"] == leaf.size, (name, shape)
            assert other.shard_shape(leaf.shape) == shape, name
            num_cut += 1
        else:
            whole_size += leaf.size
    total = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert num_cut and whole_size < 0.01 * total  # norms and biases alone are kept whole
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    for leaf, sharding in zip(jax.tree.leaves(batch), jax.tree.leaves(batch_in), strict=True):
        assert sharding.shard_shape(leaf.shape) == (leaf.shape[0] // rows, *leaf.shape[1:])


def compile_step(task, batch, mesh):
    """Compiles, reports and checks a step; returns a chip's GiB of arguments, its collectives, the program's text."""
    step, values = abstract_steps.jitted_step(task, mesh, batch)
    start = time.monotonic()
    compiled = step.lower(*values).compile()
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes / GIB, memory.temp_size_in_bytes / GIB
    # the state is donated: results that take its place cost nothing
    results = (memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB
    text = compiled.as_text()
    layout = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    collectives = {one.kind: one.times for one in read_collectives(text, len(mesh.devices.flat)).traffic}
    print(
        f"\n{task.name} on {TOPOLOGY} ({layout}): {arguments:.2f} GiB arguments + {temporaries:.2f} temporaries + "
        f"{results:.2f} new results of {HBM_GIB} GiB a chip; {collectives}; compiled in {time.monotonic() - start:.0f} s"
    )
    assert_lies_where_the_rules_say(compiled, values, mesh)
    assert arguments + temporaries + results < 0.9 * HBM_GIB
    assert {"all-reduce", "reduce-scatter"} & set(collectives)  # gradients are summed over the chips
    return arguments, collectives, text


def test_ict_of_4096_examples():
    mesh = abstract_steps.mesh_of(slice_of_64_chips())
    task = abstract_steps.ict_task(RetrieverConfig(encoder=abstract_steps.bert_base()))
    arguments, _, text = compile_step(task, abstract_steps.ict_batch(4096), mesh)
    assert 1.2 < arguments < 1.4
    # Every chip scores its 64 queries against the blocks of all. The compiler gathers them by a sum (each chip adds its
    # rows to zeros), or by an all-gather.
    assert re.search(r" = (bf16|f32)\[4096,128\]\S* all-(reduce|gather)", text)
    assert "f32[64,4096]" in text


def test_realm_with_parameters_cut_over_eight():
    """With whole parameters: test_plan.py."""
    mesh = abstract_steps.mesh_of(slice_of_64_chips(), fsdp=8)
    encoder = abstract_steps.bert_base()
    task = abstract_steps.realm_task(RetrieverConfig(encoder=encoder), encoder)
    arguments, collectives, _ = compile_step(task, abstract_steps.realm_batch(512), mesh)
    assert arguments < 2.7 / 8 + 0.05
    assert collectives["all-gather"] > 0  # a layer's parameters are gathered when it is their turn
