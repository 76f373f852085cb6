"""The launcher: its command line, and what it does with stages that end well, fail, die or are asked to stop."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from realm_jax.run_dir import RunDir, write_json_atomically
from realm_jax.run_lock import exclusive
from tests.launch.stub_stages import LAUNCH, load_launcher, stub_stages

STUB = Path(__file__).with_name("stub_stages.py")
REPORT = "print('recall_at_1 58.2'); print('the page')"


@pytest.fixture(scope="module")
def local():
    return load_launcher()


@pytest.fixture
def quick(local, monkeypatch):
    """Polls twenty-five times as often, backs off for tenths of seconds."""
    hasty = SimpleNamespace(monotonic=time.monotonic, sleep=lambda secs: time.sleep(secs / 25))
    launcher = sys.modules["launcher"]
    monkeypatch.setattr(launcher, "time", hasty)
    monkeypatch.setattr(launcher, "FIRST_BACK_OFF_SECS", 0.1)
    monkeypatch.setattr(launcher, "LONGEST_BACK_OFF_SECS", 0.2)
    monkeypatch.setattr(launcher, "LOCK_SECS", 0.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield local
    for number, handler in before.items():
        signal.signal(number, handler)


def appends(path, then="pass"):
    """A program that writes down when it began."""
    return f"import sys, time; open({str(path)!r}, 'a').write(str(time.monotonic()) + chr(10)); {then}"


def waits_for_lines(path, count):
    return f"import os, time\nwhile not os.path.exists({str(path)!r}) or len(open({str(path)!r}).readlines()) < {count}: time.sleep(0.02)"


def test_the_command_line(local, tmp_path):
    settings = local.parse([f"--run_dir={tmp_path}", "--gin.SEED=3"])
    assert settings.run.path == tmp_path and settings.bindings == ("--gin.SEED=3",) and settings.documents == ()
    assert settings.embedder == "cpu" and settings.run_file == "runs/realm_tiny.gin"
    own = local.parse(
        [f"--run_dir={tmp_path}", f"--corpus={tmp_path}", "--embedder=devices", "--embedder_devices=3", "--trainer_devices=0,1"]
    )  # fmt: skip
    assert own.documents == (str(tmp_path),) and own.run_file == "runs/realm_documents.gin"
    two = local.parse([f"--run_dir={tmp_path}", f"--corpus={tmp_path}", "--corpus=tfds:x", "--recipe=encyclopedia"])
    assert two.documents == (str(tmp_path), "tfds:x") and two.stage_file("ict") == "runs/ict_encyclopedia.gin"
    assert (own.embedder_devices, own.trainer_devices) == ("3", "0,1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--run_dir"),
        (["--run_dir=x", "--gin_file=y"], "unknown argument --gin_file=y; besides those of --help only --gin.NAME.PARAM=VALUE"),
        (["--run_dir=x", "--gin.train.num_steps", "60"], "--gin.train.num_steps has no value; use ="),
        (["--run_dir=x", "--embedder_devices=7"], "--embedder_devices=7 is for --embedder=devices, got --embedder=cpu"),
        (["--run_dir=x", "--embedder=devices", "--embedder_devices=7"], "and --trainer_devices without them"),
        (["--run_dir=x", "--embedder=devices", "--embedder_devices=2,3", "--trainer_devices=0,1,2"], "both have 2"),
        (["--run_dir=x", "--embedder=devices"], "needs --embedder_devices"),
        (["--run_dir=x", "--embedder=elsewhere"], "invalid choice"),
        (["--run_dir=x", "--corpus=not/there"], "--corpus=not/there does not exist"),
        (["--run_dir=x", "--corpus=."  , "--recipe=tiny"], "--recipe=tiny is for the embedded corpus, not for --corpus"),
        (["--run_dir=x", "--recipe=encyclopedia"], "--recipe=encyclopedia needs --corpus"),
        ([f"--run_dir={__file__}"], "--run_dir"),
        ([f"--run_dir={__file__}/below"], "--run_dir"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(local, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        local.parse(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_cores_are_shared_out(local, monkeypatch):
    processes = sys.modules["processes"]
    for cores, expected in (({0, 1, 2}, ([0], [1, 2])), ({4, 5}, ([4], [5])), ({7}, ([7], [7]))):
        monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid, cores=cores: cores)
        assert processes.split_cores() == expected


def test_all_stages_in_order(quick, monkeypatch, tmp_path, capsys):
    begun = tmp_path / "order"
    names = ["corpus", "reader", "ict", "train", "embed", "evaluate"]
    scripts = {name: f"open({str(begun)!r}, 'a').write('{name} ')" for name in names}
    scripts["train"] = waits_for_lines(tmp_path / "embedded", 1)
    scripts["embed"] = appends(tmp_path / "embedded")
    commands = stub_stages(monkeypatch.setattr, scripts | {"report": REPORT})
    stale = tmp_path / "run" / "status" / "trainer-00001.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    assert quick.main([f"--run_dir={tmp_path / 'run'}", "--gin.SEED=3"]) == 0
    order = begun.read_text().split()
    assert order[0] == "corpus" and set(order[1:3]) == {"ict", "reader"} and order[3:] == ["evaluate"]
    assert not stale.exists()  # the embed job would take an earlier trainer's last word for this one's
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["recall_at_1 58.2", "the page", str(tmp_path / "run" / "report.html")]
    by_name = {name: command for name, command in commands if name != "embed"}
    assert list(by_name) == ["corpus", "reader", "ict", "train", "evaluate", "report"]
    for name, command in by_name.items():
        assert command[:3] == [sys.executable, "-m", "realm_jax"] and ("--gin.SEED=3" in command) == (name != "report")
    assert f"--run_dir={tmp_path / 'run' / 'stages' / 'ict'}" in by_name["ict"]
    assert any(part.startswith("--gin.WARM_START=") for part in by_name["train"])


def test_a_dead_embedder_is_started_again_ever_later(quick, monkeypatch, tmp_path, capsys):
    begun = tmp_path / "begun"
    scripts = {"train": waits_for_lines(begun, 4), "embed": appends(begun, "sys.exit(3)"), "report": REPORT}
    stub_stages(monkeypatch.setattr, scripts)
    assert quick.main([f"--run_dir={tmp_path / 'run'}"]) == 0
    first, second, third, fourth, *_ = (float(line) for line in begun.read_text().split())
    assert second - first > 0.1 and third - second > 0.2 and fourth - third > 0.2
    notes = capsys.readouterr().err
    assert notes.count("embed job ended with 3, starting it again in 0 s; see ") >= 3
    assert str(tmp_path / "run" / "logs" / "embed.log") in notes


def test_the_line_of_progress(local, tmp_path):
    launcher = local.Launcher(local.parse([f"--run_dir={tmp_path}"]), lambda: None)
    log = tmp_path / "logs" / "evaluate.log"
    child = sys.modules["processes"].Child("evaluate", [sys.executable, "-S", "-c", "pass"], log, (), {})
    assert launcher.progress_of(child) == "starting"  # the log holds the command alone
    child.process.wait()
    with log.open("a") as file:
        file.write("13:00:02 retrieval of bm25 measured, 7 s so far\n")
    assert launcher.progress_of(child) == "13:00:02 retrieval of bm25 measured, 7 s so far"
    shown = []
    for status in ({"version": -1, "documents_total": 0}, {"version": 20, "documents_done": 30, "documents_total": 40}):
        write_json_atomically(launcher.run.embedder_status, {"state": "waiting", "documents_done": 0} | status)
        shown.append(launcher.embedder_progress())
    assert shown == ["embed waiting", "embed 20: waiting 75%"]


def test_a_resumed_trainer_does_not_show_the_figures_of_the_one_before(local, monkeypatch, tmp_path):
    launcher = local.Launcher(local.parse([f"--run_dir={tmp_path}"]), lambda: None)
    lines = [f'{{"step": {step}, "loss": {6 - step}.0}}\n' for step in (1, 2, 3)]
    launcher.run.metrics_jsonl.parent.mkdir()
    launcher.run.metrics_jsonl.write_text("".join(lines))
    write_json_atomically(launcher.run.trainer_status(0), {"num_steps": 9})
    stub_stages(monkeypatch.setattr, {})
    child = launcher.child("train", launcher.run, None, [])
    shown = []
    for number in (3, 2, 2, 3):  # it cuts off what came after its checkpoint
        launcher.run.metrics_jsonl.write_text("".join(lines[:number]))
        shown.append(launcher.progress_of(child))
    child.process.wait()
    assert shown[:3] == ["train starting"] * 3 and shown[3].startswith("train 3/9 ") and "loss 3.000" in shown[3]


def test_what_a_trainer_says_that_matters_is_shown_once(quick, monkeypatch, tmp_path, capsys):
    lines = (
        "12:00:00 the retriever will not learn: it is frozen",
        "12:00:01 RUN has done 60 of 40 steps; nothing to train",
        "hm",
    )
    scripts = {"train": "".join(f"print({line!r})\n" for line in lines), "report": REPORT}
    stub_stages(monkeypatch.setattr, scripts)
    for _ in range(2):
        assert quick.main([f"--run_dir={tmp_path / 'run'}"]) == 0
        said = capsys.readouterr().err
        assert [said.count(f"] train: {line}\n") for line in lines] == [1, 1, 0]


def test_a_lock_that_is_let_go_soon_is_waited_for(quick, monkeypatch, tmp_path):
    """Such as that of a train command with a batch size that the run was not begun with."""
    run = RunDir.of(tmp_path / "run")
    stub_stages(monkeypatch.setattr, {"report": REPORT})
    monkeypatch.setattr(sys.modules["launcher"], "LOCK_SECS", 60.0)
    with contextlib.ExitStack() as held:
        held.enter_context(exclusive(run.trainer_lock, "a mistaken one"))
        threading.Timer(1.0, held.close).start()
        assert quick.main([f"--run_dir={run.path}"]) == 0


def test_without_the_environment_it_says_which(repository, tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(repository / "launch" / "local.py"), "--help"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"local.py: {sys.executable} lacks jax, flax,") and "make install" in done.stderr


def test_the_documented_trial_trains_the_retriever():
    """As many steps as a trial is said to have are more than those for which the run files freeze it."""
    texts = [
        LAUNCH / "local.py",
        LAUNCH / "slurm" / "pretrain.sbatch",
        *(LAUNCH.parent / "docs").glob("*.md"),
        LAUNCH.parent / "README.md",
    ]
    found = {int(steps) for text in texts for steps in re.findall(r"--gin\.train\.num_steps=(\d+)", text.read_text())}
    frozen = [re.findall(r"frozen_steps = .*?(\d+)", (LAUNCH.parent / "gin" / "runs" / f"realm_{name}.gin").read_text())
              for name in ("documents", "tiny")]  # fmt: skip
    assert min(found) > max(int(steps) for [steps] in frozen) >= 40


def test_the_trainer_may_embed_by_itself(quick, monkeypatch, tmp_path):
    commands = stub_stages(monkeypatch.setattr, {"report": REPORT})
    assert quick.main([f"--run_dir={tmp_path / 'run'}", "--embedder=in_trainer"]) == 0
    assert "embed" not in [name for name, _ in commands]
    (train,) = (command for name, command in commands if name == "train")
    assert "--gin.refresh.RefreshConfig.embedder=in_trainer" in train


@pytest.mark.parametrize("at_work", ["launcher", "trainer", "reader", "ict"])
def test_a_run_that_another_is_at_work_in_is_left_alone(quick, monkeypatch, tmp_path, capsys, at_work):
    run = RunDir.of(tmp_path / "run")
    held = {"launcher": run.launcher_lock, "trainer": run.trainer_lock}
    lock = held.get(at_work) or run.stage(at_work).trainer_lock
    commands = stub_stages(monkeypatch.setattr, {"report": REPORT})
    with exclusive(lock, "the first"):
        run.trainer_status(0).parent.mkdir(parents=True, exist_ok=True)
        run.trainer_status(0).write_text("the first's")
        before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
        assert quick.main([f"--run_dir={run.path}"]) == 1
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before
    (said,) = capsys.readouterr().err.splitlines()
    what = "another launcher" if at_work == "launcher" else "a trainer"
    assert (
        said.startswith(f"local.py: {what} is at work in this run (process {os.getpid()} on ") and "wait for it" in said
    )
    assert commands == []
    assert quick.main([f"--run_dir={run.path}"]) == 0


def test_a_trainer_that_came_meanwhile_keeps_its_status(quick, monkeypatch, tmp_path, capsys):
    run = RunDir.of(tmp_path / "run")
    commands = stub_stages(monkeypatch.setattr, {})
    launcher = quick.Launcher(quick.parse([f"--run_dir={run.path}"]), lambda: None)
    with exclusive(run.trainer_lock, "the first"):
        run.trainer_status(0).touch()
        with pytest.raises(ValueError, match="a trainer is at work in this run"):
            launcher.pretrain([], [])
    assert commands == [] and run.trainer_status(0).exists()


@pytest.mark.parametrize("stage", ["corpus", "ict", "train", "evaluate"])
def test_a_failing_stage_is_reported_with_the_end_of_its_log(quick, monkeypatch, tmp_path, capsys, stage):
    with monkeypatch.context() as first:
        stub_stages(first.setattr, {stage: "print('disk full'); raise SystemExit(9)"})
        assert quick.main([f"--run_dir={tmp_path / 'run'}"]) == 1
    assert "disk full" in capsys.readouterr().err
    fails = "import sys\nfor i in range(12): print('line', i)\nsys.exit(7)"
    commands = stub_stages(monkeypatch.setattr, {stage: fails, "report": REPORT})
    assert quick.main([f"--run_dir={tmp_path / 'run'}"]) == 1
    written = capsys.readouterr()
    log = tmp_path / "run" / "logs" / f"{stage}.log"
    # nothing of the attempt before
    assert f"{stage} ended with 7; the end of {log}:\nline 0\n" in written.err and "disk full" not in written.err
    assert "line 11\n" in written.err and not written.out
    assert "report" not in [name for name, _ in commands]


@pytest.mark.parametrize("stage", ["reader", "ict", "train"])
def test_a_trainer_stopped_before_its_end_is_not_done(quick, monkeypatch, tmp_path, capsys, stage):
    commands = stub_stages(monkeypatch.setattr, {"report": REPORT}, stopped=(stage,))
    assert quick.main([f"--run_dir={tmp_path / 'run'}"]) == 143  # also where it was another machine that got the signal
    said = capsys.readouterr().err
    assert f"] {stage}: realm_jax train: stopped by SIGTERM at step 120 of 320; the same command goes on\n" in said
    assert not {"evaluate", "report"} & {name for name, _ in commands}


def test_a_long_life_of_the_embedder_is_a_new_beginning(quick, monkeypatch, tmp_path, capsys):
    begun = tmp_path / "begun"
    launcher = sys.modules["launcher"]
    hasty = SimpleNamespace(monotonic=lambda: 25 * time.monotonic(), sleep=lambda secs: time.sleep(secs / 25))
    monkeypatch.setattr(launcher, "time", hasty)
    for name, secs in (("FIRST_BACK_OFF_SECS", 1.0), ("LONGEST_BACK_OFF_SECS", 60.0), ("HEALTHY_SECS", 75.0)):
        monkeypatch.setattr(launcher, name, secs)
    lives = f"len(open({str(begun)!r}).readlines()) == 3 and time.sleep(4)"  # 100 of the launcher's seconds
    scripts = {"train": waits_for_lines(begun, 5), "embed": appends(begun, lives), "report": REPORT}
    stub_stages(monkeypatch.setattr, scripts)
    assert quick.main([f"--run_dir={tmp_path / 'run'}"]) == 0
    assert re.findall(r"starting it again in (\d+) s", capsys.readouterr().err)[:4] == ["1", "2", "1", "2"]


@pytest.fixture
def launched(tmp_path):
    """A launcher whose trainer and embed job are running and wait for a signal."""
    launcher = subprocess.Popen(
        [sys.executable, str(STUB), f"--run_dir={tmp_path / 'run'}"],
        env=os.environ | {"STUB_PLACE": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: all((tmp_path / f"{name}.ready").exists() for name in ("train", "embed")), launcher)
        yield launcher
    finally:
        launcher.kill()
        launcher.communicate()


def wait_for(condition, launcher):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end and launcher.poll() is None
        time.sleep(0.02)


@pytest.mark.faults
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_being_stopped_ends_the_children_the_trainer_first(launched, tmp_path, number, status):
    (tmp_path / "may_end").touch()
    launched.send_signal(number)
    _, notes = launched.communicate(timeout=60)
    assert launched.returncode == status
    assert (
        f"{number.name}: ending the jobs, with up to 60 s for checkpoints; the same command goes on from here" in notes
    )
    assert (tmp_path / "ended").read_text().split() == ["train", "embed"]


@pytest.mark.faults
@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_further_signals_leave_no_child_behind(launched, tmp_path, again):
    """`timeout` sends its signal to make and to the launcher, and make passes it on."""
    launched.send_signal(signal.SIGTERM)
    wait_for(lambda: all((tmp_path / f"{name}.asked").exists() for name in ("train", "embed")), launched)
    launched.send_signal(again)
    time.sleep(0.2)
    launched.send_signal(again)
    with pytest.raises(subprocess.TimeoutExpired):
        launched.wait(1.0)  # the trainer is still writing its checkpoint
    (tmp_path / "may_end").touch()
    launched.communicate(timeout=60)
    assert launched.returncode == 143
    assert (tmp_path / "ended").read_text().split() == ["train", "embed"]


def test_trainers_are_asked_to_end_first(local, tmp_path):
    asked = []

    def running(name):
        process = SimpleNamespace(terminate=lambda: asked.append(name), wait=lambda secs=None: 0)
        return SimpleNamespace(name=name, process=process, running=lambda: True)

    launcher = local.Launcher(local.parse([f"--run_dir={tmp_path}"]), lambda: None)
    launcher.children = [running(name) for name in ("corpus", "reader", "ict", "embed", "train")]
    launcher.stop()
    assert asked == ["reader", "ict", "train", "corpus", "embed"]


@pytest.mark.faults
def test_children_that_do_not_end_share_one_time_of_grace(local, tmp_path):
    deaf = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path(sys.argv[1]).touch(); time.sleep(120)"
    ready = [tmp_path / f"{number}.ready" for number in range(3)]
    children = [
        sys.modules["processes"].Child(
            place.name, [sys.executable, "-S", "-c", deaf, str(place)], tmp_path / "log", (), {}
        )
        for place in ready
    ]
    for place, child in zip(ready, children, strict=True):
        wait_for(place.exists, child.process)
    started = time.monotonic()
    sys.modules["processes"].stop_all(children, grace_secs=1.0)
    assert 1.0 <= time.monotonic() - started < 2.5
    assert [child.process.returncode for child in children] == [-signal.SIGKILL] * 3
