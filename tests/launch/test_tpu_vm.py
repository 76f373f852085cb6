"""`make tpu-pretrain` against a stand-in gcloud: what is asked of it, in which order, and what becomes of a run."""

import collections
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from realm_jax.run_dir import RunDir
from realm_jax.training.metrics import read_metrics
from tests.launch import stand_in_gcloud
from tests.launch.stub_stages import LAUNCH, load_launcher
from tests.training.test_two_hosts import free_port

STAND_IN = Path(stand_in_gcloud.__file__)
POD = ["--tpu=realm", "--zone=here", "--accelerator_type=v5litepod-16", "--run_dir=/shared/run"]
ONE = ["--tpu=realm", "--zone=here"]


@pytest.fixture
def pretrain(monkeypatch):
    """The script, in a hurry; signal handlers are put back."""
    sys.path.insert(0, str(LAUNCH / "tpu_vm"))
    module = load_launcher("tpu_vm/pretrain")
    for name in ("LOOK_SECS", "STATE_SECS", "WAIT_SECS", "FAILED_SECS"):
        monkeypatch.setattr(sys.modules["supervisor"], name, 0.05)
    monkeypatch.setattr(sys.modules["follower"], "LOST_SECS", 0.05)
    monkeypatch.setattr(module, "EMBED_AGAIN_SECS", 0.05)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield module
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.path.remove(str(LAUNCH / "tpu_vm"))


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """An empty cloud, and a Python on its machines that runs $LAUNCHER (bash) in place of launch/local.py."""
    place = tmp_path / "cloud"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "gcloud").write_text(f'#!/bin/sh\nexec {sys.executable} -S {STAND_IN} "$@"\n')
    (place / "python").write_text('#!/bin/bash\necho "$*" >>"$STAND_IN_CLOUD/started"\neval "$LAUNCHER"\n')
    for program in (place / "bin" / "gcloud", place / "python"):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_CLOUD", str(place))
    monkeypatch.setenv("REALM_JAX_PYTHON", str(place / "python"))
    monkeypatch.setenv("LAUNCHER", "echo hello from $HOME; exit 0")
    monkeypatch.setattr(stand_in_gcloud, "CLOUD", place)
    yield place
    for node in place.glob("*.json"):
        stand_in_gcloud.kill_all(node.stem)


def calls(cloud):
    """What gcloud was asked for, the looks left out."""
    asked = [json.loads(line) for line in (cloud / "calls.jsonl").read_text().splitlines()]
    return [" ".join(words[2:4]) for words in asked if words[3] not in ("describe", "list")]


def started(cloud):
    return [line.split("launch/local.py ")[1] for line in sorted((cloud / "started").read_text().splitlines())]


def touch_when_followed(cloud, times, place):
    """Touches a file once the first machine's output has been asked for so many times."""

    def wait():
        wait_for(lambda: (cloud / "calls.jsonl").read_text().count("worker.sh follow") >= times)
        place.touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def wait_for(condition, secs=90.0):
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_run_on_a_pod_from_nothing(pretrain, cloud, capsys):
    assert pretrain.main([*POD, "--spot", "--corpus=tfds:x", "--gin.SEED=3"]) == 0
    order = ["tpu-vm create", *["tpu-vm ssh"] * 2, "tpu-vm scp", *["tpu-vm ssh"] * 5]
    assert calls(cloud) == order  # running? upload; install on all, start on two, follow two
    created = next(line for line in (cloud / "calls.jsonl").read_text().splitlines() if '"create"' in line)
    for flag in ("--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"):
        assert f'"{flag}"' in created
    common = "--run_dir=/shared/run --corpus=tfds:x --gin.SEED=3"
    assert started(cloud) == [f"{common} --host={host} --num_hosts=2" for host in range(2)]
    written = capsys.readouterr()
    assert written.out == f"hello from {stand_in_gcloud.home('realm', 0)}\n"  # of the first machine alone
    assert "still there, at a cost: realm; the same command with --delete" in written.err
    # what git ignores stays here
    checkout = stand_in_gcloud.home("realm", 1) / "realm_jax"
    assert (checkout / "launch" / "local.py").exists() and not (checkout / ".git").exists()
    # once more: the TPU VM is there
    assert pretrain.main(POD) == 0
    assert calls(cloud).count("tpu-vm create") == 1


