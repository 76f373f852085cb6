"""Candidates in groups of like length: what the groups hold, and the same losses and updates as at full length."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import NO_CANDIDATE, Inputs
from realm_jax.retrieval.length_batches import input_lengths
from realm_jax.run_dir import RunDir
from realm_jax.tasks.length_groups import RowEncoding, by_length, fits, plan_groups
from realm_jax.tasks.realm import RealmGroups
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig, batch_devices, put_batch, state_shardings
from realm_jax.training.state import init_state, train_step
from tests import tiny
from tests.training.realm_run import run_realm

BATCH = 8
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, eps=1e-3)


@pytest.mark.parametrize("num_parts", [1, 8])
def test_nearly_every_draw_fits_its_plan(num_parts):
    rng = np.random.default_rng(0)
    corpus = np.minimum(rng.exponential(60, 20_000).astype(int) + 4, 160)
    groups = plan_groups(np.bincount(corpus, minlength=161), 64, 4, num_parts)
    assert sum(group.rows for group in groups) == 64 and groups[-1].length == 160 and len(groups) == 4
    assert [group.length for group in groups] == sorted(group.length for group in groups)
    draws = jnp.asarray(rng.choice(corpus, (400, 64 * num_parts)).astype(np.int32))
    fitting = jax.lax.map(functools.partial(fits, groups=groups, num_parts=num_parts), draws)
    assert np.mean(fitting) >= 0.96  # RISK is 2 %
    padded = sum(group.rows * group.length for group in groups)
    assert padded < 0.75 * 64 * 160  # or it would not be worth it


def test_plans_of_odd_corpora():
    alike = np.bincount([40] * 7, minlength=41)
    assert plan_groups(alike, 16, 4) == ((16, 40),)
    short = np.bincount([10] * 9, minlength=65)  # all shorter than the full length, which must still be there
    assert plan_groups(short, 16, 2)[-1].length == 64
    assert sum(group.rows for group in plan_groups(short, 16, 2)) == 16
    assert plan_groups(np.bincount([8, 64]), 1, 3) == ((1, 64),)


def test_rows_are_encoded_in_their_groups_and_come_back_in_order():
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.repeat([3, 7, 12], [8, 4, 4])).astype(np.int32)
    ids = np.where(np.arange(12) < lengths[:, None], rng.integers(5, 99, (16, 12)), 0).astype(np.int32)
    inputs, weights = Inputs(jnp.asarray(ids), jnp.asarray(ids % 2)), jnp.arange(16.0)
    widths = []

    def encode(ids, segment_ids, weight):
        widths.append(ids.shape)
        return jnp.stack([(ids * (1 + segment_ids)).sum(axis=1) + weight, weight], axis=1)

    parts = np.sort(lengths.reshape(2, 8), axis=1)
    groups = plan_groups(np.bincount(lengths, minlength=13), 8, 1)  # one group of all
    assert groups == ((8, 12),)
    chosen = (groups[0]._replace(rows=2, length=int(parts[:, 1].max())), groups[0]._replace(rows=6))
    assert fits(jnp.asarray(lengths), chosen, 2)
    assert not fits(jnp.asarray(lengths), (chosen[0]._replace(length=int(parts[:, 1].max()) - 1), chosen[1]), 2)
    expected = encode(*inputs, weights)
    rows = RowEncoding(by_length(jnp.asarray(lengths), 2), chosen)
    np.testing.assert_array_equal(rows(encode, inputs, weights), expected)
    assert widths == [(16, 12), (4, chosen[0].length), (12, 12)]
    rows(encode, inputs, weights, wider_by=2)
    assert widths[3:] == [(4, chosen[0].length + 2), (12, 12)]
    # of rows that were cut to be sorted more is left elsewhere: the last group has all of it
    longer = Inputs(*(jnp.pad(part, ((0, 0), (0, 8)), constant_values=7) for part in inputs))
    rows(encode, longer, weights, wider_by=2)
    assert widths[5:] == [(4, chosen[0].length + 2), (12, 20)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def candidates(corpus, long: bool) -> np.ndarray:
    """Ids [8, 4], the null document first, drawn from the longest documents or of all lengths; two places are empty."""
    lengths = input_lengths(corpus, np.arange(corpus.num_documents), 24)
    order = np.argsort(lengths)
    rng = np.random.default_rng(0)
    short, tall = order[: len(order) // 2], order[-len(order) // 4 :]
    ids = np.concatenate([np.full((BATCH, 1), -1), rng.choice(tall if long else short, (BATCH, 3))], axis=1)
    ids[3, 2:] = NO_CANDIDATE
    return ids


@functools.cache
def at_full_length(settings, long: bool):
    """Loss, metrics and parameters after an update without groups."""
    return one_step(settings, candidates(Corpus.open(settings.corpus), long), 1)


@functools.cache
def compiled_step(settings, devices, accumulation_steps, axes, dropout=False):
    """(task, mesh, the step, the state before it on the host): compiled once, whatever the candidates."""
    task = settings.build(seed=0)
    mesh = MeshConfig(**dict(axes)).build(jax.devices()[:devices])
    learners = tuple(jax.eval_shape(task.init, jax.random.key(0)))
    optimizer = OPTIMIZER.build(10, learners)
    state = jax.device_get(jax.jit(functools.partial(init_state, task=task, optimizer=optimizer))(jax.random.key(0)))
    step = jax.jit(
        functools.partial(
            train_step,
            task=task,
            optimizer=optimizer,
            schedules={name: OPTIMIZER.schedule(10, name) for name in learners},
            accumulation_steps=accumulation_steps,
            dropout=dropout,
            num_parts=batch_devices(mesh),
        )
    )
    return task, mesh, step, state


def one_step(settings, ids, devices, accumulation_steps=1, dropout=False, **axes):
    """Loss, metrics and parameters after an update."""
    task, mesh, step, state = compiled_step(settings, devices, accumulation_steps, tuple(axes.items()), dropout)
    state = jax.device_put(state, state_shardings(mesh, jax.eval_shape(lambda: state)))
    batch = task.retrieval.join(task.examples(0, BATCH, slice(None)), ids)
    state, figures = step(state, put_batch(mesh, batch), jax.random.key(1))
    return jax.device_get((figures, state.params))


@pytest.mark.parametrize(
    ("long", "devices", "accumulation_steps", "axes"),
    [
        pytest.param(False, 1, 1, {}, marks=pytest.mark.slow),
        pytest.param(True, 1, 1, {}, marks=pytest.mark.slow),
        pytest.param(False, 1, 2, {}, marks=pytest.mark.slow),
        (False, 8, 1, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_updates_are_those_at_full_length(corpus, long, devices, accumulation_steps, axes):
    settings = tiny.realm(corpus.directory)
    expected, expected_params = at_full_length(settings, long)
    grouped = dataclasses.replace(settings, length_groups=3)
    found, params = one_step(grouped, candidates(corpus, long), devices, accumulation_steps, **axes)
    assert float(found.pop("fits_length_groups")) == (0.0 if long else 1.0)
    assert found.keys() == expected.keys()
    for name in found:
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=2e-4, abs=1e-5), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, expected_params)


@pytest.mark.slow
def test_dropout_is_drawn_within_the_groups(corpus):
    """Masks have the groups' shapes, so that no update at full length has them: near its loss, the same at each run."""
    settings = tiny.realm(corpus.directory, length_groups=3)
    ids = candidates(corpus, False)
    (found, params), (again, _) = (one_step(settings, ids, 1, dropout=True) for _ in range(2))
    without, _ = one_step(settings, ids, 1)
    assert float(found["fits_length_groups"]) == 1.0
    assert float(found["loss"]) == float(again["loss"]) != float(without["loss"])
    assert float(found["loss"]) == pytest.approx(float(without["loss"]), rel=0.2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_what_is_read_of_a_cut_document_stays_whole(corpus):
    """Documents are embedded by their first pieces, and read further: the last group is read at its full length."""
    settings = dataclasses.replace(tiny.realm(corpus.directory), document_len=9)
    expected, _ = at_full_length(settings, True)
    found, _ = one_step(dataclasses.replace(settings, length_groups=3), candidates(corpus, True), 1)
    assert float(found["fits_length_groups"]) == 1.0  # all are 9 pieces long
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)


