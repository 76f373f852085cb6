"""RA-DIT's fine-tuning of language models, planned: their sizes, FLOPs, memory, and the times that the run files' headers say."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from realm_jax import config
from realm_jax.models import LanguageModelConfig, LoraConfig
from realm_jax.plan import arithmetic, run_of_the_file
from realm_jax.plan.collectives import read_collectives
from realm_jax.plan.figures import gather
from realm_jax.plan.hardware import GIB, find_slice
from realm_jax.plan.planned_run import MeshSizes, mesh_sizes
from realm_jax.plan.programs import abstract_state, mesh_over, train_program, without_data
from realm_jax.tasks.language_modeling import packed_program
from realm_jax.training.optimizer import OptimizerConfig

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"7b": 6_738_415_616, "13b": 13_015_864_320, "65b": 65_285_660_672}
BATCHES = {"7b": 64, "13b": 128, "65b": 128}
FASTEST = {"7b": "h100:8", "13b": "h100:8", "65b": "h100:64"}  # of the header's time
WITH_LORA = ("LORA=@lora.LoraConfig()", "lora.LoraConfig.rank=16")


def planned(size, topology=None, *bindings):
    kwargs = config.bind("plan", [f"runs/ra_dit_lm_{size}.gin"], list(bindings))
    run, machines = run_of_the_file(), find_slice(topology or kwargs["topology"])
    sizes = mesh_sizes(run.mesh, machines.num_devices, run.batch_size, machines.name)
    return gather(
        run, run.program(), machines, sizes, {}, num_documents=1, mean_document_len=1, embed_chips=1, utilisation=0.4
    )


@pytest.mark.parametrize("size", SIZES)
def test_run_file_is_the_paper_s(size):
    found = planned(size)
    run, task = found.run, found.run.task
    assert (run.batch_size, run.num_steps, task.length, task.num_documents) == (BATCHES[size], 500, 2048, 3)
    assert dict(task.shares) == {"plain_text": 0.1, "dialogue": 0.05} and task.language_model.lora is None
    rates = [float(run.optimizer.schedule(500)(step)) for step in (0, 199, 350, 500)]
    assert rates == pytest.approx([5e-8, 1e-5, 5.05e-6, 1e-7], rel=1e-4)
    params = jax.eval_shape(found.program.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == SIZES[size]


@pytest.mark.parametrize("size", SIZES)
def test_flops_are_six_for_each_number_and_token(size):
    """And attention's: 12 · length · hidden for each layer and token. The table of embeddings has no product, norms hardly any."""
    found = planned(size)
    model = found.run.task.language_model
    numbers = SIZES[size] - model.vocab_size * model.hidden_size
    tokens = BATCHES[size] * 2048
    expected = tokens * (6 * numbers + 12 * model.num_layers * 2048 * model.hidden_size)
    assert found.step.flops.model == pytest.approx(expected, rel=1e-3)
    logits = 2 * tokens * model.vocab_size * model.hidden_size
    assert found.step.flops.recomputed == pytest.approx(expected / 3 - logits, rel=1e-3)  # forward, but for the logits


@pytest.mark.parametrize("size", SIZES)
def test_sixteen_bytes_a_parameter_are_cut_over_all_devices(size):
    found = planned(size)
    parts, devices = found.memory.parts, found.sizes.num_devices
    assert parts["parameters"] == pytest.approx(4 * SIZES[size] / devices, rel=0.01)
    assert parts["optimizer moments"] == pytest.approx(8 * SIZES[size] / devices, rel=0.01)
    assert parts["gradients"] == parts["parameters"]
    assert (
        parts.get("sum of the gradients of the parts before", 0)
        == (found.run.accumulation_steps > 1) * parts["gradients"]
    )
    model, rows = found.run.task.language_model, BATCHES[size] // devices // found.run.accumulation_steps
    assert parts["kept for the backward pass, at least"] == rows * model.num_layers * 2048 * model.hidden_size * 2


@pytest.mark.parametrize("size", SIZES)
def test_header_says_the_time(size):
    said = re.search(
        r"Time: (\d+) minutes if 40 % .*\(500 steps of ([\d.]+) PFLOP\), (\d+) minutes on (\S+)\.",
        config.find_gin_file(f"runs/ra_dit_lm_{size}.gin").read_text(),
    )
    fastest, named = planned(size, FASTEST[size]), planned(size)
    assert named.machines.name == said[4] and said[2] == f"{named.step.flops.model / 1e15:.3g}"
    for minutes, found in ((said[1], fastest), (said[3], named)):
        assert int(minutes) == round(500 * found.step.secs / 60)
        of_jax = 0.75 if found.machines.generation.is_gpu else 1.0  # of a GPU's memory jax takes three quarters
        assert found.memory.needed < 0.8 * of_jax * found.memory.capacity


def test_estimate_is_what_the_one_compiled_case_needs():
    """7B on v5p:2x2x1, by the TPU compiler 73.3 GiB a chip (docs/plan.md)."""
    assert planned("7b", "v5p:2x2x1").memory.needed / GIB == pytest.approx(73.3, rel=0.01)


@pytest.mark.parametrize(
    ("size", "said"), [("7b", {"h100:8": 38}), ("13b", {"h100:8": 47}), ("65b", {"h100:64": 31, "v5p:2x4x4": 61})]
)
def test_header_says_the_memory(size, said):
    header = config.find_gin_file(f"runs/ra_dit_lm_{size}.gin").read_text().split("\n\n")[0]
    for topology, gib in said.items():
        assert round(planned(size, topology).memory.needed / GIB) == gib and re.search(rf"\b{gib}\b", header)
    if size == "13b":
        assert "at once takes 88 of 80 GiB" in header
    if size == "65b":
        assert "accumulation_steps=4: 92 of 141, at once 122)" in header
        at_once, parts = (
            planned(size, "h200:16", f"train.accumulation_steps={steps}").memory.needed / GIB for steps in (1, 4)
        )
        assert (round(at_once), round(parts)) == (122, 92)


