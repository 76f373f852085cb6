"""The embed job beside a made-up trainer: which snapshots it takes, when it ends, what it keeps, one at a time."""

import errno
import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, document_inputs
from realm_jax.models import Retriever, RetrieverConfig, TransformerConfig
from realm_jax.retrieval import embed as module
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.embed import embed
from realm_jax.retrieval.embedder import Embedder, embed_inputs, embed_snapshot
from realm_jax.retrieval.versions import list_versions, load_version, read_manifest
from realm_jax.run_dir import RunDir, read_json, write_json_atomically
from realm_jax.run_lock import exclusive
from realm_jax.training.snapshots import PARAMS_FILE, forget_snapshots_after, save_snapshot, snapshot_checksum
from tests.retrieval.made_index import VOCAB, make_corpus

ENCODER = TransformerConfig(
    vocab_size=len(VOCAB), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_length=48
)
CONFIG = RetrieverConfig(ENCODER, projection_size=8)
SETTINGS: dict[str, Any] = {
    "retriever": CONFIG,
    "index": IndexSettings(shard_bytes=10 * 4 * 8, recall_queries=16),
    "batches": BatchSettings(document_len=48, batch_size=8, num_lengths=2, query_len=16),
    "poll_secs": 0.05,
    "first_snapshot_timeout_secs": 20.0,
    "progress": False,
}


@functools.cache
def _params(seed: int) -> dict:
    return jax.device_get(_init(jax.random.key(seed)))


@jax.jit
def _init(key: jax.Array) -> dict:
    ids = jnp.ones((1, 8), jnp.int32)
    return Retriever(CONFIG).init(key, ids, ids * 0, ids > 0)["params"]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    make_corpus(run.corpus, 37)
    return run


def _say(run: RunDir, state: str, process: int = 0, **fields: Any) -> None:
    content = {"state": state, "index_version": -1, "pending_version": -1, "kept_versions": []}
    write_json_atomically(run.trainer_status(process), content | {"updated_at": time.time()} | fields)


