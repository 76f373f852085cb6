"""How fast a run goes: the times of its steps, and which share of what the devices could do they use."""

import functools
import math
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Dense bfloat16 FLOP/s of one jax device, from the makers' data sheets. A TPU v2 or v3 device is one core of a chip.
PEAK_FLOPS_PER_SEC = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "Tesla T4": 65e12,  # float16: it has no bfloat16
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


class StepTimer:
    """Turns the times of steps into step_secs, step_secs_max, examples_per_sec, tokens_per_sec and mfu.

    Call `step_done` after every step and `figures` when metrics are written; figures are of the steps in between.
    """

    def __init__(
        self,
        examples_per_step: int,
        tokens_per_step: int | float,
        flops_per_step: int | float | None = None,
        peak_flops: int | float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts the clock.

        Args:
          examples_per_step: queries of the global batch.
          tokens_per_step: tokens that the models read, padding included, candidates included.
          flops_per_step: model FLOPs of one step, forward and backward, without rematerialisation.
          peak_flops: FLOP/s of all devices together, as from `peak_flops_per_sec`.
          clock: seconds, for tests.
        """
        self._examples, self._tokens = examples_per_step, tokens_per_step
        self._flops, self._peak = flops_per_step, peak_flops
        self._clock = clock
        self._last = clock()
        self._window: list[float] = []
        self.step_secs: list[float] = []  # of every step since the start

    def step_done(self) -> float:
        """Ends a step and begins the next; returns the seconds that it took."""
        now = self._clock()
        secs, self._last = now - self._last, now
        self._window.append(secs)
        self.step_secs.append(secs)
        return secs

    def skip(self) -> None:
        """Leaves the time since the last step out (an evaluation, a checkpoint)."""
        self._last = self._clock()

    def figures(self) -> dict[str, float]:
        """Throughput since the last call, the median time of a step and the longest; {} when no step was done."""
        if not self._window:
            return {}
        secs, steps = sum(self._window), len(self._window)
        found = {
            "step_secs": float(np.median(self._window)),
            "step_secs_max": max(self._window),
            "examples_per_sec": self._examples * steps / secs,
            "tokens_per_sec": self._tokens * steps / secs,
        }
        if self._flops is not None and self._peak is not None:
            found["mfu"] = self._flops * steps / secs / self._peak
        self._window = []
        return found


def peak_flops_per_sec(devices: Sequence[jax.Device] | None = None) -> float:
    """FLOP/s that the devices could do: the denominator of mfu (model FLOP utilisation).

    Known accelerators count by their data sheet. On CPUs and unknown devices it is what a large float32 matrix product
    reaches here and now (half a second, once a process): mfu then says how near a step comes to the best that the same
    cores do. Simulated CPU devices share the cores, so their number does not count.
    """
    devices = list(devices or jax.devices())
    known = data_sheet_flops(devices[0].device_kind)
    if known is not None:
        return known * len(devices)
    share = 1 if devices[0].platform == "cpu" else len(devices)
    return _measured_peak(devices[0]) * share


def data_sheet_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device of this kind; None when the table does not know it.

    >>> data_sheet_flops("TPU v5 lite"), data_sheet_flops("TPU v5"), data_sheet_flops("cpu")
    (197000000000000.0, 459000000000000.0, None)
    """
    # The longest name that fits: "TPU v5" must not answer for "TPU v5 lite", nor miss "NVIDIA A100-SXM4-80GB".
    names = sorted((name for name in PEAK_FLOPS_PER_SEC if device_kind.startswith(name)), key=len)
    return PEAK_FLOPS_PER_SEC[names[-1]] if names else None


@functools.cache
def _measured_peak(device: jax.Device, size: int = 1024, seconds: float = 0.3) -> float:
    """The best of several size³ matrix products."""
    square = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best, until = math.inf, time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() >= until:
            return 2.0 * size**3 / best
