"""Snapshots out, versions in: what a replay keeps, and versions of a future that did not happen."""

import json
import re
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.retrieval import scann_process
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings, build_version
from realm_jax.retrieval.scann_index import ScannIndex
from realm_jax.retrieval.scann_process import ScannProcess
from realm_jax.retrieval.versions import list_versions, withdraw
from realm_jax.run_dir import RunDir, read_json
from realm_jax.training.checkpoint import NO_VERSION
from realm_jax.training.refresh import RefreshConfig, Refresher
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.snapshots import list_snapshots, snapshot_checksum
from realm_jax.training.status import TrainerStatus
from tests import tiny

EMBED = 16


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    place = tmp_path_factory.mktemp("z")
    tiny.corpus(place)
    return tiny.realm(place).build(0).retrieval


@pytest.fixture
def run(tmp_path):
    return RunDir.of(tmp_path / "run")


@pytest.fixture
def make(run, retrieval):
    made = []

    def make(step=0, **changes):
        config = RefreshConfig(**({"timeout_secs": 5.0, "poll_secs": 0.01, "snapshot_every_steps": 2} | changes))
        status = TrainerStatus(run, process=0, num_steps=20, step=step)
        made.append(Refresher(config, run, retrieval, MeshConfig().build(), status, lambda: []))
        return made[-1]

    yield make
    for refresher in made:
        refresher.close()


def params(step):
    """Stands for those of a step."""
    return {"retriever": {"projection": jnp.full((4,), float(step))}}


def publish(run, corpus, version, checksum=None, backend="exact"):
    """What the embed job does, with made-up embeddings."""
    build_version(
        run.index, version, lambda ids, segments: np.ones((len(ids), EMBED), np.float32), corpus,
        IndexSettings(backend), embed_dim=EMBED, batches=BatchSettings(24, 8, 1, 16),
        snapshot_checksum=checksum or snapshot_checksum(run, version),
    )  # fmt: skip


def steps(refresher, first, last):
    """Swaps of some steps, as {step: version}; polls have time to see what there is."""
    swaps = {}
    for step in range(first, last):
        time.sleep(0.1)
        swap = refresher.begin_step(step, params(step))
        refresher._snapshots.wait()
        if swap is not None:
            swaps[step] = swap.version
    return swaps


@pytest.mark.faults
def test_a_version_of_a_future_that_did_not_happen_is_not_served(run, retrieval, make):
    """A killed run had come to step 6; this one resumes from step 4 while an embed job is still at that snapshot."""
    publish(run, retrieval.corpus, 0, "of given parameters")
    publish(run, retrieval.corpus, 4, "of a record that was removed")
    refresher = make(step=4)
    refresher.serve_first(4, params(4), 4)
    publish(run, retrieval.corpus, 6, "of the killed run")
    assert steps(refresher, 4, 9) == {} and refresher.version == 4  # nor after this run has made a snapshot of step 6
    withdraw(run.index, 6)  # the embed job finds that its snapshot is another now
    publish(run, retrieval.corpus, 6)
    assert list(steps(refresher, 9, 12).values()) == [6]


def test_versions_after_the_resumed_step_are_withdrawn(run, retrieval, make):
    first = make()
    publish(run, retrieval.corpus, 0, "given")
    first.serve_first(0, params(0), NO_VERSION)
    steps(first, 1, 7)
    for version in (2, 4, 6):
        publish(run, retrieval.corpus, version)
    first.close()
    resumed = make(step=3)
    resumed.serve_first(3, params(3), 2)
    assert list_versions(run.index) == [0, 2] and list_snapshots(run) == [2]
    with pytest.raises(FileNotFoundError):
        snapshot_checksum(run, 4)


def test_a_resumed_run_serves_the_version_of_its_checkpoint(run, retrieval, make):
    """A newer one is there, but the candidates of the checkpoint's step were found in the older."""
    for version in (0, 2, 3):
        publish(run, retrieval.corpus, version, "given")
    resumed = make(step=3)
    swap = resumed.serve_first(3, params(3), 2)
    assert list_versions(run.index) == [0, 2, 3]
    assert resumed.version == swap.version == 2
    assert read_json(run.trainer_status(0))["index_version"] == 2


