"""Snapshots: exact, atomic, refused when damaged, never silently lost."""

import concurrent.futures
import json
import re
import threading

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.run_dir import RunDir
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.snapshots import (
    SnapshotWriter,
    flatten_params,
    forget_snapshots_after,
    list_snapshots,
    load_snapshot,
    nest_params,
    save_snapshot,
    snapshot_checksum,
)
from tests.full_disk import file_size_limit
from tests.training.made_params import assert_same, params


@pytest.fixture
def run(tmp_path):
    return RunDir.of(tmp_path / "run")


@pytest.fixture
def mesh():
    return MeshConfig().build()


def test_flat_names():
    nested = params()
    flat = flatten_params(nested)
    assert sorted(flat) == ["knowledge_encoder/output_bias", "retriever/projection/kernel"]
    assert_same(nest_params(flat), nested)


def test_a_snapshot_is_exact_and_repeatable(run):
    place = save_snapshot(run, 30, params())
    assert place == run.snapshot(30) and list_snapshots(run) == [30]
    assert_same(load_snapshot(run, 30), params())
    written = (place / "params.safetensors").stat().st_mtime_ns
    save_snapshot(run, 30, params())  # a resumed run writes it again
    assert (place / "params.safetensors").stat().st_mtime_ns == written
    assert snapshot_checksum(run, 30) == json.loads((place / "snapshot.json").read_text())["sha256"]
    assert sorted(path.name for path in run.snapshots.iterdir()) == ["00000030"]  # nothing temporary is left


def test_a_snapshot_of_another_run_is_not_overwritten(run):
    save_snapshot(run, 30, params())
    with pytest.raises(ValueError, match=r"already holds another snapshot of step 30.*choose another --run_dir"):
        save_snapshot(run, 30, params(seed=1))
    assert_same(load_snapshot(run, 30), params())


def test_a_snapshot_for_other_pieces_is_refused(run):
    save_snapshot(run, 4, params(), tokenizer="zyxwvutsrqponmlk")
    assert_same(load_snapshot(run, 4, "zyxwvutsrqponmlk"), params())
    with pytest.raises(
        ValueError,
        match="snapshots/00000004 was trained on the pieces of tokenizer zyxwvutsrqpo, the corpus has abcdefghijkl; build "
        "the corpus with that run's",
    ):
        load_snapshot(run, 4, "abcdefghijklmnop")


@pytest.mark.faults
def test_torn_snapshots_do_not_exist_and_damaged_ones_are_refused(run):
    torn = run.snapshot(20)
    torn.mkdir(parents=True)
    (torn / "params.safetensors").write_bytes(b"half")
    assert list_snapshots(run) == []
    with pytest.raises(FileNotFoundError):
        load_snapshot(run, 20)
    save_snapshot(run, 20, params())  # takes the torn one's place
    assert_same(load_snapshot(run, 20), params())

    file = run.snapshot(20) / "params.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"params.safetensors does not have the checksum of snapshot.json; remove"):
        load_snapshot(run, 20)
    (run.snapshot(20) / "snapshot.json").write_text("{}")
    with pytest.raises(ValueError, match=r"snapshot.json is damaged .*remove the snapshot"):
        load_snapshot(run, 20)


def test_old_snapshots_are_retired(run):
    for step in (0, 5, 10, 15):
        save_snapshot(run, step, params(step), max_to_keep=2)
    assert list_snapshots(run) == [10, 15]
    with pytest.raises(FileNotFoundError):
        load_snapshot(run, 5)
    save_snapshot(run, 20, params(20), max_to_keep=2, keep=(10,))  # a replay needs it
    assert list_snapshots(run) == [10, 15, 20]


def test_what_a_run_made_is_known_until_it_goes_back(run):
    """The record outlives the parameters: an index version that comes late is told from one of a future that is gone."""
    for step in (0, 5, 10, 15):
        save_snapshot(run, step, params(step), max_to_keep=1)
    first, second = snapshot_checksum(run, 5), snapshot_checksum(run, 10)
    assert list_snapshots(run) == [15] and first != second
    forget_snapshots_after(run, 5)
    assert list_snapshots(run) == [] and snapshot_checksum(run, 5) == first
    for step in (10, 15):
        with pytest.raises(FileNotFoundError):
            snapshot_checksum(run, step)
    save_snapshot(run, 10, params(99))  # the resumed run comes to other parameters
    assert snapshot_checksum(run, 10) not in (first, second)
    save_snapshot(run, 5, params(5))  # the same again: its parameters come back
    assert_same(load_snapshot(run, 5), params(5))
    save_snapshot(run, 0, params(0), max_to_keep=1)
    with pytest.raises(ValueError, match="already holds another snapshot of step 0"):
        save_snapshot(run, 0, params(1))  # also where only the record is left


def test_the_writer_copies_before_the_step_takes_the_arrays(run, mesh, monkeypatch):
    """The thread that writes comes to it only after the step has taken the arrays."""
    taken, write = threading.Event(), SnapshotWriter._write
    monkeypatch.setattr(SnapshotWriter, "_write", lambda *arguments: taken.wait(60) and write(*arguments))
    writer = SnapshotWriter(run, mesh)
    placed = jax.device_put(params()["retriever"], NamedSharding(mesh, P()))
    writer.write(3, placed)
    jax.tree.map(lambda leaf: leaf.delete(), placed)  # as donation does
    taken.set()
    writer.wait()
    assert_same(load_snapshot(run, 3), params()["retriever"])
    writer.close()


@pytest.mark.faults
def test_what_keeps_a_snapshot_from_being_written_is_raised(run, mesh):
    writer = SnapshotWriter(run, mesh)
    save_snapshot(run, 3, params(seed=9))
    writer.write(3, params())
    with pytest.raises(ValueError, match="already holds another snapshot"):
        writer.wait()
    writer.write(4, params(), wait=True)
    assert list_snapshots(run) == [3, 4]
    writer.close()


@pytest.mark.faults
def test_a_full_disk_and_snapshots(run, mesh, caplog):
    """Training goes on with the index that it has, unless a step cannot do without the snapshot."""
    writer = SnapshotWriter(run, mesh)
    writer.write(3, params(3), wait=True)
    message = r"the snapshot of step {} could not be written \(File too large\); make sure that the disk of .*snapshots"
    with file_size_limit(300):
        writer.write(6, params(6))
        concurrent.futures.wait([writer._pending])
    writer.write(9, params(9), wait=True)
    assert re.search(message.format(6) + ".*grows older by one refresh", caplog.text)
    assert list_snapshots(run) == [3, 9]
    with file_size_limit(300), pytest.raises(OSError, match=message.format(12)):
        writer.write(12, params(12), wait=True)
    assert sorted(path.name for path in run.snapshots.iterdir()) == ["00000003", "00000009"]  # the space is given back
    assert_same(load_snapshot(run, 3), params(3))
    writer.close()
