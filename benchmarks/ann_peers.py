"""One shard of ScaNN, as the embed job builds it, against FAISS at the same recall, on the same embeddings.

    pip install faiss-cpu
    python benchmarks/ann_peers.py [--documents=1000000] [--like=RUN/index/00000000] [--recall=0.95]

Peers: HNSW (32 links), IVF with full vectors, and IVF with 4-bit product codes and the best scored again (FAISS's fast scan,
its closest to what ScaNN does; both score --reorder candidates again). Each is searched with growing effort until its recall
of exact search's best 8 reaches --recall, and then timed there, all in turn, with --threads threads. Memory is what the
process grew by; ratios above 1: ours is faster. Documents and queries are random clusters, or drawn between the neighbours of a real index (--like).
"""

import argparse
import dataclasses
import functools
import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from made_embeddings import between_neighbours, clusters

from realm_jax.retrieval.exact import brute_force
from realm_jax.retrieval.index import merge_results
from realm_jax.retrieval.scann_index import ScannIndex, ScannSettings, build_shard

BLOCK = 1 << 16


class Found(NamedTuple):
    """A built index at the least effort that reaches the recall."""

    name: str
    search: Callable[[np.ndarray], np.ndarray]  # queries -> ids
    build_secs: float
    gib: float
    effort: str
    recall: float


def resident_gib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def recall_of(ids: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, expected, strict=True)]))


class Search(Protocol):
    def __call__(self, index: Any, queries: np.ndarray, effort: int) -> np.ndarray: ...


class Contest:
    """The embeddings, what exact search finds, and how good is good enough."""

    def __init__(self, documents: np.ndarray, queries: np.ndarray, options: argparse.Namespace):
        self.documents, self.queries, self.options = documents, queries, options
        parts = [
            brute_force(queries, documents[first : first + BLOCK], options.results, first)
            for first in range(0, len(documents), BLOCK)
        ]
        self.expected = merge_results(parts, options.results).ids

    def enter(
        self, name: str, build: Callable[[], Any], search: Search,
        efforts: Sequence[int], effort_name: str,
    ) -> Found | None:  # fmt: skip
        """Builds an index and finds the least effort that reaches the recall; None where none does."""
        gc.collect()
        before, start = resident_gib(), time.perf_counter()
        index = build()
        secs = time.perf_counter() - start
        gc.collect()
        gib = resident_gib() - before
        for effort in efforts:
            recall = recall_of(search(index, self.queries, effort), self.expected)
            print(f"  {name}: {effort_name} {effort}, recall {recall:.3f}", flush=True)
            if recall >= self.options.recall:
                run: Callable[[np.ndarray], np.ndarray] = functools.partial(search, index, effort=effort)
                return Found(name, run, secs, gib, f"{effort_name} {effort}", recall)
        return None


def ours(contest: Contest) -> Found | None:
    settings = dataclasses.replace(
        ScannSettings.for_documents(len(contest.documents)), dims_per_block=contest.options.dims_per_block
    )

    def search(index: Any, queries: np.ndarray, effort: int) -> np.ndarray:
        shard = index._replace(settings=settings_with(effort))
        return ScannIndex([shard], contest.options.threads).search(queries, contest.options.results).ids

    def settings_with(leaves: int) -> ScannSettings:
        return dataclasses.replace(settings, leaves_to_search=leaves, reorder=contest.options.reorder)

    built = settings.leaves_to_search
    print(f"  realm_jax: {settings.num_leaves} leaves, {built} searched by default", flush=True)
    efforts = sorted({*(2**n for n in range(1, 9)), 3, 6, 12, 24, 48, 96, built})
    efforts = [effort for effort in efforts if effort <= settings.num_leaves]
    return contest.enter(
        "realm_jax, one ScaNN shard", lambda: build_shard(contest.documents, 0, settings), search, efforts, "leaves"
    )


def faiss_peers(contest: Contest) -> list[Found | None]:
    try:
        import faiss
    except ImportError:
        raise SystemExit("faiss is not there; install it beside with `pip install faiss-cpu`") from None
    faiss.omp_set_num_threads(contest.options.threads)
    documents, results = contest.documents, contest.options.results
    embed, lists = documents.shape[1], 1 << int(np.log2(4 * np.sqrt(len(documents))))

    def made(description: str) -> Any:
        index: Any = faiss.index_factory(embed, description, faiss.METRIC_INNER_PRODUCT)
        if description.startswith("HNSW"):
            index.hnsw.efConstruction = 100
        index.train(documents)
        index.add(documents)
        return index

    def set_by(name: str) -> Search:
        def search(index: Any, queries: np.ndarray, effort: int) -> np.ndarray:
            faiss.ParameterSpace().set_index_parameter(index, name, effort)
            return index.search(queries, results)[1]

        return search

    efforts = sorted({*(2**n for n in range(11)), 3, 6, 12, 24, 48, 96, 192})
    found = []
    for description, parameter in (
        ("HNSW32", "efSearch"),
        (f"IVF{lists},Flat", "nprobe"),
        (f"IVF{lists},PQ{embed // 2}x4fs,RFlat", "nprobe"),
    ):
        if description.split(",")[0][:4] in contest.options.without:
            continue

        def build(description: str = description) -> Any:
            index = made(description)
            if "RFlat" in description:
                index.k_factor = max(1, contest.options.reorder // results)
            return index

        found.append(contest.enter(f"FAISS {description}", build, set_by(parameter), efforts, parameter))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "documents": 1_000_000, "embed": 128, "queries": 512, "results": 8, "reorder": 24, "dims_per_block": 2, "repeats": 7, "threads": 2,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--like", type=Path, help="a version of a real index")
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out, such as HNSW")
    options = parser.parse_args()
    draw = between_neighbours(options.like, options.embed) if options.like else clusters(20_000, options.embed)
    documents = np.concatenate(
        [draw(1 + first, min(BLOCK, options.documents - first)) for first in range(0, options.documents, BLOCK)]
    )
    contest = Contest(documents, draw(0, options.queries), options)
    found = [one for one in [ours(contest), *faiss_peers(contest)] if one is not None]
    secs: dict[str, list[float]] = {one.name: [] for one in found}
    for _ in range(options.repeats):
        for one in found:
            start = time.perf_counter()
            one.search(contest.queries)
            secs[one.name].append(time.perf_counter() - start)
    print(
        f"{options.documents} documents of {options.embed}, {options.queries} queries at once, best {options.results}, "
        f"{options.threads} threads, {'like ' + str(options.like) if options.like else 'random clusters'}"
    )
    print(
        f"{'':34}{'effort':>14}{'recall':>8}{'ms a query':>12}{'min':>8}{'max':>8}{'ratio':>7}{'build s':>9}{'GiB':>6}"
    )
    base = statistics.median(secs[found[0].name])
    for one in found:
        times = [taken / options.queries * 1e3 for taken in secs[one.name]]
        ratio = statistics.median(secs[one.name]) / base
        print(
            f"{one.name:34}{one.effort:>14}{one.recall:>8.3f}{statistics.median(times):>12.4f}{min(times):>8.4f}"
            f"{max(times):>8.4f}{ratio:>7.2f}{one.build_secs:>9.1f}{one.gib:>6.2f}"
        )


if __name__ == "__main__":
    main()
