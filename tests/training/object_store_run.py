"""A small REALM run on the fake object store: python object_store_run.py RUN Z STORE CACHE."""

import sys
from pathlib import Path
from typing import Any

from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from tests import object_store, tiny

INDEX = IndexSettings(backend="scann", shard_bytes=10 * 4 * 16, recall_queries=8, recall_results=4)  # ten rows a shard
BATCHES = BatchSettings(document_len=24, batch_size=8, num_lengths=1, query_len=16)


def run_realm(run_dir: str, corpus: str, num_steps: int = 6, embedder: Any = "in_trainer") -> dict[str, float]:
    return train(
        run_dir=run_dir,
        task=tiny.realm(corpus),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        num_steps=num_steps,
        batch_size=8,
        checkpoint_every_steps=2,
        refresh=RefreshConfig(
            mode="synchronous",
            embedder=embedder,
            snapshot_every_steps=3,
            timeout_secs=120.0,
            poll_secs=0.05,
            index=INDEX,
            batches=BATCHES,
        ),
    )


if __name__ == "__main__":
    run_dir, corpus, store, cache = sys.argv[1:]
    object_store.use(Path(store), Path(cache))
    run_realm(run_dir, corpus)
