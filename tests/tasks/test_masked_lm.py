"""The reader's warm start: its loss by hand, and a run through several lessons."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.own_document import Lesson
from realm_jax.models import KnowledgeEncoder
from realm_jax.run_dir import RunDir
from realm_jax.tasks.masked_lm import MaskedLm, masked_lm_loss
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics, series
from realm_jax.training.optimizer import OptimizerConfig
from tests import tiny


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def settings(corpus, **changes):
    reader = tiny.encoder(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, dropout_rate=0.0)
    lessons = (Lesson(until_step=0, joint_len=48, max_sentences=2),)
    return MaskedLm(
        **({"corpus": str(corpus.directory), "reader": reader, "lessons": lessons, "max_masks": 3} | changes)
    )


def test_the_loss_is_the_mean_over_masks(corpus):
    config = settings(corpus)
    task = config.build(seed=0)
    params = jax.jit(task.init)(jax.random.key(0))
    assert list(params) == ["knowledge_encoder"] and task.can_accumulate and task.retrieval is None
    batch = task.batch(task.examples(0, 4, slice(None)))
    batch = batch._replace(mask_weights=batch.mask_weights * np.array([[1], [1], [1], [0]], np.float32))
    loss, metrics = jax.jit(lambda p, b: masked_lm_loss(p, b, None, reader=config.reader))(params, batch)
    (ids, segment_ids), positions = jax.tree.map(jnp.asarray, (tuple(batch.joint), batch.mask_positions))
    logits = KnowledgeEncoder(config.reader).apply(
        {"params": params["knowledge_encoder"]}, ids, segment_ids, ids != 0, positions
    )
    logits = np.asarray(logits, np.float64)
    total = right = count = 0.0
    for row in range(3):  # the last row has no mask
        for slot in np.flatnonzero(batch.mask_weights[row]):
            scores, target = logits[row, slot], batch.mask_targets[row, slot]
            total += np.log(np.exp(scores).sum()) - scores[target]
            right += scores.argmax() == target
            count += 1
    assert count >= 3 and float(loss.weight) == count == float(metrics["masked_accuracy"].weight)
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert float(metrics["masked_accuracy"].total) == right


@pytest.mark.slow
def test_several_lessons_compile_a_program_for_each_length(corpus, tmp_path, caplog):
    """Four lessons, two lengths; the loss falls, and the parameters are what a warm start takes over."""
    lessons = (Lesson(3, 32, window=2), Lesson(6, 32, window=6), Lesson(9, 48), Lesson(10, 48, max_sentences=2))
    with caplog.at_level(logging.INFO, logger="realm_jax.training.loop"):
        train(
            run_dir=str(tmp_path),
            task=settings(corpus, lessons=lessons),
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
            num_steps=12,
            batch_size=8,
        )
    assert sum("train step compiled" in message for message in caplog.messages) == 2
    steps, losses = series(read_metrics(tmp_path), "loss")
    assert steps.tolist() == list(range(1, 13)) and losses[-3:].mean() < losses[:3].mean() - 0.2
    accuracy = series(read_metrics(tmp_path), "masked_accuracy")[1]
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
    step, params = load_params(RunDir.of(tmp_path))
    assert step == 12 and list(params) == ["knowledge_encoder"]


def test_what_does_not_fit_is_refused(corpus):
    with pytest.raises(ValueError, match="at least one Lesson"):
        settings(corpus, lessons=())
    with pytest.raises(ValueError, match="max_masks of at least 1"):
        settings(corpus, max_masks=0)
    small = dataclasses.replace(settings(corpus).reader, vocab_size=20)
    with pytest.raises(ValueError, match="reader"):
        settings(corpus, reader=small).build(seed=0)
