"""One command on every machine of a run: which does what, what it waits for, and two of them training together."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from realm_jax.run_dir import RunDir, write_json_atomically
from realm_jax.training.metrics import read_metrics
from tests import object_store
from tests.launch.stub_stages import LAUNCH, load_launcher, stub_stages
from tests.launch.test_local import REPORT, appends, quick, waits_for_lines  # noqa: F401 - quick is a fixture
from tests.training.test_two_hosts import free_port


@pytest.fixture(scope="module")
def local():
    return load_launcher()


@pytest.fixture(scope="module")
def hosts(local):
    return sys.modules["hosts"]


def test_which_machine_it_is(hosts):
    named = {"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "3"}
    slurm = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}
    slice_ = {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}
    assert hosts.host_in(named | slurm | slice_) == (1, 3)
    assert hosts.host_in(slurm | slice_) == (2, 4)
    assert hosts.host_in(slice_) == (3, 4)
    assert hosts.host_in({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}) == (0, 1)
    assert hosts.host_in({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == (0, 1)  # a batch script itself, without srun
    for wrong, said in (
        ({"SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "4"}, "got 4 of 4"),
        ({"SLURM_PROCID": "one", "SLURM_STEP_NUM_TASKS": "4"}, "got one of 4"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "got nothing of 2"),
    ):
        with pytest.raises(ValueError, match=said):
            hosts.host_in(wrong)


def test_whether_there_is_an_accelerator(hosts, tmp_path):
    assert not hosts.has_accelerator({}, tmp_path)
    assert hosts.has_accelerator({"JAX_PLATFORMS": "tpu,cpu"}, tmp_path)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "0").touch()
    assert hosts.has_accelerator({}, tmp_path) and not hosts.has_accelerator({"JAX_PLATFORMS": "cpu"}, tmp_path)


def test_a_share_of_the_devices(hosts):
    said = hosts.visible_devices("2,3", 8477)
    assert said["CUDA_VISIBLE_DEVICES"] == said["TPU_VISIBLE_CHIPS"] == "2,3"
    assert said["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1" and said["TPU_PROCESS_PORT"] == "8477"
    assert "TPU_PROCESS_BOUNDS" not in hosts.visible_devices("0,1,2,3,4,5,6", 8476)  # GPUs
    assert hosts.visible_devices("", 8476) == {}
    one, two = hosts.Host(), hosts.Host(0, 2)
    for devices, host, tpu in (("0,1,2", one, False), ("0,1", one, True), ("", two, True), ("0,1,2", two, False)):
        hosts.check_devices(devices, "--trainer_devices", host, tpu)
    for devices in ("0,1,2", "0,2", "0,0", "1,0", "a,b"):
        with pytest.raises(
            ValueError, match=f"--trainer_devices={devices}: expected 1, 2, 4 or 8 chips .* such as 4,5,6,7"
        ):
            hosts.check_devices(devices, "--trainer_devices", one, True)
    with pytest.raises(ValueError, match="the chips of a slice of 2 machines work only all together"):
        hosts.check_devices("0,1", "--trainer_devices", two, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host=1"], "--host and --num_hosts go together"),
        (["--host=2", "--num_hosts=2"], "--host must lie between 0 and --num_hosts - 1 = 1, got 2"),
        (["--embed_only", "--embedder=in_trainer"], "start that with --embedder=none"),
    ],
)
def test_a_wrong_command_line(local, capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit):
        local.parse([f"--run_dir={tmp_path}", *arguments])
    assert message in capsys.readouterr().err


def test_every_machine_has_logs_and_a_lock_of_its_own(local, tmp_path, monkeypatch):
    one, other, third = (
        local.parse([f"--run_dir={tmp_path}", *arguments])
        for arguments in (["--host=0", "--num_hosts=2"], ["--host=1", "--num_hosts=2"], ["--embed_only"])
    )
    assert [settings.logs.relative_to(tmp_path).as_posix() for settings in (one, other, third)] == [
        "logs", "logs/host-00001", "logs/embed-host-00000",
    ]  # fmt: skip
    assert one.lock != other.lock
    for name in (object_store.ROOT, object_store.CACHE):
        monkeypatch.setenv(name, "")  # put back afterwards
    object_store.use(tmp_path / "store")
    bucket = RunDir.of("gs://b/runs/x")
    assert sys.modules["command_line"].log_folder(bucket, one.host, False, None) == Path("logs/x")
    assert sys.modules["command_line"].log_folder(bucket, one.host, False, "elsewhere") == Path("elsewhere")
    assert sys.modules["command_line"].log_folder(bucket, other.host, False, "elsewhere") == Path(
        "elsewhere/host-00001"
    )


def test_the_first_of_two_machines(quick, monkeypatch, tmp_path):  # noqa: F811
    scripts = {"train": waits_for_lines(tmp_path / "embedded", 1), "embed": appends(tmp_path / "embedded")}
    commands = stub_stages(monkeypatch.setattr, scripts | {"report": REPORT})
    assert quick.main([f"--run_dir={tmp_path / 'run'}", "--host=0", "--num_hosts=2"]) == 0
    names = [name for name, _ in commands]
    assert list(dict.fromkeys(names)) == ["corpus", "reader", "ict", "train", "embed", "evaluate", "report"]
    for name, command in commands:
        assert ("--gin.train.distributed=True" in command) == (name in ("reader", "ict", "train"))
        if name == "embed":
            assert command[-2:] == ["--gin.embed.builder=0", "--gin.embed.num_builders=2"]


def test_the_second_waits_for_the_corpus_and_leaves_evaluation_to_the_first(quick, monkeypatch, tmp_path):  # noqa: F811
    run = RunDir.of(tmp_path / "run")
    scripts = {"train": waits_for_lines(tmp_path / "embedded", 1), "embed": appends(tmp_path / "embedded")}
    commands = stub_stages(monkeypatch.setattr, scripts)
    before = []

    def make_corpus():
        before.extend(commands)
        run.corpus.mkdir(parents=True)
        (run.corpus / "corpus.json").touch()

    maker = threading.Timer(0.5, make_corpus)
    maker.start()
    assert quick.main([f"--run_dir={run.path}", "--host=1", "--num_hosts=2"]) == 0
    maker.join()
    assert before == [] and list(dict.fromkeys(name for name, _ in commands)) == ["reader", "ict", "train", "embed"]
    assert "--gin.embed.builder=1" in dict(commands)["embed"]
    assert (run.logs / "host-00001" / "train.log").exists() and not (run.logs / "train.log").exists()


def test_what_does_not_come_is_named(quick, monkeypatch, tmp_path, capsys):  # noqa: F811
    monkeypatch.setattr(sys.modules["launcher"], "OTHER_HOST_SECS", 0.1)
    stub_stages(monkeypatch.setattr, {})
    assert quick.main([f"--run_dir={tmp_path}", "--host=1", "--num_hosts=2"]) == 1
    assert re.search(r"corpus/corpus.json did not come in 0 s; see the other machines' logs", capsys.readouterr().err)


def test_one_stage_at_a_time_where_there_are_accelerators(quick, monkeypatch, tmp_path):  # noqa: F811
    begun = tmp_path / "begun"
    scripts = {name: appends(begun, "time.sleep(0.3)") for name in ("reader", "ict")}
    stub_stages(monkeypatch.setattr, scripts | {"report": REPORT})
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert quick.main([f"--run_dir={tmp_path / 'run'}", "--embedder=none"]) == 0
    first, second = (float(line) for line in begun.read_text().split())
    assert second - first >= 0.3


def test_a_machine_that_only_embeds(quick, monkeypatch, tmp_path):  # noqa: F811
    """It begins with the trainer's first snapshot, and starts the job again until the trainer has done all its steps."""
    run = RunDir.of(tmp_path / "run")
    for place in (run.corpus, run.snapshots):
        place.mkdir(parents=True)
    (run.corpus / "corpus.json").touch()
    write_json_atomically(run.trainer_status(0), {"state": "failed"})  # stopped; it comes again
    says_finished = f"open({str(run.trainer_status(0))!r}, 'w').write('{{\"state\": \"finished\"}}')"
    begun = tmp_path / "begun"
    commands = stub_stages(
        monkeypatch.setattr,
        {"embed": appends(begun, f"n = len(open({str(begun)!r}).readlines())\nif n == 3: {says_finished}\nsys.exit(n == 1)")},
    )  # fmt: skip
    arguments = [f"--run_dir={run.path}", "--embed_only", "--host=1", "--num_hosts=2"]
    assert quick.main(arguments) == 0
    assert [name for name, _ in commands] == ["embed"] * 3 and "--gin.embed.builder=1" in commands[0][1]


@pytest.mark.slow
def test_two_machines_pretrain_together(tmp_path):
    """The launcher itself on both, on the embedded corpus: trained to the end by both, an embed job on each."""
    run, address = RunDir.of(tmp_path / "run"), f"localhost:{free_port()}"
    launchers = []
    for number in range(2):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(number), "JAX_NUM_PROCESSES": "2",
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
        }  # fmt: skip
        command = [
            sys.executable, str(LAUNCH / "local.py"), f"--run_dir={run.path}", "--gin.train.num_steps=6",
            "--gin.train.checkpoint_every_steps=3", "--gin.train.evaluate_every_steps=0",
            "--gin.evaluate.max_queries=20", "--gin.evaluate.num_masked_sentences=20",
        ]  # fmt: skip
        launchers.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        said = [launcher.communicate(timeout=900) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
            launcher.communicate()
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert said[0][0].splitlines()[-1] == str(run.report_html) and said[1][0] == ""
    assert len([row for row in read_metrics(run) if "loss" in row]) == 6
    for process in range(2):
        assert json.loads(run.trainer_status(process).read_text())["state"] == "finished"
        assert json.loads(run.builder_status(process).read_text())["newest_version"] == 6
