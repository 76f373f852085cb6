"""What make says and does before it installs anything."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


SETTINGS = {
    "TPU",
    "ZONE",
    "PROJECT",
    "TPU_TYPE",
    "RECIPE",
    "EMBEDDER",
    "DRY_RUN",
    "SPOT",
    "QUEUED",
    "EMBEDDER_TPUS",
    "LAUNCH_ARGS",
}


def make(repository, *arguments, **environment):
    # this test may itself run under make, whose flags and variables must not reach the one tested
    inherited = {
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "MAKEOVERRIDES",
        "PYTHON",
        "VENV",
        "RUN_DIR",
        "CORPUS",
        "GIN",
    } | SETTINGS
    clean = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=repository,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def stub(folder, name, says_yes):
    """A program that answers `-c` like a Python that is in range, or not."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nexit {0 if says_yes else 1}\n")
    (folder / name).chmod(0o755)


def test_alone_it_lists_the_targets(repository):
    done = make(repository)
    assert done.returncode == 0
    targets = "pretrain tpu-pretrain tpu-delete test check bench bench-torch clean tpu-compile parity convert-extras beam faults fuzz"
    for target in targets.split():
        assert f"  {target} " in done.stdout


def test_it_picks_the_newest_python_that_runs(repository, tmp_path):
    # a python3.13 that does not run, such as a version manager's placeholder, is passed over
    stub(tmp_path / "bin", "python3.13", says_yes=False)
    stub(tmp_path / "bin", "python3.12", says_yes=True)
    stub(tmp_path / "bin", "python3.11", says_yes=True)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    done = make(repository, "-n", "install", f"VENV={tmp_path / 'venv'}", PATH=path)
    assert "python3.12 -m venv" in done.stdout


def test_without_a_python_in_range_it_says_so(repository, tmp_path):
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
        stub(tmp_path / "bin", name, says_yes=False)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    done = make(repository, "install", f"VENV={tmp_path / 'venv'}", PATH=path)
    assert done.returncode != 0
    assert "no Python 3.11, 3.12 or 3.13 that can make an environment was found" in done.stderr


def test_a_given_python_out_of_range_is_refused(repository, tmp_path):
    stub(tmp_path / "bin", "python3.9", says_yes=False)
    python = str(tmp_path / "bin" / "python3.9")
    done = make(repository, "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert f"{python} is not a Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("corpus", "settings", "expected"),
    [
        ("", "", []),
        ("my texts", "", ["--corpus=my texts"]),
        ("", "--gin.train.num_steps=60", ["--gin.train.num_steps=60"]),
        ("", "--gin.WARM_START='(\"a b\",)'", ['--gin.WARM_START=("a b",)']),
        ("a", "--gin.A=1 --gin.B=\"('x', 'y')\"", ["--corpus=a", "--gin.A=1", "--gin.B=('x', 'y')"]),
    ],
)
def test_pretrain_hands_over_run_dir_corpus_and_settings(repository, corpus, settings, expected):
    given = ["RUN_DIR=runs/x", f"CORPUS={corpus}", f"GIN={settings}", f"PYTHON={sys.executable}"]
    line = make(repository, "-n", "pretrain", *given).stdout.strip().splitlines()[-1]
    assert shlex.split(line)[1:] == ["launch/local.py", "--run_dir=runs/x", *expected]


def test_a_corpus_that_is_not_there_is_refused_before_anything_is_installed(repository, tmp_path):
    done = make(repository, "pretrain", f"CORPUS={tmp_path / 'my texts'}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    expected = (
        f"expected a file or folder of documents, or tfds:NAME, got '{tmp_path / 'my texts'}', which is not there; name"
    )
    assert f"CORPUS: {expected} one that is, or leave CORPUS out for the embedded corpus" in done.stderr
    (tmp_path / "my texts").mkdir()
    for there in ("", "tfds:wikipedia/20230601.en?split=train[:1%]", tmp_path / "my texts"):
        assert make(repository, "check-corpus", f"CORPUS={there}").returncode == 0


