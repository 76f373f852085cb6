"""The loop, whole: a run that is stopped or killed and resumed equals one that is not."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from realm_jax.jobs import Preempted
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.versions import list_versions, read_manifest
from realm_jax.run_dir import RunDir, read_json
from realm_jax.run_lock import InUse, exclusive
from realm_jax.tasks.ict import Ict
from realm_jax.training import refresh as refresh_module
from realm_jax.training.checkpoint import Checkpoints, load_params
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.recorder import NonFiniteUpdate
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.snapshots import list_snapshots
from realm_jax.training.stop_requests import StopRequests
from tests import tiny
from tests.training.realm_run import EmbedThread, run_realm

TIMES = ("_ms", "_secs", "per_sec", "time", "mfu", "wait")
SCRIPT = Path(__file__).with_name("realm_run.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def lines(run):
    """metrics.jsonl without what the clock decides."""
    written = [json.loads(line) for line in RunDir.of(run).metrics_jsonl.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(part in k for part in TIMES)} for line in written]


def same_params(one, other, step=None):
    params = [load_params(RunDir.of(run), step)[1] for run in (one, other)]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), *params)


# --- ICT


@dataclasses.dataclass(frozen=True)
class StoppedIct:
    """ICT whose examples of one step send this process a SIGTERM, as a preempted machine gets one, or others."""

    ict: Ict
    stop_at: int
    signals: tuple[int, ...] = (signal.SIGTERM,)

    def build(self, seed):
        task = self.ict.build(seed)

        def examples(step, batch_size, rows):
            if step == self.stop_at:
                for number in self.signals:
                    os.kill(os.getpid(), number)
                    time.sleep(0.2)  # the main thread gets one before the next comes
            return task.examples(step, batch_size, rows)

        return task._replace(examples=examples)


def run_ict(run, corpus, task=None, **changes):
    settings = {
        "run_dir": str(run),
        "task": task or tiny.ict(corpus.directory),
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        "num_steps": 6,
        "batch_size": 8,
    } | changes
    return train(**settings)


@pytest.fixture(scope="module")
def other_pieces(corpus, tmp_path_factory):
    """The same documents by a tokenizer that gives two of the words each other's number."""
    words = list(tiny.WORDS)
    words[0], words[1] = words[1], words[0]
    return tiny.corpus(tmp_path_factory.mktemp("corpus") / "other", words=words)


