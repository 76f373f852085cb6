"""A REALM update with candidates encoded in groups of like length against the same at full length, in turn on one corpus.

    python benchmarks/length_groups.py --corpus=RUN/corpus [--groups 2 4] [--batch=8] [--repeats=5]

Candidates are drawn from the corpus at random, other ones for every repeat; the null document is one of them. Medians; a ratio
above 1: the groups are faster. `fits` is the share of the batches that could be encoded in groups, `padded` how many pieces the
groups hold beside those of full length.
"""

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.models import RetrieverConfig, TransformerConfig
from realm_jax.retrieval.length_batches import length_histogram
from realm_jax.tasks.length_groups import plan_groups
from realm_jax.tasks.realm import Realm
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.state import init_state, train_step


class Step:
    """The train job's step with so many groups."""

    def __init__(self, settings: Realm):
        self.task = settings.build(seed=0)
        config = OptimizerConfig(learning_rate=1e-5)
        learners = tuple(jax.eval_shape(self.task.init, jax.random.key(0)))
        optimizer = config.build(1000, learners)
        step = functools.partial(
            train_step,
            task=self.task,
            optimizer=optimizer,
            schedules={name: config.schedule(1000, name) for name in learners},
            accumulation_steps=1,
            dropout=False,
        )
        self._step, self._rng = jax.jit(step, donate_argnums=0), jax.random.key(0)
        self._state = jax.jit(functools.partial(init_state, task=self.task, optimizer=optimizer))(self._rng)
        self.secs: list[float] = []
        self.fits: list[float] = []

    def run(self, batch: Any, measured: bool) -> None:
        begin = time.perf_counter()
        self._state, figures = self._step(self._state, batch, self._rng)
        jax.block_until_ready((self._state, figures))
        if measured:
            self.secs.append(time.perf_counter() - begin)
            self.fits.append(float(figures.get("fits_length_groups", 1.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4])
    sizes = {
        "layers": 4, "hidden_size": 256, "heads": 4, "batch": 8, "candidates": 8, "query_len": 64, "document_len": 288,
        "repeats": 5,
    }  # fmt: skip
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    def settings(vocab_size: int, groups: int) -> Realm:
        encoder = TransformerConfig(
            vocab_size=vocab_size, hidden_size=options.hidden_size, num_layers=options.layers, num_heads=options.heads,
            intermediate_size=4 * options.hidden_size, unroll_layers=options.layers,
        )  # fmt: skip
        return Realm(
            corpus=options.corpus, retriever=RetrieverConfig(encoder, projection_size=128), reader=encoder,
            num_candidates=options.candidates, query_len=options.query_len, document_len=options.document_len,
            joint_len=options.query_len + options.document_len, length_groups=groups,
        )  # fmt: skip

    corpus = Corpus.open(options.corpus)
    counts = length_histogram(corpus, options.document_len)
    steps = {groups: Step(settings(corpus.tokenizer.vocab_size, groups)) for groups in (1, *options.groups)}
    retrieval = steps[1].task.retrieval
    assert retrieval is not None
    rng, shape = np.random.default_rng(0), (options.batch, options.candidates - 1)
    for number in range(options.repeats + 1):  # the first one compiles
        ids = np.concatenate([np.full((options.batch, 1), -1), rng.integers(0, corpus.num_documents, shape)], axis=1)
        batch = retrieval.join(steps[1].task.examples(number, options.batch, slice(None)), ids)
        for step in steps.values():
            step.run(batch, measured=number > 0)
    mean = (counts * np.arange(len(counts))).sum() / counts.sum()
    rows = options.batch * (options.candidates - 1)
    print(f"{rows} candidates a step, {mean:.0f} of {options.document_len} pieces on average")
    print(
        f"{'groups':>6} {'rows x pieces':<44}{'padded':>8}{'fits':>7}{'median s':>10}{'min':>8}{'max':>8}{'ratio':>7}"
    )
    base = statistics.median(steps[1].secs)
    for groups, step in steps.items():
        plan = plan_groups(counts, rows, groups)
        padded = sum(group.rows * group.length for group in plan) / (rows * options.document_len)
        median = statistics.median(step.secs)
        print(
            f"{groups:>6} {', '.join(f'{group.rows} x {group.length}' for group in plan):<44}{padded:>8.0%}"
            f"{np.mean(step.fits):>7.0%}{median:>10.2f}{min(step.secs):>8.2f}{max(step.secs):>8.2f}{base / median:>7.2f}"
        )


if __name__ == "__main__":
    main()
