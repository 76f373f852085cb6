"""What of an index a host holds in memory, by the number of hosts that share it.

    python benchmarks/host_memory.py [--documents=500000] [--hosts 1 2 4 8]

Random embeddings, published as the embed job publishes them; for each number of hosts a fresh process loads the shards of host 0, as
a trainer with RefreshConfig.index_hosts='sharded' does, and says what it grew by. The memory-mapped embeddings, of which a
trainer reads single rows, are the system's cache and not counted. Figures of the shares should fall as 1 / hosts.
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from realm_jax.retrieval.manifest import Manifest, Shard
from realm_jax.retrieval.scann_index import ScannSettings, build_shard, save_shard
from realm_jax.retrieval.shards import EMBEDDINGS, SCANN_ASSETS, describe_files, save_embeddings, shard_name
from realm_jax.retrieval.versions import load_version, publish, read_manifest, shards_of_host, version_dir


def publish_random(index_dir: Path, documents: int, embed: int, shard_bytes: int) -> None:
    """A version of random embeddings, without a corpus."""
    count = -(-documents // max(1, shard_bytes // (4 * embed)))
    bounds = [documents * number // count for number in range(count + 1)]
    settings = ScannSettings.for_documents(-(-documents // count))
    directory = Path(version_dir(index_dir, 0))
    shards = []
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        rows = np.random.default_rng(number).standard_normal((end - first, embed), dtype=np.float32)
        name = shard_name(number, count)
        (directory / name).mkdir(parents=True)
        save_embeddings(directory / name / EMBEDDINGS, rows)
        save_shard(build_shard(rows, first, settings), directory / name / SCANN_ASSETS)
        shards.append(Shard(name, first, end - first, describe_files(directory, name)))
    manifest = Manifest(
        version=0, snapshot_step=0, snapshot_checksum="random", corpus_fingerprint="random", num_documents=documents,
        embed_dim=embed, dtype="float32", backend="scann",
        parameters={name: getattr(settings, name) for name in settings.__dataclass_fields__},
        shards=tuple(shards), search_recall=1.0, built_at=time.time(), build_secs=0.0,
    )  # fmt: skip
    publish(index_dir, manifest)


def held(directory: Path, hosts: int, said: Any) -> None:
    """What this process grows by with the shards of host 0; they are searched once, so that nothing is left to be read."""
    build_shard(np.eye(16, dtype=np.float32))  # ScaNN itself is there before
    before = anonymous_gib()
    manifest = read_manifest(directory)
    index = load_version(directory, manifest=manifest, shards=shards_of_host(manifest, 0, hosts))
    index.search(np.random.default_rng(0).standard_normal((64, manifest.embed_dim), dtype=np.float32), 8)
    said.send((index.num_documents, anonymous_gib() - before))


def anonymous_gib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--embed", type=int, default=128)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--shard_bytes", type=int, default=10 << 20)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        publish_random(Path(folder), options.documents, options.embed, options.shard_bytes)
        print(f"{'hosts':>6}{'documents of host 0':>21}{'MiB':>8}{'of one host':>13}")
        whole = 0.0
        for hosts in options.hosts:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=held, args=(Path(version_dir(Path(folder), 0)), hosts, theirs))
            process.start()
            documents, gib = ours.recv()
            process.join()
            whole = whole or gib
            print(f"{hosts:>6}{documents:>21}{gib * 1024:>8.0f}{gib / whole:>13.2f}", flush=True)


if __name__ == "__main__":
    main()