def rows_of_the_page():
    """(size, LoRA, parts, machines, verdict, GiB needed) of each row of docs/plan.md's tables."""
    pattern = r"^\| (7B|13B|65B)(, LoRA)?(?:, in (\d+) parts)? \| (\S+) \|.*\| (may|no): ([\d.]+) of \d+ \|"
    return re.findall(pattern, (ROOT / "docs" / "plan.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("size", "lora", "steps", "topology", "verdict", "needed"), rows_of_the_page())
def test_page_says_what_fits(size, lora, steps, topology, verdict, needed):
    bindings = [f"train.accumulation_steps={steps or 1}", *(["LORA=@lora.LoraConfig()"] if lora else [])]
    found = planned(size.lower(), topology, *bindings)
    assert found.memory.fits is {"may": None, "no": False}[verdict]
    assert f"{found.memory.needed / GIB:.1f}" == needed
    assert (
        found.run.batch_size % (found.sizes.rows * found.run.accumulation_steps) == 0
    )  # every device reads whole rows


def test_page_has_all_rows():
    assert len(rows_of_the_page()) == 25


@pytest.mark.parametrize(
    ("size", "topology", "bindings", "fits"),
    [
        ("65b", "h200:8", (), False),  # 16 bytes of 65 billion parameters are 131 GB of each of eight
        ("65b", "h100:16", (), False),
        ("65b", "h200:16", (), None),
        ("65b", "h200:8", WITH_LORA, False),
        ("65b", "h200:8", (*WITH_LORA, "train.accumulation_steps=4"), None),
        ("7b", "h100:1", (), False),
        ("13b", "h100:8", ("train.accumulation_steps=1",), False),
        ("7b", "v4:2x2x2", (), False),
        ("7b", "h200:1", WITH_LORA, False),
        ("7b", "h200:1", (*WITH_LORA, "train.accumulation_steps=4"), None),
    ],
)
def test_what_does_not_fit_is_known_without_compiling(size, topology, bindings, fits):
    assert planned(size, topology, *bindings).memory.fits is fits


def test_lora_leaves_moments_and_gradients_of_the_adapter_alone():
    full, lora = planned("7b", "h100:8"), planned("7b", "h100:8", *WITH_LORA)
    adapter = 32 * 2 * 16 * (4096 + 4096)  # layers, query and value, rank, features + outputs
    assert lora.program.frozen == ("language_model",)
    assert lora.memory.parts["gradients"] == 4 * adapter // 8
    state = abstract_state(without_data(lora.program), lora.run.optimizer, 500)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * adapter
    assert lora.memory.parts["parameters"] == full.memory.parts["parameters"] + 4 * adapter // 8
    assert 0.68 < lora.step.flops.model / full.step.flops.model < 0.70  # two thirds of the matrices, all of attention
    assert lora.step.expected_sent_bytes < 0.7 * full.step.expected_sent_bytes
    assert arithmetic.kept_bytes(lora.program) == arithmetic.kept_bytes(full.program)
    assert full.memory.needed - lora.memory.needed == pytest.approx(12 * SIZES["7b"] / 8, rel=0.01)


def test_a_step_with_an_adapter_computes_what_the_plan_counts():
    """No gradient of the frozen base is made, nor read for the norm of all gradients: two thirds of the products, one copy less."""
    model = LanguageModelConfig(
        vocab_size=64,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        intermediate_size=352,
        unroll_layers=4,
    )
    temporaries = {}
    for lora in (None, LoraConfig(rank=2)):
        program = packed_program("packed", dataclasses.replace(model, lora=lora), 64)
        mesh = mesh_over(jax.devices()[:1], MeshSizes(1, 1, 1))
        step = train_program(without_data(program), program.batch_shapes(8), mesh, OptimizerConfig(), 10)
        compiled = step.lower().compile()
        assert compiled.cost_analysis()["flops"] == pytest.approx(8 * program.flops_per_example, rel=0.05)
        temporaries[lora is None] = compiled.memory_analysis().temp_size_in_bytes
    base = arithmetic.whole_bytes(jax.eval_shape(program.init, jax.random.key(0))["language_model"])
    assert temporaries[False] < temporaries[True] - base


@pytest.mark.parametrize("axes", [(1, 8, 1), (1, 4, 2)], ids=["fsdp", "fsdp and tensor"])
def test_devices_send_what_the_shapes_say(axes):
    """Matrices are gathered, layer by layer; were activations cut by columns and summed, it would be forty and ten times as much."""
    model = LanguageModelConfig(
        vocab_size=1024, hidden_size=256, num_layers=4, num_heads=8, num_kv_heads=8, intermediate_size=704, remat=True
    )
    program, sizes = packed_program("packed", model, 512), MeshSizes(*axes)
    mesh = mesh_over(jax.devices(), sizes)
    step = train_program(without_data(program), program.batch_shapes(16), mesh, OptimizerConfig(), 10)
    found = read_collectives(step.lower().compile().as_text(), 8)
    gradients = arithmetic.device_bytes(jax.eval_shape(program.init, jax.random.key(0)), sizes)
    expected = arithmetic.expected_sent_bytes(program, 16, sizes, 1, gradients)
    assert expected < found.sent_bytes < 1.6 * expected  # gradients are summed whole here, on TPUs scattered
