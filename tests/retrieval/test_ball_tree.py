"""Branch and bound against scoring every document: the same answer whatever lies in the tree, and less work where it helps."""

import numpy as np
import pytest

from realm_jax.retrieval import ball_tree
from realm_jax.retrieval.ball_tree import BallTreeIndex, BallTreeSettings
from realm_jax.retrieval.exact import brute_force
from realm_jax.retrieval.index import Index, merge_results


def _documents(kind: str, count: int, embed: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    points = rng.standard_normal((count, embed))
    if kind == "clustered":
        centres = rng.standard_normal((9, embed)) * 5
        points = centres[rng.integers(9, size=count)] + 0.05 * points
    elif kind == "duplicates":
        points = np.repeat(points[: -(-count // 7)], 7, axis=0)[rng.permutation(count)]
    elif kind == "all alike":
        points = np.tile(points[:1], (count, 1))
    elif kind == "integers":
        points = rng.integers(-2, 3, (count, embed))
    return points.astype(np.float32)


def _queries(count: int, embed: int) -> np.ndarray:
    queries = np.random.default_rng(4).standard_normal((count, embed)).astype(np.float32)
    queries[1] = 0.0  # every document scores 0
    queries[2] *= 1e-20
    queries[3] *= 1e10
    return queries


def _reference(queries: np.ndarray, rows: np.ndarray, num_results: int) -> tuple[np.ndarray, np.ndarray]:
    """Inner products rounded once, to float32; equal ones by document."""
    scores = (queries.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.float32)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :num_results]
    return ids, np.take_along_axis(scores, ids, 1)


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates", "all alike", "integers"])
@pytest.mark.parametrize(
    ("count", "embed", "leaf_size"), [(1, 3, 32), (2, 1, 2), (45, 2, 4), (700, 3, 8), (701, 24, 32)]
)
def test_equals_scoring_every_document(kind, count, embed, leaf_size):
    rows, queries = _documents(kind, count, embed), _queries(12, embed)
    tree = BallTreeIndex(rows, leaf_size=leaf_size)
    assert (tree.num_documents, tree.embed_dim) == (count, embed) and isinstance(tree, Index)
    for num_results in (1, 6, 2 * count):
        found = tree.search_counted(queries, num_results)
        ids, scores = _reference(queries, rows, num_results)
        held = ids.shape[1]
        assert np.array_equal(found.ids[:, :held], ids)
        assert np.array_equal(found.scores[:, :held], scores)
        assert (found.ids[:, held:] == -1).all() and np.isneginf(found.scores[:, held:]).all()
        assert (found.num_scored >= held).all() and (found.num_scored <= count).all()
    nothing = tree.search(queries[:0], 3)
    assert nothing.ids.shape == nothing.scores.shape == (0, 3)


def test_is_a_brute_force_with_fewer_scores():
    rows, queries = _documents("integers", 500, 4), np.round(_queries(40, 4)[4:] * 3)
    tree = BallTreeIndex(rows)
    for one, other in zip(tree.search(queries, 9), brute_force(queries, rows, 9), strict=True):
        assert np.array_equal(one, other)  # small integers: all sums are exact


def test_what_is_pruned_is_counted():
    # on a line, to the right is better: only the rightmost leaf of 8 is ever scored
    rows = np.linspace(-1, 1, 64, dtype=np.float32)[np.random.default_rng(0).permutation(64)][:, None]
    tree = BallTreeIndex(rows, leaf_size=8)
    found = tree.search_counted(np.array([[2.0], [-0.5]], np.float32), 3)
    assert found.num_scored.tolist() == [8, 8] and tree.pruned_share(np.ones((5, 1), np.float32), 3) == 1 - 8 / 64
    np.testing.assert_allclose(found.scores[0], 2 * np.linspace(-1, 1, 64)[[63, 62, 61]], rtol=1e-6)
    # a ball whose bound equals the last result may hold a smaller document
    assert tree.search_counted(np.zeros((1, 1), np.float32), 3).num_scored.tolist() == [64]


def test_fewer_dimensions_prune_more():
    shares = []
    for embed in (2, 4, 8, 32):
        rows, queries = _documents("random", 4000, embed), _queries(64, embed)[4:]
        shares.append(BallTreeIndex(rows, leaf_size=16).pruned_share(queries, 5))
    assert shares[0] > 0.97 and shares[1] > 0.9 and shares[2] > 0.5 and shares[3] < 0.1


def test_the_bound_holds_every_document_of_its_ball():
    rows, queries = _documents("random", 300, 5), _queries(6, 5).astype(np.float64)
    tree = BallTreeIndex(rows, leaf_size=4)
    assert [len(level.radii) for level in tree._levels] == [1, 2, 4, 8, 16, 32, 64, 128]
    for depth, level in enumerate(tree._levels):
        members = [slice(*tree._bounds_of(depth, ball)) for ball in range(1 << depth)]
        assert np.array_equal(np.sort(np.concatenate([tree._ids[part] for part in members])), np.arange(300))
        for ball, part in enumerate(members):
            assert len(tree._rows[part]) >= 1
            bound = queries @ level.centres[ball] + np.linalg.norm(queries, axis=1) * level.radii[ball]
            assert ((queries @ tree._rows[part].T).max(axis=1) <= bound * (1 + 1e-9) + 1e-9).all()
    assert max(len(tree._rows[part]) for part in members) <= 4


def test_blocks_first_document_and_progress():
    rows, seen = _documents("random", 90, 4), []
    tree = BallTreeIndex(
        [rows[:30], rows[30:31], rows[31:]], leaf_size=16, first_document=1000,
        on_block=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(done + 1, 7) for done in range(7)]  # three arrays, four levels
    queries = _queries(8, 4)
    assert np.array_equal(tree.search(queries, 4).ids, _reference(queries, rows, 4)[0] + 1000)
    assert np.array_equal(tree.embeddings(np.array([1030, -1])), np.stack([rows[30], 0 * rows[0]]))
    other = BallTreeIndex(rows[:40], first_document=0)
    merged = merge_results(
        [BallTreeIndex(rows[40:], first_document=40).search(queries, 5), other.search(queries, 5)], 5
    )
    assert np.array_equal(merged.ids, _reference(queries, rows, 5)[0])


@pytest.mark.parametrize("numbers_at_once", [64, 700])
def test_portions_change_nothing(monkeypatch, numbers_at_once):
    rows, queries = _documents("clustered", 400, 6), _queries(33, 6)
    tree = BallTreeIndex(rows, leaf_size=8)
    monkeypatch.setattr(ball_tree, "NUMBERS_AT_ONCE", numbers_at_once)
    for patience in (0, 1000):  # all that is left is scored at once; or leaf by leaf to the end
        monkeypatch.setattr(ball_tree, "PATIENCE", patience)
        found = BallTreeIndex(rows, leaf_size=8).search_counted(queries, 7)
        ids, scores = _reference(queries, rows, 7)
        assert np.array_equal(found.ids, ids) and np.array_equal(found.scores, scores)
        assert np.array_equal(tree.search(queries, 7).ids, ids)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"at least 1 document"):
        BallTreeIndex(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match=r"of one width, got \[\(4,\), \(5,\)\]"):
        BallTreeIndex([np.zeros((2, 4), np.float32), np.zeros((2, 5), np.float32)])
    with pytest.raises(ValueError, match=r"BallTreeSettings.leaf_size must be at least 2, got 1"):
        BallTreeSettings(leaf_size=1)
    rows = np.zeros((5, 4), np.float32)
    rows[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 2 document embeddings are not finite, the first is document 13"):
        BallTreeIndex([rows[:3], rows[3:]], first_document=10)
    tree = BallTreeIndex(rows[:2])
    with pytest.raises(ValueError, match=r"must be \[batch, 4\] for this index, got \[1, 3\]"):
        tree.search(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(ValueError, match=r"num_results must be at least 1, got 0"):
        tree.search(np.zeros((1, 4), np.float32), 0)
