"""The run that a run file would train, read without its corpus, and what cannot be planned."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from realm_jax import config
from realm_jax.plan import planned_run
from realm_jax.plan.bound_jobs import LEFT_OPEN, arguments_of
from realm_jax.plan.figures import gather
from realm_jax.plan.hardware import find_slice
from realm_jax.plan.planned_run import MeshSizes, PlannedRun, mesh_sizes, run_of_the_file
from realm_jax.plan.programs import programs_of
from realm_jax.retrieval.build_version import DEFAULT_BATCHES
from realm_jax.tasks.task import Task
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import MeshConfig
from tests import tiny
from tests.test_gin_files import RUNS

SLICE = "plan.topology=v4:4x4x4"


def bind(name, *bindings):
    return config.bind("plan", [name], [SLICE, *bindings])


def test_the_paper_s_run_without_its_corpus():
    kwargs = bind("runs/realm_paper.gin", "FSDP=8", "train.batch_size=256")
    assert kwargs["topology"] == "v4:4x4x4" and kwargs["analytical"] is False and kwargs["num_documents"] == 13_353_718
    run = run_of_the_file()
    assert run.task.corpus == LEFT_OPEN and run.task.num_candidates == 8
    assert (run.num_steps, run.batch_size, run.mesh) == (200_000, 256, MeshConfig(fsdp=8))
    assert run.refresh.snapshot_every_steps == 500
    assert (run.batches.document_len, run.batches.batch_size) == (288, 512)  # the embed job's
    assert run.program().name == "realm"


@pytest.mark.parametrize("name", [name for name in RUNS if "loop.train:" in (config.find_gin_file(name)).read_text()])
def test_any_run_file_of_training_can_be_planned(name):
    bind(name)
    run = run_of_the_file()
    program = run.program()
    assert program.flops_per_example > 0
    assert mesh_sizes(run.mesh, 1, run.batch_size, "v5e:1x1") == (1, 1, 1)


ON_TPU = [f"runs/{stage}_base.gin" for stage in ("realm", "ict", "reader")]
ON_GPU = [f"runs/{stage}_base_gpu.gin" for stage in ("realm", "ict", "reader")]


@pytest.mark.parametrize("name", [*ON_TPU, *(pytest.param(name, marks=pytest.mark.slow) for name in ON_GPU)])
def test_recipes_for_accelerators_are_traced(name):
    """For eight devices, and those on GPUs for seven as well, the embed job having one."""
    bind(name)
    run = run_of_the_file()
    sizes = mesh_sizes(run.mesh, 8, run.batch_size, "eight")
    assert name in ON_TPU or mesh_sizes(run.mesh, 7, run.batch_size, "seven") == (7, 1, 1)
    step = programs_of(run, run.program(), jax.devices(), sizes, jax.devices()[:1])["train step"]
    state, figures = step.jitted.trace(*step.values).out_info
    assert figures["loss"].shape == () and state.step.dtype == jnp.int32


@pytest.mark.parametrize("stage", ["realm", "ict", "reader"])
def test_recipe_for_one_accelerator(stage):
    kwargs = config.bind("plan", [f"runs/{stage}_colab.gin"])
    run, tpu = run_of_the_file(), find_slice(kwargs["topology"])
    sizes = mesh_sizes(run.mesh, 1, run.batch_size, tpu.name)
    figures = gather(
        run, run.program(), tpu, sizes, {}, num_documents=20_000, mean_document_len=160, embed_chips=1, utilisation=0.4
    )
    assert tpu.name == "v5e:1x1" and figures.memory.needed < 0.2 * figures.memory.capacity
    step = programs_of(run, run.program(), jax.devices()[:1], sizes, jax.devices()[:1])["train step"]
    state, _ = step.jitted.trace(*step.values).out_info
    learner = next(iter(state.params.values()))
    widths = {leaf.shape[-1] for leaf in jax.tree.leaves(learner)}
    assert 256 in widths and 1024 in widths
    said = re.search(
        r"if 40 %.*\(([\d ]+) steps of ([\d.]+) TFLOP\)", config.find_gin_file(f"runs/{stage}_colab.gin").read_text()
    )
    assert int(said[1].replace(" ", "")) == run.num_steps
    assert figures.step.flops.model / 1e12 == pytest.approx(float(said[2]), abs=0.051)


@pytest.mark.parametrize("name", ON_TPU)
def test_recipes_for_tpus_fit_and_take_the_time_that_they_say(name):
    kwargs = config.bind("plan", [name])
    run, tpu = run_of_the_file(), find_slice(kwargs["topology"])
    assert tpu.name == "v5e:2x4"
    figures = gather(
        run, run.program(), tpu, mesh_sizes(run.mesh, 8, run.batch_size, tpu.name), {},
        num_documents=1_000_000, mean_document_len=288, embed_chips=1, utilisation=0.4,
    )  # fmt: skip
    assert figures.memory.needed < 0.5 * figures.memory.capacity
    said = re.search(
        r"Time: (.+) if 40 %.*\((\d+) (\d+) steps of ([\d.]+) ([TP])FLOP\)", config.find_gin_file(name).read_text()
    )
    hours = {"1.5 hours": 1.5, "25 minutes": 25 / 60, "half an hour": 0.5}[said[1]]
    assert figures.step.secs * run.num_steps / 3600 == pytest.approx(hours, rel=0.1)
    assert int(said[2] + said[3]) == run.num_steps
    assert figures.step.flops.model == pytest.approx(float(said[4]) * {"T": 1e12, "P": 1e15}[said[5]], rel=0.02)


def test_what_is_left_open_stays_open_for_others():
    bind("runs/realm_paper.gin")
    run_of_the_file()
    again = arguments_of("train")
    assert again["task"].corpus == LEFT_OPEN
    with pytest.raises(config.ConfigError, match="CORPUS is required"):
        config.bind("train", ["runs/realm_paper.gin"])


def test_an_embedder_in_the_trainer_has_its_own_batches():
    bind("runs/open_qa_paper.gin")
    run = run_of_the_file()
    assert run.refresh.embedder == "in_trainer" and run.batches.batch_size == 512
    bind("runs/rag_paper.gin")
    program = run_of_the_file().program()
    # BART-large reads five sources of 300 pieces, DPR's question encoder the question
    encoder, decoder, question = program.passes
    assert (encoder.rows, encoder.length, decoder.rows, decoder.length, decoder.source_len) == (5, 300, 5, 28, 300)
    assert question.encoder.hidden_size == 768 and program.frozen == ("retriever/document_encoder",)
    # 12 layers of 12.6 M numbers over 1500 + 140 pieces: 495 G; attention to the sources 83 G, to themselves 22 G; logits 14 G;
    # the question 5 G; a few more for the decoder's pairs
    assert program.flops_per_example == pytest.approx(3 * 622e9, rel=0.005)
    bind("runs/ict_paper.gin")  # no index at all
    assert run_of_the_file().batches == DEFAULT_BATCHES


def test_a_file_that_trains_nothing_is_refused(tmp_path):
    config.bind("plan", ["data/documents.gin"], [SLICE, "SOURCE=x"])
    with pytest.raises(
        ValueError, match=r"configures the train job, got one without train.task, .*name one with --gin_file=FILE"
    ):
        run_of_the_file()
    assert arguments_of("embed") == {}


def test_mistakes_in_the_train_job_s_part_are_told():
    with pytest.raises(config.ConfigError, match="has no parameter 'batchsize'; did you mean batch_size"):
        bind("runs/realm_paper.gin", "train.batchsize=3")
    bind("runs/realm_paper.gin", "train.batch_size='many'")
    with pytest.raises(ValueError, match=r"train.batch_size must be int, got 'many' \(str\)"):
        run_of_the_file()
    bind("runs/realm_paper.gin", "realm.Realm.joint_len=3")
    with pytest.raises(ValueError, match=r"Realm\.joint_len must exceed query_len=96, got 3"):
        run_of_the_file()


@dataclasses.dataclass(frozen=True)
class Unplanned:
    def build(self, seed: int) -> Task:
        raise AssertionError


def planned(task, **changes):
    return PlannedRun(task=task, optimizer=OptimizerConfig(), num_steps=10, batch_size=8, **changes)


def test_a_task_that_does_not_know_its_shapes_is_refused():
    with pytest.raises(
        ValueError, match=r"knows its shapes without a corpus, got Unplanned; give it a method `program\("
    ):
        planned(Unplanned()).program()


def test_a_batch_that_the_loop_would_refuse_is_refused():
    ict = tiny.ict("nowhere")
    with pytest.raises(ValueError, match="batch_size=8 does not divide into accumulation_steps=3 parts"):
        planned(ict, accumulation_steps=3).program()
    with pytest.raises(ValueError, match="task ict takes its negatives from the whole batch, so it cannot accumulate"):
        planned(ict, accumulation_steps=2).program()
    assert planned(tiny.realm("nowhere"), accumulation_steps=2).program().can_accumulate


def test_the_mesh_covers_the_slice():
    assert mesh_sizes(MeshConfig(), 64, 512, "v4:4x4x4") == (64, 1, 1)
    assert mesh_sizes(MeshConfig(fsdp=8, tensor=2), 64, 512, "v4:4x4x4") == (4, 8, 2)
    assert mesh_sizes(MeshConfig(data=2, fsdp=-1), 64, 512, "v4:4x4x4") == (2, 32, 1)
    for wrong in (MeshConfig(data=3), MeshConfig(fsdp=7), MeshConfig(data=-1, fsdp=-1), MeshConfig(fsdp=0)):
        with pytest.raises(ValueError, match=r"does not cover the 64 devices of v4:4x4x4; set one axis to -1"):
            mesh_sizes(wrong, 64, 512, "v4:4x4x4")
    with pytest.raises(ValueError, match=r"batch_size=100 does not divide over the 32 devices .*use a multiple of 32"):
        mesh_sizes(MeshConfig(tensor=2), 64, 100, "v4:4x4x4")
    assert str(MeshSizes(8, 4, 2)) == "data 8 × fsdp 4 × tensor 2" and MeshSizes(8, 4, 2).num_devices == 64


def test_special_pieces_are_only_numbers():
    assert planned_run.SPECIAL == (101, 102, 103)
