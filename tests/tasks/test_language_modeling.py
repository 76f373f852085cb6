"""A language model's training over packed rows: nothing crosses the border of two texts, and what is learned is what counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.packing import Text, packed
from realm_jax.models import LanguageModel, LoraConfig
from realm_jax.run_dir import RunDir
from realm_jax.tasks.language_modeling import LanguageModeling, init_language_model, packed_loss
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import MeshConfig, put_batch, state_shardings
from tests import tiny

LENGTH = 48


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def model(corpus, **changes):
    special = corpus.tokenizer
    ids = {"bos_id": special.cls_id, "eos_id": special.sep_id, "pad_id": special.pad_id}
    return tiny.language_model(vocab_size=special.vocab_size, **ids, **changes)


def settings(corpus, **changes):
    return LanguageModeling(str(corpus.directory), model(corpus), length=LENGTH, **changes)


def made_texts(config, seed=0, lengths=(11, 5, 20, 9)):
    rng = np.random.default_rng(seed)
    return [Text(rng.integers(3, config.vocab_size, size).astype(np.int32), int(size // 3)) for size in lengths]


def test_packed_texts_are_as_likely_as_texts_apart(corpus):
    config = model(corpus)
    params = init_language_model(jax.random.key(1), language_model=config)
    texts = made_texts(config)
    together = packed([texts], LENGTH, config.pad_id)
    apart = packed([[text] for text in texts], LENGTH, config.pad_id)
    assert int((together.segments > 0).sum()) == int((apart.segments > 0).sum()) == 45
    one, _ = packed_loss(params, jax.tree.map(jnp.asarray, together), None, language_model=config)
    other, _ = packed_loss(params, jax.tree.map(jnp.asarray, apart), None, language_model=config)
    assert float(one.weight) == float(other.weight) == sum(len(text.ids) - max(1, text.num_read) for text in texts)
    np.testing.assert_allclose(one.total, other.total, rtol=1e-5)
    gradients = [
        jax.grad(lambda params, rows=rows: packed_loss(params, rows, None, language_model=config)[0].total)(params)
        for rows in (jax.tree.map(jnp.asarray, together), jax.tree.map(jnp.asarray, apart))
    ]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max()), *gradients)
    logits = LanguageModel(config).apply({"params": params["language_model"]}, *map(jnp.asarray, together[:3]))
    singles = LanguageModel(config).apply({"params": params["language_model"]}, *map(jnp.asarray, apart[:3]))
    start = 0
    for row, text in enumerate(texts):
        stop = start + len(text.ids)
        np.testing.assert_allclose(logits[0, start:stop], singles[row, : stop - start], atol=2e-5)
        start = stop


def test_the_loss_by_hand_and_of_the_tokens_that_count_alone(corpus):
    config = model(corpus)
    params = init_language_model(jax.random.key(2), language_model=config)
    (text,) = made_texts(config, lengths=(12,))
    rows = jax.tree.map(jnp.asarray, packed([[text]], 16, config.pad_id))
    logits = np.asarray(
        LanguageModel(config).apply({"params": params["language_model"]}, rows.ids, rows.segments, rows.positions)
    )[0].astype(np.float64)
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    expected = -sum(log_probs[place - 1, text.ids[place]] for place in range(text.num_read, 12))
    loss, metrics = packed_loss(params, rows, None, language_model=config)
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    assert float(loss.weight) == 12 - 4
    assert [float(metrics[name].total) for name in ("row_used", "row_learned")] == [12.0, 8.0]
    changed = rows._replace(ids=rows.ids.at[0, 12:].set(7))  # what stands in no text
    assert float(packed_loss(params, changed, None, language_model=config)[0].total) == float(loss.total)


def test_the_same_on_one_device_and_on_eight(corpus):
    config = model(corpus)
    params = init_language_model(jax.random.key(1), language_model=config)
    rows = settings(corpus).build(seed=0).examples(0, 8, slice(None))
    loss = jax.jit(lambda params, rows: packed_loss(params, rows, None, language_model=config)[0])
    alone = loss(params, rows)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    placed = jax.device_put(params, state_shardings(mesh, jax.eval_shape(lambda: params)))
    spread = loss(placed, put_batch(mesh, rows))
    np.testing.assert_allclose(spread.total, alone.total, rtol=1e-5)
    assert float(spread.weight) == float(alone.weight)


def test_learns_its_documents(corpus, tmp_path):
    train(
        run_dir=str(tmp_path / "lm"),
        task=settings(corpus, recall_share=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        num_steps=40,
        batch_size=8,
        log_every_steps=1,
        checkpoint_every_steps=40,
    )
    records = read_metrics(str(tmp_path / "lm"))
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.6 * losses[0]
    assert records[-1]["row_used"] > 0.5
    assert set(load_params_of(tmp_path / "lm")) == {"language_model"}


def load_params_of(directory):
    return load_params(RunDir.of(str(directory)))[1]


def test_with_an_adapter_the_model_stays_as_it_was(corpus, tmp_path):
    common = {
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        "batch_size": 8,
        "checkpoint_every_steps": 4,
    }
    train(run_dir=str(tmp_path / "base"), task=settings(corpus), num_steps=1, **common)
    adapted = dataclasses.replace(
        settings(corpus), language_model=model(corpus, lora=LoraConfig(rank=2, products=("query", "wo")))
    )
    train(run_dir=str(tmp_path / "lora"), task=adapted, num_steps=4, warm_start=(str(tmp_path / "base"),), **common)
    before, after = load_params_of(tmp_path / "base"), load_params_of(tmp_path / "lora")
    jax.tree.map(np.testing.assert_array_equal, before["language_model"], after["language_model"])
    assert float(jnp.abs(after["adapter"]["layers"]["attention"]["query"]["lora_b"]).max()) > 0


def test_what_is_refused(corpus):
    with pytest.raises(ValueError, match="length must lie between 16 and the language model's max_length=64, got 65"):
        LanguageModeling(str(corpus.directory), model(corpus), length=65)
    with pytest.raises(ValueError, match=r"recall_share must lie between 0 and 1, got 1\.5"):
        settings(corpus, recall_share=1.5)
    wrong = dataclasses.replace(model(corpus), eos_id=9)
    with pytest.raises(ValueError, match=r"LanguageModeling\.language_model\.eos_id: expected the tokenizer's"):
        LanguageModeling(str(corpus.directory), wrong, length=LENGTH).build(0)
    small = dataclasses.replace(model(corpus), vocab_size=16)
    with pytest.raises(ValueError, match=r"LanguageModeling\.language_model\.vocab_size is 16"):
        LanguageModeling(str(corpus.directory), small, length=LENGTH).build(0)