@pytest.mark.faults
def test_the_version_of_a_checkpoint_is_asked_for_where_it_is_gone(run, retrieval, make):
    """It was damaged, and removed as the refusal says: the embed job builds what the status awaits, newer versions or not."""
    for version in (0, 2, 3):
        publish(run, retrieval.corpus, version, "given")
    withdraw(run.index, 2)
    resumed = make(step=3)

    def embed_job():
        while read_json(run.trainer_status(0))["awaited_versions"] != [2]:
            time.sleep(0.01)
        publish(run, retrieval.corpus, 2, "given")

    beside = threading.Thread(target=embed_job)
    beside.start()
    assert resumed.serve_first(3, params(3), 2).version == 2
    beside.join()
    resumed.begin_step(3, params(3))
    assert read_json(run.trainer_status(0))["awaited_versions"] == []


@pytest.mark.parametrize(("scann", "large", "kind"), [
    ("auto", False, ScannIndex), ("auto", True, ScannProcess), ("apart", False, ScannProcess), ("in_trainer", True, ScannIndex),
])  # fmt: skip
def test_large_shards_are_loaded_apart(run, retrieval, make, monkeypatch, scann, large, kind):
    monkeypatch.setattr(scann_process, "LARGE_SHARD_BYTES", 0 if large else 16 << 20)
    publish(run, retrieval.corpus, 0, "given", backend="scann")
    refresher = make(scann=scann)
    refresher.serve_first(0, params(0), NO_VERSION)
    assert type(refresher.index) is kind
    assert refresher.index.search(np.ones((2, EMBED), np.float32), 3).ids.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeout_secs": -5.0}, r"timeout_secs must be a number of seconds above 0, got -5.0; leave it out"),
        ({"timeout_secs": float("nan")}, "timeout_secs must be a number of seconds above 0, got nan"),
        ({"poll_secs": 0.0}, "poll_secs must be a number of seconds above 0, got 0.0"),
        (
            {"max_index_age_steps": -1, "snapshot_every_steps": 1},
            r"must be at least .* = 0, got -1: .*None for any age",
        ),
        (
            {"max_index_age_steps": 8, "snapshot_every_steps": 10},
            r"at least snapshot_every_steps - 1 = 9, got 8: .*raise",
        ),
        ({"swap_every_steps": 0}, "swap_every_steps must be at least 1, got 500 and 0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        RefreshConfig(**changes)


def test_the_greatest_age_may_be_one_less_than_the_steps_between_snapshots(run, retrieval, make):
    """At the step of a snapshot the trainer waits for its index, and nowhere else."""
    refresher = make(max_index_age_steps=1, when_too_old="stop")
    publish(run, retrieval.corpus, 0, "given")
    refresher.serve_first(0, params(0), NO_VERSION)
    assert steps(refresher, 1, 2) == {}
    with pytest.raises(TimeoutError, match="step 2: index 00000000 is older than max_index_age_steps=1"):
        refresher.begin_step(2, params(2))


def recorded(tmp_path, *swaps):
    place = tmp_path / "swaps.jsonl"
    place.write_text("".join(json.dumps({"step": step, "version": version}) + "\n" for step, version in swaps))
    return str(place)


def test_a_replay_makes_and_keeps_the_snapshots_that_it_will_swap_in(run, retrieval, make, tmp_path):
    """All of them wait for an embed job that is slow; a run keeps three otherwise."""
    swaps = [(0, 0), (4, 0), (9, 2), (10, 3), (11, 3), (11, 5), (12, 6)]
    refresher = make(mode="replay", replay_file=recorded(tmp_path, *swaps), timeout_secs=0.2)
    publish(run, retrieval.corpus, 0, "given")
    refresher.serve_first(0, params(0), NO_VERSION)
    assert read_json(run.trainer_status(0))["awaited_versions"] == [0, 2, 3, 5, 6]
    assert steps(refresher, 1, 9) == {}
    assert list_snapshots(run) == [2, 3, 5, 6]
    with pytest.raises(TimeoutError, match=r"no index version 00000002 was published within 0 s"):
        refresher.begin_step(9, params(9))
    for version in (2, 3, 5, 6):
        publish(run, retrieval.corpus, version)
    assert steps(refresher, 9, 11) == {9: 2, 10: 3}
    assert read_json(run.trainer_status(0))["awaited_versions"] == [5, 6]
    assert steps(refresher, 11, 14) == {11: 5, 12: 6}  # of two swaps at one step the last
    assert read_json(run.trainer_status(0))["awaited_versions"] == []


def test_the_parameters_that_a_version_was_embedded_with_must_be_those_of_the_replay(run, retrieval, make, tmp_path):
    refresher = make(mode="replay", replay_file=recorded(tmp_path, (3, 2)), timeout_secs=0.2)
    publish(run, retrieval.corpus, 0, "given")
    refresher.serve_first(0, params(0), NO_VERSION)
    assert steps(refresher, 1, 3) == {}
    publish(run, retrieval.corpus, 2, "of the recorded run")
    with pytest.raises(TimeoutError, match=r"no index version 00000002 was published"):
        refresher.begin_step(3, params(3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"step": 3, "version": 2}\n{"step": 5,',
            r"line 2: expected a line of a run's metrics/swaps.jsonl, got '\{\"step\": 5,' .*; remove the torn last line",
        ),
        (b'{"step": 3}\n{}', r"line 1: expected .*KeyError\('version'\)\); name the metrics/swaps.jsonl"),
        (b"[3, 2]", r"line 1: expected .*TypeError"),
        (b'{"step": 3, "version": 4}', r"line 1: version 4 cannot be served from step 3 on; name the metrics/swaps"),
        (b'{"step": 3, "version": 2}\n\xff', r"swaps.jsonl: expected UTF-8 text, got other bytes \(.*\); name the"),
        (b"", r"swaps.jsonl: expected the swaps of a run, got an empty file; name the metrics/swaps.jsonl"),
        (None, r"RefreshConfig.replay_file .*swaps.jsonl cannot be read \(No such file or directory\); name the"),
    ],
)
def test_replay_files_that_are_none(tmp_path, content, message):
    place = tmp_path / "swaps.jsonl"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RefreshConfig(mode="replay", replay_file=str(place)).read_replay()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"embeddings.npy: expected \d+ bytes, got \d+; remove"),
        ("flip", r"embeddings.npy is corrupt: expected SHA-256 .*; remove"),
        ("tear manifest", r"manifest.json is damaged: .*; remove"),
    ],
)
def test_a_damaged_version_is_reported_and_the_old_one_keeps_serving(run, retrieval, make, damage, message, caplog):
    refresher = make()
    publish(run, retrieval.corpus, 0, "given")
    refresher.serve_first(0, params(0), NO_VERSION)
    assert steps(refresher, 1, 3) == {}
    elsewhere = RunDir(run.path / "elsewhere")
    publish(elsewhere, retrieval.corpus, 2, snapshot_checksum(run, 2))
    (file,) = elsewhere.index_version(2).rglob("manifest.json" if damage == "tear manifest" else "embeddings.npy")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content if damage == "flip" else content[:-7])
    elsewhere.index_version(2).rename(run.index_version(2))
    assert steps(refresher, 3, 7) == {} and refresher.version == 0
    found = re.findall(rf"index version 00000002 refused, version 00000000 keeps serving: .*{message}", caplog.text)
    assert len(found) == 1
    publish(run, retrieval.corpus, 4)
    assert list(steps(refresher, 7, 10).values()) == [4]


@pytest.mark.faults
def test_an_index_of_another_corpus_or_retriever_is_refused_with_the_reason(run, retrieval, make, tmp_path):
    other = tiny.corpus(tmp_path / "other")
    assert other.fingerprint == retrieval.corpus.fingerprint
    made = tiny.sentences_corpus(tmp_path / "sentences")
    publish(run, made, 0, "given")
    with pytest.raises(
        ValueError,
        match=r"00000000 is needed to go on, but refused: .*expected corpus_fingerprint .*, got .*rebuild it",
    ):
        make(mode="synchronous").serve_first(0, params(0), NO_VERSION)
