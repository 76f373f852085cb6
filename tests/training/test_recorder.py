"""The record of swaps, from which a run can be replayed, and the times of steps that share a line of metrics."""

import json

import jax.numpy as jnp
import pytest

from realm_jax.retrieval.hot_swap import Swap
from realm_jax.retrieval.look_ahead import Prepared
from realm_jax.run_dir import RunDir
from realm_jax.training import recorder as recorder_module
from realm_jax.training.metrics import read_metrics
from realm_jax.training.recorder import Recorder
from tests import tiny
from tests.full_disk import file_size_limit


@pytest.fixture
def make(tmp_path):
    task = tiny.ict(tiny.corpus(tmp_path / "z").directory).build(0)
    made = []

    def make(first_step, log_every_steps=1):
        made.append(
            Recorder(
                RunDir.of(tmp_path / "run"), task, batch_size=8, first_step=first_step, num_steps=20,
                log_every_steps=log_every_steps, non_finite="stop", max_skipped_updates=0,
            )
        )  # fmt: skip
        return made[-1]

    yield make
    for recorder in made:
        recorder.close()


@pytest.fixture
def recorded(tmp_path):
    def read():
        lines = (tmp_path / "run" / "metrics" / "swaps.jsonl").read_text().splitlines()
        return [(swap["step"], swap["version"]) for swap in map(json.loads, lines)]

    return read


def test_a_resumed_run_forgets_the_swaps_that_it_will_do_again(make, recorded):
    recorder = make(0)
    for step, version in ((0, 0), (4, 2), (9, 6)):
        recorder.swapped(Swap(step, version, 1.0, 0.5), step)
    recorder.swapped(None, 10)
    assert recorded() == [(0, 0), (4, 2), (9, 6)]
    resumed = make(8)
    resumed.swapped(Swap(0, 2, 0.0, 0.5), 8)  # the version that the checkpoint names is loaded again
    resumed.swapped(Swap(11, 6, 1.0, 0.5), 11)
    assert recorded() == [(0, 0), (4, 2), (8, 2), (11, 6)]


@pytest.mark.faults
def test_a_full_disk_delays_the_record_and_tears_no_line(make, recorded, caplog):
    recorder = make(0)
    recorder.swapped(Swap(0, 0, 1.0, 0.5), 0)
    with file_size_limit(50):
        recorder.swapped(Swap(4, 2, 1.0, 0.5), 4)
    assert "the swap at step 4 cannot be recorded, training goes on: [Errno 27] File too large" in caplog.text
    assert recorded() == [(0, 0)]
    recorder.swapped(Swap(9, 6, 1.0, 0.5), 9)
    assert recorded() == [(0, 0), (4, 2), (9, 6)]


def test_the_slowest_of_the_steps_that_a_line_covers(make, tmp_path, monkeypatch):
    recorder = make(0, log_every_steps=3)
    begin = recorder._now
    monkeypatch.setattr(recorder_module, "_wait", lambda figures: ({"finite": 1.0}, begin + float(figures["done_at"])))
    for step, done_at in enumerate((1.0, 1.5, 4.5, 4.75, 5.0, 5.5)):
        prepared = Prepared(step, None, None, begin, 0.0)
        recorder.dispatched(
            step, {"done_at": jnp.float32(done_at)}, prepared, None, is_timed=step != 3
        )  # step 3 is compiled first
    recorder.drain(keep=0)
    figures = [(line["step"], line["step_secs"], line["step_secs_max"]) for line in read_metrics(tmp_path / "run")]
    assert figures == [
        (3, pytest.approx(1.0), pytest.approx(3.0)),
        (6, pytest.approx(0.375), pytest.approx(0.5)),
    ]