@pytest.fixture(scope="module")
def whole_ict(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("ict")
    figures = run_ict(run, corpus)
    assert figures["loss"] == lines(run)[-1]["loss"]
    return run


def test_ict_stopped_and_resumed_is_the_run_that_was_not(corpus, whole_ict, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"stopped by SIGTERM at step \d of 6; the same command goes on"):
        run_ict(tmp_path, corpus, StoppedIct(tiny.ict(corpus.directory), 4))
    assert signal.getsignal(signal.SIGTERM) is before
    checkpoints = Checkpoints(RunDir.of(tmp_path))
    stopped_at = checkpoints.latest_step()
    checkpoints.close()
    assert stopped_at is not None and 1 < stopped_at < 6  # SIGTERM wrote it: none was due
    assert read_json(RunDir.of(tmp_path).trainer_status(0))["state"] == "failed"
    assert len(lines(tmp_path)) == stopped_at
    with RunDir.of(tmp_path).metrics_jsonl.open("a") as file:  # a line that a killed run wrote after its checkpoint
        file.write(json.dumps({"step": stopped_at + 1, "loss": 123.0}) + "\n")
    run_ict(tmp_path, corpus)
    assert lines(tmp_path) == lines(whole_ict) and len(lines(tmp_path)) == 6
    same_params(tmp_path, whole_ict)
    assert read_json(RunDir.of(tmp_path).trainer_status(0))["state"] == "finished"


@pytest.mark.faults
def test_the_first_ctrl_c_ends_a_run_with_a_checkpoint(corpus, whole_ict, tmp_path, caplog):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_ict(tmp_path, corpus, StoppedIct(tiny.ict(corpus.directory), 4, (signal.SIGINT,)))
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C: stopping after the step in progress, with a checkpoint; Ctrl-C again to stop at once" in caplog.text
    run = RunDir.of(tmp_path)
    (stopped_at,) = (int(step.name) for step in run.checkpoints.iterdir())
    assert 1 < stopped_at < 6 and f"Ctrl-C: checkpoint of step {stopped_at} written" in caplog.text
    assert read_json(run.trainer_status(0))["state"] == "failed" and len(lines(tmp_path)) == stopped_at
    run_ict(tmp_path, corpus)
    assert lines(tmp_path) == lines(whole_ict)
    same_params(tmp_path, whole_ict)


@pytest.mark.parametrize(
    ("numbers", "name", "reason"),
    [
        ((signal.SIGTERM,), "SIGTERM", Preempted),
        ((signal.SIGTERM, signal.SIGTERM), "SIGTERM", Preempted),
        ((signal.SIGINT,), "Ctrl-C", KeyboardInterrupt),
        ((signal.SIGINT, signal.SIGTERM), "Ctrl-C", KeyboardInterrupt),
        ((signal.SIGTERM, signal.SIGINT), "SIGTERM", Preempted),
    ],
)
def test_what_asked_a_run_to_stop(numbers, name, reason):
    stop = StopRequests()
    stop.listen()
    try:
        assert not stop.after_step(1) and not stop.while_waiting()
        for number in numbers:
            signal.raise_signal(number)
        assert stop.after_step(1) and stop.while_waiting() and stop.name == name
        with pytest.raises(reason):
            stop.raise_reason(1, num_steps=2)
        with pytest.raises(KeyboardInterrupt) if reason is KeyboardInterrupt else contextlib.nullcontext():
            stop.raise_reason(2, num_steps=2)  # all is done
        if signal.SIGINT in numbers:
            with pytest.raises(KeyboardInterrupt):  # the second one is obeyed at once
                signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()


def test_a_run_deaf_to_ctrl_c_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequests()
    try:
        stop.listen()
        signal.raise_signal(signal.SIGINT)
        assert not stop.after_step(1)
    finally:
        stop.restore()
        signal.signal(signal.SIGINT, before)


def test_a_second_trainer_is_refused_before_it_changes_anything(corpus, whole_ict, tmp_path):
    run = RunDir.of(shutil.copytree(whole_ict, tmp_path / "run"))
    with exclusive(run.trainer_lock, "the first"):
        before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
        with pytest.raises(
            InUse, match=rf"another trainer is at work in this run \(process {os.getpid()} on .*wait for it"
        ):
            run_ict(run.path, corpus, num_steps=7)
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    run_ict(run.path, corpus, num_steps=7)
    assert lines(run)[-1]["step"] == 7 and not run.trainer_lock.exists()


@pytest.mark.slow
def test_a_learner_frozen_for_the_whole_run_is_warned_of(corpus, tmp_path, caplog):
    optimizer = OptimizerConfig(frozen_steps=(("retriever", 2),))
    run_ict(tmp_path, corpus, optimizer=optimizer, num_steps=2)
    assert (
        "the retriever will not learn: it is frozen for the first 2 steps (OptimizerConfig.frozen_steps) and the run has 2"
        in caplog.text
    )
    caplog.clear()
    run_ict(tmp_path, corpus, optimizer=optimizer, num_steps=3)
    assert "will not learn" not in caplog.text


def test_the_metrics_of_a_run(whole_ict):
    first, *_, last = lines(whole_ict)
    assert [line["step"] for line in lines(whole_ict)] == [1, 2, 3, 4, 5, 6]
    assert first["learning_rate"] == pytest.approx(0.005) and last["learning_rate"] == pytest.approx(0.01 * 1 / 4)
    assert {"loss", "grad_norm", "in_batch_accuracy"} <= set(last) and 0 <= last["in_batch_accuracy"] <= 1
    raw = json.loads(RunDir.of(whole_ict).metrics_jsonl.read_text().splitlines()[-1])
    assert raw["examples_per_sec"] > 0 and raw["tokens_per_sec"] == pytest.approx(
        44 * raw["examples_per_sec"], rel=1e-3
    )


def test_a_finished_run_has_nothing_to_do(corpus, whole_ict):
    assert run_ict(whole_ict, corpus) == {}
    assert len(lines(whole_ict)) == 6


def test_what_does_not_fit_is_refused_before_anything_is_compiled(corpus, whole_ict, tmp_path):
    with pytest.raises(ValueError, match=r"task ict takes its negatives from the whole batch.*accumulation_steps=1"):
        run_ict(tmp_path, corpus, accumulation_steps=2)
    with pytest.raises(ValueError, match=r"batch_size=8 does not divide into accumulation_steps=3"):
        run_ict(tmp_path, corpus, accumulation_steps=3)
    with pytest.raises(ValueError, match=r"batch_size=12 does not divide over 8 devices"):
        run_ict(tmp_path / "a", corpus, batch_size=12)
    with pytest.raises(ValueError, match=r"mesh data=3 .* does not cover 8 devices"):
        run_ict(tmp_path, corpus, mesh=MeshConfig(data=3))
    with pytest.raises(ValueError, match=r"learner_rates names \['reader'\]; this task's learners: retriever"):
        run_ict(tmp_path, corpus, optimizer=OptimizerConfig(learner_rates=(("reader", 1e-3),)))


@pytest.mark.parametrize(
    "name", ["num_steps", "batch_size", "accumulation_steps", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps"]
)  # fmt: skip
def test_counts_are_at_least_one(name, corpus, tmp_path):
    with pytest.raises(ValueError, match=rf"expected train.{name} of at least 1, got 0"):
        run_ict(tmp_path / "run", corpus, **{name: 0})
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_examples_that_it_began_with(corpus, other_pieces, whole_ict, tmp_path):
    """The data position is (seed, step, batch_size) over a corpus: none of them may change under a checkpoint."""
    run = shutil.copytree(whole_ict, tmp_path / "run")
    for changes, message in (
        ({"seed": 9}, "with seed=0, this run has seed=9"),
        ({"batch_size": 16}, "with batch_size=8, this run has batch_size=16"),
        ({"task": tiny.ict(other_pieces.directory)}, "with tokenizer=.*, this run has tokenizer="),
    ):
        with pytest.raises(ValueError, match=message + r".*use the settings that it began with, or another --run_dir"):
            run_ict(run, corpus, num_steps=8, **changes)
    run_ict(run, corpus, num_steps=7)
    assert lines(run)[-1]["step"] == 7


def test_warm_starts(corpus, other_pieces, whole_ict, tmp_path):
    with pytest.raises(
        ValueError, match=r"was trained on the pieces of tokenizer .*, the corpus has .*; build the corpus"
    ):
        run_ict(tmp_path / "d", corpus, tiny.ict(other_pieces.directory), warm_start=(str(whole_ict),))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run_ict(tmp_path / "a", corpus, warm_start=(str(tmp_path / "nothing"),))
    wide = dataclasses.replace(tiny.ict(corpus.directory), retriever=tiny.retriever(projection_size=8))
    with pytest.raises(ValueError, match=r"the retriever has other shapes than this run's"):
        run_ict(tmp_path / "b", corpus, wide, warm_start=(str(whole_ict),))
    rate = OptimizerConfig(learning_rate=1e-30, warmup_steps=0, weight_decay=0.0)
    run_ict(tmp_path / "c", corpus, warm_start=(str(whole_ict),), num_steps=1, optimizer=rate)
    same_params(tmp_path / "c", whole_ict)


@dataclasses.dataclass(frozen=True)
class BrokenIct:
    """ICT whose loss is not finite at the steps that it is told."""

    ict: Ict
    broken: tuple[int, ...]

    def build(self, seed):
        task = self.ict.build(seed)

        def examples(step, batch_size, rows):
            batch = task.examples(step, batch_size, rows)
            # an id beyond the table gives NaN embeddings
            bad = step in self.broken
            return batch._replace(query=batch.query._replace(ids=batch.query.ids + (10_000 if bad else 0)))

        return task._replace(examples=examples)


def test_a_loss_that_is_not_finite(corpus, tmp_path):
    task = BrokenIct(tiny.ict(corpus.directory), (1, 2))
    with pytest.raises(NonFiniteUpdate, match=r"step 1: loss nan.*was not applied and the run stops"):
        run_ict(tmp_path / "stop", corpus, task, checkpoint_every_steps=1)
    assert load_params(RunDir.of(tmp_path / "stop"))[0] == 1  # the last finite state is kept
    run_ict(
        tmp_path / "skip", corpus, task, num_steps=4, non_finite="skip", checkpoint_every_steps=1, keep_checkpoints=9
    )
    same_params_of_steps = [load_params(RunDir.of(tmp_path / "skip"), step)[1] for step in (1, 3)]
    jax.tree.map(np.testing.assert_array_equal, *same_params_of_steps)
    assert lines(tmp_path / "skip")[-1]["skipped_updates"] == 2.0
    with pytest.raises(NonFiniteUpdate, match=r"more than max_skipped_updates=1 updates were skipped"):
        run_ict(tmp_path / "more", corpus, task, non_finite="skip", max_skipped_updates=1)


# --- REALM


@pytest.fixture(scope="module")
def whole_realm(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("realm")
    with EmbedThread(str(run), str(corpus.directory)):
        run_realm(str(run), str(corpus.directory))
    return run


def test_a_synchronous_run(whole_realm):
    written = lines(whole_realm)
    assert [line["index_version"] for line in written] == [0, 0, 0, 3, 3, 3]
    assert [line["index_age_steps"] for line in written] == [0, 1, 2, 0, 1, 2]
    for name in ("retrieval_utility", "null_document_prob", "retrieval_entropy", "learning_rate_retriever"):
        assert all(np.isfinite(line[name]) for line in written), name
    raw = json.loads(RunDir.of(whole_realm).metrics_jsonl.read_text().splitlines()[-1])
    assert {
        "selection_age_steps",
        "search_ms",
        "retrieval_wait_ms",
        "swap_pause_ms",
        "index_age_secs",
        "tokens_per_sec",
    } <= set(raw)
    swaps = [json.loads(line) for line in (RunDir.of(whole_realm).metrics / "swaps.jsonl").read_text().splitlines()]
    assert [(swap["step"], swap["version"]) for swap in swaps] == [(0, 0), (3, 3)]
    assert list_snapshots(RunDir.of(whole_realm)) == [0, 3, 6]
    status = read_json(RunDir.of(whole_realm).trainer_status(0))
    assert status["state"] == "finished" and status["index_version"] == 3 and status["kept_versions"] == [3]


def test_an_embedder_inside_the_trainer_makes_the_same_run(corpus, whole_realm, tmp_path):
    """The same versions, so the same candidates, parameters and metrics to the bit."""
    refresh = RefreshConfig(
        mode="synchronous", embedder="in_trainer", snapshot_every_steps=3, timeout_secs=120.0, poll_secs=0.02,
        index=IndexSettings(backend="exact"), batches=BatchSettings(batch_size=8, num_lengths=1, query_len=16),
    )  # fmt: skip
    run_realm(str(tmp_path), str(corpus.directory), refresh=refresh)
    assert lines(tmp_path) == lines(whole_realm)
    same_params(tmp_path, whole_realm)
    run = RunDir.of(tmp_path)
    manifests = [read_manifest(run.index_version(version)) for version in list_versions(run.index)]
    assert [manifest.version for manifest in manifests] == [0, 3] and manifests[1].num_documents == 40
    assert list_snapshots(run) == [0, 3, 6]


@pytest.mark.slow
def test_a_recorded_asynchronous_run_is_replayed_to_the_bit(corpus, tmp_path):
    recorded, replayed = tmp_path / "recorded", tmp_path / "replayed"
    place = str(corpus.directory)
    with EmbedThread(str(recorded), place):
        run_realm(
            str(recorded), place, 10, "asynchronous",
            refresh=RefreshConfig(snapshot_every_steps=2, poll_secs=0.02, max_index_age_steps=4, timeout_secs=120.0),
        )  # fmt: skip
    swaps = RunDir.of(recorded).metrics / "swaps.jsonl"
    versions = [json.loads(line)["version"] for line in swaps.read_text().splitlines()]
    assert versions[0] == 0 and len(versions) >= 3  # an age of at most 4 takes two swaps in ten steps
    with EmbedThread(str(replayed), place) as embedder:
        run_realm(
            str(replayed), place, 10,
            refresh=RefreshConfig(mode="replay", replay_file=str(swaps), timeout_secs=120.0, poll_secs=0.02),
        )  # fmt: skip
    assert set(embedder.built) - {10} == set(versions)  # only what is swapped in is made, and after the last step one
    assert lines(replayed) == lines(recorded)
    same_params(replayed, recorded)
    again = [json.loads(line) for line in (RunDir.of(replayed).metrics / "swaps.jsonl").read_text().splitlines()]
    assert [swap["version"] for swap in again] == versions


def start_process(run, corpus, devices=8, *more):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(run), str(corpus.directory), str(devices), *map(str, more)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-3000:]


@pytest.mark.faults
def test_a_killed_run_goes_on_as_if_nothing_had_happened(corpus, whole_realm, tmp_path):
    process = start_process(tmp_path, corpus)
    end = time.monotonic() + 200
    while not (tmp_path / "checkpoints" / "4").exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(InUse, match=f"process {process.pid} on"):
        run_realm(str(tmp_path), str(corpus.directory))
    process.kill()  # and its lock goes with it
    process.communicate()
    with EmbedThread(str(tmp_path), str(corpus.directory)):
        run_realm(str(tmp_path), str(corpus.directory))
    assert lines(tmp_path) == lines(whole_realm)
    same_params(tmp_path, whole_realm)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_killed_at_any_instant(corpus, whole_realm, tmp_path):
    rng = random.Random(0)
    for _ in range(6):
        process = start_process(tmp_path, corpus)
        try:
            process.wait(timeout=rng.uniform(5, 25))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    finish(start_process(tmp_path, corpus))
    assert lines(tmp_path) == lines(whole_realm)
    same_params(tmp_path, whole_realm)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_eight_devices_to_four(corpus, tmp_path):
    """Sums run in another order on another mesh: after three steps of Adam on four devices none of the 25 200 parameters
    differed by more than 5e-6 (jax 0.10.2, CPU). Held to 1e-4, for other versions sum in orders of their own."""
    finish(start_process(tmp_path, corpus, 8, 3))
    finish(start_process(tmp_path, corpus, 4, 6))
    # num_steps is in the schedule, so the first part differs from the whole run's: compare with its like
    other = tmp_path / "other"
    finish(start_process(other, corpus, 8, 3))
    finish(start_process(other, corpus, 8, 6))
    one, two = (load_params(RunDir.of(run))[1] for run in (tmp_path, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), one, two)


def test_an_asynchronous_run_swaps_and_resumes_beside_its_own_leftovers(corpus, tmp_path):
    """Its snapshots differ from those that the killed attempt wrote: they are replaced, not taken for another run's."""
    run = RunDir.of(tmp_path)
    place = str(corpus.directory)
    with EmbedThread(str(tmp_path), place):
        run_realm(str(tmp_path), place, 3, "asynchronous", checkpoint_every_steps=1)
    # what a killed run left: a snapshot and an index of a later step, of other parameters
    later = jax.tree.map(lambda leaf: leaf + 1, load_params(run)[1]["retriever"])
    from realm_jax.training.snapshots import save_snapshot

    save_snapshot(run, 6, later)
    tiny.build_index(run, 6, tiny.realm(corpus.directory).retriever, corpus)
    with EmbedThread(str(tmp_path), place):
        run_realm(
            str(tmp_path), place, 9, "asynchronous",
            refresh=RefreshConfig(snapshot_every_steps=3, poll_secs=0.02, max_index_age_steps=4, timeout_secs=120.0),
        )  # fmt: skip
    written = lines(tmp_path)
    assert [line["step"] for line in written] == list(range(1, 10))
    ages = [line["index_age_steps"] for line in written]
    assert min(ages) >= 0 and max(ages) <= 4
    versions = [line["index_version"] for line in written]
    assert versions == sorted(versions) and set(versions) <= {0, 3, 6}


def test_an_index_that_grows_too_old_stops_the_run(corpus, tmp_path):
    run = RunDir.of(tmp_path)
    with EmbedThread(str(tmp_path), str(corpus.directory)) as embedder:

        def only_the_first(run_dir):
            return [step for step in original(run_dir) if step == 0]

        original, tiny.missing_versions = tiny.missing_versions, only_the_first
        try:
            with pytest.raises(TimeoutError, match=r"step 3: index 00000000 is older than max_index_age_steps=2"):
                run_realm(
                    str(tmp_path), str(corpus.directory), 6, "asynchronous",
                    refresh=RefreshConfig(snapshot_every_steps=3, poll_secs=0.02, max_index_age_steps=2, when_too_old="stop"),
                )  # fmt: skip
        finally:
            tiny.missing_versions = original
    assert embedder.built == [0] or embedder.built[0] == 0
    assert read_json(run.trainer_status(0))["state"] == "failed"


def test_without_an_embed_job_the_run_says_so(corpus, tmp_path):
    refresh = RefreshConfig(mode="synchronous", timeout_secs=0.2, poll_secs=0.02)
    with pytest.raises(
        TimeoutError, match=r"no index version 00000000 was published within 0 s; is the embed job running"
    ):
        run_realm(str(tmp_path), str(corpus.directory), refresh=refresh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snapshot_every_steps": 0}, "must be at least 1"),
        ({"embedder": "in_trainer"}, "cannot be asynchronous"),
        ({"mode": "replay"}, "replay_file goes with mode='replay'"),
        ({"replay_file": "x"}, "replay_file goes with mode='replay'"),
    ],
)
def test_refresh_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        RefreshConfig(**changes)


# --- SIGTERM while there is no index


class Awaited(EmbedThread):
    """Builds version 0 at most; sends SIGTERM when the trainer has handed out the snapshot that it will then wait for."""

    def __init__(self, run_dir, corpus_dir, step):
        super().__init__(run_dir, corpus_dir)
        self.step = step

    def run(self):
        if self.step > 0:
            wait_until(lambda: list_snapshots(self.run_dir) == [0])
            tiny.build_index(
                self.run_dir, 0, tiny.realm(self.corpus.directory).retriever, self.corpus, self.backend
            )  # fmt: skip
        wait_until(lambda: self.step in list_snapshots(self.run_dir))
        time.sleep(0.2)  # the wait has begun; an earlier signal would be seen there all the same
        os.kill(os.getpid(), signal.SIGTERM)


def wait_until(condition, secs=60.0):
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("checkpoint_every", "kept"), [(2, [2, 3]), (3, [3])])
def test_stopped_while_waiting_for_a_refresh_and_resumed(
    corpus, whole_realm, tmp_path, caplog, checkpoint_every, kept
):  # fmt: skip
    place, before = str(corpus.directory), signal.getsignal(signal.SIGTERM)
    started = time.monotonic()
    with Awaited(str(tmp_path), place, 3), pytest.raises(Preempted, match="at step 3 of"):
        run_realm(str(tmp_path), place, checkpoint_every_steps=checkpoint_every)
    assert time.monotonic() - started < 100  # the time-out is 120 s
    assert (
        "SIGTERM while waiting for index version 00000003; start the same command to go on from step 3" in caplog.text
    )
    assert signal.getsignal(signal.SIGTERM) is before
    run = RunDir.of(tmp_path)
    assert sorted(int(step.name) for step in run.checkpoints.iterdir()) == kept
    status = read_json(run.trainer_status(0))
    assert (status["state"], status["step"], status["kept_versions"]) == ("failed", 3, [0])
    assert len(lines(tmp_path)) == 3
    with EmbedThread(str(tmp_path), place):
        run_realm(str(tmp_path), place)
    assert lines(tmp_path) == lines(whole_realm)
    same_params(tmp_path, whole_realm)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("embedder", ["separate", "in_trainer"])
