"""The candidates of the next step are searched while the device runs this one."""

import concurrent.futures
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from realm_jax.retrieval.index import Index, SearchResult
from realm_jax.tasks.task import Params, Task
from realm_jax.training.sharding import BATCH, local_rows, process_rows, put_batch


class Prepared(NamedTuple):
    """A batch on the devices, ready for its step."""

    step: int
    batch: Any
    candidate_ids: np.ndarray | None  # this process's rows; None without retrieval, or where the step searches
    ready_at: float  # time.perf_counter() when it was ready
    search_ms: float  # search alone, without waiting for the query embeddings
    selection_age_steps: int = 0  # steps done since the parameters that embedded the queries; the index has its own age


class LookAhead:
    """Prepares the batch of step s + 1 during step s.

    `start` queues the embedding of the next queries on the device, ahead of the training step that is dispatched after
    it. A host thread takes the embeddings when they are done, searches, selects, gathers and uploads, while the device
    runs the step. The selection is therefore made with parameters one step old; scores and gradients are not.
    """

    def __init__(self, task: Task, mesh: Mesh, batch_size: int, in_step: bool = False):
        """Args:
        task: the method.
        mesh: where batches go.
        batch_size: of the global batch.
        in_step: the step searches for itself; what is prepared are the examples alone.
        """
        self._in_step = task.retrieval.in_step if in_step and task.retrieval else None
        self._task, self._mesh, self._batch_size = task, mesh, batch_size
        self._rows = process_rows(mesh, batch_size)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="look-ahead")
        self._future: concurrent.futures.Future[Prepared] | None = None
        self._examples: concurrent.futures.Future[tuple[int, Any]] | None = None
        retrieval = task.retrieval
        self._embed = (
            jax.jit(retrieval.embed_queries, out_shardings=NamedSharding(mesh, BATCH)) if retrieval else None
        )  # by rows whatever the layout of the parameters: each host searches for its own

    def start(self, step: int, params: Params, index: Index | None) -> None:
        """Begins to prepare `step`, with the queries embedded by `params` and searched in `index`."""
        examples = self._take_examples(step)
        embeds = None
        if self._task.retrieval is not None and self._in_step is None:
            assert self._embed is not None
            embeds = self._embed(params, put_batch(self._mesh, self._task.retrieval.queries(examples)))
        age = 0 if self._future is None else 1  # the first selection of a run is made before any step
        self._future = self._executor.submit(self._prepare, step, examples, embeds, index, age)
        self._examples = self._executor.submit(self._make_examples, step + 1)

    def resume(self, step: int, candidate_ids: np.ndarray, index: Index) -> None:
        """Prepares `step` with candidates that were selected, in this index, before the run stopped."""
        examples = self._make_examples(step)[1]
        ids = np.asarray(candidate_ids, np.int64)
        self._future = self._executor.submit(self._join, step, examples, ids, index, 0.0, 1)

    def take(self, step: int) -> Prepared:
        """Waits for the batch of `step`; raises what kept it from being made."""
        assert self._future is not None, "start() or resume() comes first"
        prepared = self._future.result()
        assert prepared.step == step, f"prepared step {prepared.step}, wanted {step}"
        return prepared

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _make_examples(self, step: int) -> tuple[int, Any]:
        return step, self._task.examples(step, self._batch_size, self._rows)

    def _take_examples(self, step: int) -> Any:
        if self._examples is not None:
            made_for, examples = self._examples.result()
            if made_for == step:
                return examples
        return self._make_examples(step)[1]

    def _prepare(self, step: int, examples: Any, embeds: jax.Array | None, index: Index | None, age: int) -> Prepared:
        retrieval = self._task.retrieval
        if retrieval is None or embeds is None:
            arrays = self._task.batch if self._in_step is None else self._in_step.arrays
            batch = put_batch(self._mesh, arrays(examples))
            return Prepared(step, jax.block_until_ready(batch), None, time.perf_counter(), 0.0)
        assert index is not None
        queries = local_rows(embeds).astype(np.float32)  # waits for the device
        start = time.perf_counter()
        if retrieval.num_results:
            results = index.search(queries, retrieval.num_results)
        else:  # the documents are known
            nothing = np.zeros((len(queries), 0))
            results = SearchResult(nothing.astype(np.int64), nothing.astype(np.float32))
        search_ms = (time.perf_counter() - start) * 1e3
        return self._join(step, examples, retrieval.select(examples, results), index, search_ms, age)

    def _join(
        self, step: int, examples: Any, candidate_ids: np.ndarray, index: Index, search_ms: float, age: int
    ) -> Prepared:
        retrieval = self._task.retrieval
        assert retrieval is not None
        if retrieval.join_embedded is not None:
            joined = retrieval.join_embedded(examples, candidate_ids, index.embeddings(candidate_ids))
        else:
            joined = retrieval.join(examples, candidate_ids)
        batch = put_batch(self._mesh, joined)
        return Prepared(step, jax.block_until_ready(batch), candidate_ids, time.perf_counter(), search_ms, age)
