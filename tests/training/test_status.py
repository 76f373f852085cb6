"""What a trainer says of itself: whole at any time, at once where it matters, and not at every step."""

import os
import socket
import threading
import time

import pytest

from realm_jax.run_dir import RunDir, read_json
from realm_jax.training.status import TrainerStatus
from tests.full_disk import file_size_limit


@pytest.fixture
def run(tmp_path):
    return RunDir.of(tmp_path / "run")


def make(run, **changes):
    return TrainerStatus(run, **({"process": 0, "num_steps": 100, "step": 40, "kept_versions": [30]} | changes))


def test_the_first_line_names_what_must_be_kept(run):
    before = time.time()
    make(run)
    said = read_json(run.trainer_status(0))
    assert before <= said.pop("updated_at") <= time.time()
    assert said == {
        "state": "running", "step": 40, "num_steps": 100, "index_version": -1, "pending_version": -1,
        "kept_versions": [30], "awaited_versions": [], "pid": os.getpid(), "host": socket.gethostname(),
    }  # fmt: skip


def test_a_mere_step_is_written_now_and_then_a_version_at_once(run):
    status = make(run, write_every_secs=0.3)
    status.update(step=41)
    assert read_json(run.trainer_status(0))["step"] == 40
    status.update(step=42, index_version=30)
    assert {key: read_json(run.trainer_status(0))[key] for key in ("step", "index_version")} == {
        "step": 42, "index_version": 30,
    }  # fmt: skip
    status.update(step=43, index_version=30)  # the version as before
    assert read_json(run.trainer_status(0))["step"] == 42
    time.sleep(0.35)
    status.update(step=44)
    assert read_json(run.trainer_status(0))["step"] == 44
    status.update(step=45)
    status.finish("finished")
    said = read_json(run.trainer_status(0))
    assert (said["state"], said["step"], said["index_version"]) == ("finished", 45, 30)


def test_each_process_has_its_file_and_fields_are_known(run):
    make(run)
    make(run, process=12, step=7)
    assert read_json(run.path / "status" / "trainer-00012.json")["step"] == 7
    assert read_json(run.trainer_status(0))["step"] == 40
    with pytest.raises(KeyError, match="index_verison"):
        make(run).update(index_verison=3)


def test_two_threads_write_and_a_reader_always_sees_it_whole(run):
    status = make(run)
    pending = threading.Thread(target=lambda: [status.update(pending_version=n) for n in range(50)])
    pending.start()
    for version in range(50):
        status.update(index_version=version)
        assert read_json(run.trainer_status(0))["index_version"] == version
    pending.join()
    said = read_json(run.trainer_status(0))
    assert (said["index_version"], said["pending_version"]) == (49, 49)
    assert [path.name for path in run.status.iterdir()] == ["trainer-00000.json"]


def test_it_is_kept_fresh_until_the_last_word(run):
    status = make(run)
    written = {read_json(run.trainer_status(0))["updated_at"]}
    status.keep_fresh(every_secs=0.02)
    end = time.monotonic() + 20
    while len(written) < 4:
        assert time.monotonic() < end
        written.add(read_json(run.trainer_status(0))["updated_at"])
    status.finish("failed")
    last = read_json(run.trainer_status(0))
    time.sleep(0.2)
    assert read_json(run.trainer_status(0)) == last and last["state"] == "failed"


@pytest.mark.faults
def test_a_full_disk_does_not_end_the_run(run, caplog):
    status = make(run)
    with file_size_limit(20):
        status.update(index_version=50)
        status.update(index_version=60)
    assert read_json(run.trainer_status(0))["index_version"] == -1
    assert caplog.text.count("trainer-00000.json cannot be written, training goes on") == 1
    status.update(step=41)  # a mere step, but there is something to catch up
    assert read_json(run.trainer_status(0))["index_version"] == 60
    assert [path.name for path in run.status.iterdir()] == ["trainer-00000.json"]
