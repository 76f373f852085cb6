"""Collectives counted in HLO texts: made ones, by hand, and a program that was really compiled for eight devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.plan.collectives import Traffic, read_collectives
from realm_jax.training.sharding import MeshConfig

TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %carry = (s32[], f32[4,8]{1,0:T(8,128)}) parameter(0)
  %number = s32[] get-tuple-element(%carry), index=0
  %mine = f32[4,8]{1,0:T(8,128)} get-tuple-element(%carry), index=1
  %begun = (f32[4,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}) all-gather-start(%mine), channel_id=2, replica_groups=[4,2]<=[8], dimensions={0}, use_global_device_ids=true
  %whole = f32[8,8]{1,0:T(8,128)} all-gather-done(%begun)
  %part = f32[4,8]{1,0:T(8,128)} reduce-scatter(%whole), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, to_apply=%add
  ROOT %next = (s32[], f32[4,8]{1,0:T(8,128)}) tuple(%number, %part)
}

%cond (carry.1: (s32[], f32[4,8])) -> pred[] {
  %carry.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main.9 (x: f32[4,8], y: bf16[16]) -> f32[4,8] {
  %x = f32[4,8]{1,0:T(8,128)} parameter(0)
  %y = bf16[16]{0} parameter(1)
  %start = (s32[], f32[4,8]{1,0:T(8,128)}) tuple(%x)
  %loop = (s32[], f32[4,8]{1,0:T(8,128)}, /*index=2*/f32[]) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"12"},"known_init_step":{"init":"0","step":"1"}}
  %sums = (f32[4,8]{1,0:T(8,128)}, bf16[16]{0:T(256)(128)(2,1)}) all-reduce(%x, %y), channel_id=1, replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, to_apply=%add
  %passed = (bf16[16]{0}, bf16[16]{0}, u32[], u32[]) collective-permute-start(%y), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %there = bf16[16]{0} collective-permute-done(%passed)
  %all = f32[4,8]{1,0} all-to-all(%x), channel_id=5, replica_groups={}, dimensions={0}
  ROOT %out = f32[4,8]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def by_kind(text, num_devices=8):
    found = read_collectives(text, num_devices)
    return {one.kind: one for one in found.traffic}, found


def test_kinds_counts_and_bytes_by_hand():
    kinds, found = by_kind(TEXT)
    # 12 loops; two halves of 4 × 8 float32 make a whole of 256 bytes, of which each device sends its half once
    assert kinds["all-gather"] == Traffic("all-gather", 12, 12 * 256, 12 * 128.0)
    assert kinds["reduce-scatter"] == Traffic("reduce-scatter", 12, 12 * 256, 12 * 128.0)
    # 128 bytes and 32, over two devices: 2 · 1/2 of them
    assert kinds["all-reduce"] == Traffic("all-reduce", 1, 160, 160.0)
    assert kinds["collective-permute"] == Traffic("collective-permute", 1, 32, 32.0)
    assert kinds["all-to-all"] == Traffic("all-to-all", 1, 128, 128 * 7 / 8)  # no groups: all eight
    assert found.uncounted_loops == 0
    assert found.sent_bytes == 2 * 12 * 128 + 160 + 32 + 112
    assert [one.kind for one in found.traffic][:2] == ["all-reduce", "all-gather"]


def test_a_loop_of_unknown_length_is_counted_once_and_told():
    kinds, found = by_kind(TEXT.replace('"known_trip_count":{"n":"12"},', ""))
    assert kinds["all-gather"] == Traffic("all-gather", 1, 256, 128.0)
    assert found.uncounted_loops == 1
    assert by_kind(TEXT.replace("all-gather-start(", "copy-start(").replace(" reduce-scatter(", " copy(").replace(
        '"known_trip_count":{"n":"12"},', ""
    ))[1].uncounted_loops == 0  # nothing is exchanged in it  # fmt: skip


def test_loops_within_loops_and_branches():
    text = TEXT.replace("  ROOT %next", "  %inner = f32[] call(%number), to_apply=%called\n  ROOT %next").replace(
        "%cond (carry.1",
        """%one (p: f32[]) -> f32[] {
  ROOT %r1 = f32[2]{0} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%other (p.1: f32[]) -> f32[] {
  ROOT %r2 = f32[6]{0} all-reduce(%p.1), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}, to_apply=%add
}

