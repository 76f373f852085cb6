"""How long other threads stood still: ScaNN holds Python's global lock while it loads a shard."""

import threading
import time


class StallMeter:
    """A context manager that ticks beside the work in it; `worst_ms` is the longest gap beyond the tick.

    A thread that wants the lock every few milliseconds is late exactly when something else held it, so the figure is an
    upper bound on what the training thread lost (it also holds the operating system's own delays).
    """

    def __init__(self, tick_secs: float = 0.004):
        self.worst_ms = 0.0
        self._tick_secs = tick_secs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="stall-meter", daemon=True)

    def __enter__(self) -> "StallMeter":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self._stop.is_set():
            time.sleep(self._tick_secs)
            now = time.perf_counter()
            self.worst_ms = max(self.worst_ms, (now - last - self._tick_secs) * 1e3)
            last = now
