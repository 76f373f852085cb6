"""Hypotheses read after prompts in a pass each, against the model read whole and against a step for every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.generation import TokenIds, language_model_stepping
from realm_jax.generation.language_model_scoring import read_with_prompts
from realm_jax.generation.scoring import read_with_documents
from realm_jax.models import LanguageModel
from tests import tiny

CONFIG = tiny.language_model(vocab_size=24, initializer_range=0.4)
BATCH, DOCUMENTS, HYPOTHESES, TARGET_LEN, PROMPT_LEN = 2, 3, 4, 5, 8
PROMPT_LENGTHS = np.asarray([[8, 3, 1], [5, 8, 2]])
LENGTHS = np.asarray([[5, 2, 1, 0], [3, 5, 0, 0]], np.int32)
TOLERANCE = 1e-4  # of sums of log-probabilities about 15, added in other orders


@functools.cache
def made():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, CONFIG.vocab_size, (BATCH, DOCUMENTS, PROMPT_LEN)).astype(np.int32)
    targets = rng.integers(0, CONFIG.vocab_size, (BATCH, HYPOTHESES, TARGET_LEN)).astype(np.int32)
    params = jax.jit(LanguageModel(CONFIG).init)(jax.random.key(3), ids[0], ids[0])["params"]
    mask = np.arange(PROMPT_LEN) < PROMPT_LENGTHS[..., None]
    rows = (part.reshape(-1, PROMPT_LEN) for part in (ids, mask))
    prompt, last = jax.jit(language_model_stepping.read_prompts, static_argnums=1)(params, CONFIG, *rows)
    return params, ids, targets, prompt, last


def table(num_read):
    params, _, targets, prompt, last = made()
    read = jax.jit(read_with_prompts, static_argnums=1)
    return np.asarray(read(params, CONFIG, prompt, last, targets, LENGTHS, jnp.int32(num_read)))


def test_every_hypothesis_is_read_after_every_prompt():
    params, ids, targets, _, _ = made()
    whole = jax.jit(lambda ids, segments: LanguageModel(CONFIG).apply({"params": params}, ids, segments))
    found = table(3)
    for row in range(BATCH):
        for hypothesis in range(HYPOTHESES):
            for document in range(DOCUMENTS):
                begin, length = PROMPT_LENGTHS[row, document], LENGTHS[row, hypothesis]
                text = np.zeros((1, PROMPT_LEN + TARGET_LEN), np.int32)
                text[0, :begin] = ids[row, document, :begin]
                text[0, begin : begin + length] = targets[row, hypothesis, :length]
                there = (np.arange(text.shape[1]) < begin + length).astype(np.int32)[None]
                logits = np.asarray(whole(text, there))[0].astype(np.float64)[begin - 1 : begin - 1 + length]
                log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
                expected = log_probs[np.arange(length), targets[row, hypothesis, :length]].sum()
                np.testing.assert_allclose(found[row, hypothesis, document], expected, atol=TOLERANCE)


def test_is_what_steps_find():
    params, _, targets, prompt, last = made()

    @jax.jit
    def stepped(targets, lengths, num_read):
        step = language_model_stepping.stepper(params, CONFIG, prompt, last)
        empty = language_model_stepping.empty_caches(CONFIG, len(last), 2, TARGET_LEN)
        every_token = TokenIds(pad=-1, bos=-1)
        return read_with_documents(step, empty, targets, lengths, num_read, every_token)

    np.testing.assert_allclose(table(3), stepped(targets, LENGTHS, jnp.int32(3)), atol=TOLERANCE)


def test_reads_no_more_than_it_is_told():
    found = table(1)
    assert (found[:, 1:] == 0.0).all()
    np.testing.assert_allclose(found[:, 0], table(3)[:, 0], atol=TOLERANCE)
