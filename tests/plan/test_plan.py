"""The plan job: its table and plan.json, by shapes alone and compiled for eight CPU devices, and what it refuses."""

import json
import re

import jax
import pytest

import realm_jax.plan
from realm_jax import config
from realm_jax.__main__ import FAILED, main
from realm_jax.plan import compiler_process, compiling, plan
from realm_jax.plan.compiling import Compiled, MemoryOfProgram, check_compiler, prepare_compiler, read_shortage
from realm_jax.plan.figures import gather
from realm_jax.plan.hardware import GENERATIONS, GIB, find_slice
from realm_jax.plan.planned_run import MeshSizes, PlannedRun
from realm_jax.plan.table import as_json, table
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.exact import ExactSettings
from realm_jax.run_dir import read_json
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig
from tests import tiny

PAPER = ["v3:8x8", "v4:4x4x4", "v5e:16x16", "v6e:8x8"]
ASSUMED = {"num_documents": 1_000_000, "mean_document_len": 24, "embed_chips": 2, "utilisation": 0.5}


def planned(task=None, **changes):
    defaults = {
        "task": task or tiny.realm("nowhere"),
        "optimizer": OptimizerConfig(),
        "num_steps": 1000,
        "batch_size": 16,
    }
    return PlannedRun(**(defaults | changes))


def line(text, label):
    """The line of a table with this label, its spaces joined."""
    found = [" ".join(each.split()) for each in text.splitlines() if each.strip().startswith(label)]
    assert len(found) == 1, (label, text)
    return found[0]


def figures_of(run=None, topology="v5e:2x4", compiled=None, **assumed):
    run, tpu = run or planned(), find_slice(topology)
    sizes = MeshSizes(tpu.num_devices, 1, 1)
    return gather(run, run.program(), tpu, sizes, compiled or {}, **(ASSUMED | assumed))


def made(arguments=1 << 20, temporaries=2 << 20, results=0, code=0, secs=70.0):
    return Compiled(secs, MemoryOfProgram(arguments, temporaries, results, code), None)


def test_by_shapes_alone(tmp_path, capsys):
    found = plan(run_dir=str(tmp_path), topology="v5e:2x4", analytical=True, run=planned(), **ASSUMED)
    text = capsys.readouterr().out
    assert found == read_json(tmp_path / "plan.json")
    program = planned().program()
    assert text.splitlines()[0] == (
        "realm on v5e:2x4: 8 chips, 2 hosts; mesh data 8 × fsdp 1 × tensor 1; batch 16, 2 a chip"
    )
    assert text.splitlines()[1].startswith("fits: not known without compiling; needs at least ")
    assert found["fits"] is None and found["memory_bytes"]["is_whole"] is False and found["collectives"] is None
    parts = found["memory_bytes"]["parts"]
    assert parts["optimizer moments"] == pytest.approx(2 * parts["parameters"], rel=0.01)
    assert parts["gradients"] == parts["parameters"] and parts["batch of the step"] == parts["batch of the next step"]
    assert sum(parts.values()) == found["memory_bytes"]["needed"] < found["memory_bytes"]["capacity"] == 16 * GIB
    flops = 16 * program.flops_per_example
    assert found["step"]["flops"] == {"model": flops, "recomputed": 0.0}
    assert found["step"]["secs"] == pytest.approx(flops / (8 * 197e12 * 0.5))
    assert (
        found["step"]["sent_bytes"] == found["step"]["expected_sent_bytes"] == pytest.approx(7 / 4 * parts["gradients"])
    )
    roofline = found["step"]["roofline_secs"]
    assert roofline["arithmetic"] == pytest.approx(flops / (8 * 197e12))
    assert roofline["memory"] == pytest.approx(sum(found["step"]["memory_bytes"].values()) / 819e9)
    assert roofline["interconnect"] == pytest.approx(found["step"]["sent_bytes"] / 200e9)
    assert found["step"]["limit"] == max(roofline, key=roofline.get) == "memory"
    assert "memory limits; mfu at most" in line(text, "the greatest of the three")
    assert found["assumed"] == ASSUMED and found["run"]["task"]["num_candidates"] == 4 and found["mesh"]["data"] == 8


