"""When a ball tree helps: the share of documents that it prunes, and its time against brute force, by dimension.

    python benchmarks/ball_tree.py [--documents=20000] [--queries=256] [--results=10] [--leaf_size=32] [--repeats=5]

Uniform: documents and queries from the cube [-1, 1]^embed. Clustered: documents in 200 clusters of spread 0.1 around
normal centres, queries drawn likewise. Both searches answer all queries at once, in numpy; the answers are compared.
Printed: the share whose score was never computed; the share that would be pruned if no query were given up (a query of which
most leaves are left after some rounds is scored against all documents at once, which takes less time); milliseconds a query
(the least of the repeats: other work on the machine only adds to it); and brute force's time over the tree's: above 1, the
tree is faster. Where scikit-learn is installed, its BallTree after the reduction of inner product to distance (Bachrach et al., RecSys 2014) is timed too.
"""

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from realm_jax.retrieval import ball_tree
from realm_jax.retrieval.ball_tree import BallTreeIndex
from realm_jax.retrieval.exact import brute_force

CLUSTERS, SPREAD = 200, 0.1


def draw(kind: str, documents: int, queries: int, embed: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents and queries, float32."""
    rng = np.random.default_rng(embed)
    count = documents + queries
    if kind == "uniform":
        points = rng.uniform(-1, 1, (count, embed))
    else:
        centres = rng.standard_normal((CLUSTERS, embed))
        points = centres[rng.integers(CLUSTERS, size=count)] + SPREAD * rng.standard_normal((count, embed))
    return points[:documents].astype(np.float32), points[documents:].astype(np.float32)


def least_ms(run: Callable[[], Any], repeats: int) -> float:
    secs = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        secs.append(time.perf_counter() - start)
    return min(secs) * 1e3


def peer(documents: np.ndarray, queries: np.ndarray, results: int, leaf_size: int) -> Callable[[], Any] | None:
    """scikit-learn's search for the nearest after the reduction: |d|² + (M² - |d|²) is the same for all documents."""
    if importlib.util.find_spec("sklearn") is None:
        return None
    squares = np.square(documents.astype(np.float64)).sum(axis=1)
    lifted = np.column_stack([documents, np.sqrt(squares.max() - squares)])
    tree = importlib.import_module("sklearn.neighbors").BallTree(lifted, leaf_size=leaf_size)
    asked = np.column_stack([queries, np.zeros(len(queries))])
    return lambda: tree.query(asked, k=results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--results", type=int, default=10)
    parser.add_argument("--leaf_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128])
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{options.documents} documents, {options.queries} queries, best {options.results}; {os.cpu_count()} cores, load {load:.1f}"
    )
    print(
        f"{'data':<10}{'embed':>6}{'pruned':>9}{'could be':>9}{'build s':>9}{'tree ms':>9}{'brute ms':>10}{'ratio':>8}{'scikit-learn ms':>17}"
    )
    for kind in ("uniform", "clustered"):
        for embed in options.dimensions:
            documents, queries = draw(kind, options.documents, options.queries, embed)
            start = time.perf_counter()
            tree = BallTreeIndex(documents, leaf_size=options.leaf_size)
            build_secs = time.perf_counter() - start
            pruned = tree.pruned_share(queries, options.results)
            patience, ball_tree.PATIENCE = ball_tree.PATIENCE, options.documents
            could_prune = tree.pruned_share(queries, options.results)
            ball_tree.PATIENCE = patience
            expected = brute_force(queries, documents, options.results)
            # scores of either sum may differ in their last bit, and so may the order of two
            assert np.allclose(tree.search(queries, options.results).scores, expected.scores, rtol=1e-5, atol=1e-6)
            per_query = options.queries
            tree_ms = least_ms(lambda: tree.search(queries, options.results), options.repeats) / per_query  # noqa: B023
            brute_ms = least_ms(lambda: brute_force(queries, documents, options.results), options.repeats) / per_query  # noqa: B023
            other = peer(documents, queries, options.results, options.leaf_size)
            other_ms = f"{least_ms(other, options.repeats) / per_query:.3f}" if other else "-"
            print(
                f"{kind:<10}{embed:>6}{pruned:>8.1%} {could_prune:>8.1%} {build_secs:>8.2f}{tree_ms:>9.3f}{brute_ms:>10.3f}"
                f"{brute_ms / tree_ms:>8.2f}{other_ms:>17}",
                flush=True,
            )


if __name__ == "__main__":
    main()