class _Beside:
    """Runs the job in a thread."""

    def __init__(self, run: RunDir, **changes: Any):
        self.error: BaseException | None = None
        self._arguments = {"run_dir": str(run.path)} | SETTINGS | changes
        self._thread = threading.Thread(target=self._run, daemon=True)  # a test that fails must not hang

    def _run(self) -> None:
        try:
            embed(**self._arguments)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "_Beside":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def _wait_for(condition: Any, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_two_jobs_embed_together_and_end_with_the_trainer(run):
    """Job 1 follows job 0 to each snapshot; both end when the trainer has finished."""
    save_snapshot(run, 0, _params(0))
    _say(run, "running")
    with (
        _Beside(run, builder=0, num_builders=2, builders_timeout_secs=60.0),
        _Beside(run, builder=1, num_builders=2, builders_timeout_secs=60.0),
    ):
        _wait_for(lambda: list_versions(run.index) == [0])
        save_snapshot(run, 7, _params(1))
        _wait_for(lambda: 7 in list_versions(run.index))
        _say(run, "finished", index_version=7)
    assert read_manifest(run.index_version(7)).num_documents == 37
    for status in (run.builder_status(0), run.builder_status(1)):
        assert read_json(status)["state"] == "finished"
    other = RunDir(run.path.parent / "alone")
    save_snapshot(other, 7, _params(1))
    embed(run_dir=str(other.path), corpus=str(run.corpus), once=True, **SETTINGS)
    files = [read_manifest(one.index_version(7)).shards for one in (run, other)]
    assert files[0] == files[1]  # to the last checksum


def test_numbers_of_jobs_are_checked(run):
    with pytest.raises(ValueError, match=r"embed\.builder must lie between 0 and num_builders - 1 = 1, got 2"):
        embed(run_dir=str(run.path), builder=2, num_builders=2, **SETTINGS)
    with (
        exclusive(run.builder_status(1).with_suffix(".lock"), "someone"),
        pytest.raises(ValueError, match="another embed job is builder 1 of this run"),
    ):
        embed(run_dir=str(run.path), builder=1, num_builders=2, **SETTINGS)


def test_rows_are_the_embeddings_of_single_documents(run):
    save_snapshot(run, 300, _params(0))
    embed(run_dir=str(run.path), once=True, **SETTINGS)
    manifest = read_manifest(run.index_version(300))
    assert (manifest.num_documents, manifest.embed_dim, len(manifest.shards)) == (37, 8, 4)
    assert manifest.snapshot_checksum == hashlib.sha256((run.snapshot(300) / PARAMS_FILE).read_bytes()).hexdigest()
    assert manifest.corpus_fingerprint == Corpus.open(run.corpus).fingerprint
    rows = np.concatenate([np.load(run.index_version(300) / s.name / "embeddings.npy") for s in manifest.shards])
    corpus = Corpus.open(run.corpus)
    special = SpecialIds.of(corpus.tokenizer)
    alone = np.concatenate(
        [
            embed_inputs(_params(0), *document_inputs(corpus, np.array([row]), 48, special), config=CONFIG,
                         method="embed_documents")
            for row in range(37)
        ]
    )  # fmt: skip
    np.testing.assert_allclose(rows, alone, atol=2e-5)
    status = read_json(run.embedder_status)
    assert {key: status[key] for key in ("state", "version", "newest_version", "documents_done", "documents_total")} == {
        "state": "finished", "version": 300, "newest_version": 300, "documents_done": 37, "documents_total": 37,
    }  # fmt: skip
    assert status["docs_per_sec"] > 0 and status["search_recall"] == 1.0 and status["pid"] == os.getpid()
    # once more does nothing
    embed(run_dir=str(run.path), once=True, **SETTINGS)
    assert read_manifest(run.index_version(300)) == manifest


def test_takes_the_newest_snapshot_and_ends_with_training(run):
    _say(run, "running")
    for step in (10, 20, 30):
        save_snapshot(run, step, _params(step))
    with _Beside(run):
        _wait_for(lambda: list_versions(run.index) == [30])
        save_snapshot(run, 40, _params(40))
        _wait_for(lambda: list_versions(run.index) == [30, 40])
        save_snapshot(run, 50, _params(50))
        _say(run, "finished")  # at once: the last snapshot is still embedded
    assert 50 in list_versions(run.index) and not {10, 20} & set(list_versions(run.index))
    assert read_json(run.embedder_status)["state"] == "finished"


def test_every_snapshot_on_request(run):
    for step in (10, 20, 30):
        save_snapshot(run, step, _params(step))
    _say(run, "running")
    with _Beside(run, every_snapshot=True, keep_newest=9):
        _wait_for(lambda: len(list_versions(run.index)) == 3)
        _say(run, "finished")
    assert list_versions(run.index) == [10, 20, 30]


def test_what_a_replay_awaits_is_built_first_and_kept(run):
    for step in (10, 20, 30):
        save_snapshot(run, step, _params(step))
    _say(run, "running", index_version=0, awaited_versions=[10, 20])
    with _Beside(run, keep_newest=1):
        _wait_for(lambda: list_versions(run.index) == [10, 20, 30])  # without it: 30 alone
        _say(run, "running", index_version=20)
        _wait_for(lambda: list_versions(run.index) == [20, 30])
        _say(run, "finished", index_version=20)
    assert list_versions(run.index) == [20, 30]


@pytest.mark.faults
@pytest.mark.parametrize("when", ["while it is built", "just before it is published"])
def test_a_snapshot_that_the_trainer_went_back_from_is_not_published(run, monkeypatch, caplog, when):
    """The trainer was killed and resumes from step 7: it will come to step 10 with other parameters."""
    save_snapshot(run, 5, _params(5))
    embed(run_dir=str(run.path), once=True, **SETTINGS)
    save_snapshot(run, 10, _params(10))
    original, published = module.embed_snapshot, []

    def meanwhile(*arguments, should_stop, **kwargs):
        def forgets_then_asks():
            forget_snapshots_after(run, 7)
            return should_stop()

        asked = forgets_then_asks if when == "while it is built" else None
        manifest = original(*arguments, should_stop=asked, **kwargs)
        published.append(list_versions(run.index))
        forget_snapshots_after(run, 7)  # after the trainer has looked for later versions to withdraw
        return manifest

    monkeypatch.setattr(module, "embed_snapshot", meanwhile)
    with caplog.at_level("INFO"):
        embed(run_dir=str(run.path), once=True, **SETTINGS)
    assert list_versions(run.index) == [5]
    if when == "while it is built":
        assert not published and "stopped while building index version 10" in caplog.text
    else:
        assert published == [[5, 10]]
        assert "index version 10 is withdrawn: the run went back to an earlier step" in caplog.text
    monkeypatch.undo()
    save_snapshot(run, 10, _params(11))
    embed(run_dir=str(run.path), once=True, **SETTINGS)
    assert read_manifest(run.index_version(10)).snapshot_checksum == snapshot_checksum(run, 10)


def test_retires_nothing_in_use_or_named_by_a_checkpoint(run):
    _say(run, "running", index_version=20, pending_version=30, kept_versions=[10])
    _say(run, "running", process=1, index_version=15)
    with _Beside(run):
        for step in (5, 10, 15, 20, 30, 40, 50):
            save_snapshot(run, step, _params(0))
            _wait_for(lambda step=step: step in list_versions(run.index))
        _wait_for(lambda: list_versions(run.index) == [10, 15, 20, 30, 40, 50])
        _say(run, "running", index_version=50)
        _wait_for(lambda: list_versions(run.index) == [15, 40, 50])
        _say(run, "finished", process=1, index_version=50)
        _wait_for(lambda: list_versions(run.index) == [40, 50])
        _say(run, "failed")
    assert list_versions(run.index) == [40, 50]
    assert load_version(run.index_version(50)).num_documents == 37  # what is kept can be served


def test_nothing_is_retired_before_every_trainer_has_spoken(run):
    for step in (1, 2, 3, 4):
        if step == 3:
            _say(run, "running", index_version=3)
            _say(run, "running", process=1)  # resumes: has not read yet which version its checkpoint names
        save_snapshot(run, step, _params(0))
        embed(run_dir=str(run.path), once=True, keep_newest=1, **SETTINGS)
    assert list_versions(run.index) == [1, 2, 3, 4]


def test_a_trainer_that_finished_long_ago_is_waited_for(run, monkeypatch):
    _say(run, "finished")
    save_snapshot(run, 10, _params(0))
    monkeypatch.setattr(module, "RESTART_GRACE_SECS", 1.0)
    started = time.monotonic()
    embed(run_dir=str(run.path), **SETTINGS)
    assert time.monotonic() - started > 1.0 and list_versions(run.index) == [10]


def test_waits_for_the_first_snapshot_in_vain(run):
    started = time.monotonic()
    with pytest.raises(
        TimeoutError, match=r"no snapshot came to .*snapshots in 0.3 s; start the train job .*initial_params"
    ):
        embed(run_dir=str(run.path), **SETTINGS | {"first_snapshot_timeout_secs": 0.3})
    assert 0.3 <= time.monotonic() - started < 5
    assert read_json(run.embedder_status)["state"] == "failed"
    assert "no snapshot came" in read_json(run.embedder_status)["error"]


def test_says_once_what_it_waits_for_and_how_it_ends(run, monkeypatch, caplog):
    caplog.set_level("INFO")
    looks = []
    retire = module._EmbedJob._retire

    def look(job: Any) -> None:
        retire(job)
        looks.append(job.stop.is_building)
        if len(looks) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(module._EmbedJob, "_retire", look)
    embed(run_dir=str(run.path), **SETTINGS)
    awaited = f"waiting for the first snapshot in {run.snapshots} (up to 20 s); a trainer makes it, or the convert job"
    assert caplog.text.count(awaited) == 1
    assert looks == [False] * 3 and "SIGTERM: no longer waiting for a snapshot" in caplog.text
    caplog.clear()
    save_snapshot(run, 10, _params(0))
    original = module.embed_snapshot

    def build(*arguments: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **kwargs)

    monkeypatch.setattr(module, "embed_snapshot", build)
    embed(run_dir=str(run.path), **SETTINGS)
    assert "SIGTERM: ending after this batch" in caplog.text and "waiting" not in caplog.text
    assert list_versions(run.index) == []


@pytest.mark.faults
def test_a_trainer_that_was_killed_is_missed_once_and_given_up(run, monkeypatch, caplog):
    save_snapshot(run, 10, _params(0))
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    _say(run, "running", pid=dead.pid, host=socket.gethostname())
    started = time.monotonic()
    with pytest.raises(
        TimeoutError, match=rf"trainer \(process {dead.pid} on .*\) was running and .* start the train job"
    ):
        embed(run_dir=str(run.path), trainer_timeout_secs=1.0, **SETTINGS)
    assert time.monotonic() - started > 1.0 and list_versions(run.index) == [10]  # the last snapshot is embedded
    assert caplog.text.count(f"process {dead.pid} on {socket.gethostname()}) was running and is gone") == 1
    assert read_json(run.embedder_status)["state"] == "failed"
    caplog.clear()
    monkeypatch.setattr(module, "TRAINER_SILENT_SECS", 0.3)  # on another host only the silence tells
    _say(run, "running", pid=dead.pid, host="elsewhere")
    with pytest.raises(TimeoutError, match="no sign of life for 1 s"):
        embed(run_dir=str(run.path), trainer_timeout_secs=1.0, **SETTINGS)
    assert caplog.text.count("on elsewhere) was running and has given no sign of life") == 1


def test_a_trainer_that_lives_or_is_started_again_is_followed(run):
    """A status of an earlier, larger run lies there as well, and the trainer's clock is an hour slow."""
    save_snapshot(run, 10, _params(0))
    _say(run, "running", process=1, pid=1, host="elsewhere")
    with _Beside(run, trainer_timeout_secs=1.5) as beside:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            _say(run, "running", pid=os.getpid(), host=socket.gethostname(), updated_at=time.time() - 3600)
            time.sleep(0.1)
        assert beside.error is None
        _say(run, "finished", process=1)
        _say(run, "finished")


def test_sleeps_between_polls(run, monkeypatch):
    looks = []
    original = module.list_snapshots
    monkeypatch.setattr(module, "list_snapshots", lambda run: looks.append(1) or original(run))
    cpu = time.thread_time()
    with pytest.raises(TimeoutError):
        embed(run_dir=str(run.path), **SETTINGS | {"first_snapshot_timeout_secs": 1.0, "poll_secs": 0.2})
    assert 3 <= len(looks) <= 8
    assert time.thread_time() - cpu < 0.5


@pytest.mark.parametrize("as_directory", [True, False])
def test_version_0_from_given_parameters(run, tmp_path, as_directory):
    place = save_snapshot(RunDir(tmp_path / "warm"), 700, _params(3))
    given = str(place if as_directory else place / PARAMS_FILE)
    embed(run_dir=str(run.path), once=True, initial_params=given, **SETTINGS)
    assert list_versions(run.index) == [0]
    # the trainer's own first snapshot of the same parameters finds its index made
    save_snapshot(run, 0, _params(3))
    embed(run_dir=str(run.path), once=True, initial_params=given, **SETTINGS)
    corpus = Corpus.open(run.corpus)
    again = embed_snapshot(run, 0, CONFIG, corpus, document_len=48, batches=SETTINGS["batches"])
    assert again == read_manifest(run.index_version(0))


def test_bad_initial_parameters_are_refused(run, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"x.safetensors is not a safetensors file"):
        embed(run_dir=str(run.path), initial_params=str(tmp_path / "x.safetensors"), **SETTINGS)


def test_wrong_retriever_corpus_or_settings_are_refused(run, tmp_path):
    save_snapshot(run, 10, _params(0))
    wide = RetrieverConfig(ENCODER, projection_size=12)
    with pytest.raises(
        ValueError, match=r"parameter shared_encoder/projection/bias: expected \(12,\), got \(8,\); give"
    ):
        embed(run_dir=str(run.path), **SETTINGS | {"retriever": wide})
    small = RetrieverConfig(TransformerConfig(vocab_size=20, hidden_size=16, num_layers=1, num_heads=2), 8)
    with pytest.raises(ValueError, match=r"knows 20 pieces, the corpus's tokenizer has 31"):
        embed(run_dir=str(run.path), **SETTINGS | {"retriever": small})
    long = BatchSettings(document_len=64)
    with pytest.raises(ValueError, match=r"document_len must be at most the encoder's max_length 48, got 64"):
        embed(run_dir=str(run.path), **SETTINGS | {"batches": long})
    with pytest.raises(ValueError, match=r"no corpus at .*nowhere"):
        embed(run_dir=str(run.path), corpus=str(tmp_path / "nowhere"), **SETTINGS)
    with pytest.raises(ValueError, match=r"embed.poll_secs must be above 0, got 0"):
        embed(run_dir=str(run.path), **SETTINGS | {"poll_secs": 0.0})
    assert list_versions(run.index) == []


def test_diverged_snapshots_are_refused(run):
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, _params(0))
    save_snapshot(run, 10, params)
    with pytest.raises(
        ValueError, match=r"9 of 9 document embeddings are not finite, the first is document 0; the snapshot"
    ):
        embed(run_dir=str(run.path), **SETTINGS)
    assert list_versions(run.index) == []