def test_the_refresh_that_a_split_of_chips_sustains():
    found = figures_of(embed_chips=2)
    encoder = planned().task.retriever.encoder
    corpus = 1e6 * 24 * 2 * (4 * 32 * 32 + 2 * 32 * 48) + 1e6 * 4 * 24 * 24 * 32
    assert encoder.num_layers == 1 and found.refresh.flops == corpus
    steps = corpus / found.step.flops.model
    assert found.refresh.steps_of_compute == pytest.approx(steps)
    assert found.refresh.secs == pytest.approx(corpus / (2 * 197e12 * 0.5))
    # two chips take as long as the slice's eight take for four times as many steps
    assert found.refresh.every_steps == pytest.approx(4 * steps) == pytest.approx(found.refresh.secs / found.step.secs)
    assert found.refresh.chips_wanted == -(-8 * steps // 500)
    text = table(found)
    assert line(text, "the index is renewed every").startswith(
        f"the index is renewed every {found.refresh.every_steps:.0f} steps at the same share"
    )
    assert line(text, "for every 500 steps, as set").endswith("must embed")
    assert "a refresh: 1000000 documents of 24 pieces" in text
    assert "on 2 chips beside the slice" in text and "at 50 % of the peak" in text


@pytest.mark.parametrize(
    ("refresh", "told"),
    [
        (RefreshConfig(mode="frozen"), "the run embeds them once (RefreshConfig.mode='frozen')"),
        (RefreshConfig(mode="synchronous", embedder="in_trainer"), "training waits for it"),
    ],
)
def test_other_ways_to_refresh(refresh, told):
    text = table(figures_of(planned(refresh=refresh)))
    assert told in text and "the index is renewed every" not in text
    assert ("copy of the retriever for a snapshot" in text) == (refresh.mode != "frozen")


def test_the_index_in_a_host_s_memory():
    found = figures_of(topology="v5e:4x8", num_documents=10_000_000)
    rows, codes = 10_000_000 * 16 * 4, 10_000_000 * 4
    assert found.host_memory.index == (rows, codes)
    assert (found.host_memory.replicated, found.host_memory.sharded) == (rows + codes, (rows + codes) // 8)
    text = table(found)
    assert line(text, "every host holds all") == "every host holds all 680 MB rows 640 MB, codes 40 MB"
    assert line(text, "twice that") == "twice that while a version is swapped in; as the run is set"
    share = "each of 8 hosts its share 85 MB likewise; with RefreshConfig.index_hosts='sharded'"
    assert line(text, "each of 8 hosts its share") == share
    sharded = planned(refresh=RefreshConfig(index_hosts="sharded"))
    text = table(figures_of(sharded, topology="v5e:4x8"))
    assert line(text, "each of 8 hosts its share").endswith("as the run is set")


def test_the_exact_index_lies_on_a_device_of_every_host():
    name = "exact index, served and next, first of a host"
    exact = planned(index=IndexSettings(backend="exact", exact=ExactSettings(dtype="int8")))
    found = figures_of(exact, num_documents=1_000_000)
    assert found.memory.parts[name] == 2 * 1_000_000 * (16 + 4)  # a scale beside sixteen numbers
    assert "index (exact) on the first chip of every host; its float32 rows in files, 64 MB" in table(found)
    sharded = planned(index=IndexSettings(backend="exact"), refresh=RefreshConfig(index_hosts="sharded"))
    assert figures_of(sharded, num_documents=1_000_000).memory.parts[name] == 2 * 1_000_000 * 16 * 4 // 2
    assert name not in figures_of().memory.parts


def test_a_step_that_searches_has_index_and_documents_on_every_chip():
    """A sixteenth each, whatever the versions are built for: two versions of sixteen numbers, and pieces of two bytes."""
    searching = planned(
        refresh=RefreshConfig(search="in_step"), index=IndexSettings(exact=ExactSettings(dtype="bfloat16"))
    )
    found = figures_of(searching, topology="v5e:4x4", num_documents=1_600_000)
    assert found.memory.parts["exact index, served and next"] == 2 * 100_000 * 16 * 2
    assert found.memory.parts["documents' pieces"] == 100_000 * (2 * searching.program().document_len + 8)
    assert "exact index, served and next, first of a host" not in found.memory.parts


def test_a_task_without_an_index_says_nothing_of_one():
    found = figures_of(planned(tiny.ict("nowhere")))
    text = table(found)
    assert found.refresh is None and found.host_memory is None
    assert "refresh" not in text and "index" not in text and "copy of the retriever" not in text
    assert as_json(found)["refresh"] is None


def test_memory_of_a_compiled_run():
    run = planned(batches=BatchSettings(document_len=24, batch_size=8))
    alone = figures_of(run)
    known = sum(alone.memory.parts[name] for name in ("parameters", "optimizer moments", "batch of the step"))
    compiled = {
        "train step": made(known + 1000, 5 << 20, 77, 99),
        "query embedding": made(0, 6 << 20),
        "embed job": made(1 * GIB, 2 * GIB, secs=10.0),
    }
    found = figures_of(run, compiled=compiled)
    parts = found.memory.parts
    assert parts["padding of these arrays"] == 1000 and parts["new results"] == 77 and parts["program"] == 99
    assert parts["temporaries"] == 6 << 20  # of the program that needs most: one runs at a time
    assert found.memory.fits is True and found.memory.embed_job == 3.25 * GIB
    assert parts["kept by the runtime"] == GIB // 4
    text = table(found)
    assert re.search(r"^fits: yes; 15\.7\d GiB of 16\.00 GiB a chip stay free$", text, re.MULTILINE)
    assert line(text, "free").startswith("free 15.7")
    assert (
        line(text, "a chip of the embed job")
        == "a chip of the embed job 3.25 GiB 8 documents of 24 at once on one host"
    )
    assert "compiled: train step 70 s, query embedding 70 s, embed job 10 s; jax " in text


def test_what_does_not_fit_is_told():
    too_much = {"train step": made(1 * GIB, 16 * GIB)}
    found = figures_of(compiled=too_much)
    assert found.memory.fits is False
    assert re.search(r"^fits: NO: needs 17\.2\d GiB of a chip, which has 16\.00 GiB$", table(found), re.MULTILINE)
    assert line(table(found), "free") == "free 0 B of 16.00 GiB"
    refused = figures_of(compiled={"train step": Compiled(9.0, None, None, 20 * GIB, int(15.75 * GIB))})
    assert refused.memory.fits is False
    assert "fits: NO: the train step needs at least 20.00 GiB, the compiler may use 15.75 GiB of a chip" in table(
        refused
    )
    assert as_json(refused)["memory_bytes"]["refused"] == {"train step": [20 * GIB, int(15.75 * GIB)]}
    embedder = figures_of(compiled={"train step": made(), "embed job": made(9 * GIB, 9 * GIB)})
    assert "fits: NO: the embed job needs 18.25 GiB, a chip has 16.00 GiB" in table(embedder)
    # what the shapes alone say is enough to say no
    large = planned(tiny.ict("nowhere", retriever=tiny.retriever(encoder=tiny.encoder(vocab_size=40_000_000))))
    assert re.search(r"fits: NO: needs at least \d\d\.\d\d GiB of a chip, which has 16", table(figures_of(large)))


def test_cores_are_told_from_chips():
    text = table(figures_of(topology="v3:2x2"))
    assert text.startswith("realm on v3:2x2: 4 chips of 2 cores, 8 devices, 1 host; mesh data 8")
    assert (
        "2 a core" in text
        and "memory of a core" in text
        and "of 16.00 GiB" in text
        and "sent to other cores, a core" in text
    )


def test_gpus_are_planned_by_the_shapes_alone(tmp_path, capsys):
    with pytest.raises(
        ValueError, match="compiled for TPU slices; h100 is planned by the shapes alone: add --analytical"
    ):
        plan(run_dir=str(tmp_path), topology="h100:16", run=planned(), **ASSUMED)
    found = plan(run_dir=str(tmp_path), topology="h100:16", analytical=True, run=planned(), **ASSUMED)
    text = capsys.readouterr().out
    assert text.startswith("realm on h100:16: 16 GPUs, 2 hosts; mesh data 16 × fsdp 1 × tensor 1; batch 16, 1 a GPU\n")
    assert "memory of a GPU" in text and "on 2 GPUs beside the slice" in text and "chip" not in text
    roofline = found["step"]["roofline_secs"]
    assert roofline["interconnect"] == pytest.approx(found["step"]["sent_bytes"] / 400e9)
    assert roofline["memory"] == pytest.approx(sum(found["step"]["memory_bytes"].values()) / 3350e9)


@pytest.fixture
def eight_cpu_devices(monkeypatch):
    """The TPU compiler is not there in most environments: the CPU's stands in, here, for a slice of eight devices."""

    def devices(generation, shape):
        return jax.devices()[: 8 if shape == "2x4" else 4]

    monkeypatch.setattr(compiler_process, "devices_of", devices)
    monkeypatch.setattr(realm_jax.plan, "check_compiler", lambda generation: None)
    monkeypatch.setattr(realm_jax.plan, "compile_apart", lambda *work: dict(compiler_process.compile_programs(*work)))


def test_compiled_for_eight_devices(tmp_path, capsys, eight_cpu_devices):
    run = planned(
        tiny.realm("nowhere", retriever=tiny.retriever(encoder=tiny.encoder(num_layers=3, remat=True))),
        mesh=MeshConfig(fsdp=4),
        dropout=False,
        batches=BatchSettings(document_len=24, batch_size=8),
    )
    found = plan(run_dir=str(tmp_path), topology="v5e:2x4", run=run, **ASSUMED)
    text = capsys.readouterr().out
    assert found == json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] is True and found["memory_bytes"]["is_whole"] is True
    parts = found["memory_bytes"]["parts"]
    assert parts["temporaries"] > 0 and "gradients" not in parts
    assert set(found["compile_secs"]) == {"train step", "query embedding", "embed job"}
    assert found["memory_bytes"]["embed_job"] > 0
    kinds = {one["kind"]: one for one in found["collectives"]["by_kind"]}
    assert kinds["all-gather"]["times"] > 3  # parameters of each of three layers, forward and backward
    assert found["step"]["sent_bytes"] == sum(one["sent_bytes"] for one in kinds.values()) > 0
    assert line(text, "all-gather").startswith(f"all-gather {kinds['all-gather']['times']} times arrays of ")
    assert "by the compiled program" in text and "made again (remat)" in text


def test_a_loop_of_unknown_length_is_told():
    found = figures_of(compiled={"train step": made()._replace(collectives=compiling.Collectives((), 2))})
    assert "2 loops with collectives of unknown length counted once: the figures are too small" in table(found)
    assert "  none" in table(found)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"embed_chips": 0}, "plan.embed_chips must be at least 1, got 0"),
        ({"num_documents": 0}, "plan.num_documents must be at least 1, got 0"),
        ({"mean_document_len": -1}, "plan.mean_document_len must be at least 1, got -1"),
        ({"utilisation": 0.0}, "plan.utilisation must be above 0 and at most 1, got 0.0"),
        ({"utilisation": 1.5}, "plan.utilisation must be above 0 and at most 1, got 1.5"),
        ({"topology": "v4:5x5x5"}, "there is no slice '5x5x5' of v4"),
        ({"run": planned(mesh=MeshConfig(fsdp=3))}, "does not cover the 8 devices of v5e:2x4"),
    ],
)
def test_refusals(tmp_path, setting, told):
    with pytest.raises(ValueError, match=told):
        plan(**({"run_dir": str(tmp_path), "topology": "v5e:2x4", "analytical": True, "run": planned()} | setting))
    assert not list(tmp_path.iterdir())