def test_a_run_on_a_tpu_vm_can_be_read_before_it_is_paid_for(repository):
    settings = [
        "TPU=realm",
        "ZONE=here",
        "TPU_TYPE=v4-16",
        "RUN_DIR=gs://bucket/run",
        "SPOT=1",
        "EMBEDDER=in_trainer",
        "DRY_RUN=1",
    ]
    done = make(repository, "tpu-pretrain", *settings, "GIN=--gin.SEED=3")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert all(line.startswith("gcloud compute tpus ") for line in commands)
    assert sum("--run_dir=gs://bucket/run --embedder=in_trainer --gin.SEED=3 --host=" in line for line in commands) == 2
    assert any("--spot" in line and "--accelerator-type=v4-16" in line for line in commands)
    deletes = make(repository, "tpu-delete", *settings)
    assert "gcloud compute tpus tpu-vm delete realm --quiet --zone=here" in deletes.stdout.splitlines()


def test_yes_and_no_are_understood(repository):
    here = ["-n", "tpu-pretrain", "TPU=realm", "ZONE=here"]
    for flags, said in (
        (["SPOT=0", "QUEUED=no", "DRY_RUN=false"], []),
        (["SPOT=1", "QUEUED=yes", "DRY_RUN=true"], ["--spot", "--queued", "--dry_run"]),
        (["SPOT=", "QUEUED=1"], ["--queued"]),
    ):
        words = make(repository, *here, *flags).stdout.split()
        assert [word for word in words if word in ("--spot", "--queued", "--dry_run")] == said
    for target in ("tpu-pretrain", "tpu-delete"):
        refused = make(repository, target, "TPU=realm", "ZONE=here", "DRY_RUN=maybe")
        assert refused.returncode != 0 and not refused.stdout
        assert "DRY_RUN: expected 1, yes or true, or 0, no or false, got 'maybe'" in refused.stderr
    assert make(repository, "help", DRY_RUN="maybe", SPOT="Fido").returncode == 0


def test_a_tpu_vm_too_needs_a_python_in_range(repository, tmp_path):
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
        stub(tmp_path / "bin", name, says_yes=False)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    for target in ("tpu-pretrain", "tpu-delete"):
        done = make(repository, target, "TPU=realm", "ZONE=here", "DRY_RUN=1", PATH=path)
        assert done.returncode != 0 and not done.stdout
        assert "no Python 3.11, 3.12 or 3.13 that can make an environment was found; install one" in done.stderr


def test_a_tpu_vm_without_a_zone_is_refused_before_anything_is_installed(repository, tmp_path):
    for arguments in (["tpu-pretrain", "TPU=realm"], ["tpu-delete"]):
        done = make(repository, *arguments, f"VENV={tmp_path / 'venv'}")
        assert done.returncode != 0 and "expected TPU=NAME and ZONE=ZONE" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_on_the_tpu_vm_itself_the_same_target_just_runs(repository, tmp_path):
    done = make(
        repository, "-n", "tpu-pretrain", "RUN_DIR=runs/here", "CORPUS=docs", "RECIPE=base", f"VENV={tmp_path / 'venv'}"
    )
    assert (
        f"{tmp_path / 'venv'}-tpu/bin/python launch/local.py --run_dir='runs/here' --corpus='docs' --recipe='base'"
        in done.stdout
    )
    assert "LIBTPU_INIT_ARGS=" in done.stdout and "gcloud" not in done.stdout
    refused = make(
        repository,
        "tpu-pretrain",
        "ZONE=here",
        f"VENV={tmp_path / 'venv'}",
        "-o",
        f"{tmp_path / 'venv'}-tpu/.installed",
    )
    assert refused.returncode != 0 and "EMBEDDER_TPUS need TPU=NAME, the TPU VM" in refused.stderr
    absent = make(repository, "tpu-pretrain", "DRY_RUN=1", "CORPUS=not/there")
    assert absent.returncode != 0 and "got 'not/there', which is not there" in absent.stderr
    assert make(repository, "tpu-pretrain", "DRY_RUN=1", "CORPUS=gs://bucket/d").returncode == 0
    printed = make(repository, "tpu-pretrain", "DRY_RUN=1", "RUN_DIR=runs/here", f"VENV={tmp_path / 'venv'}")
    assert printed.returncode == 0 and not (tmp_path / "venv-tpu").exists()
    assert f"{tmp_path / 'venv'}-tpu/bin/python launch/local.py --run_dir='runs/here'" in printed.stdout
