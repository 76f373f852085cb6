"""Rolling refresh in a run: each version renews one shard of four, and the metrics say how old the others are."""

import dataclasses

import jax
import numpy as np
import pytest

from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.versions import list_versions, read_manifest
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import load_params
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from tests import tiny
from tests.training.realm_run import run_realm

REFRESH = RefreshConfig(
    mode="synchronous",
    embedder="in_trainer",
    search="in_step",  # a finished run that gets more steps then selects as one that had them from the start
    snapshot_every_steps=2,
    index=IndexSettings(
        backend="exact", shard_bytes=4 * 16 * 10, shards_per_version=1, recall_queries=8, recall_results=4
    ),
    batches=BatchSettings(document_len=24, batch_size=8, num_lengths=1, query_len=16),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def run(place, corpus, num_steps, refresh=REFRESH):
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, decay="constant")
    run_realm(str(place), str(corpus.directory), num_steps=num_steps, refresh=refresh, optimizer=optimizer)
    return RunDir.of(place)


@pytest.mark.slow
def test_ages_are_told_and_a_resumed_run_renews_the_same_shards(corpus, tmp_path):
    whole = run(tmp_path / "whole", corpus, 6)
    lines = read_metrics(whole)
    assert [line["index_version"] for line in lines] == [0, 0, 2, 2, 4, 4]
    assert [line.get("index_oldest_age_steps") for line in lines] == [None, None, 2, 3, 4, 5]
    assert [line.get("index_mean_age_steps") for line in lines] == [None, None, 1.5, 2.5, 2.5, 3.5]
    assert read_manifest(whole.index_version(4)).shard_steps == (2, 4, 0, 0)
    for num_steps in (4, 6):
        resumed = run(tmp_path / "resumed", corpus, num_steps)
    assert list_versions(resumed.index) == list_versions(whole.index)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in lines]
    jax.tree.map(np.testing.assert_array_equal, load_params(resumed)[1], load_params(whole)[1])


@pytest.mark.slow
def test_all_shards_renewed_is_no_mixture(corpus, tmp_path):
    index = dataclasses.replace(REFRESH.index, shards_per_version=4)
    rolled = run(tmp_path / "rolled", corpus, 4, dataclasses.replace(REFRESH, index=index))
    plain = dataclasses.replace(REFRESH, index=dataclasses.replace(index, shards_per_version=None))
    whole = run(tmp_path / "whole", corpus, 4, plain)
    assert [line["loss"] for line in read_metrics(rolled)] == [line["loss"] for line in read_metrics(whole)]
    assert not any("index_mean_age_steps" in line for line in read_metrics(rolled))
