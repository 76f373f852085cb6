"""How make and CI come by the browser that the page is tested in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
INHERITED = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "REALM_JAX_CHROMIUM"}


def run(repository, *command, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in INHERITED}
    command = [shutil.which(command[0]) or command[0], *command[1:]]
    return subprocess.run(command, cwd=repository, env=clean | environment, capture_output=True, text=True, timeout=60)


def stub(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("named", ["", "/no/such/chromium"])
def test_make_browser_without_one_says_so_before_it_installs_anything(repository, tmp_path, named):
    given = [f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    done = run(repository, "make", "browser", *given, PATH=str(tmp_path), REALM_JAX_CHROMIUM=named)
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    assert f"make browser needs Chromium, got '{named}'; install it (Debian: apt-get install chromium)" in done.stderr


def test_make_browser_hands_over_the_one_that_it_found(repository, tmp_path):
    stub(tmp_path / "bin", "chromium-browser", "exit 0")
    found = str(tmp_path / "bin" / "chromium-browser")
    for environment in ({"PATH": str(tmp_path / "bin")}, {"REALM_JAX_CHROMIUM": found}):
        done = run(repository, "make", "-n", "browser", f"PYTHON={sys.executable}", **environment)
        assert f"REALM_JAX_CHROMIUM='{found}' .venv/bin/python -m pytest -q tests/serve/test_browser.py" in done.stdout


@pytest.mark.parametrize("user", ["0", "1000"])
@pytest.mark.parametrize("can_install", [True, False])
def test_ci_installs_one_if_it_can_and_goes_on_if_it_cannot(repository, tmp_path, user, can_install):
    """make, apt-get and id are stand-ins that write down what they are asked."""
    stub(tmp_path, "make", f'echo "make $*" >> {tmp_path}/log; [ "$2" != check-browser ] || [ -e {tmp_path}/chromium ]')
    stub(tmp_path, "id", f"echo {user}")
    effect = f"touch {tmp_path}/chromium" if can_install else "exit 100"
    stub(tmp_path, "apt-get", f'echo "apt-get $*" >> {tmp_path}/log; case "$*" in *chromium) {effect};; esac')
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = run(repository, ".ci/run", PATH=path)
    log = (tmp_path / "log").read_text().splitlines()
    assert done.returncode == 0 and log[-2:] == ["make test", "make format-check lint types"], done.stderr
    may_install = user == "0" and Path("/etc/debian_version").exists()
    assert ("apt-get install -qq -y chromium" in log) == may_install
    there = may_install and can_install
    assert ("no Chromium is there and none was installed; the page is not tested in a browser" in done.stdout) != there


def test_ci_needs_no_second_browser_and_fails_when_the_check_does(repository, tmp_path):
    stub(tmp_path, "make", f'echo "make $*" >> {tmp_path}/log; [ "$1" != test ]')
    stub(tmp_path, "apt-get", f"echo apt-get >> {tmp_path}/log")
    done = run(repository, ".ci/run", PATH=os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    log = (tmp_path / "log").read_text().splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert log[-1] == "make test" and "apt-get" not in log


def test_what_ci_runs_is_what_contributors_are_told_to(repository):
    """The format is checked too, and the page's tests need nothing that the extra dev does not bring."""
    done = run(repository, "make", "-n", "check", f"PYTHON={sys.executable}")
    for step in ("ruff format --check .", "ruff check .", "/mypy", "-m pytest -q"):
        assert step in done.stdout
    for name in ("test_api.py", "test_browser.py", "test_server.py"):
        assert "importorskip" not in (repository / "tests" / "serve" / name).read_text()
    for name in ("CHROMIUM", "SCREENSHOT"):
        assert f"REALM_JAX_{name}" in (repository / "CONTRIBUTING.md").read_text()
