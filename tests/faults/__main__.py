"""Injects faults into the processes of a small run and prints one table of what came of them.

    python -m tests.faults                                   all of them: 30 kills of each job, a soak of 3 minutes
    python -m tests.faults --only=damage,preemption          some of them
    python -m tests.faults --soak_minutes=120                a long soak (alone: python -m tests.faults.soak --minutes=120)

Ends with status 1 if anything was not survived.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax

from tests.faults import (
    clock,
    damage,
    disk,
    embedder_killed,
    hosts,
    launched,
    non_finite,
    preemption,
    trainer_killed,
    two_at_once,
)
from tests.faults.jobs import Workshop
from tests.faults.soak import soak
from tests.faults.table import Row, markdown


def faults(kills: int, seed: int, soak_minutes: float) -> dict[str, Callable[[Workshop], Row]]:
    """What is injected, by name, in the order of the table."""
    return {
        "trainer_killed": lambda shop: trainer_killed.kill_trainers(shop, kills, seed),
        "embedder_killed": lambda shop: embedder_killed.kill_embedders(shop, kills, seed),
        "version_damaged": damage.damage_versions,
        "version_damaged_in_a_run": damage.damage_versions_of_a_run,
        "needed_version_damaged": damage.damage_the_needed_version,
        "checkpoint_damaged": damage.damage_checkpoints,
        "disk_full": lambda shop: disk.fill_disks(shop, 3, seed),
        "read_only": disk.refuse_read_only,
        "clock": clock.set_clocks_back,
        "two_at_once": two_at_once.start_twice,
        "hosts": hosts.lose_hosts,
        "preemption": lambda shop: preemption.preempt(shop, 3, seed),
        "launched": launched.interrupt_launchers,
        "non_finite": non_finite.spoil,
        "soak": lambda shop: soak(shop, soak_minutes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of the trainer, and of the embed job")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--soak_minutes", type=float, default=3.0)
    parser.add_argument("--only", default="", help=f"some of: {', '.join(faults(0, 0, 0))}")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument(
        "--place", type=Path, help="a new folder for runs and logs; default: a temporary one, removed at the end"
    )
    chosen = parser.parse_args()
    injected = faults(chosen.kills, chosen.seed, chosen.soak_minutes)
    names = list(filter(None, chosen.only.split(","))) or list(injected)
    if unknown := sorted(set(names) - set(injected)):
        parser.error(f"--only={','.join(unknown)}: there is no such fault; choose among {', '.join(injected)}")
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        place = chosen.place or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="realm_jax_faults_")))
        workshop = stack.enter_context(Workshop(place))
        for name in names:
            started = time.monotonic()
            try:
                rows.append(injected[name](workshop))
            except Exception:  # of the script itself: the other faults are still injected
                traceback.print_exc()
                rows.append(
                    Row(name, 0, 0, "not known", failures=["the script failed; its traceback stands above the table"])
                )
            print(
                f"{name}: {rows[-1].survived} of {rows[-1].injected} survived, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            if chosen.out:
                chosen.out.write_text(markdown(rows))  # after each, for whoever stops it early
    print(markdown(rows))
    return int(any(row.failures or row.survived < row.injected for row in rows))


if __name__ == "__main__":
    sys.exit(main())
