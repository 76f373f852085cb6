"""The steps at the paper's size, compiled by the real TPU compiler for topologies that are not there."""

import os
import time

os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # before libtpu starts: it must not look for a TPU machine

import pytest
from jax.experimental import topologies

from realm_jax.models import RetrieverConfig
from tests import abstract_steps

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("default"),
]

GIB = 1 << 30
HBM_GIB = {"v4:4x4x4": 16, "v3:8x8": 8}  # of a device, which here is one of a chip's two cores


def devices(topology_name):
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology_name).devices
    except Exception as error:
        pytest.skip(f"no TPU compiler here ({str(error)[:100]}); install jax[tpu]")


def compiled(task, batch, topology_name, **axes):
    mesh = abstract_steps.mesh_of(devices(topology_name), **axes)
    step, values = abstract_steps.jitted_step(task, mesh, batch)
    start = time.monotonic()
    memory = step.lower(*values).compile().memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes / GIB, memory.temp_size_in_bytes / GIB
    print(
        f"\n{task.name} on {topology_name} {axes}: {arguments:.2f} GiB arguments + {temporaries:.2f} GiB temporaries a device, "
        f"compiled in {time.monotonic() - start:.0f} s"
    )
    # the arguments are donated, so the results take their place
    assert arguments + temporaries < 0.9 * HBM_GIB[topology_name]
    return arguments, temporaries


def test_realm_of_512_examples_and_8_candidates():
    encoder = abstract_steps.bert_base()
    task = abstract_steps.realm_task(RetrieverConfig(encoder=encoder), encoder)
    arguments, _ = compiled(task, abstract_steps.realm_batch(512), "v4:4x4x4")
    # two BERT-base learners and Adam's two moments in float32, on every device
    assert 2.4 < arguments < 2.7


def test_ict_of_4096_examples():
    task = abstract_steps.ict_task(RetrieverConfig(encoder=abstract_steps.bert_base()))
    compiled(task, abstract_steps.ict_batch(4096), "v4:4x4x4")


def test_realm_with_parameters_cut_over_eight():
    encoder = abstract_steps.bert_base()
    task = abstract_steps.realm_task(RetrieverConfig(encoder=encoder), encoder)
    arguments, _ = compiled(task, abstract_steps.realm_batch(512), "v4:4x4x4", fsdp=8)
    assert arguments < 1.2  # the vocabulary's rows are not cut, the layers are
