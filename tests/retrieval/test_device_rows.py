"""Rows on the devices: what they stand for, and buffers that go from one version to the next without a word of the reader."""

import logging
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from realm_jax.retrieval import device_rows, exact
from realm_jax.retrieval.device_rows import Rounding, SpareRows, quantise
from realm_jax.retrieval.exact import ExactIndex


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def _pointers(index: ExactIndex) -> set[int]:
    """Where the rows lie; on simulated devices all pointers are into one memory."""
    leaves = jax.tree.leaves(index.device_rows)
    return {shard.data.unsafe_buffer_pointer() for leaf in leaves for shard in leaf.addressable_shards}


def _held(shape: tuple[int, ...]) -> int:
    """How many index's rows are alive."""
    return sum(array.shape == shape for array in jax.live_arrays())


def test_int8_rows_have_their_own_scale():
    rows = np.array([[254.0, -1.0, 3.0], [0.0, 0.0, 0.0], [0.5, -0.25, 0.0]], np.float32)
    (codes, scales), numbers = quantise(jnp.asarray(rows), jnp.dtype("int8"))
    # -1 is half a step of 2: rounded to even
    assert np.asarray(codes).tolist() == [[127, 0, 2], [0, 0, 0], [127, -64, 0]] and codes.dtype == jnp.int8
    np.testing.assert_allclose(scales, [2.0, 0.0, 0.5 / 127], rtol=1e-6)
    np.testing.assert_allclose(numbers, [[254, 0, 4], [0, 0, 0], [0.5, -0.251968, 0]], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_error_of_rows_is_measured(dtype, sharded):
    """Were it left to XLA, converting to bfloat16 and back might be left out, and the error would be 0."""
    rows = np.random.default_rng(0).standard_normal((100, 24)).astype(np.float32) * np.arange(1, 101)[:, None]
    rows = rows.astype(np.float32)
    index = ExactIndex(rows, chunk=16, dtype=dtype, mesh=_mesh() if sharded else None)
    chunks, scales = index.device_rows
    stored = np.asarray(chunks)
    stored = (stored.view(jnp.bfloat16) if dtype == "bfloat16" else stored).astype(np.float64)
    stored = (stored if scales is None else stored * np.asarray(scales)[..., None]).reshape(-1, 24)
    where = np.flatnonzero(np.abs(stored).any(axis=1))  # without the padding of each device
    assert len(where) == 100
    error = np.linalg.norm(stored[where] - rows, axis=1).max()
    assert index._rounding.worst_error == pytest.approx(error, rel=1e-4)
    assert index._rounding.longest_row == pytest.approx(np.linalg.norm(stored, axis=1).max(), rel=1e-4)
    assert (error > 0) == (dtype != "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_no_score_is_off_by_more_than_the_bound(dtype):
    rng = np.random.default_rng(1)
    rows, queries = (rng.standard_normal((count, 48)).astype(np.float32) for count in (500, 30))
    index = ExactIndex(rows, dtype=dtype)
    chunks, scales = index.device_rows
    found = exact.search_chunks(jnp.asarray(queries), chunks, 500, 500, scales=scales)
    exactly = np.take_along_axis(queries.astype(np.float64) @ rows.T, np.asarray(found.ids), 1)
    off, bound = np.abs(np.asarray(found.scores) - exactly).max(axis=1), index._rounding.score_error(queries)
    assert (off <= bound).all() and (off > bound / 20).all()  # and the bound is of the errors' size


def test_a_bound_by_hand():
    # 1.001 is 1 in bfloat16: 0.001 is lost, times the longest row; the row's error counts by the query's length
    bound = Rounding(worst_error=0.5, longest_row=8.0).score_error(np.array([[1.001, 0.0], [0.0, 2.0]], np.float32))
    summing = 8.0 * 2 * 2.0**-22
    expected = [1.001 * (0.001 * 8 + 1.001 * (0.5 + summing)), 1.001 * 2 * (0.5 + summing)]
    np.testing.assert_allclose(bound, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "sharded"), [("float32", False), ("int8", False), ("bfloat16", True), ("int8", True)]
)
def test_the_next_version_is_written_into_the_last_ones_buffers(dtype, sharded, caplog):
    mesh, spare = _mesh() if sharded else None, SpareRows()
    versions = [np.random.default_rng(seed).standard_normal((203, 12)).astype(np.float32) for seed in range(4)]
    queries = versions[0][:5]

    def load(number: int) -> ExactIndex:
        return ExactIndex(versions[number], chunk=16, dtype=dtype, mesh=mesh, spare=spare, oversample=50)

    def check(index: ExactIndex, number: int) -> None:
        expected = exact.brute_force(queries, versions[number], 4)
        found = index.search(queries, 4)
        assert np.array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)

    served = load(0)
    check(served, 0)
    first = _pointers(served)
    loaded = load(1)  # the first is still served: other buffers
    second = _pointers(loaded)
    assert not first & second
    check(served, 0)
    shape = served.device_rows.chunks.shape
    served = loaded  # the hot swap: nothing refers to the first one any more
    del loaded
    programs = exact._search._cache_size(), device_rows._write_chunk._cache_size()
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        for number in (2, 3):
            buffers = _pointers(load(number))  # and ends at once
            assert buffers == first
            loaded = load(number)
            assert _pointers(loaded) == first and _held(shape) <= 2 * (9 if sharded else 1)
            check(loaded, number)
            check(served, number - 1)
            served, first, second = loaded, second, first
            del loaded
    assert "Finished tracing" not in caplog.text and "Compiling" not in caplog.text
    assert (exact._search._cache_size(), device_rows._write_chunk._cache_size()) == programs


