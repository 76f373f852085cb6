"""Which parameters and which index the candidates of a step come from, and what reaches the training thread."""

import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.inputs import Inputs
from realm_jax.retrieval.index import SearchResult
from realm_jax.retrieval.look_ahead import LookAhead
from realm_jax.tasks.task import Retrieval, Task
from realm_jax.training.sharding import MeshConfig

BATCH = 8


class Examples(NamedTuple):
    query: Inputs
    step: np.ndarray


class Joined(NamedTuple):
    candidate_ids: np.ndarray
    step: np.ndarray


class RecordingIndex:
    """Gives ids 1000 · version + the first number of the query's embedding."""

    num_documents, embed_dim = 100_000, 2

    def __init__(self, version, delay_secs=0.0, fails=False):
        self.version, self.delay_secs, self.fails = version, delay_secs, fails

    def search(self, queries, num_results):
        assert queries.shape == (BATCH, 2) and queries.dtype == np.float32
        time.sleep(self.delay_secs)
        if self.fails:
            raise RuntimeError("the searcher broke")
        ids = np.tile(1000 * self.version + queries[:, :1].astype(np.int64), (1, num_results))
        return SearchResult(ids, np.zeros(ids.shape, np.float32))

    def embeddings(self, document_ids):
        """[version, id] of each document."""
        return np.stack(np.broadcast_arrays(self.version, document_ids), axis=-1).astype(np.float32)


def examples(step, batch_size, rows):
    ids = np.tile(np.arange(batch_size, dtype=np.int32)[rows, None], (1, 3))
    return Examples(Inputs(ids, np.zeros_like(ids)), np.full(len(ids), step, np.int32))


def embed_queries(params, queries):
    """Row r gets [params + r, 0]."""
    first = params["w"] + queries.ids[:, 0].astype(jnp.float32)
    return jnp.stack([first, jnp.zeros_like(first)], axis=1)


def task(retrieval=True, make_examples=examples, **changes: Any) -> Task:
    parts = Retrieval(
        config=None,  # type: ignore[arg-type]
        corpus=None,  # type: ignore[arg-type]
        document_len=8,
        num_results=3,
        queries=lambda examples: examples.query,
        embed_queries=embed_queries,
        retriever_params=lambda params: params,
        select=lambda examples, results: results.ids[:, :2],
        join=lambda examples, ids: Joined(ids.astype(np.int32), examples.step),
    )
    return Task(
        name="fake",
        init=lambda rng: {},
        loss=None,  # type: ignore[arg-type]
        examples=make_examples,
        batch=lambda examples: examples,
        tokens_per_example=1,
        flops_per_example=1.0,
        can_accumulate=True,
        retrieval=parts._replace(**changes) if retrieval else None,
    )


@pytest.fixture
def make():
    made: list[LookAhead] = []

    def build(the_task, devices=8, **mesh):
        made.append(LookAhead(the_task, MeshConfig(**mesh).build(jax.devices()[:devices]), BATCH))
        return made[-1]

    yield build
    for look_ahead in made:
        look_ahead.close()


def params(value):
    return {"w": jnp.float32(value)}


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_candidates_come_from_the_parameters_and_the_index_at_start(make, mesh):
    look_ahead = make(task(), **mesh)
    served = RecordingIndex(1)
    look_ahead.start(5, params(100), served)
    served = RecordingIndex(2)  # a swap, and an update of the parameters, in the meantime
    prepared = look_ahead.take(5)
    np.testing.assert_array_equal(prepared.candidate_ids, np.repeat(1100 + np.arange(8)[:, None], 2, axis=1))
    np.testing.assert_array_equal(prepared.batch.candidate_ids, prepared.candidate_ids)
    assert np.asarray(prepared.batch.step).tolist() == [5] * 8
    look_ahead.start(6, params(200), served)
    assert look_ahead.take(6).candidate_ids[:, 0].tolist() == list(range(2200, 2208))
    assert look_ahead.take(6).step == 6  # taking twice gives the same, as the checkpoint does


def test_how_old_a_selection_is(make):
    """The first is made before any step; every other, that of a resumed run included, a step ahead."""
    look_ahead, resumed = make(task()), make(task())
    ages = []
    for step in (5, 6, 7):
        look_ahead.start(step, params(step), RecordingIndex(0))
        ages.append(look_ahead.take(step).selection_age_steps)
    assert ages == [0, 1, 1]
    resumed.resume(6, look_ahead.take(7).candidate_ids, RecordingIndex(0))
    assert resumed.take(6).selection_age_steps == 1


