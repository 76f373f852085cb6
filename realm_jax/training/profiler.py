"""A trace of some steps: what ran on the devices and on the host, and when (`jax.profiler`)."""

import logging
from pathlib import Path

import jax

from realm_jax.storage import Place, scratch_of

logger = logging.getLogger(__name__)


def _options() -> jax.profiler.ProfileOptions:
    """Devices, and what jax and XLA do on the host, but not every call of Python.

    For those every thread is hooked, those that load, embed and write too: the traced steps would wait for them as no others
    do, and a thread that comes or goes meanwhile can take the process down.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


class Profiler:
    """Traces the steps from the first to the last of those given, once in a run."""

    def __init__(self, place: Place, steps: tuple[int, int] | None):
        """
        Args:
          place: RUN/profile; where that is an object store, the trace stays in its local cache.
          steps: the first and the last one, counted from 0; None traces nothing.

        Raises:
          ValueError: for steps that are no range.
        """
        if steps is not None and not 0 <= steps[0] <= steps[1]:
            raise ValueError(f"train.profile_steps: expected a first and a last step, such as (10, 12), got {steps}")
        self._folder: Path = scratch_of(place)
        self._steps, self._tracing = steps, False

    def before(self, step: int) -> None:
        """Begins with the first step that is to be traced; a resumed run may be in the midst of them."""
        if self._steps is not None and self._steps[0] <= step <= self._steps[1] and not self._tracing:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder), profiler_options=_options())
            self._tracing = True

    def after(self, step: int, figures: dict[str, jax.Array]) -> None:
        """Ends after the last one, once the devices have done it."""
        if self._tracing and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(figures)
            self.close()
            self._steps = None

    def close(self) -> None:
        """Writes what has been traced so far."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            logger.info("trace written to %s; see it with xprof or TensorBoard's profile plugin", self._folder)
