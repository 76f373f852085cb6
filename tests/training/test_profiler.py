"""A trace of some steps of a run."""

import subprocess
import sys

import pytest

from realm_jax.run_dir import RunDir
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.profiler import Profiler
from tests import tiny


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def trained(run, corpus, num_steps, profile_steps, **changes):
    train(
        run_dir=str(run),
        task=tiny.ict(corpus.directory),
        optimizer=OptimizerConfig(warmup_steps=0, decay="constant"),
        num_steps=num_steps,
        batch_size=8,
        profile_steps=profile_steps,
        **changes,
    )
    return sorted(RunDir.of(run).profile.glob("plugins/profile/*/*.xplane.pb"))


TRACED = """
import logging
import sys

from realm_jax.corpus.store import Corpus
from tests.training.test_profiler import trained

if __name__ == "__main__":
    logging.basicConfig(level="INFO", force=True)
    trained(sys.argv[1], Corpus.open(sys.argv[2]), 4, (1, 2))
"""
"""A process of its own, as a training is: a tracer of native code that fell would take the other tests along."""


def test_steps_are_traced_once(corpus, tmp_path):
    script = tmp_path / "traced.py"
    script.write_text(TRACED)
    done = subprocess.run(
        [sys.executable, script, tmp_path, corpus.directory], stderr=subprocess.PIPE, text=True, timeout=280
    )
    assert done.returncode == 0 and "trace written to" in done.stderr, done.stderr
    (trace,) = RunDir.of(tmp_path).profile.glob("plugins/profile/*/*.xplane.pb")
    content = trace.read_bytes()
    assert len(content) > 1000 and b"train_step" in content
    assert b"$loop.py" not in content  # Python's calls, which tracing would hook into every thread for
    assert trained(tmp_path, corpus, 5, (1, 2)) == [trace]  # resumed beyond them


@pytest.mark.slow
def test_a_trace_beyond_the_end_is_written_too(corpus, tmp_path):
    assert len(trained(tmp_path, corpus, 2, (1, 9))) == 1


def test_no_steps_no_trace(corpus, tmp_path):
    assert trained(tmp_path, corpus, 1, None) == [] and not RunDir.of(tmp_path).profile.exists()


@pytest.mark.parametrize("steps", [(3, 2), (-1, 4)])
def test_what_is_no_range_is_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=r"train.profile_steps: expected a first and a last step, such as \(10, 12\)"):
        Profiler(tmp_path, steps)
