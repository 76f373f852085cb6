"""Exact inner-product search in a ball tree: balls of documents that cannot hold a better one are never scored.

Ram & Gray, Maximum Inner-Product Search Using Cone Trees, KDD 2012 (arXiv:1202.6101), section 3. It helps in few
dimensions, or where the documents lie in few directions; docs/results/index_backends.md has figures.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.index import SearchResult, best_of, check_embeddings, check_queries
from realm_jax.typed import check_fields

NUMBERS_AT_ONCE = 1 << 22
"""How many bounds or scores are in memory at once; queries and leaves are taken in portions of so many."""

QUERIES_AT_ONCE = 256

PATIENCE = 16
"""Leaves that a query visits in a round before it may be given up as one that no ball can help."""

ROUNDING = 1e-12
"""Of bounds and scores, which are summed in float64, relative to the longest query and document."""


@dataclasses.dataclass(frozen=True)
class BallTreeSettings:
    """How a ball tree is made.

    Attributes:
      leaf_size: most documents of a leaf. Smaller leaves are pruned more sharply, and there are more balls to look at.
    """

    leaf_size: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        if self.leaf_size < 2:
            raise ValueError(f"BallTreeSettings.leaf_size must be at least 2, got {self.leaf_size}")


class CountedResult(NamedTuple):
    """A search result, and what it took.

    Attributes:
      ids: as in SearchResult.
      scores: as in SearchResult.
      num_scored: how many documents' scores each query needed; the others were pruned.
    """

    ids: Int64[np.ndarray, "batch num_results"]
    scores: Float32[np.ndarray, "batch num_results"]
    num_scored: Int64[np.ndarray, "batch"]


class _Level(NamedTuple):
    """The balls of one depth of the tree; ball n lies in ball n // 2 of the level above."""

    centres: Float64[np.ndarray, "balls embed"]
    radii: Float64[np.ndarray, "balls"]


class _Pairs(NamedTuple):
    """Balls that may hold a result of a query, with the bound on the scores in them."""

    queries: Int64[np.ndarray, "pairs"]
    balls: Int64[np.ndarray, "pairs"]
    bounds: Float64[np.ndarray, "pairs"]

    def where(self, chosen: np.ndarray) -> "_Pairs":
        return _Pairs(*(column[chosen] for column in self))


