"""The record of swaps, from which a run can be replayed."""

import json

import pytest

from realm_jax.retrieval.hot_swap import Swap
from realm_jax.run_dir import RunDir
from realm_jax.training.recorder import Recorder
from tests import tiny
from tests.full_disk import file_size_limit


@pytest.fixture
def make(tmp_path):
    task = tiny.ict(tiny.corpus(tmp_path / "z").directory).build(0)
    made = []

    def make(first_step):
        made.append(
            Recorder(
                RunDir.of(tmp_path / "run"), task, batch_size=8, first_step=first_step, num_steps=20, log_every_steps=1,
                non_finite="stop", max_skipped_updates=0,
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