def test_one_embedder_a_run(run):
    with (
        exclusive(run.status / "embedder.lock", "someone"),
        pytest.raises(
            ValueError, match=rf"another embed job serves this run \(process {os.getpid()} on \S+ holds .*embedder.lock"
        ),
    ):
        embed(run_dir=str(run.path), once=True, **SETTINGS)


_JOB = """
import sys
from realm_jax.models import RetrieverConfig, TransformerConfig
from realm_jax.retrieval import embed_documents
from realm_jax.retrieval.embed import embed
from tests.retrieval.test_embed import SETTINGS
if sys.argv[2] == "slow":
    import time
    original = embed_documents.document_inputs
    embed_documents.document_inputs = lambda *arguments: (time.sleep(0.3), original(*arguments))[1]
embed(run_dir=sys.argv[1], **SETTINGS)
"""


@pytest.mark.faults
def test_a_status_that_cannot_be_written_is_told_of_once(run, monkeypatch, caplog):
    """As on a full disk, while the job only waits: there may be space again when the next snapshot comes."""
    looks, retire = [], module._EmbedJob._retire

    def look(job: Any) -> None:
        retire(job)
        job.status.update(documents_done=len(looks), at_once=True)
        looks.append(json.loads(run.embedder_status.read_text())["documents_done"])
        if len(looks) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(module._EmbedJob, "_retire", look)
    original = module.write_json_atomically
    calls = []

    def full(path: Any, content: Any) -> None:
        calls.append(content["documents_done"])
        if 1 < len(calls) < 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content)

    monkeypatch.setattr(module, "write_json_atomically", full)
    embed(run_dir=str(run.path), **SETTINGS)
    assert looks == [0, 0, 2] and calls[:4] == [0, 0, 1, 2]
    assert caplog.text.count("embedder.json cannot be written, the embed job goes on: [Errno 28] No space left") == 1
    assert read_json(run.embedder_status)["state"] == "finished"