def test_without_the_tpu_compiler_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs its compiler, libtpu, .*`make tpu-plan` .*--analytical plans without"):
        check_compiler(GENERATIONS["v4"])
    arguments = [
        "plan",
        f"--run_dir={tmp_path / 'run'}",
        "--gin_file=runs/realm_paper.gin",
        "--gin.plan.topology=v4:4x4x4",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(realm_jax.plan, "check_compiler", check_without_compiler)
    assert main(arguments) == FAILED
    assert "realm_jax plan: compiling for a TPU needs its compiler, libtpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--analytical"]) == 0
    assert capsys.readouterr().out.startswith("realm on v4:4x4x4: 64 chips, 16 hosts; mesh data 64")


def check_without_compiler(generation):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
        check_compiler(generation)


def test_a_slice_that_the_compiler_does_not_know_is_refused(monkeypatch):
    def unknown(**_):
        raise RuntimeError("INVALID_ARGUMENT: no such\n  topology")

    monkeypatch.setattr(compiling.topologies, "get_topology_desc", unknown)
    with pytest.raises(
        ValueError, match=r"cannot compile for v4:4x4x4 \(INVALID_ARGUMENT: no such topology\); --analytical"
    ):
        compiling.devices_of(GENERATIONS["v4"], "4x4x4")