def task_batch(corpus, batch_size):
    task = tiny.realm(corpus.directory).build(seed=0)
    return jax.tree.map(
        jnp.asarray,
        task.retrieval.join(task.examples(0, batch_size, slice(None)), candidates(corpus, True)[:batch_size]),
    )


@pytest.mark.slow
def test_a_run_says_how_many_batches_fit(corpus, tmp_path):
    settings = dataclasses.replace(tiny.realm(corpus.directory), length_groups=2)
    refresh = RefreshConfig(mode="frozen", embedder="in_trainer", timeout_secs=120.0)
    run_realm(str(tmp_path), str(corpus.directory), 3, task=settings, refresh=refresh)
    logged = read_metrics(RunDir.of(tmp_path))
    assert all(0.0 <= row["fits_length_groups"] <= 1.0 for row in logged if "loss" in row)
    assert any("fits_length_groups" in row for row in logged)


def test_settings_are_checked(corpus):
    groups = RealmGroups(np.bincount([4, 9]), 2)
    with pytest.raises(ValueError, match=r"12 candidates do not divide over 8 devices .* length_groups = 1"):
        groups.fits(task_batch(corpus, 4), 8)
    with pytest.raises(ValueError, match="length_groups must be at least 1, got 0"):
        dataclasses.replace(tiny.realm(corpus.directory), length_groups=0)
