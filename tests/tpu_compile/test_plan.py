"""The plan job with the real TPU compiler: a tiny run, one that does not fit, and the paper's setting on four slices."""

import pytest

from realm_jax import config
from realm_jax.models import RetrieverConfig, TransformerConfig
from realm_jax.plan import PlannedRun, arithmetic, plan
from realm_jax.plan.compiling import check_compiler, devices_of
from realm_jax.plan.hardware import GENERATIONS, GIB, Slice
from realm_jax.retrieval.build_version import BatchSettings
from realm_jax.tasks.ict import Ict
from realm_jax.tasks.realm import Realm
from realm_jax.training.optimizer import OptimizerConfig

pytestmark = [pytest.mark.tpu_compile, pytest.mark.filterwarnings("default")]

TINY = TransformerConfig(
    vocab_size=512, hidden_size=128, num_layers=3, num_heads=2, intermediate_size=256, max_length=64, dtype="bfloat16", remat=True
)  # fmt: skip


@pytest.fixture(autouse=True)
def compiler():
    try:
        check_compiler()
    except ValueError as error:
        pytest.skip(str(error))


def run_of(task, **changes):
    defaults = {"optimizer": OptimizerConfig(), "num_steps": 100, "batch_size": 16, "dropout": False}
    return PlannedRun(task=task, **(defaults | changes))


@pytest.mark.timeout(1200)
def test_a_tiny_run(tmp_path):
    task = Realm("nowhere", RetrieverConfig(TINY), TINY, num_candidates=3, query_len=16, document_len=24, joint_len=32)
    run = run_of(task, batches=BatchSettings(document_len=24, batch_size=8))
    found = plan(run_dir=str(tmp_path), topology="v4:2x2x1", run=run)
    assert found["fits"] is True and found["memory_bytes"]["is_whole"] is True
    assert set(found["compile_secs"]) == {"train step", "query embedding", "embed job"}
    assert found["versions"].startswith("jax 0.") and "libtpu 0." in found["versions"]
    # every gradient is summed over the four chips, once or once a pass, wherever in loops and fusions that happens
    assert found["collectives"]["uncounted_loops"] == 0
    expected = found["step"]["expected_sent_bytes"]
    assert 0.9 * expected < found["step"]["sent_bytes"] < 3 * expected
    parts = found["memory_bytes"]["parts"]
    assert expected == pytest.approx(2 * 3 / 4 * parts["parameters"])
    assert parts["padding of these arrays"] < 0.1 * parts["parameters"] + (1 << 20)


@pytest.mark.timeout(1200)
def test_a_run_that_does_not_fit(tmp_path, capsys):
    task = Ict("nowhere", RetrieverConfig(TINY), query_len=16, document_len=24)
    found = plan(run_dir=str(tmp_path), topology="v5e:1x1", run=run_of(task, batch_size=1 << 21))
    assert found["fits"] is False
    needs, has = found["memory_bytes"]["refused"]["train step"]
    assert needs > has == round(15.75 * GIB)
    assert "fits: NO: the train step needs at least " in capsys.readouterr().out


@pytest.mark.parametrize("name", [f"{one.name}:{shape}" for one in GENERATIONS.values() for shape in one.shapes])
def test_the_compiler_knows_every_slice_that_we_name(name):
    generation, shape = GENERATIONS[name.partition(":")[0]], name.partition(":")[2]
    devices = devices_of(generation, shape)
    assert devices[0].device_kind in (generation.device_kind, generation.device_kind.replace("e", " lite"), "TPU v5")
    assert len({device.process_index for device in devices}) == Slice(generation, shape).num_hosts


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("topology", ["v3:8x8", "v4:4x4x4", "v5e:16x16", "v6e:8x8"])
def test_run_files_of_the_paper_s_setting(tmp_path, topology):
    name = f"runs/realm_paper_{topology.replace(':', '_')}.gin"
    kwargs = config.bind("plan", [name])
    found = plan(run_dir=str(tmp_path), **kwargs)
    assert found["topology"] == topology
    assert found["fits"] is True and found["memory_bytes"]["needed"] < 0.9 * found["memory_bytes"]["capacity"]
    parts = found["memory_bytes"]["parts"]
    # two BERT-base learners and Adam's two moments in float32, on every device
    assert 2.4 * GIB < parts["parameters"] + parts["optimizer moments"] + parts["padding of these arrays"] < 2.7 * GIB
    kinds = {one["kind"] for one in found["collectives"]["by_kind"]}
    assert "all-reduce" in kinds or "reduce-scatter" in kinds  # gradients are summed over the devices
    assert found["collectives"]["uncounted_loops"] == 0
    assert found["step"]["sent_bytes"] > 0.9 * found["step"]["expected_sent_bytes"] > arithmetic.FLOAT32 * 218e6