@pytest.mark.faults
def test_sigkill_then_sigterm(run):
    save_snapshot(run, 10, _params(0))
    job = subprocess.Popen([sys.executable, "-c", _JOB, str(run.path), "slow"], stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(lambda: list(run.index_version(10).glob("*/shard.json")), 90)
        with pytest.raises(ValueError, match=rf"another embed job serves this run \(process {job.pid} on"):
            embed(run_dir=str(run.path), **SETTINGS)
    finally:
        job.kill()  # a dead process holds no lock
        job.communicate()
    assert list_versions(run.index) == []
    before = {file: file.stat().st_mtime_ns for file in run.index_version(10).glob("*/shard.json")}
    job = subprocess.Popen([sys.executable, "-c", _JOB, str(run.path), "slow"], stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(lambda: len(list(run.index_version(10).glob("*/shard.json"))) > len(before), 90)
        job.send_signal(signal.SIGTERM)
        _, errors = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 0, errors
    assert list_versions(run.index) == []  # ended between two batches
    assert json.loads(run.embedder_status.read_text())["state"] == "finished"
    embed(run_dir=str(run.path), once=True, **SETTINGS)
    assert list_versions(run.index) == [10]
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_embeds_on_all_devices():
    embedder = Embedder(CONFIG, _params(0))
    assert embedder.num_devices == 8
    ids = np.random.default_rng(0).integers(1, len(VOCAB), size=(16, 24)).astype(np.int32)
    for method in ("embed_documents", "embed_queries"):
        output = getattr(embedder, method)(ids, ids * 0)
        assert len(output.sharding.device_set) == 8
        alone = embed_inputs(_params(0), ids, ids * 0, config=CONFIG, method=method)
        np.testing.assert_allclose(np.asarray(output), np.asarray(alone), atol=2e-5)


def test_lowers_for_accelerators():
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _params(0))
    ids = jax.ShapeDtypeStruct((8, 48), jnp.int32)
    for method in ("embed_documents", "embed_queries"):
        program = jax.jit(lambda p, i, s, method=method: embed_inputs(p, i, s, config=CONFIG, method=method))
        exported = jax.export.export(program, platforms=["tpu", "cuda"])(params, ids, ids)
        assert set(exported.platforms) == {"tpu", "cuda"} and exported.out_avals[0].shape == (8, 8)
