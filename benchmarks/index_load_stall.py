"""How long other threads stand still while an index version is loaded, by the size of its shards.

    python benchmarks/index_load_stall.py --shard_mib 4 16 64 256

Random embeddings, one shard of each size; a thread ticks every 4 ms beside the load and its worst lateness is the
stall. Printed: the median and the worst of --repeats loads, for brute force and for tree + hashing, beside the worst
lateness of the ticking thread in the same time without a load.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from realm_jax.retrieval.scann_index import ScannSettings, build_shard, load_shard, save_shard
from realm_jax.retrieval.stall import StallMeter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard_mib", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--embed_dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{'shard':>8} {'documents':>10} {'kind':<12}{'load ms':>10}{'stall ms':>10}{'worst':>8}{'idle':>8}")
    for mib in arguments.shard_mib:
        count = (mib << 20) // (4 * arguments.embed_dim)
        rows = np.random.default_rng(0).standard_normal((count, arguments.embed_dim), dtype=np.float32)
        for kind, settings in (
            ("brute force", ScannSettings()),
            ("tree", ScannSettings.for_documents(max(count, 20_000))),
        ):
            if settings.num_leaves > count:
                continue
            with tempfile.TemporaryDirectory() as place:
                assets = Path(place) / "scann"
                save_shard(build_shard(rows, 0, settings), assets)
                stalls, loads, idle = [], [], []
                for _ in range(arguments.repeats):
                    with StallMeter() as meter:
                        started = time.perf_counter()
                        shard = load_shard(assets, 0, count, arguments.embed_dim, settings)
                        took = time.perf_counter() - started
                    stalls.append(meter.worst_ms)
                    loads.append(took * 1e3)
                    with StallMeter() as meter:
                        time.sleep(max(took, 0.02))
                    idle.append(meter.worst_ms)
                    del shard
            print(
                f"{mib:>4} MiB {count:>10} {kind:<12}{statistics.median(loads):>10.1f}"
                f"{statistics.median(stalls):>10.1f}{max(stalls):>8.1f}{max(idle):>8.1f}"
            )


if __name__ == "__main__":
    main()
