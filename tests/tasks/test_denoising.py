"""The generator's warm start: what is hidden, that it is a pure function, and that a generator learns to put it back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realm_jax.data.denoising import infill
from realm_jax.tasks.denoising import Denoising
from tests import tiny

MASK = 999


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    corpus = tiny.corpus(tmp_path_factory.mktemp("z"))
    generator = tiny.encoder_decoder(pad_id=0, bos_id=2, eos_id=3, decoder_start_id=3, forced_eos_id=3)
    return Denoising(str(corpus.directory), generator, length=24)


def test_spans_become_single_masks_and_the_rest_keeps_its_order():
    hidden, masks, empty = 0, 0, 0
    for seed in range(400):
        ids = np.arange(40, dtype=np.int32)
        got = infill(ids, np.random.default_rng(seed), MASK, 0.3, 3.0)
        kept = got[got != MASK]
        assert len(kept) == 40 - 12 and (np.diff(kept) > 0).all()  # share of all
        places = np.flatnonzero(got == MASK)
        assert len(places) and (np.diff(places) > 1).all()  # two masks never stand side by side
        around = np.concatenate([[-1], got, [40]])
        for place in places:
            gap = int(around[place + 2]) - int(around[place]) - 1  # what this mask hides
            hidden, masks, empty = hidden + gap, masks + 1, empty + (gap == 0)
    assert (
        hidden == 400 * 12 and 2.3 < hidden / masks < 3.3 and 0.02 < empty / masks < 0.12
    )  # Poisson(3), cut at the end


def test_nothing_is_hidden_of_a_single_token():
    assert infill(np.array([7], np.int32), np.random.default_rng(0), MASK, 0.3, 3.0).tolist() == [7]


def test_a_batch_is_a_pure_function_and_its_target_the_whole_document(settings):
    task = settings.build(seed=5)
    whole = task.examples(3, 8, slice(None))
    for one, other in zip(task.examples(3, 8, slice(2, 5)), whole, strict=True):
        np.testing.assert_array_equal(one, other[2:5])
    again = settings.build(seed=6).examples(3, 8, slice(None))
    assert (again.source_ids != whole.source_ids).any()
    mask_id, corrupted = 4, 0  # [MASK]
    for row in range(8):
        length = int(whole.target_mask[row].sum())
        target, source = whole.targets[row, :length].tolist(), [i for i in whole.source_ids[row].tolist() if i]
        assert target[-1] == 3 and whole.target_inputs[row, :length].tolist() == [3, *target[:-1]]
        assert source[0] == 2 and source[-1] == 3 and mask_id in source
        left = iter(target)
        assert all(token in left for token in source[1:-1] if token != mask_id)  # in the same order
        corrupted += length - 1 - sum(token != mask_id for token in source[1:-1])
    assert 0.2 < corrupted / (whole.target_mask.sum() - 8) < 0.4


def test_it_learns_to_put_back_what_is_missing(settings):
    task = settings.build(seed=5)
    batch = jax.tree.map(jnp.asarray, task.batch(task.examples(0, 8, slice(None))))
    params, optimizer = task.init(jax.random.key(0)), optax.adam(3e-3)

    @jax.jit
    def update(params, state):
        def mean(some):
            loss, metrics = task.loss(some, batch, None)
            return loss.total / loss.weight, metrics

        (loss, metrics), grads = jax.value_and_grad(mean, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss, metrics["token_accuracy"]

    state, found = optimizer.init(params), []
    for _ in range(60):
        params, state, loss, accuracy = update(params, state)
        found.append((float(loss), float(accuracy.total / accuracy.weight)))
    assert found[-1][0] < 0.3 * found[0][0] and found[-1][1] > 0.9 > 0.5 > found[0][1]
    assert float(accuracy.weight) == batch.target_mask.sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.0}, "share must lie between 0 and 1 and mean_span above 0, got 1.0 and 3.0"),
        ({"mean_span": 0.0}, "got 0.3 and 0.0"),
        ({"length": 65}, "length must lie between 8 and the generator's max_length=64, got 65"),
        ({"generator": tiny.encoder_decoder()}, r"Denoising.generator.pad_id: expected the tokenizer's 0, got 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(settings, **changes).build(seed=0)
