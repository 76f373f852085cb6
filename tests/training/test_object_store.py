"""Runs that lie on an object store, in small, every job that writes there; kills; what is measured and shown afterwards."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from realm_jax.__main__ import main
from realm_jax.evaluation.retrieval import evaluate
from realm_jax.retrieval.embed import embed
from realm_jax.retrieval.manifest import IndexRefused
from realm_jax.retrieval.versions import list_versions, read_manifest, verify
from realm_jax.run_dir import RunDir, read_json
from realm_jax.storage import as_place, put
from realm_jax.training.checkpoint import Checkpoints, list_checkpoints, load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.snapshots import list_snapshots
from tests import object_store, tiny
from tests.training import object_store_run
from tests.training.object_store_run import BATCHES, INDEX, run_realm

Z = "gs://shelf/corpus"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object_store.Objects]:
    with object_store.serving(tmp_path_factory.mktemp("store")) as found:
        local = tmp_path_factory.mktemp("corpus")
        tiny.corpus(local)
        object_store.copy_in(local, Z)
        yield found


@pytest.fixture(scope="module")
def local_run(objects, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run that all others must equal: uninterrupted, on the local disk."""
    run = RunDir.of(tmp_path_factory.mktemp("local") / "run")
    run_realm(str(run.path), Z)
    return run


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on nothing is in the cache."""
    monkeypatch.setenv(object_store.CACHE, str(tmp_path / "another"))


def assert_equal_runs(one: RunDir, other: RunDir) -> None:
    losses = [[(entry["step"], entry["loss"]) for entry in read_metrics(run)] for run in (one, other)]
    assert losses[0] == losses[1]
    params = [load_params(run)[1] for run in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    for version in set(list_versions(one.index)) & set(list_versions(other.index)):
        manifests = [read_manifest(run.index_version(version)) for run in (one, other)]
        assert manifests[0].shards == manifests[1].shards


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)  # it compiles the run three times, once in a process of its own
def test_a_killed_run_goes_on_elsewhere(objects, local_run, monkeypatch, tmp_path):
    run = RunDir.of("gs://bucket/killed")
    store = objects.root.parent
    command = [sys.executable, object_store_run.__file__, str(run.path), Z, str(store), str(tmp_path / "first")]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        deadline = time.monotonic() + 240
        while not objects.keys("bucket/killed/checkpoints/4/commit_success.txt"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    another_machine(monkeypatch, tmp_path)
    assert list_checkpoints(run)[-1] >= 4
    run_realm(str(run.path), Z)
    assert_equal_runs(run, local_run)
    assert list_versions(run.index) == list_versions(local_run.index) == [0, 3]
    assert list_snapshots(run) == [0, 3, 6]
    assert read_json(run.trainer_status(0))["state"] == "finished"
    assert not [key for key in objects.keys("bucket/killed") if "tmp" in key or key.endswith(".lock")]


@pytest.mark.slow
def test_the_embed_job_beside_a_trainer(objects, local_run):
    run = RunDir.of("gs://bucket/beside")
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            embed(
                run_dir=str(run.path), retriever=tiny.realm(Z).retriever, corpus=Z, index=INDEX, batches=BATCHES,
                poll_secs=0.05, progress=False,
            )  # fmt: skip
        except BaseException as error:
            failures.append(error)

    beside = threading.Thread(target=follow, daemon=True)
    beside.start()
    run_realm(str(run.path), Z, embedder="separate")
    beside.join(timeout=120)
    assert not beside.is_alive() and not failures, failures
    assert_equal_runs(local_run, run)
    assert list_versions(run.index) == [3, 6]  # what nobody needs is retired
    assert read_json(run.embedder_status)["state"] == "finished"


def test_a_version_without_its_manifest_is_not_served(objects, local_run):
    run = RunDir.of("gs://bucket/torn")
    object_store.copy_in(Path(local_run.path), str(run.path))
    (run.index_version(3) / "manifest.json").unlink()
    assert list_versions(run.index) == [0]
    with pytest.raises(IndexRefused, match=r"gs://bucket/torn/index/00000003/manifest\.json is missing"):
        verify(run.index_version(3))


def test_evaluation_and_report(objects, local_run, capsys):
    run = RunDir.of("gs://bucket/measured")
    object_store.copy_in(Path(local_run.path), str(run.path))
    settings: dict[str, Any] = {
        "corpus": Z, "x_corpus": Z, "retriever": tiny.realm(Z).retriever, "query_len": 16, "document_len": 24,
        "batch_size": 8, "max_queries": 16,
    }  # fmt: skip
    figures = evaluate(run_dir=str(run.path), **settings)
    expected = evaluate(run_dir=str(local_run.path), **settings)
    assert figures["rows"] == expected["rows"] and "served_index" in figures["rows"]
    assert read_json(run.evaluation("retrieval"))["rows"] == figures["rows"]
    assert main(["report", f"--run_dir={run.path}"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("gs://bucket/measured/report.html")
    assert "<html" in run.report_html.read_text()


def test_gin_files_and_refusals_of_the_command_line(objects, capsys):
    gin = (
        b"from __gin__ import dynamic_registration\nfrom realm_jax.retrieval import embed\nembed.embed.poll_secs = -1\n"
    )
    put(as_place("gs://shelf/run.gin"), gin)
    bindings = ["--gin.embed.retriever=@RetrieverConfig()"]
    assert main(["embed", "--run_dir=gs://bucket/none", "--gin_file=gs://shelf/missing.gin", *bindings]) == 1
    assert "gs://shelf/missing.gin" in capsys.readouterr().err
    assert main(["convert", "--run_dir=gs://bucket/none", "--gin.convert.source=x"]) == 1
    assert "convert's --run_dir: expected a local path, got gs://bucket/none" in capsys.readouterr().err
    assert objects.keys("bucket/none") == []


def _train_ict(run_dir: str, num_steps: int) -> None:
    train(
        run_dir=run_dir,
        task=tiny.ict(Z),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        num_steps=num_steps,
        batch_size=8,
        checkpoint_every_steps=2,
    )


@pytest.mark.slow
def test_checkpoints_where_orbax_cannot_write(objects, monkeypatch, tmp_path):
    run, local = RunDir.of("s3://bucket/ict"), RunDir.of(tmp_path / "local")
    _train_ict(str(local.path), 6)
    _train_ict(str(run.path), 4)
    assert list_checkpoints(run) == [2, 4]
    objects.file("bucket/ict/checkpoints/4/_CHECKPOINT_METADATA").unlink()  # as if killed in the midst of the upload
    another_machine(monkeypatch, tmp_path)
    assert list_checkpoints(run) == [2]
    _train_ict(str(run.path), 6)
    assert list_checkpoints(run) == [4, 6]
    assert [entry["step"] for entry in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    jax.tree.map(np.testing.assert_array_equal, load_params(run)[1], load_params(local)[1])
    # a damaged one is put aside, and the one before it serves
    objects.put("bucket/ict/checkpoints/6/meta/metadata", b"{torn")
    _train_ict(str(run.path), 8)
    assert list_checkpoints(run) == [6, 8]
    assert objects.keys("bucket/ict/checkpoints/damaged-6-")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes cannot write checkpoints to s3://bucket/ict/checkpoints; use"):
        Checkpoints(run)


def test_a_damaged_checkpoint_is_put_aside(objects):
    run = RunDir.of("gs://bucket/torn_ict")
    _train_ict(str(run.path), 4)
    objects.put("bucket/torn_ict/checkpoints/4/meta/metadata", b"{torn")
    _train_ict(str(run.path), 6)
    assert list_checkpoints(run) == [4, 6]
    assert objects.keys("bucket/torn_ict/checkpoints/damaged-4-")