def test_stopped_while_waiting_for_the_first_index(corpus, whole_realm, tmp_path, caplog, embedder, monkeypatch):
    place = str(corpus.directory)
    refresh = RefreshConfig(
        mode="synchronous", embedder=embedder, snapshot_every_steps=3, timeout_secs=120.0, poll_secs=0.02,
        index=IndexSettings(backend="exact"), batches=BatchSettings(batch_size=8, num_lengths=1, query_len=16),
    )  # fmt: skip
    if embedder == "separate":
        with Awaited(str(tmp_path), place, 0), pytest.raises(Preempted, match="at step 0 of"):
            run_realm(str(tmp_path), place, refresh=refresh)
    else:  # the signal comes while the trainer embeds
        original = refresh_module.embed_snapshot

        def signalled(*arguments, **settings):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **settings)

        monkeypatch.setattr(refresh_module, "embed_snapshot", signalled)
        with pytest.raises(Preempted, match="at step 0 of"):
            run_realm(str(tmp_path), place, refresh=refresh)
        monkeypatch.undo()
    assert (
        "SIGTERM while waiting for index version 00000000; start the same command to go on from step 0" in caplog.text
    )
    run = RunDir.of(tmp_path)
    assert not list(run.checkpoints.iterdir()) and read_json(run.trainer_status(0))["state"] == "failed"
    with EmbedThread(str(tmp_path), place):
        run_realm(str(tmp_path), place)
    assert lines(tmp_path) == lines(whole_realm)
    same_params(tmp_path, whole_realm)
