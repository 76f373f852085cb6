"""Exact search with rows of float32, bfloat16 and int8, against one product of matrices and a top-k of all scores.

    python benchmarks/exact_search.py [--documents=50000] [--embed_dim=128] [--queries=64] [--results=8] [--repeats=5]

Documents and queries are drawn from 1000 clusters of spread 1/2. The peer is one jitted `top_k(queries @ documents.T)` in
float32, which holds the scores of all documents at once. The indexes hold those of a chunk, and time the whole search: the
program, and scoring candidates again with float32 rows on the host. All are timed in turn, round by round; printed are
medians, the peer's time over the index's (above 1: the index is faster), the bytes of scores that are needed at once, all
memory that XLA allots to the program beside its arguments, the bytes a document takes on the device, the share of the peer's
results that is found, and the share of queries whose answer is proved.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from realm_jax.retrieval import exact
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.retrieval.index import SearchResult
from realm_jax.retrieval.recall import search_recall

CLUSTERS, SPREAD = 1000, 0.5


def draw(count: int, embed_dim: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, embed_dim), np.float32)
    rng = np.random.default_rng(seed)
    return centres[rng.integers(CLUSTERS, size=count)] + np.float32(SPREAD) * rng.standard_normal(
        (count, embed_dim), np.float32
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--embed_dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--results", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=16_384)
    parser.add_argument("--oversample", type=int, default=4)
    parser.add_argument("--recall_target", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows, queries = draw(options.documents, options.embed_dim, 1), draw(options.queries, options.embed_dim, 2)
    on_device = jax.device_put(rows)

    @jax.jit
    def all_scores(queries: jax.Array, rows: jax.Array) -> Any:
        scores = jax.numpy.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.top_k(scores, options.results)

    def peer() -> SearchResult:
        scores, ids = jax.device_get(all_scores(queries, on_device))
        return SearchResult(ids.astype(np.int64), scores)

    indexes = {
        dtype: ExactIndex(
            rows, dtype=dtype, chunk=options.chunk, oversample=options.oversample, recall_target=options.recall_target
        )
        for dtype in ("float32", "bfloat16", "int8")
    }
    expected = peer()
    searches: dict[str, Callable[[], Any]] = {"all scores": peer}
    searches |= {
        dtype: functools.partial(index.search_proved, queries, options.results) for dtype, index in indexes.items()
    }
    results = {name: search() for name, search in searches.items()}  # compiles
    secs: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(options.repeats):
        for name, search in searches.items():
            start = time.perf_counter()
            search()
            secs[name].append(time.perf_counter() - start)

    def beside(name: str) -> int:
        if name == "all scores":
            program = all_scores.lower(queries, on_device)
        else:
            candidates = options.results * (1 if name == "float32" else options.oversample)
            program = exact._search.lower(
                queries, indexes[name].device_rows, np.int32(options.documents), num_results=candidates, mesh=None,
                recall_target=options.recall_target,
            )  # fmt: skip
        memory = program.compile().memory_analysis()
        return memory.temp_size_in_bytes if memory is not None else 0

    print(
        f"{options.documents} documents of {options.embed_dim}, {options.queries} queries, best {options.results}, "
        f"chunk {options.chunk}; {jax.default_backend()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{'rows':<12}{'ms a query':>12}{'least':>8}{'ratio':>7}{'score MB':>10}{'temp MB':>9}{'bytes a document':>18}{'recall':>8}{'proved':>8}"
    )
    for name in searches:
        median = statistics.median(secs[name])
        rows_at_once = indexes[name].device_rows.chunks.shape[1] if name in indexes else options.documents
        leaves = jax.tree.leaves(indexes[name].device_rows) if name in indexes else [on_device]
        document_bytes = sum(leaf[0, 0].nbytes if name in indexes else leaf[0].nbytes for leaf in leaves)
        found = results[name]
        recall = search_recall(SearchResult(found.ids, found.scores), expected)
        proved = f"{results[name].proved.mean():.3f}" if name in indexes else "-"
        print(
            f"{name:<12}{median / options.queries * 1e3:>12.3f}{min(secs[name]) / options.queries * 1e3:>8.3f}"
            f"{statistics.median(secs['all scores']) / median:>7.2f}{4 * options.queries * rows_at_once / 1e6:>10.1f}{beside(name) / 1e6:>9.1f}"
            f"{document_bytes:>18}{recall:>8.4f}{proved:>8}"
        )


if __name__ == "__main__":
    main()
