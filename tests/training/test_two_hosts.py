"""Two processes of one run, each with a device of its own, as hosts have: `python -m realm_jax train`, joined by jax."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from realm_jax.__main__ import PREEMPTED
from realm_jax.retrieval.versions import list_versions, read_manifest
from realm_jax.run_dir import RunDir, read_json
from realm_jax.run_lock import exclusive
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.snapshots import list_snapshots
from tests import tiny

RUN_FILE = Path(__file__).with_name("two_hosts.gin")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    place = tmp_path_factory.mktemp("corpora")
    tiny.corpus(place / "z")
    tiny.sentences_corpus(place / "x")
    tiny.questions_file(place / "questions.jsonl")
    return place


def start(run, places, num_processes, *bindings, num_devices=1):
    """The processes of a REALM run. One process is not joined to anything."""
    return start_with(
        RUN_FILE, run, places, num_processes, f"--gin.X_CORPUS={places / 'x'}", *bindings, num_devices=num_devices
    )


def start_with(run_file, run, places, num_processes, *bindings, num_devices=1):
    address = f"localhost:{free_port()}"
    command = [
        sys.executable, "-m", "realm_jax", "train", f"--run_dir={run}", f"--gin_file={run_file}",
        f"--gin.CORPUS={places / 'z'}", f"--gin.train.distributed={num_processes > 1}", *bindings,
    ]  # fmt: skip
    started = []
    for process in range(num_processes):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices)}
        if num_processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(num_processes),
                "JAX_PROCESS_ID": str(process),
            }
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        )
    return started


def finish(processes, status=0):
    """What each process said; all must end so, well if nothing else is said."""
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()  # SIGTERM would be taken for a preemption
            process.communicate()
    for process, output in zip(processes, said, strict=True):
        assert process.returncode == status, output[-4000:]
    return said


def same(one, two, **tolerance):
    steps, trees = zip(load_params(RunDir.of(one)), load_params(RunDir.of(two)), strict=True)
    assert steps[0] == steps[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), *trees)


@pytest.fixture(scope="module")
def two(places, tmp_path_factory):
    run = tmp_path_factory.mktemp("two")
    said = finish(start(run, places, 2))
    for process in (0, 1):
        assert f"process {process} of 2, 1 devices here" in said[process]
    return run


@pytest.mark.slow
def test_two_processes_train_like_one(places, two, tmp_path):
    """Gradients are the same sums in another order: equal to 1e-3, not to the bit."""
    finish(start(tmp_path, places, 1, num_devices=2))
    lines = [read_metrics(run) for run in (tmp_path, two)]
    assert [line["step"] for line in lines[1]] == [line["step"] for line in lines[0]] == [1, 2, 3, 3, 4, 5, 6, 6]
    for one_process, two_processes in zip(*lines, strict=True):
        for name in ("loss", "retrieval_utility", "null_document_prob", "index_version", "heldout_recall_at_5"):
            if name in one_process:
                assert two_processes[name] == pytest.approx(one_process[name], rel=1e-3, abs=1e-4), name
    same(tmp_path, two, rtol=1e-3, atol=1e-3)
    run = RunDir.of(two)
    assert [line["index_version"] for line in lines[1] if "loss" in line] == [0, 0, 2, 2, 4, 4]
    assert list_snapshots(run) == [2, 4, 6] and list_versions(run.index) == [2, 4]  # version 0 is retired
    for process in (0, 1):
        status = read_json(run.trainer_status(process))
        assert (status["state"], status["step"], status["index_version"]) == ("finished", 6, 4)


@pytest.mark.slow
def test_hosts_that_share_the_index_train_like_hosts_that_hold_all_of_it(places, two, tmp_path):
    """Exact shares give the same documents, so the run is the same to the bit, its held-out evaluation too."""
    sharded = [
        "--gin.refresh.RefreshConfig.index_hosts='sharded'",
        f"--gin.build_version.IndexSettings.shard_bytes={4 * 16 * 12}",  # four shards of ten documents
    ]
    finish(start(tmp_path, places, 2, *sharded))
    same(tmp_path, two, rtol=0, atol=0)
    lines = [read_metrics(run) for run in (tmp_path, two)]
    for one, other in zip(*lines, strict=True):
        for name in ("loss", "heldout_recall_at_5"):
            assert one.get(name) == other.get(name)
    assert len(read_manifest(RunDir.of(tmp_path).index_version(4)).shards) == 4


@pytest.mark.slow
def test_two_processes_start_from_another_run_like_one(places, tmp_path):
    """Each reads its parts of the parameters, and of their checksum."""
    run_file = RUN_FILE.with_name("two_hosts_language_model.gin")
    finish(start_with(run_file, tmp_path / "first", places, 1, num_devices=2))
    warm = [f"--gin.train.warm_start=('{tmp_path / 'first'}',)", "--gin.train.num_steps=2"]
    for run, processes, devices in (("one", 1, 2), ("two", 2, 1)):
        said = finish(start_with(run_file, tmp_path / run, places, processes, *warm, num_devices=devices))
        assert "adapter warm-started from" in said[0] and "language_model warm-started from" in said[0]
    same(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ict", "open_qa", "language_model"])
def test_two_processes_train_like_one_in_every_task(places, tmp_path, name):
    """ICT, and a language model's adapter, with parameters split over both (fsdp), open QA with the layers' products split over both
    (tensor)."""
    questions = [f"--gin.QUESTIONS={places / 'questions.jsonl'}"] if name == "open_qa" else []
    for run, processes, devices in (("one", 1, 2), ("two", 2, 1)):
        run_file = RUN_FILE.with_name(f"two_hosts_{name}.gin")
        finish(start_with(run_file, tmp_path / run, places, processes, *questions, num_devices=devices))
    one, two = (read_metrics(tmp_path / run) for run in ("one", "two"))
    assert len(one) == len(two) == 4
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-3)
    same(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_processes_search_inside_their_step_like_one(places, tmp_path):
    """Documents and index are sharded over the devices of both; the candidates are searched by all of them together."""
    for name, processes, devices in (("one", 1, 2), ("two", 2, 1)):
        finish(
            start(
                tmp_path / name, places, processes, "--gin.refresh.RefreshConfig.search='in_step'", num_devices=devices
            )
        )
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line.get("index_version") for line in two] == [line.get("index_version") for line in one]
    for one_process, two_processes in zip(one, two, strict=True):
        for name in ("loss", "null_document_prob", "heldout_recall_at_5"):
            if name in one_process:
                assert two_processes[name] == pytest.approx(one_process[name], rel=1e-3, abs=1e-4), name
    same(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.faults
def test_a_preempted_process_stops_all_at_the_same_step(places, two, tmp_path):
    """SIGTERM comes to the second process alone; resumed, the run equals the one that was not stopped to the bit."""
    processes = start(tmp_path, places, 2, "--gin.train.checkpoint_every_steps=100", "--gin.slow_task.Slow.secs=1.0")
    deadline = time.monotonic() + 200
    while not read_metrics(tmp_path) and all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, PREEMPTED)
    stopped = [re.search(r"SIGTERM: checkpoint of step (\d) written", output) for output in said]
    assert stopped[0] and stopped[1] and stopped[0][1] == stopped[1][1] and int(stopped[0][1]) < 6
    assert [path.name for path in RunDir.of(tmp_path).checkpoints.iterdir()] == [stopped[0][1]]
    finish(start(tmp_path, places, 2))
    same(tmp_path, two, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.faults
def test_a_checkpoint_that_one_process_cannot_read_is_none_for_both(places, tmp_path):
    """Its parameters are split over both (fsdp), and the file that is cut short holds what the second one alone reads."""
    run_file = RUN_FILE.with_name("two_hosts_ict.gin")
    run, whole = RunDir.of(tmp_path / "run"), tmp_path / "whole"
    finish(start_with(run_file, run.path, places, 2, "--gin.train.checkpoint_every_steps=2"))
    shutil.copytree(run.path, whole)
    own = (run.checkpoints / "4" / "state" / "ocdbt.process_1" / "d").iterdir()
    largest = max(own, key=lambda file: file.stat().st_size)
    os.truncate(largest, 0)
    said = finish(start_with(run_file, run.path, places, 2))
    assert "checkpoints/4 cannot be read (process 1 cannot read it; its own message says why)" in said[0], said
    assert re.search(r"checkpoints/4 cannot be read \((?!process)", said[1]), said
    assert all("resuming at step 2" in output for output in said)
    assert sorted(path.name.partition("-")[0] for path in run.checkpoints.iterdir()) == ["2", "4", "damaged"]
    same(run.path, whole, rtol=0, atol=0)


@pytest.mark.slow
def test_a_second_trainer_is_refused_in_all_its_processes(places, tmp_path):
    run = RunDir.of(tmp_path)
    with exclusive(run.trainer_lock, "the first"):
        processes = start(tmp_path, places, 2)
        try:
            said = [process.communicate(timeout=100)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [1, 1], said
    assert f"another trainer is at work in this run (process {os.getpid()} on " in said[0]
    assert "process 0 does not get the lock of" in said[1]
    assert not run.checkpoints.exists() and not list(run.status.glob("*.json"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"distributed=True, but jax cannot tell .*JAX_COORDINATOR_ADDRESS=None, JAX_NUM_PROCESSES=None"),
        ({"JAX_NUM_PROCESSES": "two"}, r"JAX_NUM_PROCESSES must be a whole number, got 'two'"),
    ],
)
def test_processes_that_are_not_told_of_each_other(monkeypatch, tmp_path, environment, message):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def initialize(**arguments):  # as jax's own does, which this process may not call any more
        jax._src.distributed.State().initialize(**arguments)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=message):
        train(
            run_dir=str(tmp_path), task=tiny.ict(tmp_path), optimizer=OptimizerConfig(), num_steps=1, batch_size=8,
            distributed=True,
        )  # fmt: skip
