"""A job whose clock jumps an hour back while it works: python tests/faults/jumping_clock.py JOB --run_dir=… …"""

import sys
import time

from realm_jax.__main__ import main

JUMP_SECS = 3600.0
AFTER_SECS = 12.0

if __name__ == "__main__":
    true_time, started = time.time, time.monotonic()
    time.time = lambda: true_time() - (JUMP_SECS if time.monotonic() - started > AFTER_SECS else 0.0)
    sys.exit(main(sys.argv[1:]))
