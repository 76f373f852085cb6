"""What a slice, or so many GPUs, have: chips, devices, hosts, and figures of a device; unknown names are refused with the valid ones."""

import pytest

from realm_jax.plan.hardware import GENERATIONS, GIB, find_slice


def test_a_device_is_a_chip_or_one_of_its_two_cores():
    v3, v4 = find_slice("v3:8x8"), find_slice("v4:4x4x4")
    assert (v3.num_chips, v3.num_devices, v3.num_hosts, v3.generation.device) == (64, 128, 16, "core")
    assert (v4.num_chips, v4.num_devices, v4.num_hosts, v4.generation.device) == (64, 64, 16, "chip")
    assert v3.device_hbm_bytes == 16 * GIB and v4.device_hbm_bytes == 32 * GIB
    assert v3.device_usable_bytes == round(15.48 * GIB) and find_slice("v5p:4x4x4").device_usable_bytes == 95 * GIB
    assert v3.device_hbm_bytes_per_sec == 450e9 and v4.device_hbm_bytes_per_sec == 1200e9
    assert v3.device_flops_per_sec == 61.5e12 and v4.device_flops_per_sec == 275e12
    assert v3.device_interconnect_bytes_per_sec == 166e9


@pytest.mark.parametrize(
    ("name", "gib", "flops"),
    [("v3", 32, 123), ("v4", 32, 275), ("v5e", 16, 197), ("v5p", 95, 459), ("v6e", 32, 918), ("tpu7x", 192, 2307)],
)
def test_a_chip_of_each_tpu_generation(name, gib, flops):
    generation = GENERATIONS[name]
    one = find_slice(f"{name}:{generation.host_shape}")
    assert generation.hbm_bytes == gib * GIB
    assert one.device_flops_per_sec * generation.devices_per_chip == flops * 1e12
    assert one.num_hosts == 1 and one.num_chips == generation.chips_per_host


@pytest.mark.parametrize(
    ("name", "gib", "flops", "hbm", "within", "between"),
    [
        ("a100", 80, 312e12, 2039e9, 300e9, 200e9),
        ("h100", 80, 989e12, 3350e9, 450e9, 400e9),
        ("h200", 141, 989e12, 4800e9, 450e9, 400e9),
    ],
)
def test_gpus(name, gib, flops, hbm, within, between):
    """Within a node by NVLink; between nodes a GPU sends no faster than its node's eight adapters."""
    node, two, one = (find_slice(f"{name}:{number}") for number in (8, 16, 1))
    assert (one.num_hosts, node.num_hosts, two.num_hosts, two.num_devices) == (1, 1, 2, 16)
    assert node.generation.device == node.generation.chip == "GPU"
    assert node.device_hbm_bytes == gib * GIB > node.device_usable_bytes > (gib - 2) * GIB
    assert node.device_flops_per_sec == flops and node.device_hbm_bytes_per_sec == hbm
    assert node.device_interconnect_bytes_per_sec == within and two.device_interconnect_bytes_per_sec == between


@pytest.mark.parametrize(("name", "hosts"), [("v5e:1x1", 1), ("v5e:2x4", 2), ("v5e:16x16", 64), ("v4:2x2x4", 4)])
def test_hosts(name, hosts):
    assert find_slice(name).num_hosts == hosts


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v9:4x4", r"there is no generation 'v9' in 'v9:4x4'; .*such as v4:4x4x4 or h100:64; generations: v3, .*, tpu7x, a100, h100, h200$"),
        ("64", r"there is no generation '64'"),
        ("v4:4x4", r"there is no slice '4x4' of v4 in 'v4:4x4'; topologies are named .*slices of v4: 2x2x1, 2x2x2,"),
        ("v5e:16x8", r"did you mean v5e:8x16\? "),
        ("h100:12", r"expected a number of h100 GPUs, one of 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, got '12' in 'h100:12'; topologies"),
        ("v5e", r"there is no slice '' of v5e in 'v5e'; topologies are named GENERATION:SHAPE, .*slices of v5e: 1x1, 2x4, 2x2"),
    ],
)  # fmt: skip
def test_an_unknown_slice_lists_the_valid_ones(name, told):
    with pytest.raises(ValueError, match=told):
        find_slice(name)
