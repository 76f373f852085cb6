"""Retrieval inside the train step against retrieval by the host, to the last id; and whole runs of it."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.inputs import NO_CANDIDATE
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.exact import ExactIndex, ExactSettings, brute_force, search_sharded_chunks
from realm_jax.retrieval.resident import gather_documents, place_documents
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import load_params
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig, put_batch, state_shardings
from realm_jax.training.state import InStepBatch, in_step_train_step, init_state, train_step
from tests import tiny
from tests.training.realm_run import run_realm

BATCH, STEPS = 8, 4
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, eps=1e-3)
REFRESH = RefreshConfig(
    mode="synchronous",
    embedder="in_trainer",
    search="in_step",
    snapshot_every_steps=2,
    index=IndexSettings(backend="exact", exact=ExactSettings(chunk=3), recall_queries=8, recall_results=4),
    batches=BatchSettings(document_len=24, batch_size=8, num_lengths=1, query_len=16),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.mark.parametrize(
    ("axes", "null_document"), [({}, True), pytest.param({"fsdp": 2, "tensor": 2}, False, marks=pytest.mark.slow)]
)
def test_candidates_and_updates_are_the_hosts(corpus, axes, null_document):
    """Step for step on 8 devices: the host embeds, searches, selects and joins; the one program does it all."""
    settings = tiny.realm(corpus.directory, null_document=null_document, extra_results=12)
    task, mesh = settings.build(seed=1), MeshConfig(**axes).build()
    retrieval = task.retrieval
    learners = tuple(jax.eval_shape(task.init, jax.random.key(0)))
    optimizer = OPTIMIZER.build(10, learners)
    common = {
        "task": task, "optimizer": optimizer, "schedules": {name: OPTIMIZER.schedule(10, name) for name in learners},
        "accumulation_steps": 1, "dropout": False,
    }  # fmt: skip
    by_host = jax.jit(functools.partial(train_step, **common))
    in_step = jax.jit(functools.partial(in_step_train_step, mesh=mesh, **common))
    state = jax.jit(functools.partial(init_state, task=task, optimizer=optimizer))(jax.random.key(0))
    state = jax.device_put(state, state_shardings(mesh, jax.eval_shape(lambda: state)))

    rng = np.random.default_rng(0)
    index = ExactIndex(
        rng.standard_normal((corpus.num_documents, settings.retriever.embed_dim)).astype(np.float32), chunk=3, mesh=mesh
    )
    documents = place_documents(corpus, mesh, retrieval.in_step.max_title_len)
    excluded = 0
    for step in range(STEPS):
        examples = task.examples(step, BATCH, slice(None))
        embeds = np.asarray(jax.jit(retrieval.embed_queries)(state.params, retrieval.queries(examples)))
        results = index.search(embeds, retrieval.num_results)
        expected_ids = retrieval.select(examples, results)
        expected = retrieval.join(examples, expected_ids)
        excluded += int(
            (results.ids[:, : settings.num_candidates - null_document] != expected_ids[:, int(null_document) :])
            .any(axis=1)
            .sum()
        )

        arrays = put_batch(mesh, retrieval.in_step.arrays(examples))

        def joined(params, arrays, documents, rows):
            embeds = retrieval.embed_queries(params, retrieval.queries(arrays))
            found = search_sharded_chunks(embeds, rows.chunks, corpus.num_documents, retrieval.num_results, mesh)
            return retrieval.in_step.join(arrays, found, gather_documents(documents, found.ids, mesh))

        batch, ids = jax.jit(joined)(state.params, arrays, documents, index.device_rows)
        np.testing.assert_array_equal(ids, expected_ids)
        for name in expected._fields:
            jax.tree.map(np.testing.assert_array_equal, getattr(batch, name), getattr(expected, name))

        key = jax.random.key(1)
        ours, figures = in_step(state, InStepBatch(arrays, documents, index.device_rows), key)
        theirs, host_figures = by_host(state, put_batch(mesh, expected), key)
        assert float(figures["loss"]) == pytest.approx(float(host_figures["loss"]), rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours.params, theirs.params)
        state = ours
    assert excluded >= STEPS, "documents that give x away were found and left out"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rows_of_fewer_bits_are_searched_as_what_they_stand_for(corpus, dtype):
    """Inside the step nothing is scored again: the documents found are the best of the rounded rows, on any mesh."""
    mesh = MeshConfig(fsdp=2, tensor=2).build()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((corpus.num_documents, 16)).astype(np.float32)
    queries = rng.standard_normal((BATCH, 16)).astype(np.float32)
    index = ExactIndex(rows, dtype=dtype, chunk=3, mesh=mesh)
    chunks, scales = index.device_rows
    found = jax.jit(functools.partial(search_sharded_chunks, num_results=6, mesh=mesh))(
        queries, chunks, num_documents=corpus.num_documents, scales=scales
    )
    if dtype == "int8":
        rounded = rows / (np.abs(rows).max(axis=1, keepdims=True) / 127)
        rounded = np.round(rounded) * np.abs(rows).max(axis=1, keepdims=True) / 127
    else:
        rounded = rows.astype(jnp.bfloat16).astype(np.float32)
    expected = brute_force(queries.astype(jnp.bfloat16).astype(np.float32), rounded, 6)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    exactly = brute_force(queries, rows, 6)
    assert not np.array_equal(expected.scores, exactly.scores), "rounding changes nothing here"


def test_approximate_search_is_the_exact_one_on_a_cpu(corpus):
    mesh = MeshConfig().build()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((corpus.num_documents, 16)).astype(np.float32)
    queries = rng.standard_normal((BATCH, 16)).astype(np.float32)
    chunks = ExactIndex(rows, chunk=3, mesh=mesh).device_rows.chunks
    found = search_sharded_chunks(jnp.asarray(queries), chunks, corpus.num_documents, 6, mesh, recall_target=0.9)
    np.testing.assert_array_equal(found.ids, brute_force(queries, rows, 6).ids)


@pytest.mark.slow
def test_too_few_documents_leave_empty_slots(corpus):
    settings = tiny.realm(corpus.directory, num_candidates=6, extra_results=0)
    task, mesh = settings.build(seed=1), MeshConfig().build(jax.devices()[:1])
    examples = task.examples(0, BATCH, slice(None))
    params = task.init(jax.random.key(0))
    # the sentence's own document scores best, so that of five results one is left out
    embeds = np.asarray(task.retrieval.embed_queries(params, jax.tree.map(jnp.asarray, examples.query)))
    rows = np.zeros((corpus.num_documents, settings.retriever.embed_dim), np.float32)
    rows[examples.source_documents] = 9 * embeds
    index = ExactIndex(rows, mesh=mesh)
    found = search_sharded_chunks(jnp.asarray(embeds), index.device_rows.chunks, corpus.num_documents, 5, mesh)
    documents = place_documents(corpus, mesh, 21)
    _, ids = task.retrieval.in_step.join(
        jax.tree.map(jnp.asarray, task.retrieval.in_step.arrays(examples)),
        found,
        gather_documents(documents, found.ids, mesh),
    )
    expected = task.retrieval.select(examples, index.search(embeds, 5))
    np.testing.assert_array_equal(ids, expected)
    assert (expected == NO_CANDIDATE).any()


def run_in_step(run, corpus, **changes):
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, decay="constant")  # whatever the number of steps
    run_realm(str(run), str(corpus.directory), refresh=REFRESH, optimizer=optimizer, **changes)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    run_in_step(run, corpus)
    return run


def losses(run):
    return [line["loss"] for line in read_metrics(RunDir.of(run))]


@pytest.mark.slow
def test_a_resumed_run_is_the_one_that_was_not_interrupted(corpus, whole, tmp_path):
    for num_steps in (4, 6):
        run_in_step(tmp_path, corpus, num_steps=num_steps)
    assert losses(tmp_path) == losses(whole)
    jax.tree.map(np.testing.assert_array_equal, *(load_params(RunDir.of(run))[1] for run in (tmp_path, whole)))
    lines = read_metrics(RunDir.of(whole))
    assert [line["index_version"] for line in lines] == [0, 0, 2, 2, 4, 4]
    assert {line["selection_age_steps"] for line in lines} == {0}


@dataclasses.dataclass(frozen=True)
class OneDevice(MeshConfig):
    def build(self, devices=None):
        return super().build(jax.devices()[:1])


@pytest.mark.slow
def test_one_device_trains_as_eight_and_swaps_without_compiling_again(corpus, whole, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run_in_step(tmp_path, corpus, mesh=OneDevice())
    assert sum("train step compiled" in record.message for record in caplog.records) == 1
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


def test_what_cannot_be_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"search='in_step' shards the index .* leave index_hosts out"):
        dataclasses.replace(REFRESH, index_hosts="sharded")
    task = tiny.realm(corpus.directory)

    @dataclasses.dataclass(frozen=True)
    class ByHost:
        def build(self, seed):
            built = task.build(seed)
            return built._replace(retrieval=built.retrieval._replace(in_step=None))

    with pytest.raises(ValueError, match="this task needs the host between search and step; set it to 'look_ahead'"):
        run_realm(str(tmp_path), str(corpus.directory), refresh=REFRESH, task=ByHost())
