"""A lock shuts out others, names its holder, and ends with it."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from realm_jax import run_lock
from realm_jax.run_lock import InUse, exclusive

HOLDS = """
import pathlib, sys, time
from realm_jax.run_lock import exclusive
with exclusive(pathlib.Path(sys.argv[1]), "someone"):
    print("held", flush=True)
    time.sleep(120)
"""


def test_one_holder_at_a_time(tmp_path):
    place = tmp_path / "run" / "status" / "job.lock"
    holder = rf"process {os.getpid()} on {socket.gethostname()} holds .*job\.lock"
    with exclusive(place, "first"):
        with pytest.raises(InUse, match=rf"second \({holder}\); wait for it, stop it, or use another run directory"):
            exclusive(place, "second").__enter__()
        assert place.exists()  # a refusal takes nothing away
        with pytest.raises(InUse, match=holder):
            exclusive(place, "third").__enter__()
    assert list(tmp_path.iterdir()) == []  # nothing was there, nothing is left
    with exclusive(place, "fourth"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "kept"]


@pytest.mark.faults
def test_a_killed_holder_locks_nothing(tmp_path):
    place = tmp_path / "job.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {holder.pid} on"):
            exclusive(place, "me").__enter__()
    finally:
        holder.kill()
        holder.communicate()
    assert place.read_text() == f"{holder.pid} on {socket.gethostname()}\n"
    with exclusive(place, "me"):
        assert place.read_text() == f"{os.getpid()} on {socket.gethostname()}\n"


def test_a_lock_file_that_its_holder_removed_in_between_is_not_taken(tmp_path, monkeypatch):
    place, original = tmp_path / "job.lock", fcntl.flock
    tries = []

    def late(handle, how):
        if not tries:
            place.unlink()  # as the earlier holder does, between our open and our lock
        tries.append(handle)
        original(handle, how)

    monkeypatch.setattr(run_lock.fcntl, "flock", late)
    with exclusive(place, "me"):
        monkeypatch.undo()
        with pytest.raises(InUse):
            exclusive(place, "other").__enter__()
    assert len(tries) == 2


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with exclusive(tmp_path / "job.lock", "me"):
        pass
    assert "job.lock cannot be locked (No locks available); start no second process there" in caplog.text