def test_a_run_that_is_at_work_is_followed(pretrain, cloud, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(
        "LAUNCHER", f"echo begun; while [ ! -e {tmp_path / 'may_end'} ]; do sleep 0.05; done; echo ended"
    )
    settings = pretrain.parse(ONE)[0]
    other = pretrain.Supervisor(settings.asking, settings.trainer, pretrain.Gcloud("here", None), lambda: None, False)
    first = threading.Thread(target=other.run)
    first.start()
    wait_for((stand_in_gcloud.home("realm", 0) / "realm_jax_launcher" / "pid").exists)
    ends = touch_when_followed(cloud, 2, tmp_path / "may_end")
    assert pretrain.main(ONE) == 0
    ends.join()
    first.join(30)
    assert capsys.readouterr().out == "begun\nended\n" and len(started(cloud)) == 1
    assert calls(cloud).count("tpu-vm scp") == 1


def test_after_pre_emption_it_is_created_again(pretrain, cloud, monkeypatch, capsys, tmp_path):
    done = tmp_path / "done"
    monkeypatch.setenv("LAUNCHER", f"while [ ! -e {done} ]; do sleep 0.05; done; echo resumed")

    def take_away():
        wait_for(lambda: (cloud / "started").exists() and len(started(cloud)) == 2)
        stand_in_gcloud.preempt("realm")
        done.touch()

    thread = threading.Thread(target=take_away)
    thread.start()
    assert pretrain.main([*POD, "--max_failures=0"]) == 0
    thread.join()
    assert len(started(cloud)) == 4
    assert [call for call in calls(cloud) if call.split()[1] not in ("ssh", "scp")] == [
        "tpu-vm create", "tpu-vm delete", "tpu-vm create",
    ]  # fmt: skip
    written = capsys.readouterr()
    assert "realm is PREEMPTED: it is replaced, and the run goes on from its last checkpoint" in written.err
    assert written.out == "resumed\n"


@pytest.mark.parametrize(("status", "starts"), [(7, 3), (2, 1)])
def test_failing_again_and_again_is_told_with_the_last_words(pretrain, cloud, monkeypatch, capsys, status, starts):
    """The second machine fails; the first is stopped each time. Bad arguments stay bad."""
    monkeypatch.setenv(
        "LAUNCHER",
        f'case "$*" in *--host=1*) echo no disk; exit {status};; esac; trap "exit 143" TERM; sleep 100 & wait $!',
    )
    assert pretrain.main([*POD, "--max_failures=2"]) == 1
    said = capsys.readouterr().err
    assert re.search(rf"realm, machine 1: ended with {status}; its last words:\n(.+\n)*no disk\n", said)
    assert said.count("all machines start again from the last checkpoint") == starts - 1
    assert len(started(cloud)) == 2 * starts
    (left,) = (stand_in_gcloud.home("realm", 0) / "realm_jax_launcher" / "status",)
    assert left.read_text() == "143\n"


def test_a_signal_on_another_machine_is_no_failure(pretrain, cloud, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LAUNCHER", f"[ -e {tmp_path / 'once'} ] && exit 0; touch {tmp_path / 'once'}; exit 143")
    assert pretrain.main([*ONE, "--max_failures=0"]) == 0
    assert len(started(cloud)) == 2


@pytest.mark.parametrize("retry_secs", ["0.05", pytest.param("0.5", marks=pytest.mark.slow)])
def test_a_lost_network_is_waited_for_and_no_line_is_told_twice(
    pretrain, cloud, monkeypatch, capsys, tmp_path, retry_secs
):
    """Neither the machine nor gcloud can be reached for a while; what they say of that is not taken for the launcher's words.

    gcloud gives up before the network is back, or repeats by itself the command that it was given first.
    """
    monkeypatch.setenv("STAND_IN_RETRY_SECS", retry_secs)
    ended = tmp_path / "may_end"
    monkeypatch.setenv("LAUNCHER", f"echo one; echo two; while [ ! -e {ended} ]; do sleep 0.05; done; echo three")
    monkeypatch.setattr(sys.modules["supervisor"], "WAIT_SECS", 0.3)

    def cut():
        output = stand_in_gcloud.home("realm", 0) / "realm_jax_launcher" / "output.log"
        wait_for(lambda: output.exists() and "two" in output.read_text())
        time.sleep(1.5)  # it is followed
        (cloud / "no_network").touch()
        time.sleep(3)
        (cloud / "no_network").unlink()
        ended.touch()

    thread = threading.Thread(target=cut)
    thread.start()
    assert pretrain.main(ONE) == 0
    thread.join()
    assert capsys.readouterr().out == "one\ntwo\nthree\n" and len(started(cloud)) == 1


def test_lines_are_told_apart_by_their_numbers(pretrain):
    """gcloud's second attempt begins where its first did; its exit status is not the launcher's."""
    follower = sys.modules["follower"].Follower.__new__(sys.modules["follower"].Follower)
    follower.num_lines, follower.status, follower._lost, follower.last_lines = 1, None, 3, collections.deque()
    shown = []
    for line in ("2| b", "Retrying: SSH command error", "2| b", "3| 7| c", "1| a", "4| "):
        follower._take(line, shown.append)
    assert shown == ["b", "7| c", ""] and (follower.num_lines, follower._lost, follower.status) == (4, 0, None)
    assert list(follower.last_lines) == ["b", "Retrying: SSH command error", "7| c", ""]
    follower._take("ended 143", shown.append)
    assert follower.status == 143 and len(shown) == 3


def test_a_machine_that_is_gone_behind_a_connection_that_stands(pretrain, cloud, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LAUNCHER", f"while [ ! -e {tmp_path / 'done'} ]; do sleep 0.05; done")
    (cloud / "half_open").touch()

    def take_away():
        wait_for(lambda: (cloud / "started").exists() and len(started(cloud)) == 2)
        time.sleep(1.0)
        stand_in_gcloud.preempt("realm")
        (tmp_path / "done").touch()

    thread = threading.Thread(target=take_away)
    thread.start()
    assert pretrain.main([*POD, "--max_failures=0"]) == 0
    thread.join()
    assert "realm is PREEMPTED: it is replaced" in capsys.readouterr().err and len(started(cloud)) == 4


def test_a_machine_that_is_done_is_not_started_again(pretrain, cloud, monkeypatch, tmp_path):
    """The first still evaluates when the command is given again from another computer."""
    monkeypatch.setenv(
        "LAUNCHER",
        f'case "$*" in *--host=1*) exit 0;; esac; while [ ! -e {tmp_path / "may_end"} ]; do sleep 0.05; done',
    )
    settings = pretrain.parse(POD)[0]
    first = pretrain.Supervisor(settings.asking, settings.trainer, pretrain.Gcloud("here", None), lambda: None, False)
    first.ensure()
    first.install_and_start()
    status = stand_in_gcloud.home("realm", 1) / "realm_jax_launcher" / "status"
    wait_for(status.exists)
    ends = touch_when_followed(cloud, 2, tmp_path / "may_end")  # of both machines
    assert pretrain.main(POD) == 0
    ends.join()
    assert len(started(cloud)) == 2 and calls(cloud).count("tpu-vm scp") == 1


def test_what_runs_is_never_replaced(pretrain, cloud, monkeypatch):
    monkeypatch.setenv("LAUNCHER", "sleep 100 & wait $!")
    settings = pretrain.parse(ONE)[0]
    gcloud = pretrain.Gcloud("here", None)
    supervisor = pretrain.Supervisor(settings.asking, settings.trainer, gcloud, lambda: None, False)
    supervisor.ensure()
    supervisor.install_and_start()
    with pytest.raises(pretrain.GcloudFailed, match="a run is at work here"):
        gcloud.ssh("realm", "all", sys.modules["supervisor"].INSTALL)
    (cloud / "no_network").touch()
    with pytest.raises(pretrain.GcloudFailed, match="machine 0 of realm cannot be reached"):
        supervisor.install_and_start()


def test_a_run_that_lay_on_a_lost_machine_is_not_begun_anew_unasked(pretrain, cloud, monkeypatch, capsys):
    monkeypatch.setenv("LAUNCHER", "sleep 100 & wait $!")

    def take_away():
        wait_for(lambda: (cloud / "started").exists())
        stand_in_gcloud.preempt("realm")

    thread = threading.Thread(target=take_away)
    thread.start()
    assert pretrain.main(ONE) == 1
    thread.join()
    assert "realm is PREEMPTED, and its run lay on it: delete it" in capsys.readouterr().err
    assert stand_in_gcloud.read("realm") is not None and len(started(cloud)) == 1


def test_being_stopped_ends_the_run_with_a_checkpoint(pretrain, cloud, monkeypatch, capsys):
    monkeypatch.setenv("LAUNCHER", 'trap "echo checkpoint; exit 143" TERM; echo begun; sleep 100 & wait $!')

    def stop():
        wait_for(lambda: (cloud / "started").exists() and len(started(cloud)) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert pretrain.main(POD) == 143
    thread.join()
    assert "ending the run, with up to 90 s for a checkpoint" in capsys.readouterr().err
    for worker in range(2):
        place = stand_in_gcloud.home("realm", worker) / "realm_jax_launcher"
        assert (place / "status").read_text() == "143\n" and "checkpoint" in (place / "output.log").read_text()
    assert stand_in_gcloud.read("realm") is not None
    assert pretrain.main([*POD, "--delete"]) == 0
    assert stand_in_gcloud.read("realm") is None


def test_a_queue_is_waited_for_and_joined_again(pretrain, cloud, capsys):
    (cloud / "realm.suspended").touch()
    (cloud / "realm.request").write_text("v5litepod-8")
    assert pretrain.main([*ONE, "--queued", "--spot"]) == 0
    asked = [call for call in calls(cloud) if call.startswith("queued")]
    assert asked == ["queued-resources delete", "queued-resources create"]
    assert "realm: WAITING_FOR_RESOURCES" in capsys.readouterr().err
    assert pretrain.main([*ONE, "--delete"]) == 0  # however it was asked for
    assert not (cloud / "realm.request").exists() and stand_in_gcloud.read("realm") is None


def test_delete_takes_all_that_belongs_to_the_run_and_nothing_else(pretrain, cloud, capsys):
    for name in ("realm", "realm-embedder-0", "realm2", "other-realm-embedder-0"):
        stand_in_gcloud.create(name, "v5litepod-8")
    (cloud / "realm-embedder-1.request").write_text("v5litepod-8")
    assert pretrain.main([*ONE, "--delete"]) == 0
    assert sorted(place.stem for place in cloud.glob("*.json")) == ["other-realm-embedder-0", "realm2"]
    assert not (cloud / "realm-embedder-1.request").exists()
    assert pretrain.main([*ONE, "--delete"]) == 0
    assert "there is no TPU VM realm, and no request for one" in capsys.readouterr().err


def test_slices_that_only_embed(pretrain, cloud, monkeypatch):
    """They are restarted by themselves, and stopped when the trainer is done."""
    monkeypatch.setenv(
        "LAUNCHER",
        'case "$*" in *--embed_only*) trap "exit 143" TERM; touch $STAND_IN_CLOUD/embeds$$; sleep 100 & wait $!;; '
        "*) while [ $(ls $STAND_IN_CLOUD | grep -c embeds) -lt 2 ]; do sleep 0.05; done;; esac",
    )
    assert pretrain.main([*POD, "--embedder_tpus=2"]) == 0
    embeds = [line for line in started(cloud) if "--embed_only" in line]
    assert [line.split("--log_dir=logs/realm ")[1] for line in embeds] == [
        f"--host={host} --num_hosts=2" for host in range(2)
    ]
    assert [line for line in started(cloud) if "--embedder=none" in line and "--host=1" in line]
    for number in range(2):
        status = stand_in_gcloud.home(f"realm-embedder-{number}", 0) / "realm_jax_launcher" / "status"
        assert status.read_text() == "143\n"


def test_dry_run_prints_every_command_and_runs_none(pretrain, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # neither gcloud nor git
    assert pretrain.main([*POD, "--queued", "--embedder_tpus=1", "--project=mine", "--dry_run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    commands = [line for line in printed if not line.startswith("#")]
    assert all(line.startswith("gcloud compute tpus ") for line in commands)
    assert sum("worker.sh start" in line for line in commands) == 5  # four machines and the embedder's one
    assert sum("queued-resources create" in line for line in commands) == 2
    assert all(line.endswith("--project=mine") for line in commands)


def test_without_gcloud_it_says_where_to_get_it(pretrain, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pretrain.main(ONE) == 1
    assert "gcloud is not installed; see https://cloud.google.com/sdk/docs/install" in capsys.readouterr().err


def test_what_gcloud_refuses_is_told_in_its_words(pretrain, cloud, capsys):
    (cloud / "bin" / "gcloud").write_text("#!/bin/sh\necho 'ERROR: PERMISSION_DENIED: not yours' >&2; exit 1\n")
    assert pretrain.main(ONE) == 1
    said = capsys.readouterr().err
    assert "gcloud compute tpus tpu-vm describe realm" in said and "PERMISSION_DENIED: not yours" in said


def fails(cloud, words, status=1, verb="describe"):
    """A gcloud that fails so, at one command or at all (verb "")."""
    program = f"#!/bin/sh\ncase \"$*\" in *{verb}*) printf '%s\\n' '{words}' >&2; exit {status};; esac\n"
    program += f'exec {sys.executable} -S {STAND_IN} "$@"\n'
    (cloud / "bin" / "gcloud").write_text(program)


@pytest.mark.parametrize(
    ("words", "status"), [("gcloud: 1: exec: python3: not found", 127), ("ERROR: gcloud crashed", 1)]
)
def test_a_gcloud_that_fails_strangely_is_given_up(pretrain, cloud, capsys, words, status):
    fails(cloud, words, status, verb="")
    assert pretrain.main(ONE) == 1
    said = capsys.readouterr().err
    assert said.count("realm: unreachable; asking again (gcloud compute tpus tpu-vm describe realm") == 1
    assert said.count(words) == 2 and "still there" not in said  # when it is first said, and at the end


def test_a_service_that_is_down_is_waited_for(pretrain, cloud, capsys):
    attempts = cloud / "attempts"
    (cloud / "bin" / "gcloud").write_text(
        f'#!/bin/sh\nif [ "$(wc -l <{attempts})" -lt 9 ]; then echo x >>{attempts}; '
        f'echo "ERROR: HTTPError 503: away" >&2; exit 1; fi\nexec {sys.executable} -S {STAND_IN} "$@"\n'
    )
    attempts.touch()
    assert pretrain.main(ONE) == 0
    assert capsys.readouterr().err.count("HTTPError 503: away") == 1


QUOTA = (
    "ERROR: RESOURCE_EXHAUSTED: Quota limit TPUV5sLitepodPerProjectPerZone has been exceeded. Limit: 8 in zone here."
)


def test_a_quota_is_not_waited_for(pretrain, cloud, capsys):
    fails(cloud, QUOTA, verb="create")
    assert pretrain.main(ONE) == 1
    said = capsys.readouterr().err
    assert "realm: the project's quota does not allow for it" in said and QUOTA in said
    assert "no capacity" not in said and "still there" not in said


def test_capacity_is_waited_for(pretrain, cloud, capsys):
    attempts = cloud / "attempts"
    attempts.touch()
    words = [
        "RESOURCE_EXHAUSTED: There is no more capacity in the zone",
        "RESOURCE_EXHAUSTED: Quota exceeded: 600 per minute",
    ]
    (cloud / "bin" / "gcloud").write_text(
        f'#!/bin/sh\ncase "$*" in *create*) echo x >>{attempts}; case $(wc -l <{attempts}) in '
        f"1) echo '{words[0]}' >&2; exit 1;; 2) echo '{words[1]}' >&2; exit 1;; esac;; esac\n"
        f'exec {sys.executable} -S {STAND_IN} "$@"\n'
    )
    assert pretrain.main(ONE) == 0
    said = capsys.readouterr().err
    assert all(f"realm: no capacity now; asking again ({one})" in said for one in words)
    assert "realm: installing on 1 machine (some minutes" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ONE, "--accelerator_type=v5e-16"], "v5litepod, v5p, v6e, got 'v5e-16'; Google calls it v5litepod-16"),
        ([*ONE, "--accelerator_type=v5litepod-16"], "--run_dir=runs/realm lies on one machine of several"),
        ([*ONE, "--embedder_tpus=1"], "--run_dir=runs/realm lies on one machine of several"),
        ([*ONE, "--accelerator_type=a100"], "expected an accelerator type such as v5litepod-8 or v4-32, of v2, v3,"),
        ([*ONE, "--host=1"], "--host is for launch/local.py alone"),
        ([*POD, "--embedder_tpus=1", "--embedder_type=v4-32"], "--embedder_type=v4-32 has 4 machines"),
        ([*POD, "--embedder_tpus=1", "--embedder=cpu"], "--embedder: with --embedder_tpus those embed alone"),
        ([*ONE, "--recipe=nonsense"], "invalid choice: 'nonsense' (choose from"),
        ([*ONE, "--recipe=base"], "--recipe=base needs --corpus"),
        ([*ONE, "--recipe=tiny", "--corpus=docs"], "--recipe=tiny is for the embedded corpus, not for --corpus"),
        ([*ONE, "--embedder=gpu"], "invalid choice: 'gpu' (choose from"),
        ([*ONE, "--embedder=devices"], "--embedder=devices needs --embedder_devices, and --trainer_devices"),
        ([*ONE, "--embedder_devices=7"], "--embedder_devices=7 is for --embedder=devices, got --embedder=cpu"),
        ([*POD, "--trainer_devices=0,1"], "the chips of a slice of 4 machines work only all together"),
        ([*ONE, "--trainer_devices=0,1,2"], "--trainer_devices=0,1,2: expected 1, 2, 4 or 8 chips of a TPU machine"),
        (
            [*ONE, "--run_dir=s3://b/run"],
            "--run_dir=s3://b/run: TPU VMs have the client of Google's object store alone",
        ),
        ([*ONE, "--corpus=s3://b/d"], "--corpus=s3://b/d: TPU VMs have the client of Google's object store alone"),
        (
            [*ONE, "--corpus=/my/documents"],
            "is not seen by the TPU VM: only the checkout is sent there; copy it with `gcloud",
        ),
        ([*ONE, "--corpus=.."], "a relative path is one in the checkout"),
        ([*ONE, "--corpus=not/there"], "--corpus=not/there: a relative path is one in the checkout"),
        ([*ONE, "--corpus=realm_jax.egg-info"], "git ignores it, so it is not sent to the TPU VM"),
        ([*ONE, "--spto"], "unknown argument --spto; besides those of --help only --gin.NAME.PARAM=VALUE"),
        (
            [*ONE, "--gin.train.num_steps", "60"],
            "--gin.train.num_steps has no value; use =, as in --gin.train.num_steps=VALUE",
        ),
        (["--tpu=realm"], "--zone"),
    ],
)
def test_a_wrong_command_line(pretrain, capsys, arguments, message):
    with pytest.raises(SystemExit) as refused:
        pretrain.parse(arguments)
    assert refused.value.code == 2 and message in capsys.readouterr().err


def test_documents_as_the_machines_see_them(pretrain):
    for given, run_dir, there in (
        ("docs", "runs/x", "realm_jax/docs"), ("./docs/tpu.md", "runs/x", "realm_jax/docs/tpu.md"), ("gs://b/d", "runs/x", "gs://b/d"),
        ("tfds:x?split=a", "gs://b/run", "tfds:x?split=a"), ("/mnt/d", "/mnt/run", "/mnt/d"),
    ):  # fmt: skip
        settings, _ = pretrain.parse([*ONE, f"--run_dir={run_dir}", f"--corpus={given}", "--recipe=documents"])
        assert settings.trainer.arguments == (f"--run_dir={run_dir}", f"--corpus={there}", "--recipe=documents")


def test_its_help_has_all_options_and_an_example_to_copy(pretrain, capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["--help"])
    said = capsys.readouterr().out
    for option in ("corpus", "recipe", "embedder", "trainer_devices", "embedder_devices", "log_dir"):
        assert f"  --{option} " in said
    assert "--gin.NAME.PARAM=VALUE (--gin.MACRO=VALUE)" in " ".join(said.split())
    assert "--accelerator_type=v5litepod-8 \\\n        --run_dir=gs://bucket/realm" in said


def test_nothing_that_must_be_installed_is_needed_here():
    """The laptop has gcloud and a bare Python."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(LAUNCH / "tpu_vm" / "pretrain.py"), *POD, "--corpus=docs", "--dry_run"],
        capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("worker.sh start --run_dir=/shared/run --corpus=realm_jax/docs --host=") == 4


def worker(home, *arguments, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / "tpu_vm" / "worker.sh"), *arguments],
        env=os.environ | {"HOME": str(home)} | environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_machine_without_a_run(tmp_path):
    assert worker(tmp_path, "running").returncode == 11
    (tmp_path / "realm_jax_launcher").mkdir()
    for status, said in (("0", 10), ("143", 11)):
        (tmp_path / "realm_jax_launcher" / "status").write_text(f"{status}\n")
        assert worker(tmp_path, "running").returncode == said
    none = worker(tmp_path, "follow")
    assert (none.returncode, none.stdout) == (3, "ended 3\n")
    assert worker(tmp_path, "stop").stdout == "nothing is running\n"
    unknown = worker(tmp_path, "dance")
    assert unknown.returncode == 2 and "worker.sh start ARGUMENT" in unknown.stderr


def test_output_is_numbered_from_the_first_line_whichever_is_asked_for(tmp_path):
    place = tmp_path / "realm_jax_launcher"
    place.mkdir()
    (place / "status").write_text("7\n")
    (place / "output.log").write_text("a\n\n| c\n")
    for seen, expected in ((0, "1| a\n2| \n3| | c\n"), (2, "3| | c\n"), (9, "")):
        told = worker(tmp_path, "follow", str(seen))
        assert (told.returncode, told.stdout) == (7, expected + "ended 7\n")


def test_an_environment_is_made_anew_only_for_other_packages(repository, tmp_path):
    checkout, log = tmp_path / "realm_jax", tmp_path / "made"
    for name in ("launch/tpu_vm/worker.sh", "setup.py", "constraints/py311.txt"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((repository / name).read_bytes())
    (tmp_path / "bin").mkdir()
    make = tmp_path / "bin" / "make"
    make.write_text(f'#!/bin/sh\n[ -e "$1" ] || {{ mkdir -p .venv-tpu; touch "$1"; echo made >>{log}; }}\n')
    make.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def install():
        done = subprocess.run(
            ["bash", str(checkout / "launch/tpu_vm/worker.sh"), "install"],
            env=os.environ | {"HOME": str(tmp_path), "PATH": path}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    install()
    install()
    assert log.read_text() == "made\n"
    with (checkout / "setup.py").open("a") as file:
        file.write("# another package\n")
    install()
    assert log.read_text() == "made\nmade\n"


APT = """#!/bin/bash
# apt with python3.11 as a pre-release; with the archive that was added also 3.12
case "${0##*/} $*" in
    "apt-cache policy python3.11-venv") echo "  Candidate: 3.11.0~rc1-1~22.04";;
    "apt-cache policy python3.12-venv") [ ! -e $PLACE/added ] || echo "  Candidate: 3.12.11-1+jammy1";;
    "apt-cache "*) echo "  Candidate: (none)";;
    "sudo add-apt-repository -y ppa:deadsnakes/ppa") [ -z "$OFFERS" ] || touch $PLACE/added;;
    *"install -y python3.12 python3.12-venv") printf '#!/bin/sh\\n' >$PLACE/bin/python3.12; chmod +x $PLACE/bin/python3.12;;
