"""SIGTERM, which ends a run after the step in progress, or while it waits for an index."""

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequests:
    """Whether this run was asked to stop.

    With several processes jax takes the signal, whichever process gets it, and all of them stop after the same step.
    """

    def __init__(self) -> None:
        self._asked = self._listening = False
        self._earlier: Any = None

    def listen(self) -> None:
        """From here on SIGTERM is noted, not obeyed at once; `restore` puts the earlier handler back."""
        if jax.process_count() > 1:
            return
        try:
            self._earlier = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread: whoever called train() handles signals
            return
        self._listening = True

    def restore(self) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, self._earlier)
            self._listening = False

    def after_step(self, step: int) -> bool:
        """Whether to stop after so many steps; to be asked once after each of them."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def while_waiting(self) -> bool:
        """Whether to stop before the next step, while there is no index that it may begin with.

        Never with several processes: they agree on a step to stop after, and all of them are asked once a step, so one that
        left a wait alone would leave the others waiting for its answer. There a wait ends with the version or the time-out,
        and a machine that is gone earlier costs the steps since the last checkpoint.
        """
        return self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
