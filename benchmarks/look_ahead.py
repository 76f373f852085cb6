"""What looking ahead hides: steps of REALM with the next candidates searched beside the step, against one after the other.

    python benchmarks/look_ahead.py [--steps=20] [--articles=500]

A generated encyclopedia, random parameters, a ScaNN index, the tiny run's settings. In the peer the same work is done in
turn: embed the queries, search, select, gather, and only then the step. Prints one table: seconds a step, the time that the
device waited for candidates, and the ratio.
"""

import argparse
import dataclasses
import functools
import logging
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

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


def measure(task: Task, index: Index, batch_size: int, steps: int, ahead: bool) -> tuple[list[float], list[float]]:
    """(seconds of each step, milliseconds that each waited for its candidates)."""
    optimizer = config.bind("train", ["runs/reader_tiny.gin"], ["CORPUS=unused"])["optimizer"]
    learners = tuple(jax.eval_shape(task.init, jax.random.key(0)))
    transformation = optimizer.build(steps, learners)
    mesh = MeshConfig().build(jax.devices()[:1])
    state = jax.jit(functools.partial(init_state, task=task, optimizer=transformation))(jax.random.key(0))
    step_fn = jax.jit(
        functools.partial(
            train_step,
            task=task,
            optimizer=transformation,
            schedules={name: optimizer.schedule(steps, name) for name in learners},
            accumulation_steps=1,
            dropout=False,
        ),
        donate_argnums=0,
    )
    look_ahead = LookAhead(task, mesh, batch_size)
    rng = jax.random.key(0)
    look_ahead.start(0, state.params, index)
    secs, waits = [], []
    done_at = time.perf_counter()
    for step in range(steps):
        prepared = look_ahead.take(step)
        if ahead:
            look_ahead.start(step + 1, state.params, index)
        state, figures = step_fn(state, prepared.batch, rng)
        jax.block_until_ready(figures)
        now = time.perf_counter()
        waits.append(max(0.0, prepared.ready_at - done_at) * 1e3)
        secs.append(now - done_at)
        done_at = now
        if not ahead:
            look_ahead.start(step + 1, state.params, index)
    look_ahead.close()
    return secs[3:], waits[3:]  # the first ones compile and fill the pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--articles", type=int, default=500)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        task, index, batch_size = prepare(Path(folder), options.articles)
        found = {
            name: measure(task, index, batch_size, options.steps, name == "ahead") for name in ("in turn", "ahead")
        }
    print(f"{'':10}{'secs/step':>12}{'waited ms':>12}{'of step':>10}")
    for name, (secs, waits) in found.items():
        median, wait = statistics.median(secs), statistics.median(waits)
        print(f"{name:10}{median:12.3f}{wait:12.1f}{wait / 1e3 / median:10.1%}")
    ratio = statistics.median(found["in turn"][0]) / statistics.median(found["ahead"][0])
    print(
        f"in turn / ahead: {ratio:.2f}   (waiting is to stay under 5 % of a step; {np.size(found['ahead'][0])} steps each)"
    )


if __name__ == "__main__":
    main()
