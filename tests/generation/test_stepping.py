"""The decoder layer by layer against the whole module, and hypotheses read with documents against teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.generation.scoring import read_with_documents
from realm_jax.generation.settings import TokenIds
from realm_jax.generation.stepping import empty_caches, encoded, reorder, stepper
from realm_jax.models import EncoderDecoder, empty_cache
from tests import tiny

CONFIG = tiny.encoder_decoder(scale_embedding=True)
SOURCES, BEAMS, LENGTH = 4, 2, 3


def made():
    ids = jax.random.randint(jax.random.key(0), (SOURCES, 5), 3, CONFIG.vocab_size)
    mask = jnp.arange(5, dtype=jnp.int32)[None] < jnp.array([5, 3, 4, 2], jnp.int32)[:, None]
    params = jax.jit(EncoderDecoder(CONFIG).init)(jax.random.key(1), ids, mask, ids)["params"]
    params["output_bias"] = jax.random.normal(jax.random.key(2), params["output_bias"].shape)
    return params, ids, mask


def test_steps_equal_the_models_when_beams_change_places():
    params, ids, mask = made()
    model = EncoderDecoder(CONFIG)

    def apply(method, *arguments):
        return model.apply({"params": params}, *arguments, method=method)

    memory = jax.jit(lambda: apply("remember", apply("encode", ids, mask), mask))()
    cache = empty_cache(CONFIG, SOURCES, BEAMS, LENGTH)
    sources = jax.jit(lambda: encoded(params, CONFIG, ids, mask))()
    step = jax.jit(lambda *arguments: stepper(params, CONFIG, sources)(*arguments))
    caches = empty_caches(CONFIG, SOURCES, BEAMS, LENGTH)
    whole_step = jax.jit(lambda *arguments: apply("step", *arguments))
    moved = jax.jit(reorder)
    indices = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], np.int32)
    for position in range(LENGTH):
        tokens = np.random.default_rng(position).integers(3, CONFIG.vocab_size, (SOURCES, BEAMS)).astype(np.int32)
        expected, cache = whole_step(tokens, jnp.int32(position), memory, cache)
        logits, caches = step(tokens, jnp.int32(position), caches)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        caches = moved(caches, indices)
        cache = jax.tree.map(
            lambda array: np.take_along_axis(np.asarray(array), indices[None, :, :, None, None, None], axis=2), cache
        )
        for layer, own in enumerate(caches):
            np.testing.assert_allclose(own.keys[0], cache.keys[layer], atol=1e-5)


def test_hypotheses_are_read_as_teacher_forcing_reads_them():
    """Two questions with two documents; what begins with bos everywhere does not count it, and padding never counts."""
    params, ids, mask = made()
    targets = jnp.array([[[0, 9, 2], [0, 2, 1], [0, 7, 8]], [[0, 5, 2], [5, 1, 2], [6, 2, 1]]], jnp.int32)
    targets = jnp.concatenate([targets, jnp.ones((2, 1, LENGTH), jnp.int32)], axis=1)  # and one that is not to be read
    lengths = jnp.array([[3, 2, 3, 0], [3, 3, 2, 0]], jnp.int32)

    @jax.jit
    def read():
        step = stepper(params, CONFIG, encoded(params, CONFIG, ids, mask))
        empty = empty_caches(CONFIG, SOURCES, BEAMS, LENGTH)
        return read_with_documents(step, empty, targets, lengths, jnp.int32(3), TokenIds())

    found = read()
    assert found.shape == (2, 4, 2)
    inputs = jnp.concatenate([jnp.full((2, 4, 1), 2, jnp.int32), targets[..., :-1]], axis=-1)
    forced = jax.jit(lambda *inputs: jax.nn.log_softmax(EncoderDecoder(CONFIG).apply({"params": params}, *inputs)))
    for question in range(2):
        counted = np.array([[[0, 1, 1], [0, 1, 0], [0, 1, 1]], [[1, 1, 1], [1, 0, 1], [1, 1, 0]]])[question]
        for document in range(2):
            row = 2 * question + document
            sources = (np.broadcast_to(np.asarray(part)[row], (4, 5)) for part in (ids, mask))
            log_probs = np.asarray(forced(*sources, inputs[question]))
            gold = np.take_along_axis(log_probs, np.asarray(targets)[question][..., None], axis=-1)[:3, :, 0]
            np.testing.assert_allclose(found[question, :3, document], (gold * counted).sum(axis=1), atol=1e-4)
