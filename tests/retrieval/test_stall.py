"""The meter sees a thread that keeps Python's lock, and little else."""

import sys
import time

from realm_jax.retrieval.stall import StallMeter


def test_a_long_hold_of_the_lock_is_seen():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.25)  # the running thread keeps the lock that long when others ask for it
    try:
        with StallMeter() as meter:
            time.sleep(0.05)
            end = time.perf_counter() + 0.6
            while time.perf_counter() < end:
                pass
    finally:
        sys.setswitchinterval(interval)
    assert 150 < meter.worst_ms < 1500


def test_waiting_work_does_not_stall():
    worst = []
    for _ in range(3):  # the operating system may be busy; it is not three times
        with StallMeter() as meter:
            time.sleep(0.2)
        worst.append(meter.worst_ms)
    assert min(worst) < 100