def test_compiles_would_be_seen(caplog):
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        ExactIndex(np.zeros((5, 3), np.float32)).search(np.zeros((1, 3), np.float32), 1)
    assert "Compiling" in caplog.text


def test_a_load_that_fails_gives_its_buffers_up():
    spare, rows = SpareRows(), np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)
    ExactIndex(rows, chunk=16, spare=spare)  # ends at once

    def give_up(done: int, total: int) -> None:
        if done == 2:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        ExactIndex(-rows, chunk=16, spare=spare, on_block=give_up)
    index = ExactIndex(rows, chunk=16, spare=spare)
    assert np.array_equal(index.search(rows[:3], 2).ids, exact.brute_force(rows[:3], rows, 2).ids)


def test_buffers_that_do_not_fit_are_freed():
    spare = SpareRows()
    ExactIndex(np.zeros((611, 5), np.float32), spare=spare)
    assert _held((1, 611, 5)) == 1
    ExactIndex(np.zeros((612, 5), np.float32), spare=spare)
    assert (_held((1, 611, 5)), _held((1, 612, 5))) == (0, 1)
    ExactIndex(np.zeros((612, 5), np.float32), dtype="bfloat16", spare=spare)
    assert _held((1, 612, 5)) == 1
    for _ in range(3):  # two at once, and three times: only one waits
        held = [ExactIndex(np.zeros((612, 5), np.float32), spare=spare) for _ in range(2)]
        del held
    assert _held((1, 612, 5)) == 1
    del spare
    assert _held((1, 612, 5)) == 0


def test_an_index_that_is_held_keeps_its_buffers(caplog):
    spare, rows = SpareRows(patience_secs=0.1), np.random.default_rng(0).standard_normal((73, 4)).astype(np.float32)
    held = [ExactIndex(rows + number, spare=spare) for number in range(3)]
    assert "2 indexes are still in use after 0 s, and another is loaded beside them" in caplog.text
    for number, index in enumerate(held):
        expected = exact.brute_force(rows[:2], rows + number, 3)
        assert np.array_equal(index.search(rows[:2], 3).ids, expected.ids)
    place = _pointers(held[0])
    del index  # the loop's name for the third
    threading.Timer(0.2, held.pop, [0]).start()
    spare._patience_secs = 20.0
    assert _pointers(ExactIndex(rows, spare=spare)) == place  # waited for it


def test_rows_that_a_program_has_consumed_are_not_used_again():
    spare, rows = SpareRows(), np.ones((40, 3), np.float32)
    index = ExactIndex(rows, spare=spare)
    jax.tree.map(lambda leaf: leaf.delete(), index.device_rows)
    del index
    assert ExactIndex(rows, spare=spare).search(rows[:1], 1).scores.tolist() == [[3.0]]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_searches_go_on_while_the_next_version_is_written(dtype):
    """A reader takes the served index, as the look-ahead does, and may still search it when it has been swapped out."""
    versions = [np.random.default_rng(seed).standard_normal((160, 8)).astype(np.float32) for seed in range(9)]
    queries = versions[0][:4]
    expected = [exact.brute_force(queries, rows, 3).ids for rows in versions]
    spare, stopping = SpareRows(), threading.Event()
    served = [(0, ExactIndex(versions[0], chunk=16, dtype=dtype, oversample=99, spare=spare))]
    wrong: list[object] = []
    searched: list[int] = []
    held: list[int] = []

    def read() -> None:
        try:
            while not stopping.is_set():
                number, index = served[0]
                time.sleep(0.002)  # long enough to be swapped out meanwhile
                if not np.array_equal(index.search(queries, 3).ids, expected[number]):
                    wrong.append(number)
                searched.append(number)
                del index
        except BaseException as error:
            wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        buffers = set()
        for number in range(1, len(versions)):
            before = len(searched)

            def wait_for_a_search(done: int, total: int, before: int = before) -> None:
                held.append(_held((10, 16, 8)))
                end = time.monotonic() + 20
                while done == total // 2 and len(searched) <= before + 1 and not wrong and time.monotonic() < end:
                    time.sleep(0.001)  # half of the buffer is written

            index = ExactIndex(
                versions[number], chunk=16, dtype=dtype, oversample=99, spare=spare, on_block=wait_for_a_search
            )
            buffers |= _pointers(index)
            assert len(searched) > before  # beside the load
            served[0] = (number, index)
            del index
    finally:
        stopping.set()
        reader.join(30)
    assert not wrong and set(searched) >= {0, 1, 2}
    # one index is served and one is written, once the reader has left the one that was swapped out
    assert len(buffers) == 2 * (2 if dtype == "int8" else 1) and max(held) == 2
