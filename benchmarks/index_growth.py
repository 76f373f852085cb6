"""How an index grows: build time, memory, and the time of a query at equal recall, from 10⁵ to 13 million documents.

    python benchmarks/index_growth.py [--documents 100000 1000000 13353718] [--folder=/tmp] [--like=RUN/index/00000000]

Each size is one shard of ScaNN with √n leaves, built from a memory-mapped file as the embed job does, saved, and loaded again.
It is searched with growing effort until its recall of exact search's best 8 reaches --recall, and timed there, with what
scoring everything takes beside it, by a product of matrices in blocks. Slope: by which power of the size the time grew since
the line above. Default: the recall of as many leaves as the embed job's settings visit. Memory: what the process grew by as the shard was loaded, and what the building process holds at its end, the pages of
the memory-mapped file left out. 13 million documents
of 128 want 7 GB of --folder twice.
"""

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ann_peers import recall_of, resident_gib
from made_embeddings import Draw, between_neighbours, clusters

from realm_jax.retrieval.exact import brute_force
from realm_jax.retrieval.index import merge_results
from realm_jax.retrieval.scann_index import ScannIndex, ScannSettings, build_shard, load_shard, save_shard

BLOCK = 1 << 16


class Grown(NamedTuple):
    documents: int
    leaves: int
    searched: int
    recall: float
    default_recall: float
    query_ms: float
    exact_ms: float
    build_secs: float
    built_in_gib: float
    load_secs: float
    gib: float


def write(path: Path, documents: int, draw: Draw, embed: int) -> np.ndarray:
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (documents, embed))
    for first in range(0, documents, BLOCK):
        count = min(BLOCK, documents - first)
        rows[first : first + count] = draw(1 + first, count)
    rows.flush()
    return rows


def build(rows_path: Path, assets: Path, said: Any) -> None:
    """In a process of its own, so that its memory can be told from that of searching."""
    rows = np.load(rows_path, mmap_mode="r")
    start = time.perf_counter()
    shard = build_shard(rows)
    secs = time.perf_counter() - start
    save_shard(shard, assets)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    said.send((secs, int(status["RssAnon"].split()[0]) / 2**20))


def measure(documents: int, draw: Draw, options: argparse.Namespace, folder: Path) -> Grown:
    rows = write(folder / "rows.npy", documents, draw, options.embed)
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    builder = multiprocessing.get_context("spawn").Process(
        target=build, args=(folder / "rows.npy", folder / "scann", theirs)
    )
    builder.start()
    build_secs, built_in = ours.recv()
    builder.join()
    queries = draw(0, options.queries)
    few = queries[: options.exact_queries]
    start = time.perf_counter()
    parts = [
        brute_force(few, np.asarray(rows[first : first + BLOCK]), options.results, first)
        for first in range(0, documents, BLOCK)
    ]
    exact_ms = (time.perf_counter() - start) / len(few) * 1e3
    expected = merge_results(parts, options.results).ids
    del rows
    before, start = resident_gib(), time.perf_counter()
    settings = ScannSettings.for_documents(documents)
    shard = load_shard(folder / "scann", 0, documents, options.embed, settings)
    load_secs, gib = time.perf_counter() - start, resident_gib() - before
    searched, recall = settings.num_leaves, 0.0
    default_recall = recall_of(ScannIndex([shard], options.threads).search(few, options.results).ids, expected)
    efforts = sorted({round(2 ** (n / 2)) for n in range(24)})
    for effort in [e for e in efforts if e < settings.num_leaves] + [settings.num_leaves]:
        index = ScannIndex([shard._replace(settings=ScannSettings(settings.num_leaves, effort))], options.threads)
        recall = recall_of(index.search(few, options.results).ids, expected)
        if recall >= options.recall:
            searched = effort
            break
    taken = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        index.search(queries, options.results)
        taken.append((time.perf_counter() - start) / len(queries) * 1e3)
    query_ms = statistics.median(taken)
    return Grown(
        documents,
        settings.num_leaves,
        searched,
        recall,
        default_recall,
        query_ms,
        exact_ms,
        build_secs,
        built_in,
        load_secs,
        gib,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 1_000_000, 13_353_718])
    for name, default in {
        "embed": 128, "queries": 512, "exact_queries": 64, "results": 8, "repeats": 5, "threads": 2,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--like", type=Path, help="a version of a real index")
    parser.add_argument("--folder", help="where the embeddings and the shard are written; default: the system's")
    options = parser.parse_args()
    draw = between_neighbours(options.like, options.embed) if options.like else clusters(20_000, options.embed)
    print(
        f"{'documents':>10}{'leaves':>8}{'visited':>9}{'recall':>8}{'default':>9}{'query ms':>10}{'slope':>7}{'exact ms':>10}{'slope':>7}"
        f"{'build s':>9}{'built in GiB':>13}{'load s':>8}{'GiB':>7}{'bytes a document':>18}",
        flush=True,
    )
    before: Grown | None = None
    for documents in options.documents:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            now = measure(documents, draw, options, Path(folder))
        slopes = ["", ""]
        if before is not None:
            times = math.log(now.documents / before.documents)
            slopes = [
                f"{math.log(now.query_ms / before.query_ms) / times:.2f}",
                f"{math.log(now.exact_ms / before.exact_ms) / times:.2f}",
            ]
        print(
            f"{now.documents:>10}{now.leaves:>8}{now.searched:>9}{now.recall:>8.3f}{now.default_recall:>9.3f}{now.query_ms:>10.4f}{slopes[0]:>7}"
            f"{now.exact_ms:>10.3f}{slopes[1]:>7}{now.build_secs:>9.1f}{now.built_in_gib:>13.2f}{now.load_secs:>8.2f}"
            f"{now.gib:>7.2f}{now.gib * 2**30 / now.documents:>18.0f}",
            flush=True,
        )
        before = now


if __name__ == "__main__":
    main()
