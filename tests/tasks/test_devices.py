"""One device against eight, and one batch against its parts: the same loss and the same updated parameters."""

import functools

import jax
import numpy as np
import pytest

from realm_jax.data.inputs import NO_CANDIDATE
from realm_jax.tasks.realm import Realm
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import MeshConfig, put_batch, state_shardings
from realm_jax.training.state import init_state, micro_batches, train_step
from tests import tiny

BATCH = 8
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, warmup_steps=0, eps=1e-3
)  # a large eps: near 0, Adam divides noise by noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def batch_of(task, settings, corpus):
    examples = task.examples(0, BATCH, slice(None))
    if task.retrieval is None:
        return task.batch(examples)
    ids = np.concatenate([np.full((BATCH, 1), -1), np.random.default_rng(0).integers(0, 40, size=(BATCH, 3))], axis=1)
    ids[3, 2:] = NO_CANDIDATE
    if task.retrieval.join_embedded is not None:
        ids = np.where(
            ids[:, 1:] == NO_CANDIDATE, -1, ids[:, 1:]
        )  # of what was found a part, and of one question nothing
        ids[5] = -1
        embeds = np.random.default_rng(1).normal(size=(*ids.shape, task.retrieval.config.embed_dim)).astype(np.float32)
        return task.retrieval.join_embedded(examples, ids, embeds)
    assert isinstance(settings, Realm)
    return task.retrieval.join(examples, ids)


@functools.cache
def initial_state(settings):
    task = settings.build(seed=0)
    optimizer = OPTIMIZER.build(10, tuple(jax.eval_shape(task.init, jax.random.key(0))))
    return jax.device_get(jax.jit(functools.partial(init_state, task=task, optimizer=optimizer))(jax.random.key(0)))


def one_step(settings, corpus, devices=8, accumulation_steps=1, **axes):
    """Loss, metrics and parameters after one update without dropout."""
    task = settings.build(seed=0)
    mesh = MeshConfig(**axes).build(jax.devices()[:devices])
    learners = tuple(jax.eval_shape(task.init, jax.random.key(0)))
    optimizer = OPTIMIZER.build(10, learners)
    initial = initial_state(settings)
    state = jax.device_put(initial, state_shardings(mesh, jax.eval_shape(lambda: initial)))
    step = jax.jit(
        functools.partial(
            train_step,
            task=task,
            optimizer=optimizer,
            schedules={name: OPTIMIZER.schedule(10, name) for name in learners},
            accumulation_steps=accumulation_steps,
            dropout=False,
        )
    )
    state, figures = step(state, put_batch(mesh, batch_of(task, settings, corpus)), jax.random.key(1))
    return jax.device_get((figures, state.params))


def assert_same_update(one, other):
    figures, params = one
    other_figures, other_params = other
    assert figures.keys() == other_figures.keys()
    for name in figures:
        assert float(figures[name]) == pytest.approx(float(other_figures[name]), rel=2e-4, abs=1e-5), name
    # sums in another order differ in the last bits; a wrong label or negative differs in the first
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, other_params)


@pytest.fixture(scope="module")
def ict_on_one(corpus):
    return one_step(tiny.ict(corpus.directory), corpus, devices=1)


@pytest.fixture(scope="module")
def realm_on_one(corpus):
    return one_step(tiny.realm(corpus.directory), corpus, devices=1)


@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_ict_has_the_same_negatives_on_eight_devices(corpus, ict_on_one, axes):
    assert_same_update(one_step(tiny.ict(corpus.directory), corpus, **axes), ict_on_one)
    assert float(ict_on_one[0]["loss"]) > 0.5  # of 8, not of 1: with local negatives it would be 0
    assert float(ict_on_one[0]["finite"]) == 1.0


@pytest.mark.parametrize("axes", [pytest.param({}, marks=pytest.mark.slow), {"data": 2, "fsdp": 2, "tensor": 2}])
def test_realm_is_the_same_on_eight_devices(corpus, realm_on_one, axes):
    assert_same_update(one_step(tiny.realm(corpus.directory), corpus, **axes), realm_on_one)


@pytest.mark.slow
@pytest.mark.parametrize("marginal", ["sequence", "token", "joint"])
def test_rag_is_the_same_on_eight_devices_and_in_parts(corpus, tmp_path, marginal):
    questions = tiny.questions_file(tmp_path / "questions.jsonl")
    settings = tiny.rag(corpus.directory, questions, marginal=marginal)
    on_one = one_step(settings, corpus, devices=1)
    assert_same_update(one_step(settings, corpus, data=2, fsdp=2, tensor=2), on_one)
    assert_same_update(one_step(settings, corpus, devices=1, accumulation_steps=4), on_one)
    before = initial_state(settings).params
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, on_one[1])
    assert max(jax.tree.leaves(moved["generator"])) > 1e-3
    # what no gradient reaches decays all the same; the loop leaves it out by `Task.frozen`
    decay = max(jax.tree.leaves(moved["retriever"]["document_encoder"]))
    assert (max(jax.tree.leaves(moved["retriever"]["query_encoder"])) > 3 * decay) == (marginal != "joint")


def test_accumulated_parts_are_the_whole_batch(corpus, realm_on_one):
    assert_same_update(one_step(tiny.realm(corpus.directory), corpus, devices=1, accumulation_steps=4), realm_on_one)


def test_micro_batches_keep_rows_on_their_devices():
    rows = np.arange(8)
    parts = micro_batches({"a": rows}, 4)["a"]
    assert parts.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_parameters_moved(corpus, realm_on_one):
    before = initial_state(tiny.realm(corpus.directory)).params
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, realm_on_one[1])
    assert min(moved["retriever"]["shared_encoder"]["projection"].values()) >= 0
    assert moved["retriever"]["shared_encoder"]["projection"]["kernel"] > 1e-4
    assert moved["knowledge_encoder"]["transform"]["kernel"] > 1e-4
