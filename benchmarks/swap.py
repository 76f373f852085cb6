"""A hot swap: how long the training thread is held up, and how much memory two versions take, by how shards are loaded.

    python benchmarks/swap.py [--documents=500000] [--swaps=5]

Random embeddings in versions of small shards, loaded inside the trainer, and of large ones, loaded apart
(RefreshConfig.scann). A thread takes steps of 50 ms and searches 64 queries in each, while the next version is loaded beside it
and swapped in. Pause: of the exchange itself, or the longest that any thread stood still while the version was loaded, if that is longer;
median and worst of --swaps. Memory: of this process and of those that it started, in indexes: what one version took alone is 1.
"""

import argparse
import dataclasses
import multiprocessing
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from host_memory import publish_random

from realm_jax.retrieval.agreement import SingleHost
from realm_jax.retrieval.hot_swap import HotSwap, VersionSource
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.versions import list_versions, load_version, publish, read_manifest, verify, version_dir

STEP_SECS = 0.05


def held_gib() -> float:
    """Anonymous memory of this process and its children."""
    kilobytes = 0
    children = Path("/proc/self/task").glob("*/children")
    for process in ["self", *(number for file in children for number in file.read_text().split())]:
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except FileNotFoundError:  # it has just ended
            continue
        kilobytes += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return kilobytes / 2**20


class PeakMeter:
    """The most memory held while it runs."""

    def __init__(self) -> None:
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMeter":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, held_gib())


def measure(
    folder: Path, apart: bool, swaps: int, embed: int, pause_secs: float
) -> tuple[list[float], list[float], float, float]:
    """(milliseconds of each pause, seconds of each load, GiB of one index, GiB at the most)."""

    def load(version: int) -> tuple[Index, float]:
        directory = version_dir(folder, version)
        return load_version(directory, manifest=verify(directory), apart=apart), 0.0

    served = [0]
    before = held_gib()
    hot_swap = HotSwap(
        VersionSource(lambda: [v for v in list_versions(folder) if v <= served[0]], load),
        SingleHost(),
        swap_every_steps=1,
        timeout_secs=600.0,
        poll_secs=0.01,
    )
    hot_swap.serve(0)
    queries = np.random.default_rng(0).standard_normal((64, embed), dtype=np.float32)
    hot_swap.index.search(queries, 8)
    one = held_gib() - before
    hot_swap.watch()
    pauses: list[float] = []
    loads: list[float] = []
    step = 0
    with PeakMeter() as meter:
        published_at = time.monotonic()
        while len(pauses) < swaps:
            if time.monotonic() - published_at > pause_secs:  # an embed job needs longer
                served[0] = len(pauses) + 1
            time.sleep(STEP_SECS)
            step += 1
            hot_swap.index.search(queries, 8)
            swap = hot_swap.begin_step(step)
            if swap is not None:
                pauses.append(swap.pause_ms)
                loads.append(swap.load_secs)
                published_at = time.monotonic()
    hot_swap.close()
    return pauses, loads, one, meter.peak - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--embed", type=int, default=128)
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--pause_secs", type=float, default=2.0, help="between a swap and the next version")
    options = parser.parse_args()
    whole = 4 * options.embed * options.documents
    print(
        f"{'shards':>10}{'loaded':>12}{'load s':>8}{'pause ms':>10}{'worst':>8}{'one index':>12}{'at most':>9}{'in indexes':>12}",
        flush=True,
    )
    for shard_bytes, apart in ((10 << 20, False), (whole, False), (whole // 4, True), (whole, True)):
        # a fresh process each: what the one before has given back to malloc, and not to the system, would count
        row = multiprocessing.get_context("spawn").Process(target=print_row, args=(options, shard_bytes, apart))
        row.start()
        row.join()


def print_row(options: argparse.Namespace, shard_bytes: int, apart: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        builder = multiprocessing.get_context("spawn").Process(
            target=publish_random, args=(folder, options.documents, options.embed, shard_bytes)
        )
        builder.start()
        builder.join()
        manifest = read_manifest(version_dir(folder, 0))
        for version in range(1, options.swaps + 1):
            shutil.copytree(
                version_dir(folder, 0), version_dir(folder, version), ignore=shutil.ignore_patterns("manifest.json")
            )
            publish(folder, dataclasses.replace(manifest, version=version, snapshot_step=version))
        pauses, loads, one, most = measure(folder, apart, options.swaps, options.embed, options.pause_secs)
    shown = f"{4 * options.embed * manifest.shards[0].count / 2**20:.0f} MiB"
    print(
        f"{shown:>10}{'apart' if apart else 'in trainer':>12}{statistics.median(loads):>8.2f}{statistics.median(pauses):>10.1f}"
        f"{max(pauses):>8.1f}{one:>8.2f} GiB{most:>5.2f} GiB{most / one:>12.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
