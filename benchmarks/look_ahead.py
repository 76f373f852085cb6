"""What retrieval costs a step of REALM: candidates searched ahead, or one after the other, against candidates that are there.

    python benchmarks/look_ahead.py [--steps=20] [--articles=500] [--rounds=3]

A generated encyclopedia, random parameters, a ScaNN index, the tiny run's settings. "ahead" embeds the next step's queries,
searches, selects and gathers beside the step, as the train job does; "in turn" does the same and only then the step;
"prefetched" takes the step with batches that were made before the clock started. In every round each way takes --steps
steps. Prints one table: seconds a step, the time that the device waited for candidates, and the ratios.
"""

import argparse
import dataclasses
import functools
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from realm_jax import config
from realm_jax.corpus.build import corpus as build_corpus
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.world import WorldConfig
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.embedder import embed_params
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.look_ahead import LookAhead
from realm_jax.retrieval.versions import load_version
from realm_jax.run_dir import RunDir
from realm_jax.tasks.task import Task
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.state import init_state, train_step


def prepare(folder: Path, articles: int) -> tuple[Task, Index, int]:
    """A corpus, the task on it and an index of random parameters; (task, index, batch_size)."""
    run = RunDir.of(folder)
    build_corpus(
        run_dir=str(folder),
        world=WorldConfig(num_articles=articles),
        vocab_size=2048,
        tokenizer="train:bpe",
        block_len=128,
    )
    bindings = [f"CORPUS={run.corpus}", f"X_CORPUS={run.corpus / 'x_train'}", f"HELDOUT={run.corpus / 'x_heldout'}"]
    settings = config.bind("train", ["runs/realm_tiny.gin"], bindings)
    task_config = dataclasses.replace(settings["task"], heldout_corpus=None)
    task = task_config.build(seed=0)
    params = task.init(jax.random.key(0))
    retriever: RetrieverConfig = task_config.retriever
    batches = BatchSettings(document_len=task_config.document_len, query_len=task_config.query_len)
    embed_params(
        run, 0, retriever, jax.device_get(params["retriever"]), "random", Corpus.open(run.corpus),
        settings=IndexSettings(), batches=batches,
    )  # fmt: skip
    return task, load_version(run.index_version(0)), settings["batch_size"]


class Way:
    """Steps with candidates that come one way, and what they took."""

    def __init__(self, task: Task, index: Index, batch_size: int):
        optimizer = config.bind("train", ["runs/reader_tiny.gin"], ["CORPUS=unused"])["optimizer"]
        learners = tuple(jax.eval_shape(task.init, jax.random.key(0)))
        transformation = optimizer.build(1000, learners)
        self._state = jax.jit(functools.partial(init_state, task=task, optimizer=transformation))(jax.random.key(0))
        self._step_fn = jax.jit(
            functools.partial(
                train_step,
                task=task,
                optimizer=transformation,
                schedules={name: optimizer.schedule(1000, name) for name in learners},
                accumulation_steps=1,
                dropout=False,
            ),
            donate_argnums=0,
        )
        self._index = index
        self._look_ahead = LookAhead(task, MeshConfig().build(jax.devices()[:1]), batch_size)
        self._next = 0
        self.secs: list[float] = []
        self.waits: list[float] = []  # milliseconds

    def run(self, way: str, steps: int, warm_up: int = 3) -> None:
        """Takes so many steps; the first ones compile and fill the pipe, and are not counted."""
        self._look_ahead.start(self._next, self._state.params, self._index)
        made: list[Any] = []
        if way == "prefetched":
            for step in range(self._next, self._next + steps):
                made.append(self._look_ahead.take(step))
                self._look_ahead.start(step + 1, self._state.params, self._index)
            self._look_ahead.take(self._next + steps)
            jax.block_until_ready([prepared.batch for prepared in made])
        done_at = time.perf_counter()
        for number in range(steps):
            step = self._next + number
            prepared = made[number] if made else self._look_ahead.take(step)
            if way == "ahead":
                self._look_ahead.start(step + 1, self._state.params, self._index)
            self._state, figures = self._step_fn(self._state, prepared.batch, jax.random.key(0))
            jax.block_until_ready(figures)
            now = time.perf_counter()
            if number >= warm_up:
                self.waits.append(max(0.0, prepared.ready_at - done_at) * 1e3)
                self.secs.append(now - done_at)
            done_at = now
            if way == "in turn":
                self._look_ahead.start(step + 1, self._state.params, self._index)
        if way != "prefetched":
            self._look_ahead.take(self._next + steps)
        self._next += steps + 1

    def close(self) -> None:
        self._look_ahead.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--articles", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        task, index, batch_size = prepare(Path(folder), options.articles)
        ways = {name: Way(task, index, batch_size) for name in ("prefetched", "ahead", "in turn")}
        for _ in range(options.rounds):
            for name, way in ways.items():
                way.run(name, options.steps)
        for way in ways.values():
            way.close()
    print(f"{'':12}{'secs/step':>12}{'min':>8}{'max':>8}{'waited ms':>12}{'of step':>10}{'ratio':>8}")
    base = statistics.median(ways["prefetched"].secs)
    for name, way in ways.items():
        median, wait = statistics.median(way.secs), statistics.median(way.waits)
        print(
            f"{name:12}{median:12.3f}{min(way.secs):8.3f}{max(way.secs):8.3f}{wait:12.1f}{wait / 1e3 / median:10.1%}{median / base:8.3f}"
        )


if __name__ == "__main__":
    main()