def test_what_libtpu_reads_when_it_starts():
    environment = {}
    prepare_compiler(environment)
    assert environment["TPU_SKIP_MDS_QUERY"] == "1" and environment["TPU_WORKER_HOSTNAMES"] == "localhost"
    assert environment["LIBTPU_INIT_ARGS"] == "--fibers_default_thread_stack_size=2097152"
    prepare_compiler(environment)  # once is enough
    assert environment["LIBTPU_INIT_ARGS"] == "--fibers_default_thread_stack_size=2097152"
    given = {"TPU_WORKER_HOSTNAMES": "t1k-w-0", "LIBTPU_INIT_ARGS": "--xla_tpu_some_flag=1"}
    prepare_compiler(given)
    assert given["LIBTPU_INIT_ARGS"] == "--xla_tpu_some_flag=1 --fibers_default_thread_stack_size=2097152"
    assert given["TPU_WORKER_HOSTNAMES"] == "localhost"  # this is no part of the machine that we are on


def test_a_shortage_is_read_from_the_compiler_s_words():
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. Exceeded hbm capacity by"
    )
    assert read_shortage(words) == (round(512.5 * 2**20), round(15.75 * 2**30))
    assert read_shortage("INTERNAL: Used 2G of 1G hbm") is None
    assert read_shortage("RESOURCE_EXHAUSTED: out of file handles") is None


@pytest.mark.parametrize("topology", PAPER)
def test_run_files_of_the_paper_s_setting(topology):
    """Checked here by the shapes; `make tpu-compile` compiles them."""
    name = f"runs/realm_paper_{topology.replace(':', '_')}.gin"
    kwargs = config.bind("plan", [name])
    assert kwargs["topology"] == topology
    run, tpu = realm_jax.plan.run_of_the_file(), find_slice(topology)
    sizes = realm_jax.plan.mesh_sizes(run.mesh, tpu.num_devices, run.batch_size, tpu.name)
    assert (run.batch_size, run.num_steps, run.task.num_candidates) == (512, 200_000, 8)
    figures = gather(run, run.program(), tpu, sizes, {}, **{name: kwargs[name] for name in ASSUMED})
    assert figures.memory.needed < 0.5 * figures.memory.capacity
    assert figures.step.flops.model == pytest.approx(1.376e15, rel=0.01)  # docs/tpu.md
    assert figures.refresh.steps_of_compute == pytest.approx(505, abs=1)
    text = (config.find_gin_file(name)).read_text()
    hours = re.search(r"Time: (\d+) hours if 40 %", text)
    assert int(hours[1]) == round(figures.step.secs * run.num_steps / 3600)
