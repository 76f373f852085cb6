"""Exact search against numpy, on one device and on eight, with rows of every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from realm_jax.retrieval.exact import ExactIndex, ExactSettings, brute_force, search_chunks, search_sharded_chunks


def _mesh(devices: int, axes: tuple[str, ...] = ("data",)) -> jax.sharding.Mesh:
    shape = (devices,) if len(axes) == 1 else (2, devices // 2)
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:devices])


def _data(documents: int, queries: int = 5, embed: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # integers: products are exact and ties are many
    return (
        rng.integers(-3, 4, size=(queries, embed)).astype(np.float32),
        rng.integers(-3, 4, size=(documents, embed)).astype(np.float32),
    )


def _expected(queries: np.ndarray, documents: np.ndarray, num_results: int) -> np.ndarray:
    return np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :num_results]


@pytest.mark.parametrize("mesh", [None, (1, ("data",)), (8, ("data",)), (8, ("data", "fsdp"))])
@pytest.mark.parametrize(("documents", "chunk"), [(1, 4), (7, 3), (101, 8), (96, 4), (203, 1000)])
def test_equals_numpy_where_nothing_divides(mesh, documents, chunk):
    queries, rows = _data(documents)
    index = ExactIndex(rows, chunk=chunk, mesh=mesh and _mesh(*mesh))
    assert (index.num_documents, index.embed_dim) == (documents, 8)
    for num_results in (1, 6):
        found = index.search(queries, num_results)
        expected = _expected(queries, rows, num_results)
        held = expected.shape[1]
        assert np.array_equal(found.ids[:, :held], expected)
        assert np.array_equal(found.scores[:, :held], np.take_along_axis(queries @ rows.T, expected, 1))
        assert (found.ids[:, held:] == -1).all()


@pytest.mark.parametrize("mesh", [None, 8])
def test_padding_rows_are_never_returned(mesh):
    # every document scores below 0, the score that a padding row of zeros would have
    rows = -np.ones((19, 4), np.float32)
    found = ExactIndex(rows, chunk=4, mesh=mesh and _mesh(mesh)).search(np.ones((3, 4), np.float32), 50)
    assert found.ids.shape == found.scores.shape == (3, 50)
    assert found.ids[:, :19].tolist() == [list(range(19))] * 3
    assert (found.ids[:, 19:] == -1).all() and np.isneginf(found.scores[:, 19:]).all()


def test_blocks_first_document_and_odd_batches():
    queries, rows = _data(77, queries=13)
    blocks = [rows[:30], rows[30:31], rows[31:70], rows[70:]]
    seen = []
    index = ExactIndex(blocks, chunk=10, first_document=1000, on_block=lambda done, total: seen.append((done, total)))
    assert seen == [(n + 1, 8) for n in range(8)]
    for batch in (0, 1, 3, 13):
        found = index.search(queries[:batch], 4)
        assert np.array_equal(found.ids, _expected(queries[:batch], rows, 4) + 1000)


def _reference(queries: np.ndarray, rows: np.ndarray, num_results: int) -> tuple[np.ndarray, np.ndarray]:
    """Inner products rounded once, to float32; equal ones by document."""
    scores = (queries.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.float32)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :num_results]
    return ids, np.take_along_axis(scores, ids, 1)


def _drawn(kind: str, documents: int, queries: int, embed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    if kind == "random":
        points = rng.standard_normal((documents + queries, embed))
    else:  # tight: within a cluster, scores differ by less than the rounding of a row
        centres = rng.standard_normal((12, embed)) * rng.uniform(0.1, 10, (12, 1))
        points = centres[rng.integers(12, size=documents + queries)]
        points = points + 0.01 * rng.standard_normal(points.shape)
    return points[:queries].astype(np.float32), points[queries:].astype(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("mesh", [None, (8, ("data",)), (8, ("data", "fsdp"))])
@pytest.mark.parametrize(("kind", "least_proved", "least_recall"), [("random", 1.0, 1.0), ("clustered", 0.0, 0.8)])
def test_rows_of_fewer_bits_choose_what_float32_scores(dtype, mesh, kind, least_proved, least_recall):
    queries, rows = _drawn(kind, 1200, 40, 32)
    index = ExactIndex(rows, chunk=64, mesh=mesh and _mesh(*mesh), dtype=dtype, oversample=8)
    found = index.search_proved(queries, 5)
    ids, scores = _reference(queries, rows, 5)
    # whatever is found has its exact score
    own = np.einsum("be,bke->bk", queries.astype(np.float64), rows[found.ids].astype(np.float64)).astype(np.float32)
    assert np.array_equal(found.scores, own) and found.scores.dtype == np.float32
    # what is proved is brute force's answer, to the last id
    assert np.array_equal(found.ids[found.proved], ids[found.proved])
    assert np.array_equal(found.scores[found.proved], scores[found.proved])
    assert found.proved.mean() >= least_proved
    assert (found.ids[:, :, None] == ids[:, None, :]).any(2).mean() >= least_recall
    # with all documents as candidates everything is proved
    everything = ExactIndex(rows, chunk=64, mesh=mesh and _mesh(*mesh), dtype=dtype, oversample=240)
    found = everything.search_proved(queries, 5)
    assert found.proved.all() and np.array_equal(found.ids, ids) and np.array_equal(found.scores, scores)
    assert np.array_equal(everything.embeddings(np.array([3, -1, 1199])), np.stack([rows[3], 0 * rows[0], rows[1199]]))


def test_a_document_that_rounding_hides_is_found_among_more_candidates():
    # in int8 all rows are (127, 0) but the last: what tells the first two apart is lost
    rows = np.array([[127, 0.3], [127, 0.4], [127, -100]], np.float32)
    query = np.array([[0, 1]], np.float32)
    few, more, all_three = (ExactIndex(rows, dtype="int8", oversample=n).search_proved(query, 1) for n in (1, 2, 3))
    assert (few.ids.tolist(), few.proved.tolist()) == ([[0]], [False])
    assert few.scores.tolist() == [[np.float32(0.3)]]
    assert (more.ids.tolist(), more.proved.tolist()) == ([[1]], [False])  # right, but the bound cannot tell
    assert (all_three.ids.tolist(), all_three.proved.tolist()) == ([[1]], [True])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_equal_scores_are_ordered_by_document(dtype):
    queries, rows = _data(60)
    rows = np.repeat(rows, 3, axis=0)[np.random.default_rng(0).permutation(180)]
    found = ExactIndex(rows, chunk=16, mesh=_mesh(8), dtype=dtype, oversample=18).search(queries, 10)
    assert np.array_equal(found.ids, _expected(queries, rows, 10))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_results_beyond_the_last_document_and_padding(dtype):
    rows = -np.ones((19, 4), np.float32)
    found = ExactIndex(rows, chunk=4, mesh=_mesh(8), dtype=dtype, first_document=100).search_proved(rows[:3] * -1, 50)
    assert found.ids[:, :19].tolist() == [list(range(100, 119))] * 3 and found.proved.all()
    assert (found.ids[:, 19:] == -1).all() and np.isneginf(found.scores[:, 19:]).all()
    nothing = ExactIndex(rows, dtype=dtype).search_proved(np.zeros((0, 4), np.float32), 2)
    assert nothing.ids.shape == (0, 2) and nothing.proved.shape == (0,)


def test_approximate_search_proves_nothing():
    queries, rows = _drawn("random", 300, 4, 16)
    for dtype in ("float32", "bfloat16"):
        found = ExactIndex(rows, dtype=dtype, recall_target=0.95, oversample=8).search_proved(queries, 5)
        assert not found.proved.any() and np.array_equal(found.ids, _reference(queries, rows, 5)[0])  # exact on CPU


def test_candidates_are_scored_in_portions(monkeypatch):
    queries, rows = _drawn("random", 300, 13, 16)
    index = ExactIndex(rows, dtype="int8")
    whole = index.search(queries, 5)
    monkeypatch.setattr("realm_jax.retrieval.exact.NUMBERS_AT_ONCE", 3 * 20 * 16)
    for one, other in zip(whole, index.search(queries, 5), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oversample": 0}, r"ExactSettings.oversample must be at least 1, got 0"),
        ({"chunk": 0}, r"ExactSettings.chunk must be at least 1, got 0"),
        ({"recall_target": 0.0}, r"ExactSettings.recall_target must be above 0 and at most 1, got 0.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ExactSettings(**settings)


def test_approximate_search_is_exact_on_cpu():
    rng = np.random.default_rng(1)
    rows, queries = (
        rng.standard_normal((500, 16)).astype(np.float32),
        rng.standard_normal((4, 16)).astype(np.float32),
    )
    found = ExactIndex(rows, chunk=128, recall_target=0.9).search(queries, 5)
    assert np.array_equal(found.ids, _expected(queries, rows, 5))


def test_memory_mapped_rows(tmp_path):
    queries, rows = _data(90)
    np.save(tmp_path / "rows.npy", rows)
    index = ExactIndex(np.load(tmp_path / "rows.npy", mmap_mode="r"), chunk=32, mesh=_mesh(8))
    assert np.array_equal(index.search(queries, 9).ids, _expected(queries, rows, 9))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"at least 1 document"):
        ExactIndex(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match=r"of one width, got \[\(4,\), \(5,\)\]"):
        ExactIndex([np.zeros((2, 4), np.float32), np.zeros((2, 5), np.float32)])
    index = ExactIndex(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"must be \[batch, 4\] for this index, got \[1, 3\]"):
        index.search(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(ValueError, match=r"1 of 1 queries are not finite"):
        index.search(np.full((1, 4), np.nan, np.float32), 1)


def test_brute_force_keeps_ties_by_document():
    rows = np.array([[1.0], [2.0], [2.0], [2.0], [0.0]], np.float32)
    assert brute_force(np.ones((1, 1), np.float32), rows, 2, first_document=10).ids.tolist() == [[11, 12]]
    assert brute_force(np.ones((1, 1), np.float32), rows, 7).ids.tolist() == [[1, 2, 3, 0, 4, -1, -1]]


def test_lives_inside_a_jitted_step_and_lowers_for_accelerators():
    queries, rows = _data(64)

    @jax.jit
    def step(queries: jax.Array, chunks: jax.Array) -> jax.Array:
        return search_chunks(queries, chunks, 60, 3).ids

    assert np.array_equal(step(queries, rows.reshape(8, 8, 8)), _expected(queries, rows[:60], 3))
    shapes = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 128, 8), jnp.float32)
    for recall_target in (1.0, 0.95):
        local = jax.jit(lambda q, c, r=recall_target: search_chunks(q, c, 1000, 5, r))
        assert set(jax.export.export(local, platforms=["tpu", "cuda"])(*shapes).platforms) == {"tpu", "cuda"}
    # the rows of an index are arguments of such a program
    held = ExactIndex(rows, chunk=16, dtype="int8")
    chunks, scales = held.device_rows
    found = jax.jit(lambda q, c, s: search_chunks(q, c, 64, 3, scales=s).ids)(queries, chunks, scales)
    assert np.array_equal(found, held.search(queries, 3).ids)
    mesh = _mesh(8)
    sharded = jax.jit(lambda q, c: search_sharded_chunks(q, c, 1000, 5, mesh))
    assert jax.export.export(sharded, platforms=["tpu", "cuda"])(*shapes).nr_devices == 8
