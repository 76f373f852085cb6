"""launch/slurm/pretrain.sbatch with stand-ins for Slurm's commands: what the nodes are told, and what the job does when they end."""

import contextlib
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jax._src.clusters import SlurmCluster

from realm_jax.run_dir import RunDir
from realm_jax.training.metrics import read_metrics
from tests.launch import stand_in_slurm
from tests.launch.stub_stages import LAUNCH, load_launcher

SCRIPT = LAUNCH / "slurm" / "pretrain.sbatch"


@pytest.fixture(scope="module")
def local():
    return load_launcher()


def start(environment, *arguments):
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(environment, *arguments):
    """The batch script to its end: its exit status and what it said."""
    process = start(environment, *arguments)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        end(process, Path(environment["STAND_IN"]))
    return process.returncode, said


def end(process, place):
    """Leaves nothing behind, whatever the test found."""
    if process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            for task in json.loads((place / "srun.json").read_text())["tasks"]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(task, signal.SIGKILL)
        process.kill()
        process.communicate()


def told(place, number):
    """What a node was started with."""
    return json.loads((place / f"task-{number}.json").read_text())


def settings(local, place, number, monkeypatch):
    """What the launcher of a node makes of it."""
    task = told(place, number)
    for name, value in task["environment"].items():
        if name.startswith("SLURM_"):
            monkeypatch.setenv(name, value)
    assert task["arguments"][0] == str(LAUNCH / "local.py")
    return local.parse(task["arguments"][1:])


def test_every_node_runs_the_launcher(local, tmp_path, monkeypatch):
    documents = tmp_path / "my documents"
    documents.mkdir()
    environment = stand_in_slurm.environment(
        tmp_path / "slurm", RUN_DIR=str(tmp_path / "my run"), CORPUS=str(documents), RECIPE="encyclopedia"
    )
    status, said = run(environment, "--gin.train.num_steps=60", "--gin.x='a b'")
    assert status == 0 and "job 4711: the tasks ended with 0" in said
    for number in (0, 1):
        parsed = settings(local, tmp_path / "slurm", number, monkeypatch)
        assert parsed.host == (number, 2) and parsed.run.path == tmp_path / "my run"
        assert (parsed.documents, parsed.recipe) == ((str(documents),), "encyclopedia")
        assert parsed.bindings == ("--gin.train.num_steps=60", "--gin.x='a b'") and parsed.embedder == "cpu"
        assert SlurmCluster.is_env_present() and SlurmCluster.get_process_count() == 2
        assert SlurmCluster.get_process_id() == number
        assert SlurmCluster.get_coordinator_address(None, None) == f"localhost:{61440 + 4711 % 4096}"
    options = json.loads((tmp_path / "slurm" / "srun.json").read_text())["options"]
    assert {"--ntasks-per-node=1", "--cpus-per-task=2", "--wait=0", "--kill-on-bad-exit=1"} <= set(options)
    kept = told(tmp_path / "slurm", 0)["environment"]
    assert kept["JAX_COMPILATION_CACHE_DIR"] == os.environ["JAX_COMPILATION_CACHE_DIR"]  # as the user set it