esac
[ "${0##*/}" = apt-cache ] || echo "$*" >>$PLACE/asked
"""


@pytest.mark.parametrize("offers", ["", "python3.12"])
def test_a_python_for_a_machine_that_has_none(tmp_path, offers):
    """A pre-release is passed over, the one that is there and the one that apt has."""
    (tmp_path / "bin").mkdir()
    programs = {"sudo": APT, "apt-cache": APT, "make": "#!/bin/sh\nmkdir -p .venv-tpu\n"}
    programs |= {f"python3.{minor}": "#!/bin/sh\nexit 1\n" for minor in (11, 12, 13)}
    for name, program in programs.items():
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("launch/tpu_vm/worker.sh", "setup.py", "constraints/py312.txt"):
        (tmp_path / "realm_jax" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "realm_jax" / name).write_bytes((LAUNCH.parent / name).read_bytes())
    done = subprocess.run(
        ["bash", str(tmp_path / "realm_jax/launch/tpu_vm/worker.sh"), "install"], capture_output=True, text=True,
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "PLACE": str(tmp_path), "OFFERS": offers},
    )  # fmt: skip
    installed = [
        line.split(" install -y ")[1]
        for line in (tmp_path / "asked").read_text().splitlines()
        if " install -y " in line
    ]
    if offers:
        assert done.returncode == 0, done.stderr
        assert installed == ["make", "software-properties-common", "python3.12 python3.12-venv"]
    else:
        assert (
            done.returncode == 1 and "neither apt nor ppa:deadsnakes/ppa has a Python 3.11, 3.12 or 3.13" in done.stderr
        )
        assert installed == ["make", "software-properties-common"]


@pytest.mark.slow
@pytest.mark.faults
def test_two_machines_train_together_and_one_is_pre_empted(pretrain, cloud, monkeypatch, tmp_path, capsys):
    """The real launcher and trainers; the TPU VM is taken away in mid-training, and the run resumes on a new one."""
    run = RunDir.of(tmp_path / "run")
    monkeypatch.setenv("REALM_JAX_PYTHON", sys.executable)
    monkeypatch.setenv("STAND_IN_COORDINATOR", f"localhost:{free_port()}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    taken_at = []

    def take_away():
        wait_for(lambda: len([row for row in read_metrics(run) if "loss" in row]) > 4, 600)
        taken_at.append(max(int(step.name) for step in run.checkpoints.iterdir() if step.name.isdigit()))
        stand_in_gcloud.preempt("realm")

    thread = threading.Thread(target=take_away)
    thread.start()
    arguments = [
        *POD[:-1], f"--run_dir={run.path}", "--gin.train.num_steps=12", "--gin.train.checkpoint_every_steps=2",
        "--gin.train.evaluate_every_steps=0", "--gin.evaluate.max_queries=20", "--gin.evaluate.num_masked_sentences=20",
    ]  # fmt: skip
    assert pretrain.main(arguments) == 0
    thread.join()
    said = capsys.readouterr()
    assert "realm is PREEMPTED" in said.err and str(run.report_html) in said.out
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == list(range(1, 13))
    log = (run.logs / "train.log").read_text()
    assert (taken_at[0] >= 2 and f"resuming at step {taken_at[0]}" in log) or "resuming at step" in log
    assert "process 0 of 2" in log
