"""What a run shows while it runs: one line of steps, time left and the figures that matter."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)


class ProgressBar:
    """One line of progress: steps, time left, and the figures that matter; plain log lines when nobody watches.

    On a terminal the line is redrawn in place; elsewhere (a file, a pipe) a line is logged every `log_every_secs`.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        description: str = "train",
        *,
        log_every_secs: int | float = 15.0,
        stream: Any = None,  # a text stream; standard error when None
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._initial, self._description = total_steps, initial_step, description
        self._log_every_secs, self._clock = log_every_secs, clock
        self._started = clock()
        self._left_out_secs, self._left_out_steps = 0.0, 0
        self._logged: float | None = None
        self._bar: Any = None
        stream = stream or sys.stderr
        if stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=initial_step,
                desc=description,
                file=stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt} {elapsed}{postfix}",
            )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows that `step` steps are done. Call it when figures are at hand, not only every n steps."""
        now = self._clock()
        figures = f"{self._time_left(step, now)} left, {progress_figures(metrics)}"
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._logged is None or now - self._logged >= self._log_every_secs or step >= self._total:
            self._logged = now
            logger.info("%s %d/%d, %s", self._description, step, self._total, figures)

    def leave_out(self, secs: float) -> None:
        """Leaves a step that took `secs` out of the rate: it was compiled first, and the next ones will not be."""
        self._left_out_secs += secs
        self._left_out_steps += 1

    def _time_left(self, step: int, now: float) -> str:
        steps = step - self._initial - self._left_out_steps
        if step >= self._total:
            return _clock_time(0.0)
        if steps <= 0:
            return "?"
        return _clock_time((now - self._started - self._left_out_secs) / steps * (self._total - step))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def progress_figures(metrics: Mapping[str, Any]) -> str:
    """The figures that matter, short; those that the metrics lack are left out.

    >>> progress_figures({"loss": 2.5, "retrieval_utility": 0.31, "null_document_prob": 0.04, "index_version": 300,
    ...                   "index_age_steps": 12, "examples_per_sec": 15.61})
    'loss 2.500, utility +0.310, null 0.040, index 300 (12 steps old), 15.6 examples/s'
    """
    shown = []
    for name, form in (("loss", "loss {:.3f}"), ("retrieval_utility", "utility {:+.3f}"),
                       ("null_document_prob", "null {:.3f}")):  # fmt: skip
        if name in metrics:
            shown.append(form.format(float(metrics[name])))
    if "index_version" in metrics and metrics["index_version"] >= 0:
        age = f" ({int(metrics['index_age_steps'])} steps old)" if "index_age_steps" in metrics else ""
        shown.append(f"index {int(metrics['index_version'])}{age}")
    if "examples_per_sec" in metrics:
        shown.append(f"{float(metrics['examples_per_sec']):.3g} examples/s")
    return ", ".join(shown)


def _clock_time(secs: float) -> str:
    minutes, seconds = divmod(round(max(secs, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