%called (p.2: f32[]) -> f32[] {
  ROOT %r3 = f32[] conditional(%p.2, %p.2, %p.2), branch_computations={%one, %other}
}

%cond (carry.1""",
    )
    kinds, _ = by_kind(text)
    # twelve times 8 bytes over four devices and 24 bytes over four, beside the one of the entry
    assert kinds["all-reduce"] == Traffic("all-reduce", 25, 12 * 32 + 160, 12 * 32 * 1.5 + 160)


def test_a_sum_of_which_each_device_keeps_its_part():
    """How the TPU compiler writes a reduce-scatter: a fusion that holds an all-reduce."""
    text = """HloModule jit_step

%all-reduce-scatter.3.clone (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = f32[16,8]{1,0:T(8,128)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %part = f32[4,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.5), dynamic_slice_sizes={4,8}
}

ENTRY %main (x: f32[16,8]) -> f32[4,8] {
  %x = f32[16,8]{1,0:T(8,128)} parameter(0)
  ROOT %fusion.9 = f32[4,8]{1,0:T(8,128)S(3)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3.clone
}
"""
    assert by_kind(text)[0] == {"reduce-scatter": Traffic("reduce-scatter", 1, 512, 512 * 3 / 4)}


def test_one_that_is_under_way_while_fusions_run_is_counted_once():
    """How the TPU compiler hides a gather behind arithmetic: the same one begins, goes on and ends in three fusions."""
    gather = (
        "%all-gather.{0} = f32[8,4]{{1,0}} all-gather(%p{0}), channel_id={1}, replica_groups=[4,2]<=[8], dimensions={{0}}, "
        'frontend_attributes={{chain_id="{2}"}}'
    )
    bodies = "".join(
        f"%c{number} (p{number}: f32[4,4]) -> f32[8,4] {{\n  %p{number} = f32[4,4]{{1,0}} parameter(0)\n"
        f"  ROOT {gather.format(number, channel, chain)}\n}}\n\n"
        for number, channel, chain in ((0, 5, 1), (1, 5, 1), (2, 5, 1), (3, 6, 1), (4, 5, 2))
    )
    calls = "".join(
        f"  %f{number} = f32[8,4]{{1,0}} fusion(%x), kind=kCustom, calls=%c{number}\n" for number in range(5)
    )
    entry = "ENTRY %main (x: f32[4,4]) -> f32[4,4] {\n" + calls + "  ROOT %x = f32[4,4]{1,0} parameter(0)\n}\n"
    assert by_kind(bodies + entry)[0] == {"all-gather": Traffic("all-gather", 3, 3 * 128, 3 * 64.0)}


def test_a_program_without_any():
    assert read_collectives(
        "HloModule jit_f\n\nENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n", 8
    ) == (
        (),
        0,
    )


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (4, 1), (1, 4)])
def test_a_program_compiled_for_eight_devices(fsdp, tensor):
    """Five layers of x @ w in a scan, the sum over the batch at the end: what is exchanged can be counted by hand."""
    mesh = MeshConfig(fsdp=fsdp, tensor=tensor).build()

    def loss(kernels, x):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, kernels)[0].sum()

    kernels = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp", "tensor")))
    x = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    text = jax.jit(loss).lower(kernels, x).compile().as_text()
    kinds, found = by_kind(text)
    assert found.uncounted_loops == 0
    if fsdp == tensor == 1:  # the sum alone
        assert kinds == {"all-reduce": Traffic("all-reduce", 1, 4, 4 * 2 * 7 / 8)}
    elif fsdp == 4:  # a kernel is gathered within four for each layer, or all at once
        assert kinds["all-gather"].payload_bytes == 5 * 16 * 16 * 4
        assert kinds["all-gather"].sent_bytes == pytest.approx(5 * 16 * 16 * 4 * 3 / 4)
    else:  # a product's columns are gathered within four for each layer, 32 / 2 rows a device
        assert kinds["all-gather"].payload_bytes == pytest.approx(5 * 16 * 16 * 4)