def test_the_embedded_corpus_needs_a_run_directory_alone(local, tmp_path, monkeypatch):
    environment = stand_in_slurm.environment(tmp_path / "slurm", num_nodes=1, RUN_DIR=str(tmp_path / "run"))
    del environment["JAX_COMPILATION_CACHE_DIR"]
    assert run(environment)[0] == 0
    parsed = settings(local, tmp_path / "slurm", 0, monkeypatch)
    assert (parsed.recipe, parsed.documents, parsed.host) == ("tiny", (), (0, 1))
    said = told(tmp_path / "slurm", 0)["environment"]
    assert said["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "run" / "compiled")
    assert "JAX_LOCAL_DEVICE_IDS" not in said  # no GPUs


@pytest.mark.parametrize(
    ("wanted", "embedder", "embedder_devices", "trainer_devices", "seen"),
    [
        ({}, "cpu", "", "", "0,1,2,3,4,5,6,7"),
        ({"EMBEDDER_DEVICES": "6,7"}, "devices", "6,7", "0,1,2,3,4,5", "0,1,2,3,4,5"),
        ({"EMBEDDER_DEVICES": "0"}, "devices", "0", "1,2,3,4,5,6,7", "0,1,2,3,4,5,6"),
        ({"EMBEDDER_DEVICES": "3", "TRAINER_DEVICES": "1,2"}, "devices", "3", "1,2", "0,1"),
        ({"EMBEDDER": "in_trainer"}, "in_trainer", "", "", "0,1,2,3,4,5,6,7"),
    ],
)
def test_the_gpus_of_a_node_are_shared_out(
    local, tmp_path, monkeypatch, wanted, embedder, embedder_devices, trainer_devices, seen
):
    """jax counts the GPUs among those that CUDA_VISIBLE_DEVICES leaves, from 0."""
    environment = stand_in_slurm.environment(
        tmp_path / "slurm", num_nodes=1, RUN_DIR=str(tmp_path / "run"), SLURM_GPUS_ON_NODE="8", **wanted
    )
    assert run(environment)[0] == 0
    parsed = settings(local, tmp_path / "slurm", 0, monkeypatch)
    assert (parsed.embedder, parsed.embedder_devices) == (embedder, embedder_devices)
    assert parsed.trainer_devices == trainer_devices
    assert told(tmp_path / "slurm", 0)["environment"]["JAX_LOCAL_DEVICE_IDS"] == seen


@pytest.mark.parametrize(
    ("ends", "state", "status", "requeued"),
    [
        ("0 0", "RUNNING", 0, False),
        ("143 143", "RUNNING", 143, True),
        ("143 143", "SIGNALING", 143, True),
        ("143 143", "COMPLETING", 143, False),  # cancelled
        ("1 0", "RUNNING", 255, False),
        ("1 term", "RUNNING", 255, False),  # the second is sent SIGTERM because the first has failed
        ("term 2", "RUNNING", 255, False),
    ],
)
def test_a_job_goes_back_into_the_queue_when_it_was_preempted_alone(tmp_path, ends, state, status, requeued):
    place = tmp_path / "slurm"
    environment = stand_in_slurm.environment(place, RUN_DIR=str(tmp_path / "run"), TASK_ENDS=ends)
    (place / stand_in_slurm.STATE).write_text(state)
    assert run(environment)[0] == status
    assert ((place / "scontrol").read_text() if (place / "scontrol").exists() else "") == "requeue 4711\n" * requeued


@pytest.mark.faults
def test_sigterm_before_the_time_limit(tmp_path):
    """It comes to the tasks, and may come to the batch script, which waits for their checkpoints all the same."""
    place = tmp_path / "slurm"
    process = start(stand_in_slurm.environment(place, RUN_DIR=str(tmp_path / "run"), TASK_ENDS="term term"))
    try:
        wait_for(lambda: (place / "srun.json").exists() and all((place / f"task-{n}.json").exists() for n in (0, 1)))
        process.send_signal(signal.SIGTERM)
        stand_in_slurm.signal_tasks(json.loads((place / "srun.json").read_text())["tasks"])
        said, _ = process.communicate(timeout=60)
    finally:
        end(process, place)
    assert process.returncode == 143 and (place / "scontrol").read_text() == "requeue 4711\n", said
    assert all((place / f"task-{number}.checkpoint").exists() for number in (0, 1))


def wait_for(condition, secs=60.0):
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RUN_DIR": ""}, "RUN_DIR is not set; name a place that all nodes see"),
        ({"SLURM_SUBMIT_DIR": "/"}, "expected the checkout, got /, which has no launch/local.py"),
        ({"PYTHON": "/not/there"}, "expected a Python with realm_jax, got PYTHON=/not/there, which cannot be run"),
        (
            {"EMBEDDER_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "2"},
            "EMBEDDER_DEVICES=0,1 leaves none of the 2 GPUs of a node to the trainer",
        ),
        (
            {"EMBEDDER_DEVICES": "9", "SLURM_GPUS_ON_NODE": "8"},
            "EMBEDDER_DEVICES=9: a node has 8 GPUs, numbered from 0",
        ),
        ({"TRAINER_DEVICES": "0,8", "SLURM_GPUS_ON_NODE": "8"}, "TRAINER_DEVICES=0,8: a node has 8 GPUs"),
        ({"EMBEDDER_DEVICES": "0"}, "EMBEDDER_DEVICES=0: a node has 0 GPUs"),
        *(
            (
                {"EMBEDDER_DEVICES": wrong, "SLURM_GPUS_ON_NODE": "8"},
                f"expected numbers with commas between them, such as 6,7, got EMBEDDER_DEVICES='{wrong}'",
            )
            for wrong in ("6, 7", "6,7,", "6-7", " 7", "06")
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(tmp_path, changes, message):
    place = tmp_path / "slurm"
    status, said = run(stand_in_slurm.environment(place, **{"RUN_DIR": str(tmp_path / "run")} | changes))
    assert status == 2 and f"pretrain.sbatch: {message}" in said
    assert not (place / "srun.json").exists()


def test_what_the_script_asks_of_slurm(local):
    """One task a node, back into the queue, and SIGTERM to the tasks while there is time for a checkpoint."""
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == "1" and "requeue" in asked and asked["open-mode"] == "append"
    number, secs = asked["signal"].split("@")
    assert (
        number == "TERM" and int(secs) >= 2 * sys.modules["processes"].GRACE_SECS
    )  # "B:TERM" would come to the batch script alone


def free_job_id() -> int:
    """A job whose port, which jax derives from its number, is free."""
    while True:
        port = random.randrange(61440, 65536)
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)):
                return port - 61440 + 4096


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_two_nodes_pretrain_are_preempted_and_go_on(tmp_path):
    """Real launchers and trainers, joined by what Slurm says; SIGTERM in the middle, and the job is run once more."""
    place, run_dir = tmp_path / "slurm", RunDir.of(tmp_path / "run")
    environment = stand_in_slurm.environment(
        place,
        RUN_DIR=str(run_dir.path),
        PYTHON=sys.executable,
        SLURM_JOB_ID=str(free_job_id()),
        JAX_NUM_CPU_DEVICES="1",
    )
    arguments = [
        "--gin.train.num_steps=12", "--gin.train.checkpoint_every_steps=100", "--gin.train.evaluate_every_steps=0",
        "--gin.evaluate.max_queries=20", "--gin.evaluate.num_masked_sentences=20",
    ]  # fmt: skip
    said = []
    for preempted in (True, False):
        process = start(environment, *arguments)
        try:
            if preempted:
                wait_for(lambda: read_metrics(run_dir), 900.0)
                stand_in_slurm.signal_tasks(json.loads((place / "srun.json").read_text())["tasks"])
            said.append(process.communicate(timeout=900)[0])
        finally:
            end(process, place)
        assert process.returncode == (143 if preempted else 0), said[-1]
        if preempted:
            assert (place / "scontrol").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
            (stopped,) = [int(path.name) for path in run_dir.checkpoints.iterdir()]
            assert 0 < stopped < 12
    assert str(run_dir.report_html) in said[1].splitlines()
    assert [row["step"] for row in read_metrics(run_dir) if "loss" in row] == list(range(1, 13))
    for number in (0, 1):
        assert json.loads(run_dir.trainer_status(number).read_text())["state"] == "finished"


def test_the_commands_of_the_documentation(tmp_path):
    """Every variable that docs/clusters.md sets before sbatch is one that the script reads; its options are Slurm's."""
    text = re.sub(r"\\\n#?\s*", "", (LAUNCH.parent / "docs" / "clusters.md").read_text() + SCRIPT.read_text())
    found = [
        shlex.split(line.strip("# ")) for line in text.splitlines() if re.match(r"[# ]*([A-Z_]+=\S+ )+sbatch ", line)
    ]
    assert len(found) >= 2
    for words in found:
        before, after = words[: words.index("sbatch")], words[words.index("sbatch") + 1 :]
        assert after[-1] == "launch/slurm/pretrain.sbatch" or "launch/slurm/pretrain.sbatch" in after
        for word in before:
            assert f"${{{word.partition('=')[0]}:-" in SCRIPT.read_text(), word