def test_parameters_may_be_donated_after_start(make):
    look_ahead = make(task(), devices=1)
    update = jax.jit(lambda w: w + 1, donate_argnums=0)
    w = jnp.zeros(())
    for step in range(4):
        look_ahead.start(step, {"w": w}, RecordingIndex(0))
        w = update(w)
        assert look_ahead.take(step).candidate_ids[:, 0].tolist() == [step + row for row in range(8)]


def test_the_batch_is_sharded_by_rows(make):
    look_ahead = make(task())
    look_ahead.start(0, params(0), RecordingIndex(0))
    array = look_ahead.take(0).batch.candidate_ids
    assert len(array.sharding.device_set) == 8 and array.addressable_shards[0].data.shape == (1, 2)


def test_candidates_of_a_resumed_run_are_those_of_the_checkpoint(make):
    look_ahead = make(task())
    ids = np.arange(16, dtype=np.int32).reshape(8, 2)
    look_ahead.resume(7, ids, RecordingIndex(0))
    prepared = look_ahead.take(7)
    np.testing.assert_array_equal(prepared.candidate_ids, ids)
    assert prepared.step == 7 and np.asarray(prepared.batch.step).tolist() == [7] * 8


def test_a_task_may_join_with_the_embeddings_of_its_candidates(make):
    def join_embedded(examples, ids, embeds):
        return Joined(np.concatenate([ids[..., None], embeds], axis=-1).astype(np.int32), examples.step)

    embedded = task(join_embedded=join_embedded)
    look_ahead, resumed = make(embedded), make(embedded)
    look_ahead.start(0, params(3), RecordingIndex(2))
    joined = np.asarray(look_ahead.take(0).batch.candidate_ids)
    ids = np.repeat(2003 + np.arange(8)[:, None], 2, axis=1)
    np.testing.assert_array_equal(joined, np.stack([ids, np.full_like(ids, 2), ids], axis=-1))
    resumed.resume(0, look_ahead.take(0).candidate_ids, RecordingIndex(2))
    np.testing.assert_array_equal(np.asarray(resumed.take(0).batch.candidate_ids), joined)


def test_a_step_that_was_not_prepared(make):
    look_ahead = make(task())
    with pytest.raises(AssertionError, match="comes first"):
        look_ahead.take(0)
    look_ahead.start(3, params(0), RecordingIndex(0))
    with pytest.raises(AssertionError, match="prepared step 3, wanted 4"):
        look_ahead.take(4)


def test_what_breaks_in_the_thread_is_raised_in_the_training_thread(make):
    look_ahead = make(task())
    look_ahead.start(0, params(0), RecordingIndex(0, fails=True))
    with pytest.raises(RuntimeError, match="the searcher broke"):
        look_ahead.take(0)

    def breaking(step, batch_size, rows):
        if step == 1:
            raise ValueError("record 17 is damaged")
        return examples(step, batch_size, rows)

    other = make(task(make_examples=breaking))
    other.start(0, params(0), RecordingIndex(0))
    assert other.take(0).step == 0
    with pytest.raises(ValueError, match="record 17 is damaged"):
        other.start(1, params(0), RecordingIndex(0))
        other.take(1)


def test_search_runs_beside_the_training_thread(make):
    threads = []

    def select(examples, results):
        threads.append(threading.current_thread().name)
        return results.ids[:, :2]

    look_ahead = make(task(select=select))
    look_ahead.start(0, params(0), RecordingIndex(0))
    look_ahead.take(0)  # compiled
    start = time.perf_counter()
    look_ahead.start(1, params(0), RecordingIndex(0, delay_secs=0.3))
    begun = time.perf_counter() - start
    prepared = look_ahead.take(1)
    assert begun < 0.2 and time.perf_counter() - start > 0.29
    assert 300 <= prepared.search_ms < 600 and prepared.ready_at <= time.perf_counter()
    assert prepared.ready_at >= start + 0.3
    assert all(name.startswith("look-ahead") for name in threads)


def test_a_task_without_retrieval(make):
    look_ahead = make(task(retrieval=False))
    look_ahead.start(2, params(0), None)
    prepared = look_ahead.take(2)
    assert prepared.candidate_ids is None and prepared.search_ms == 0.0
    assert np.asarray(prepared.batch.query.ids)[:, 0].tolist() == list(range(8))
