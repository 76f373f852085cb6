"""One line of progress: log lines without a terminal, a line drawn in place on one."""

import io
import logging

from realm_jax.training.progress import ProgressBar, progress_figures
from tests.training.manual_clock import ManualClock


def test_progress_without_a_terminal_is_log_lines(caplog):
    clock = ManualClock()
    caplog.set_level(logging.INFO, "realm_jax.training.progress")
    with ProgressBar(100, initial_step=20, log_every_secs=10, clock=clock) as bar:
        for step in range(21, 101):
            clock.now += 1.0
            bar.update(step, {"loss": 2.0, "index_version": 15, "index_age_steps": 6})
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "train 21/100, 01:19 left, loss 2.000, index 15 (6 steps old)"
    assert len(lines) == 9 and lines[-1].startswith("train 100/100, 00:00 left")


def test_the_time_left_leaves_compiling_out(caplog):
    clock = ManualClock()
    caplog.set_level(logging.INFO, "realm_jax.training.progress")
    with ProgressBar(100, log_every_secs=0, clock=clock) as bar:
        clock.now += 60.0  # the first index, and compiling
        bar.leave_out(60.0)
        bar.update(1, {})
        for step in (2, 3):
            clock.now += 1.0
            bar.update(step, {})
        clock.now += 30.0  # another length is compiled
        bar.leave_out(30.0)
        bar.update(4, {})
    assert [record.getMessage() for record in caplog.records] == [
        "train 1/100, ? left, ", "train 2/100, 01:38 left, ", "train 3/100, 01:37 left, ", "train 4/100, 01:36 left, ",
    ]  # fmt: skip


class Terminal(io.StringIO):
    """A file in memory that says that it is a terminal."""

    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line():
    terminal = Terminal()
    with ProgressBar(50, description="realm", stream=terminal) as bar:
        bar.update(25, {"loss": 1.5, "retrieval_utility": -0.25})
        bar._bar.refresh()
    assert "realm  50% |" in terminal.getvalue() and "25/50" in terminal.getvalue()
    assert "00:00 left, loss 1.500, utility -0.250" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1  # the end of the bar


def test_no_index_yet_is_not_shown():
    assert progress_figures({"index_version": -1, "loss": 1.0}) == "loss 1.000"
