"""The generator's programs on a tiny model with random weights, against the model read token by token."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from realm_jax.generation import GenerationConfig, generator
from realm_jax.models import EncoderDecoder
from realm_jax.training.sharding import MeshConfig, put_batch, state_shardings
from tests import tiny

CONFIG = tiny.encoder_decoder(vocab_size=24, num_decoder_layers=1, initializer_range=0.4)
BATCH, DOCUMENTS, SOURCE_LEN = 8, 3, 7
TOLERANCE = 1e-4  # of sums of log-probabilities about 10, added in other orders
SEARCH = GenerationConfig(num_beams=3, num_hypotheses=2, max_length=7)
RAG = {"token": generator.rag_token, "sequence": generator.rag_sequence}


@functools.cache
def made():
    """Parameters, and ids, mask and scores of documents."""
    rng = np.random.default_rng(1)
    shape = (BATCH, DOCUMENTS, SOURCE_LEN)
    mask = np.arange(SOURCE_LEN) < rng.integers(3, SOURCE_LEN + 1, (BATCH, DOCUMENTS, 1))
    ids = np.where(mask, rng.integers(3, CONFIG.vocab_size, shape), CONFIG.pad_id).astype(np.int32)
    params = jax.jit(EncoderDecoder(CONFIG).init)(jax.random.key(3), ids[0], mask[0], ids[0])["params"]
    params["output_bias"] = params["output_bias"].at[CONFIG.eos_id].set(4.5)
    return params, ids, mask, rng.normal(size=shape[:2]).astype(np.float32)


@functools.cache
def scorer():
    return jax.jit(
        lambda params, *inputs: jax.nn.log_softmax(EncoderDecoder(CONFIG).apply({"params": params}, *inputs))
    )


def shifted(targets):
    """What the decoder reads to say these."""
    return np.concatenate([np.full_like(targets[..., :1], CONFIG.decoder_start_id), targets[..., :-1]], axis=-1)


def gold(params, ids, mask, hypotheses, free=SEARCH.target_len - 1):
    """log p(y_i|x, z, y_<i) [batch, num_hypotheses, target_len, num_documents] by teacher forcing; 0 after the end, and of tokens
    that were forced: those at `free` and later."""
    batch, num_documents, source_len = ids.shape
    _, num_hypotheses, target_len = hypotheses.ids.shape
    targets = np.broadcast_to(
        np.asarray(hypotheses.ids)[:, None], (batch, num_documents, num_hypotheses, target_len)
    ).copy()
    shape = (batch, num_documents, num_hypotheses, source_len)
    sources = (np.broadcast_to(part[:, :, None], shape).reshape(-1, source_len) for part in (ids, mask))
    log_probs = np.asarray(scorer()(params, *sources, shifted(targets).reshape(-1, target_len)))
    found = np.take_along_axis(log_probs, targets.reshape(-1, target_len, 1), axis=-1)
    found = found.reshape(batch, num_documents, num_hypotheses, target_len).transpose(0, 2, 3, 1)
    positions = np.arange(target_len)
    inside = (positions < np.asarray(hypotheses.lengths)[..., None]) & (positions < free)
    return np.where(inside[..., None], found, 0.0)


def log_sum(values):
    return np.logaddexp.reduce(values, axis=-1)


def log_softmax(values):
    return values - log_sum(values)[..., None]


def run(name, arrays, config=CONFIG, generation=SEARCH, rng=None):
    return RAG[name](*arrays, rng, config=config, generation=generation)


def assert_same(left, right, rows=slice(None), documents=DOCUMENTS):
    left, right = jax.tree.map(lambda array: np.asarray(array)[rows], (left, right))
    np.testing.assert_array_equal(left.hypotheses.ids, right.hypotheses.ids)
    np.testing.assert_array_equal(left.hypotheses.lengths, right.hypotheses.lengths)
    np.testing.assert_allclose(left.hypotheses.scores, right.hypotheses.scores, atol=TOLERANCE)
    for mine, other in ((left.document_posteriors, right.document_posteriors),) + (
        ((left.token_posteriors, right.token_posteriors),) if left.token_posteriors is not None else ()
    ):
        np.testing.assert_allclose(mine[..., :documents], other[..., :documents], atol=TOLERANCE)
        assert (mine[..., documents:] == 0).all() and (other[..., documents:] == 0).all()


def test_one_source_a_question_scores_are_the_models():
    params, ids, mask, _ = made()
    ids, mask = ids[:, 0], mask[:, 0]
    found = generator.generate(params, ids, mask, config=CONFIG, generation=SEARCH)
    lengths = np.asarray(found.lengths)
    assert 1 <= lengths.min() < lengths.max() == SEARCH.target_len
    totals = gold(params, ids[:, None], mask[:, None], found)[..., 0].sum(axis=-1)
    np.testing.assert_allclose(found.scores, totals / lengths, atol=TOLERANCE)
    ends = np.take_along_axis(np.asarray(found.ids), lengths[..., None] - 1, axis=-1)
    assert (ends == CONFIG.eos_id).all()


def test_rag_token_scores_and_posteriors_are_those_of_the_marginals():
    params, ids, mask, scores = arrays = made()
    answers = run("token", arrays)
    hypotheses = answers.hypotheses
    lengths, by_token, whole = map(
        np.asarray, (hypotheses.lengths, answers.token_posteriors, answers.document_posteriors)
    )
    joint = log_softmax(scores)[:, None, None] + (token_log_probs := gold(params, ids, mask, hypotheses))
    # a marginal is 0 where it is of padding or a forced token
    np.testing.assert_allclose(hypotheses.scores, log_sum(joint).sum(axis=-1) / lengths, atol=TOLERANCE)
    free = token_log_probs.any(axis=-1)
    np.testing.assert_allclose(by_token[free], np.exp(log_softmax(joint))[free], atol=TOLERANCE)
    np.testing.assert_allclose(by_token.sum(-1), np.arange(SEARCH.target_len) < lengths[..., None], atol=TOLERANCE)
    early = lengths < SEARCH.target_len  # where nothing was forced
    expected = np.exp(log_softmax(log_softmax(scores)[:, None] + token_log_probs.sum(axis=2)))
    assert 4 < early.sum() < early.size
    np.testing.assert_allclose(whole[early], expected[early], atol=TOLERANCE)


def test_rag_sequence_thorough_scores_every_hypothesis_with_every_document():
    search = dataclasses.replace(SEARCH, num_hypotheses=3)
    params, ids, mask, scores = arrays = made()
    no_end = dataclasses.replace(CONFIG, forced_eos_id=None)
    answers = run("sequence", arrays, no_end, search)
    hypotheses = answers.hypotheses
    # everything that any document's search found
    flat = ids.reshape(-1, SOURCE_LEN), mask.reshape(-1, SOURCE_LEN)
    found = generator.generate(params, *flat, config=no_end, generation=search)
    found = jax.tree.map(lambda array: np.asarray(array).reshape(BATCH, -1, *array.shape[2:]), found)
    hypotheses = jax.tree.map(np.asarray, hypotheses)
    sums = gold(params, ids, mask, found, free=50)
    table = np.where((found.ids != CONFIG.pad_id)[..., None], sums, 0.0).sum(axis=2)
    totals = log_sum(log_softmax(scores)[:, None] + table)
    duplicates = 0
    for question in range(BATCH):
        assert not all(int(ids[0]) == CONFIG.bos_id for ids in found.ids[question])
        by_ids = {}
        for row, length, total in zip(found.ids[question], found.lengths[question], totals[question], strict=True):
            key = tuple(row[:length].tolist())
            assert by_ids.setdefault(key, total) == pytest.approx(total, abs=TOLERANCE)
        duplicates += len(totals[question]) - len(by_ids)
        best = sorted(by_ids, key=by_ids.get, reverse=True)[:3]
        mine = [
            tuple(row[:length].tolist())
            for row, length in zip(hypotheses.ids[question], hypotheses.lengths[question], strict=True)
        ]
        assert mine == best
        np.testing.assert_allclose(hypotheses.scores[question], [by_ids[key] for key in best], atol=TOLERANCE)
    assert duplicates > 1
    np.testing.assert_allclose(np.asarray(answers.document_posteriors).sum(axis=-1), 1.0, atol=TOLERANCE)


def test_rag_sequence_fast_knows_only_what_a_documents_own_search_found():
    search = dataclasses.replace(SEARCH, decoding="fast", num_hypotheses=3, length_penalty=0.7)
    params, ids, mask, scores = arrays = made()
    answers = run("sequence", arrays, generation=search)
    flat = ids.reshape(-1, SOURCE_LEN), mask.reshape(-1, SOURCE_LEN)
    found = generator.generate(params, *flat, config=CONFIG, generation=search)
    found, answers = jax.tree.map(np.asarray, (found, answers))
    sums = (found.scores * found.lengths**0.7).reshape(BATCH, DOCUMENTS, -1)
    all_ids = found.ids.reshape(BATCH, DOCUMENTS, 3, -1)
    probs = np.exp(log_softmax(scores)[..., None] + sums)
    shared = 0
    for question in range(BATCH):
        joint = {}
        for document in range(DOCUMENTS):
            for row, prob in zip(all_ids[question, document], probs[question, document], strict=True):
                joint.setdefault(tuple(row.tolist()), np.zeros(DOCUMENTS))[document] += prob
        best = sorted(joint, key=lambda key: -joint[key].sum())[:3]
        assert [tuple(row.tolist()) for row in answers.hypotheses.ids[question]] == best
        expected = np.stack([joint[key] for key in best])
        np.testing.assert_allclose(np.exp(answers.hypotheses.scores[question]), expected.sum(-1), rtol=1e-4)
        np.testing.assert_allclose(
            answers.document_posteriors[question], expected / expected.sum(-1, keepdims=True), atol=TOLERANCE
        )
        shared += ((expected > 0).sum(-1) > 1).sum()
    assert shared > 3


@pytest.mark.parametrize("decoding", ["token", "thorough", pytest.param("fast", marks=pytest.mark.slow)])
def test_fewer_documents_than_places(decoding):
    """k larger than the documents: places without one change nothing; a question without any generates nothing."""
    params, ids, mask, scores = made()
    name = "token" if decoding == "token" else "sequence"
    search = dataclasses.replace(SEARCH, decoding="fast" if decoding == "fast" else "thorough")
    two = run(name, (params, ids[:, :2], mask[:, :2], scores[:, :2]), generation=search)
    hidden = mask & (np.arange(DOCUMENTS) < 2)[:, None]
    assert_same(two, run(name, (params, ids, hidden, scores), generation=search), documents=2)
    unlikely = np.where(np.arange(DOCUMENTS) < 2, scores, -np.inf).astype(np.float32)
    assert_same(two, run(name, (params, ids, mask, unlikely), generation=search), documents=2)
    others = np.arange(BATCH) != 3
    nothing = run(name, (params, ids, hidden & others[:, None, None], scores), generation=search)
    assert_same(two, nothing, others, documents=2)
    none = jax.tree.map(lambda array: np.asarray(array)[3], nothing)
    assert (none.hypotheses.lengths == 0).all() and np.isneginf(none.hypotheses.scores).all()
    assert (none.hypotheses.ids == CONFIG.pad_id).all() and (none.document_posteriors == 0).all()
    assert none.token_posteriors is None or (none.token_posteriors == 0).all()


def test_one_document_is_the_generator_alone():
    params, ids, mask, scores = made()
    alone = generator.generate(params, ids[:, 0], mask[:, 0], config=CONFIG, generation=SEARCH)
    one = (params, ids[:, :1], mask[:, :1], scores[:, :1])
    token = run("token", one)
    np.testing.assert_array_equal(token.hypotheses.ids, alone.ids)
    np.testing.assert_allclose(token.hypotheses.scores, alone.scores, atol=TOLERANCE)
    assert (np.asarray(token.document_posteriors) == 1).all()
    fused = generator.fusion_in_decoder(*one[:3], config=CONFIG, generation=SEARCH)
    np.testing.assert_array_equal(fused.ids, alone.ids)


def test_fusion_in_decoder_reads_all_documents_at_once():
    params, ids, mask, _ = made()
    fused = generator.fusion_in_decoder(params, ids, mask, config=CONFIG, generation=SEARCH)
    fused = jax.tree.map(np.asarray, fused)
    best = fused.ids[:, 0]

    @jax.jit
    def log_probs(params, ids, mask, inputs):
        model = EncoderDecoder(CONFIG)
        flat = ids.reshape(-1, SOURCE_LEN), mask.reshape(-1, SOURCE_LEN)
        hidden = model.apply({"params": params}, *flat, method="encode").reshape(BATCH, DOCUMENTS * SOURCE_LEN, -1)
        joined = hidden, mask.reshape(BATCH, -1)
        return jax.nn.log_softmax(model.apply({"params": params}, inputs, *joined, method="decode"))

    said = np.take_along_axis(np.asarray(log_probs(params, ids, mask, shifted(best))), best[..., None], axis=-1)[..., 0]
    counted = np.arange(SEARCH.target_len) < np.minimum(fused.lengths[:, :1], SEARCH.target_len - 1)
    totals = np.where(counted, said, 0.0).sum(axis=-1)
    np.testing.assert_allclose(fused.scores[:, 0], totals / fused.lengths[:, 0], atol=TOLERANCE)
    # a document that is not there is not read
    there = (np.arange(DOCUMENTS) < 2)[:, None]
    two = generator.fusion_in_decoder(params, ids, mask & there, config=CONFIG, generation=SEARCH)
    others = np.where(there, ids, 5).astype(np.int32)
    again = generator.fusion_in_decoder(params, others, mask & there, config=CONFIG, generation=SEARCH)
    np.testing.assert_array_equal(again.ids, two.ids)
    assert (np.asarray(two.ids) != fused.ids).any()


@pytest.mark.slow
def test_sampling_with_documents():
    search = GenerationConfig(sample=True, num_hypotheses=3, max_length=7)
    params, ids, mask, scores = arrays = made()
    token = run("token", arrays, generation=search, rng=jax.random.key(0))
    again = run("token", arrays, generation=search, rng=jax.random.key(0))
    other = run("token", arrays, generation=search, rng=jax.random.key(1))
    assert_same(token, again)
    token, other = jax.tree.map(np.asarray, (token, other))
    assert (token.hypotheses.ids != other.hypotheses.ids).any()
    totals = log_sum(log_softmax(scores)[:, None, None] + gold(params, ids, mask, token.hypotheses)).sum(axis=-1)
    np.testing.assert_allclose(token.hypotheses.scores, totals / token.hypotheses.lengths, atol=TOLERANCE)
    sequence = run("sequence", arrays, generation=search, rng=jax.random.key(0)).hypotheses
    assert (np.diff(sequence.scores) <= 0).all()  # the best of what was drawn with all documents


@pytest.mark.parametrize("name", RAG)
def test_eight_devices_find_what_one_finds(name):
    params, *rest = arrays = made()
    expected = run(name, arrays)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    placed = jax.device_put(params, state_shardings(mesh, jax.eval_shape(lambda: params)))
    answers = run(name, (placed, *(put_batch(mesh, np.asarray(array)) for array in rest)))
    assert len(answers.hypotheses.ids.sharding.device_set) == 8
    assert_same(expected, answers)


def test_a_shape_is_compiled_once():
    params, ids, mask, scores = made()
    run("token", (params, ids, mask, scores))
    before = generator.rag_token._cache_size()
    for shift in range(1, 3):
        moved = tuple(np.roll(array, shift, axis=0) for array in (ids, mask, scores))
        run("token", (params, *moved), dataclasses.replace(CONFIG), dataclasses.replace(SEARCH))
    assert generator.rag_token._cache_size() == before


def test_what_cannot_be_generated():
    params, ids, mask, scores = made()
    with pytest.raises(ValueError, match="max_length: expected at most 65, since the model has 64 positions, got 66"):
        run("token", (params, ids, mask, scores), generation=GenerationConfig(max_length=66))
    with pytest.raises(ValueError, match="sample=True draws tokens, and got no rng"):
        run("token", (params, ids, mask, scores), generation=GenerationConfig(sample=True))
    for name in RAG:
        with pytest.raises(ValueError, match="expected at least one document a question, got 0"):
            run(name, (params, ids[:, :0], mask[:, :0], scores[:, :0]))


def test_priors_may_be_scores():
    params, ids, mask, scores = made()
    normalised = run("token", (params, ids, mask, log_softmax(scores)))
    assert_same(normalised, run("token", (params, ids, mask, scores + 3.0)))
