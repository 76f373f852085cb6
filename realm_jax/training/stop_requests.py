"""SIGTERM and Ctrl-C, which end a run after the step in progress, or while it waits for an index."""

import logging
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from realm_jax.jobs import Preempted

logger = logging.getLogger(__name__)


class StopRequests:
    """Whether this run was asked to stop.

    With several processes jax takes SIGTERM, whichever process gets it, and all of them stop after the same step; it knows
    nothing of Ctrl-C, which ends the one that gets it at once.
    """

    def __init__(self) -> None:
        self._asked: list[int] = []  # the numbers of the signals that came
        self._earlier: dict[int, Any] = {}

    def listen(self) -> None:
        """From here on signals are noted, not obeyed at once; `restore` puts the earlier handlers back."""
        if jax.process_count() > 1:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # a shell's background job is not for Ctrl-C
            try:
                self._earlier[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever called train() handles signals
                return

    def restore(self) -> None:
        while self._earlier:
            signal.signal(*self._earlier.popitem())

    @property
    def name(self) -> str:
        """What the request came by."""
        return "Ctrl-C" if self._asked[:1] == [signal.SIGINT] else "SIGTERM"

    def after_step(self, step: int) -> bool:
        """Whether to stop after so many steps; to be asked once after each of them."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self._asked)

    def while_waiting(self) -> bool:
        """Whether to stop before the next step, while there is no index that it may begin with.

        Never with several processes: they agree on a step to stop after, and all of them are asked once a step, so one that
        left a wait alone would leave the others waiting for its answer. There a wait ends with the version or the time-out,
        and a machine that is gone earlier costs the steps since the last checkpoint.
        """
        return bool(self._asked)

    def raise_reason(self, step: int, num_steps: int) -> None:
        """Says, once the run has stopped in its own time after `step` steps, why; nothing after the last of them.

        Raises:
          KeyboardInterrupt: after Ctrl-C, as any program does, also after the last step.
          Preempted: after SIGTERM.
        """
        if self._asked[:1] == [signal.SIGINT]:
            raise KeyboardInterrupt
        if step < num_steps:
            raise Preempted(f"stopped by SIGTERM at step {step} of {num_steps}; the same command goes on")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self._asked:
            raise KeyboardInterrupt
        self._asked.append(number)
        if number == signal.SIGINT:
            logger.warning(
                "Ctrl-C: stopping after the step in progress, with a checkpoint; Ctrl-C again to stop at once"
            )
