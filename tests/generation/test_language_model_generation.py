"""Searches and RAG's marginals over a language model's prompts, against the model read whole, without a cache."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from realm_jax.generation import GenerationConfig, generator
from realm_jax.generation.readers import check_lengths, token_ids
from realm_jax.models import LanguageModel
from tests import tiny

CONFIG = tiny.language_model(vocab_size=24, initializer_range=0.4)
BATCH, DOCUMENTS, PROMPT_LEN = 3, 2, 8
LENGTHS = np.asarray([[8, 3], [5, 8], [1, 6]])
GREEDY = GenerationConfig(num_beams=1, max_length=7)
SEARCH = GenerationConfig(num_beams=3, num_hypotheses=2, max_length=6)
TOLERANCE = 1e-4  # of sums of log-probabilities about 10, added in other orders


@functools.cache
def made():
    """Parameters, and ids, mask and scores of prompts: one for each question and document."""
    rng = np.random.default_rng(1)
    mask = np.arange(PROMPT_LEN) < LENGTHS[..., None]
    ids = np.where(mask, rng.integers(3, CONFIG.vocab_size, mask.shape), CONFIG.pad_id).astype(np.int32)
    params = jax.jit(LanguageModel(CONFIG).init)(jax.random.key(3), ids[0], ids[0])["params"]
    return params, ids, mask, rng.normal(size=LENGTHS.shape).astype(np.float32)


@functools.cache
def reader():
    return jax.jit(lambda ids, segments: LanguageModel(CONFIG).apply({"params": made()[0]}, ids, segments))


def log_probs_after(prompt, written):
    """log p of each next token, from the one after the prompt on, of the whole text read at once: [len(written) + 1, vocab]."""
    text = np.zeros((1, PROMPT_LEN + 8), np.int32)
    whole = [*prompt, *written]
    text[0, : len(whole)] = whole
    logits = np.asarray(reader()(text, (np.arange(text.shape[1]) < len(whole)).astype(np.int32)[None]))[0]
    at = logits[len(prompt) - 1 : len(whole)].astype(np.float64)
    return at - np.logaddexp.reduce(at, axis=-1)[:, None]


def log_prob(prompt, written):
    steps = log_probs_after(prompt, written)
    return sum(steps[place, token] for place, token in enumerate(written))


def prompts(row):
    return [made()[1][row, document, : LENGTHS[row, document]].tolist() for document in range(DOCUMENTS)]


def priors(row):
    scores = made()[3][row].astype(np.float64)
    return scores - np.logaddexp.reduce(scores)


def written(hypotheses, row, rank=0):
    return np.asarray(hypotheses.ids)[row, rank, : int(hypotheses.lengths[row, rank])].tolist()


def test_greedy_takes_the_likeliest_token_each_time():
    params, ids, mask, _ = made()
    found = generator.generate(params, ids[:, 0], mask[:, 0], config=CONFIG, generation=GREEDY)
    for row in range(BATCH):
        expected: list[int] = []
        while len(expected) < GREEDY.target_len and (not expected or expected[-1] != CONFIG.eos_id):
            expected.append(int(log_probs_after(prompts(row)[0], expected)[-1].argmax()))
        assert written(found, row) == expected
        assert found.scores[row, 0] * len(expected) == pytest.approx(log_prob(prompts(row)[0], expected), abs=TOLERANCE)


def test_beams_share_their_prompt_and_score_as_the_model_read_whole():
    params, ids, mask, _ = made()
    found = generator.generate(params, ids[:, 1], mask[:, 1], config=CONFIG, generation=SEARCH)
    for row in range(BATCH):
        best, second = (written(found, row, rank) for rank in (0, 1))
        assert best != second
        for rank, tokens in enumerate((best, second)):
            expected = log_prob(prompts(row)[1], tokens) / len(tokens)
            assert found.scores[row, rank] == pytest.approx(expected, abs=TOLERANCE)


def test_parallel_prompts_are_ensembled_token_by_token():
    params, ids, mask, scores = made()
    answers = generator.rag_token(params, ids, mask, scores, config=CONFIG, generation=GREEDY)
    for row in range(BATCH):
        expected: list[int] = []
        while len(expected) < GREEDY.target_len and (not expected or expected[-1] != CONFIG.eos_id):
            steps = np.stack([log_probs_after(prompt, expected)[-1] for prompt in prompts(row)])
            expected.append(int(np.logaddexp.reduce(priors(row)[:, None] + steps, axis=0).argmax()))
        assert written(answers.hypotheses, row) == expected


@pytest.mark.parametrize("pad_id", [CONFIG.pad_id, CONFIG.eos_id])  # Llama 3 pads with the end of texts
@pytest.mark.parametrize("decoding", ["thorough", "fast"])
def test_parallel_prompts_are_ensembled_by_whole_answers(decoding, pad_id):
    params, ids, mask, scores = made()
    search = dataclasses.replace(SEARCH, decoding=decoding)
    config = dataclasses.replace(CONFIG, pad_id=pad_id)
    answers = generator.rag_sequence(params, ids, mask, scores, config=config, generation=search)
    for row in range(BATCH):
        tokens = written(answers.hypotheses, row)
        joint = priors(row) + [log_prob(prompt, tokens) for prompt in prompts(row)]
        if decoding == "thorough":
            assert answers.hypotheses.scores[row, 0] == pytest.approx(np.logaddexp.reduce(joint), abs=TOLERANCE)
            posteriors = np.exp(joint - np.logaddexp.reduce(joint))
            np.testing.assert_allclose(answers.document_posteriors[row, 0], posteriors, atol=TOLERANCE)
        else:  # the mass of documents whose beams have not found it is missing
            assert answers.hypotheses.scores[row, 0] <= np.logaddexp.reduce(joint) + TOLERANCE
            assert answers.hypotheses.scores[row, 0] >= joint.min() - TOLERANCE


def test_an_absent_document_has_no_say():
    params, ids, mask, scores = made()
    changed, gone = scores.copy(), mask.copy()
    changed[:, 1], gone[:, 1] = -np.inf, False
    both = generator.rag_token(params, ids, gone, changed, config=CONFIG, generation=SEARCH).hypotheses
    alone = generator.generate(params, ids[:, 0], mask[:, 0], config=CONFIG, generation=SEARCH)
    np.testing.assert_array_equal(both.ids, alone.ids)
    np.testing.assert_allclose(both.scores, alone.scores, atol=TOLERANCE)


def test_padding_between_prompt_and_answer_changes_nothing():
    params, ids, mask, _ = made()
    wide_ids, wide_mask = (np.pad(part[:, 0], ((0, 0), (0, 5))) for part in (ids, mask))
    narrow = generator.generate(params, ids[:, 0], mask[:, 0], config=CONFIG, generation=SEARCH)
    wide = generator.generate(params, wide_ids, wide_mask, config=CONFIG, generation=SEARCH)
    np.testing.assert_array_equal(narrow.ids, wide.ids)
    np.testing.assert_allclose(narrow.scores, wide.scores, atol=TOLERANCE)


def test_a_language_model_is_made_to_write_no_token():
    ids = token_ids(CONFIG)
    assert (ids.forced_bos, ids.forced_eos, ids.decoder_start, ids.eos) == (None, None, CONFIG.bos_id, CONFIG.eos_id)


def test_refuses_more_than_the_positions_that_the_prompt_leaves():
    search = GenerationConfig(max_length=CONFIG.max_length - 6)
    check_lengths(CONFIG, search, source_len=8)
    with pytest.raises(
        ValueError, match=r"at most 57, since the model has 64 positions, 8 of them the prompt's, got 58"
    ):
        check_lengths(CONFIG, search, source_len=9)