class BallTreeIndex:
    """Branch and bound: a document p of a ball (μ, R) scores at most ⟨q, μ⟩ + |q| R = |q| · (⟨q, μ⟩ / |q| + R).

    Scores are inner products rounded once, to float32; equal ones are ordered by document id. The answer is that of scoring
    every document so, in any dimension and for any documents: only the share that is pruned depends on them.

    The tree is binary and balanced: each ball's documents are halved along the line through two that are far apart. It is
    made anew for every version, in memory: once the embeddings, and twice while it is made.
    """

    def __init__(
        self,
        embeddings: Any,
        *,
        leaf_size: int = BallTreeSettings.leaf_size,
        first_document: int = 0,
        on_block: Callable[[int, int], None] | None = None,
    ):
        """Reads the embeddings and builds the tree.

        Args:
          embeddings: an array [num_documents, embed]; or a list of such arrays of consecutive documents.
          leaf_size: most documents of a leaf.
          first_document: the corpus row of the first embedding, when this index holds a share of the corpus.
          on_block: called with how many parts are done and how many there are: every array read, and every level built.

        Raises:
          ValueError: without documents, for arrays of different widths, embeddings that are not finite, or no leaf size.
        """
        BallTreeSettings(leaf_size)
        blocks: list[Any] = list(embeddings) if isinstance(embeddings, (list, tuple)) else [embeddings]
        widths = {block.shape[1:] for block in blocks}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise ValueError(f"a ball tree needs arrays [documents, embed] of one width, got {sorted(widths)}")
        count = sum(len(block) for block in blocks)
        if count == 0:
            raise ValueError("a ball tree needs at least 1 document, got 0 documents")
        self._embeddings, self._first_document = EmbeddingRows(blocks, first_document), first_document
        self._depth = max(0, (-(-count // leaf_size) - 1).bit_length())
        parts = len(blocks) + self._depth + 1
        self._rows = np.empty((count, *next(iter(widths))), np.float32)
        start = 0
        for done, block in enumerate(blocks):
            check_embeddings(np.asarray(block), first_document + start)
            self._rows[start : start + len(block)] = block
            start += len(block)
            if on_block is not None:
                on_block(done + 1, parts)
        self._order = np.arange(count)
        self._levels: list[_Level] = []
        for level in range(self._depth + 1):
            self._levels.append(self._build_level(level))
            if on_block is not None:
                on_block(len(blocks) + level + 1, parts)
        self._rows, self._ids = self._rows[self._order], self._order + first_document
        self._longest = float(np.sqrt(np.einsum("ne,ne->n", self._rows, self._rows, dtype=np.float64).max()))

    def _build_level(self, level: int) -> _Level:
        """The balls of a level; and the documents of each, in its part of the order, halved for the next."""
        centres = np.empty((1 << level, self.embed_dim))
        radii = np.empty(1 << level)
        for ball in range(1 << level):
            start, stop = self._bounds_of(level, ball)
            members = self._order[start:stop]
            points = self._rows[members]
            centres[ball] = points.mean(axis=0, dtype=np.float64)
            from_centre = _distances(points, centres[ball])
            radii[ball] = from_centre.max()
            if level < self._depth:
                one = points[from_centre.argmax()]
                other = points[_distances(points, one).argmax()]
                half = self._bounds_of(level + 1, 2 * ball)[1] - start
                self._order[start:stop] = members[np.argpartition(points @ (other - one), half)]
        return _Level(centres, radii)

    def _bounds_of(self, level: int, ball: Any) -> tuple[Any, Any]:
        """Where the documents of a ball begin and end in the order of the tree; those of its halves lie within."""
        return self.num_documents * ball >> level, self.num_documents * (ball + 1) >> level

    @property
    def num_documents(self) -> int:
        return len(self._rows)

    @property
    def embed_dim(self) -> int:
        return int(self._rows.shape[1])

    def embeddings(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings as they were given; zeros for id -1."""
        return self._embeddings.take(document_ids)

    def search(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> SearchResult:
        """The `num_results` documents of greatest inner product for each query; -1 and -inf beyond the last document.

        Raises:
          ValueError: for queries of another width or not finite, or `num_results` below 1.
        """
        found = self.search_counted(queries, num_results)
        return SearchResult(found.ids, found.scores)

    def pruned_share(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> float:
        """Share of all documents whose score is never computed, over these queries."""
        found = self.search_counted(queries, num_results)
        return 1.0 - float(found.num_scored.mean()) / self.num_documents

    def search_counted(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> CountedResult:
        """`search`, and how many documents were scored.

        Raises:
          ValueError: as `search`.
        """
        check_queries(queries, self.embed_dim, num_results)
        step = max(1, min(QUERIES_AT_ONCE, NUMBERS_AT_ONCE >> self._depth))
        keep = min(num_results, self.num_documents)
        parts = [_Search(self, queries[at : at + step], keep).run() for at in range(0, len(queries), step)]
        nothing = best_of(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32), num_results)
        best = [best_of(part.ids, part.scores, num_results) for part in parts] or [nothing]
        return CountedResult(
            np.concatenate([part.ids for part in best]),
            np.concatenate([part.scores for part in best]),
            np.concatenate([part.num_scored for part in parts] or [np.zeros(0, np.int64)]),
        )


class _Search:
    """The search of one portion of the queries."""

    def __init__(self, tree: BallTreeIndex, queries: Float32[np.ndarray, "batch embed"], keep: int):
        self.tree, self.keep, batch = tree, keep, len(queries)
        self.queries = queries.astype(np.float64)
        self.lengths = np.linalg.norm(self.queries, axis=1)
        self.ids = np.full((batch, keep), -1, np.int64)
        self.scores = np.full((batch, keep), -np.inf, np.float32)
        self.num_scored = np.zeros(batch, np.int64)

    def run(self) -> CountedResult:
        """Descends to the most promising documents; then, from the root, visits what may hold better ones, best first."""
        tree, everyone = self.tree, np.arange(len(self.queries))
        # the smallest balls that hold as many documents as are wanted
        level = min(tree._depth, (tree.num_documents // self.keep).bit_length() - 1)
        home = np.zeros(len(everyone), np.int64)
        for below in range(1, level + 1):
            left, right = (self._bounds(below, everyone, 2 * home + side) for side in (0, 1))
            home = 2 * home + (right > left)
        within = tree._depth - level
        leaves = (home[:, None] << within) + np.arange(1 << within)
        self._visit(_Pairs(np.repeat(everyone, 1 << within), leaves.reshape(-1), np.full(leaves.size, np.inf)))

        pairs = _Pairs(everyone, np.zeros(len(everyone), np.int64), np.full(len(everyone), np.inf))
        for below in range(1, tree._depth + 1):
            queries, balls = np.repeat(pairs.queries, 2), np.repeat(2 * pairs.balls, 2)
            balls[1::2] += 1
            pairs = self._promising(_Pairs(queries, balls, self._bounds(below, queries, balls)))
        self._visit(pairs.where(pairs.balls >> within != home[pairs.queries]))
        return CountedResult(self.ids, self.scores, self.num_scored)

    def _bounds(self, level: int, queries: np.ndarray, balls: np.ndarray) -> np.ndarray:
        centres, radii = self.tree._levels[level]
        if 4 * len(queries) > len(self.queries) * len(radii):  # so many that one product of matrices is faster
            products = (self.queries @ centres.T)[queries, balls]
        else:
            products = np.einsum("pe,pe->p", self.queries[queries], centres[balls])
        return products + self.lengths[queries] * radii[balls]

    def _promising(self, pairs: _Pairs) -> _Pairs:
        """Without the balls that no result can lie in. One whose bound equals the last result may hold a smaller id."""
        last = self.scores[:, -1].astype(np.float64)
        # a score may have been rounded up to the last one's
        floor = last - 2.0**-23 * np.abs(last) - ROUNDING * self.lengths * self.tree._longest
        return pairs.where(pairs.bounds >= floor[pairs.queries])

    def _visit(self, pairs: _Pairs) -> None:
        """Scores the documents of leaves, for each query in descending order of the bound, in rounds of ever more leaves.

        Where balls tell little, most of a query's leaves are still promising after some rounds. Then it is scored against
        all documents at once: one product of matrices takes less time than many small ones of half the numbers.
        """
        pairs = pairs.where(np.lexsort((pairs.balls, -pairs.bounds, pairs.queries)))
        leaves, width = 1, (self.tree.num_documents >> self.tree._depth) + 1
        while len(pairs.queries):
            active, counts = np.unique(pairs.queries, return_counts=True)
            if leaves > PATIENCE:
                hopeless = active[2 * counts > 1 << self.tree._depth]
                self._score_all(hopeless)
                pairs = pairs.where(~np.isin(pairs.queries, hopeless))
                active, counts = np.unique(pairs.queries, return_counts=True)
            portion = max(1, min(leaves, NUMBERS_AT_ONCE // (max(1, len(active)) * width)))
            is_now = _ranks(counts) < portion
            self._score(pairs.where(is_now), width)
            pairs = self._promising(pairs.where(~is_now))
            leaves *= 2

    def _score(self, pairs: _Pairs, width: int) -> None:
        """Scores the leaf of each pair."""
        tree = self.tree
        starts, stops = tree._bounds_of(tree._depth, pairs.balls)
        scores = np.full((len(starts), width), -np.inf, np.float32)
        by_leaf = np.argsort(pairs.balls, kind="stable")
        for group in np.split(by_leaf, np.flatnonzero(np.diff(pairs.balls[by_leaf])) + 1) if len(starts) else ():
            rows = tree._rows[starts[group[0]] : stops[group[0]]]
            scores[group, : len(rows)] = self.queries[pairs.queries[group]] @ rows.T.astype(np.float64)
        pair, offset = np.nonzero((scores >= self.scores[pairs.queries, -1:]) & np.isfinite(scores))
        self._keep(pairs.queries[pair], tree._ids[starts[pair] + offset], scores[pair, offset])
        self.num_scored += np.bincount(pairs.queries, stops - starts, len(self.num_scored)).astype(np.int64)

    def _score_all(self, queries: Int64[np.ndarray, "some"]) -> None:
        """Scores every document for some queries, whatever has been scored before."""
        floor = self.scores[queries, -1:]  # at least as many documents as are wanted reach it
        self.ids[queries], self.scores[queries] = -1, -np.inf
        step = NUMBERS_AT_ONCE // max(1, len(queries))
        for at in range(0, self.tree.num_documents if len(queries) else 0, step):
            scores = (self.queries[queries] @ self.tree._rows[at : at + step].T.astype(np.float64)).astype(np.float32)
            row, column = np.nonzero(scores >= np.maximum(floor, self.scores[queries, -1:]))
            self._keep(queries[row], self.tree._ids[at + column], scores[row, column])
        self.num_scored[queries] = self.tree.num_documents

    def _keep(self, queries: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
        """Takes scored documents, in the order of their queries, among the best of each if they are."""
        if not len(queries):
            return
        active, row, counts = np.unique(queries, return_inverse=True, return_counts=True)
        place = row, self.keep + _ranks(counts)
        all_ids, all_scores = (np.pad(best[active], ((0, 0), (0, counts.max()))) for best in (self.ids, self.scores))
        all_ids[:, self.keep :] = -1
        all_ids[place], all_scores[place] = ids, scores
        self.ids[active], self.scores[active] = best_of(all_ids, all_scores, self.keep)


def _ranks(counts: np.ndarray) -> np.ndarray:
    """0, 1, … within each of consecutive groups of these sizes."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _distances(points: Float32[np.ndarray, "count embed"], centre: np.ndarray) -> Float64[np.ndarray, "count"]:
    step = max(1, NUMBERS_AT_ONCE // points.shape[1])
    squares = np.empty(len(points))
    for at in range(0, len(points), step):
        difference = points[at : at + step] - centre.astype(np.float64)
        squares[at : at + step] = np.einsum("ce,ce->c", difference, difference)
    return np.sqrt(squares)
