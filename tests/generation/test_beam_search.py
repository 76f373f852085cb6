"""Beam search against lists, against everything there is, and against numbers worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.generation import GenerationConfig, Prediction, beam_search, first
from realm_jax.generation.beam_search import best_candidates
from tests.generation import toy


@functools.partial(jax.jit, static_argnames=("config", "tokens"))
def search(rows, active, config, tokens=toy.TOKENS):
    state = toy.first_state(len(rows), config.num_beams)
    return beam_search(toy.next_token(rows), toy.reorder, state, active, config=config, tokens=tokens).hypotheses


def found(rows, config, tokens=toy.TOKENS):
    """Per question a list of (score, ids); checks what stands in empty places and after the end."""
    hypotheses = search(jnp.asarray(rows), jnp.ones(len(rows), bool), config, tokens)
    questions = []
    for ids, scores, lengths in zip(*map(np.asarray, hypotheses), strict=True):
        assert ids.shape == (config.num_beams, config.target_len)
        assert (np.diff(scores[np.isfinite(scores)]) <= 0).all()
        for row, length in zip(ids, lengths, strict=True):
            assert (row[length:] == tokens.pad).all()
        kept = [
            (float(score), tuple(row[:length].tolist()))
            for row, score, length in zip(ids, scores, lengths, strict=True)
        ]
        assert all((length == 0) == (score == -np.inf) for (score, _), length in zip(kept, lengths, strict=True))
        questions.append([pair for pair in kept if pair[1]])
    return questions


def assert_equal(ours, expected):
    assert [ids for _, ids in ours] == [ids for _, ids in expected]
    np.testing.assert_allclose([score for score, _ in ours], [score for score, _ in expected], rtol=2e-5)


CONFIGS = [
    GenerationConfig(num_beams=3, max_length=6),
    GenerationConfig(num_beams=3, max_length=6, early_stopping=True, length_penalty=2.0),
    GenerationConfig(num_beams=4, max_length=6, early_stopping="never", length_penalty=0.6),
    GenerationConfig(num_beams=2, max_length=6, early_stopping="never", length_penalty=-1.0),
    GenerationConfig(num_beams=3, max_length=6, min_length=5, length_penalty=0.0),
    GenerationConfig(num_beams=3, max_length=6, no_repeat_ngram_size=2),
    GenerationConfig(num_beams=2, max_length=6, no_repeat_ngram_size=1, min_length=3),
    GenerationConfig(num_beams=3, max_length=6, bos_after_bos=False),
    GenerationConfig(num_beams=1, max_length=6),
]
BOTH_FORCED = toy.TOKENS._replace(forced_bos=0, forced_eos=2)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [(config, toy.TOKENS) for config in CONFIGS] + [(config, BOTH_FORCED) for config in CONFIGS[2:6:3]],
)
def test_equals_the_search_with_lists(config, tokens):
    vocab = 7  # so many that no beam needs a copy of another
    rows = toy.table(3, 6, vocab, config.target_len)
    ours = found(rows, config, tokens)
    lengths = set()
    for mine, table in zip(ours, rows, strict=True):
        expected = toy.plain_search(table, config, tokens)
        mine = [pair for pair in mine if pair[0] > -1e8]
        assert_equal(mine, expected)
        lengths |= {len(ids) for _, ids in expected}
    assert len(lengths) > 1 or config.min_length > 1


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_with_beams_for_all_prefixes_it_finds_the_best_of_everything(length_penalty):
    config = GenerationConfig(
        num_beams=27, max_length=5, early_stopping="never", length_penalty=length_penalty, min_length=0
    )
    rows = toy.table(5, 6, 4, config.target_len)
    for mine, table in zip(found(rows, config), rows, strict=True):
        everything = toy.everything(table, config)
        assert_equal(mine[:5], everything[:5])


def log(*rows):
    """A table of one question for the tokens 0, 1, 2 (the end) and 3; a row for each prefix, by hand."""
    table = np.full((1, 1 + 4 + 16, 4), 0.25)
    for prefix, probs in rows:
        table[0, toy.place(prefix, 4)] = probs
    return np.log(np.maximum(table, 1e-30)).astype(np.float32)


# (0,) .5, (3,) .4; after 0 everything is as likely; after 3 it ends with .9
GARDEN_PATH = log(((), [0.5, 0.05, 0.05, 0.4]), ((3,), [0.05, 0.04, 0.9, 0.01]))


def test_by_hand_a_second_beam_finds_what_greedy_misses():
    by_sum = GenerationConfig(num_beams=2, max_length=4, length_penalty=0.0)
    (mine,) = found(GARDEN_PATH, by_sum)
    assert mine[0][1] == (3, 2)
    assert mine[0][0] == pytest.approx(np.log(0.4 * 0.9))
    (greedy,) = found(GARDEN_PATH, GenerationConfig(num_beams=1, max_length=4, length_penalty=0.0))
    assert greedy[0][1] == (0, 0, 0)  # of equal tokens the lowest
    assert greedy[0][0] == pytest.approx(np.log(0.5 * 0.25 * 0.25))


def test_by_hand_length_penalty():
    # ends at once with .3, or after two tokens of .55 and .9, or goes on to the limit
    rows = log(((), [0.55, 0.1, 0.3, 0.05]), ((0,), [0.05, 0.03, 0.9, 0.02]))
    (by_sum,) = found(rows, GenerationConfig(num_beams=2, max_length=4, length_penalty=0.0))
    (by_mean,) = found(rows, GenerationConfig(num_beams=2, max_length=4, length_penalty=1.0))
    assert [ids for _, ids in by_sum] == [ids for _, ids in by_mean] == [(0, 2), (2,)]
    assert [score for score, _ in by_sum] == pytest.approx([np.log(0.495), np.log(0.3)])
    assert [score for score, _ in by_mean] == pytest.approx([np.log(0.495) / 2, np.log(0.3)])
    # a short one that is likelier in sum, and less likely by token
    rows = log(((), [0.35, 0.15, 0.4, 0.1]), ((0,), [0.02, 0.04, 0.9, 0.04]))
    (by_sum,) = found(rows, GenerationConfig(num_beams=2, max_length=4, length_penalty=0.0))
    (by_mean,) = found(rows, GenerationConfig(num_beams=2, max_length=4, length_penalty=1.0))
    assert [ids for _, ids in by_sum] == [(2,), (0, 2)] and [ids for _, ids in by_mean] == [(0, 2), (2,)]


def test_one_beam_is_greedy():
    config = GenerationConfig(num_beams=1, max_length=6, early_stopping="never")
    rows = toy.table(11, 32, 4, config.target_len)
    ended = 0
    for ((score, ids),), table in zip(found(rows, config), rows, strict=True):
        expected, total = (), 0.0
        while len(expected) < config.target_len and toy.TOKENS.eos not in expected:
            row = table[toy.place(expected, 4)]
            expected, total = (*expected, int(row.argmax())), total + row.max()
        assert ids == expected and score == pytest.approx(total / len(expected), rel=1e-5)
        ended += expected[-1] == toy.TOKENS.eos
    assert 5 < ended < 30


def test_max_length_reached():
    rows = np.broadcast_to(np.log([0.5, 0.3, 1e-9, 0.2]), (1, 21, 4)).astype(np.float32)
    config = GenerationConfig(num_beams=2, max_length=4)
    (mine,) = found(rows, config)
    assert [ids for _, ids in mine] == [(0, 0, 0), (0, 0, 1)]  # open, and as they are
    assert mine[0][0] == pytest.approx(np.log(0.5))
    (forced,) = found(rows, config, toy.TOKENS._replace(forced_eos=2))
    assert [ids for _, ids in forced] == [(0, 0, 2), (0, 1, 2)]
    assert forced[0][0] == pytest.approx(2 * np.log(0.5) / 3)  # the forced token counts 0 and one of length
    (shortest,) = found(rows, GenerationConfig(num_beams=2, max_length=2), toy.TOKENS._replace(forced_eos=2))
    assert shortest[0][1] == (2,)


def counted(rows, config, active=None):
    """How many steps the loop took, and what it found."""
    predict, positions = toy.next_token(rows), []

    def watched(tokens, position, state):
        jax.debug.callback(lambda at: positions.append(int(at)), position)
        return predict(tokens, position, state)

    active = jnp.ones(len(rows), bool) if active is None else jnp.asarray(active)
    state = toy.first_state(len(rows), config.num_beams)
    done = beam_search(watched, toy.reorder, state, active, config=config, tokens=toy.TOKENS)
    jax.block_until_ready(done)
    jax.effects_barrier()
    return len(positions), done.hypotheses


def test_the_loop_ends_when_every_hypothesis_is_finished():
    ending = np.log([0.03, 0.02, 0.9, 0.05])
    rows = np.broadcast_to(ending, (2, 1365, 4)).astype(np.float32)
    steps, hypotheses = counted(rows, GenerationConfig(num_beams=2, max_length=7, early_stopping=True))
    # the first end comes with the first token, the second with the second
    assert steps == 2 and hypotheses.lengths.tolist() == [[1, 2], [1, 2]]
    slow = rows.copy()
    slow[1] = np.log([0.9, 0.04, 1e-6, 0.06])
    steps, hypotheses = counted(slow, GenerationConfig(num_beams=2, max_length=7, early_stopping=True))
    assert steps == 6 and hypotheses.lengths.tolist() == [[1, 2], [6, 6]]
    # a question that is done is not changed by what the others still do
    assert hypotheses.scores[0, 0] == pytest.approx(np.log(0.9))


def test_a_question_that_is_not_active_generates_nothing_and_waits_for_nobody():
    rows = toy.table(0, 3, 4, 5)
    config = GenerationConfig(num_beams=2, max_length=6)
    _, hypotheses = counted(rows, config, [True, False, True])
    _, alone = counted(rows, config)
    assert hypotheses.lengths[1].tolist() == [0, 0] and np.isneginf(hypotheses.scores[1]).all()
    assert (hypotheses.ids[1] == toy.TOKENS.pad).all()
    np.testing.assert_array_equal(hypotheses.ids[jnp.array([0, 2])], alone.ids[jnp.array([0, 2])])
    assert counted(rows, config, [False] * 3)[0] == 0


def test_fewer_hypotheses_than_beams():
    """Where the first step allows one token, the other beams are copies, far below; with one way to go on there is one hypothesis."""
    rows = log(((), [0.97, 0.01, 0.01, 0.01]))
    (mine,) = found(rows, GenerationConfig(num_beams=2, max_length=3), BOTH_FORCED)
    assert mine[0] == (0.0, (0, 2)) and all(score < -1e8 for score, _ in mine[1:])


def test_of_equal_candidates_the_lower_beam_and_the_lower_token_come_first():
    scores = jnp.zeros((1, 3, 5)).at[0, 2, 3].set(1.0)
    values, beams, tokens = best_candidates(scores, 4)
    assert values.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert beams.tolist() == [[2, 0, 0, 0]] and tokens.tolist() == [[3, 0, 1, 2]]
    values, beams, tokens = best_candidates(jnp.zeros((1, 3, 2)), 6)  # more than a beam has
    assert beams.tolist() == [[0, 0, 1, 1, 2, 2]] and tokens.tolist() == [[0, 1, 0, 1, 0, 1]]


def test_details_follow_their_tokens():
    """Every token keeps its own log-probability, through finishing and changes of place."""
    config = GenerationConfig(num_beams=3, max_length=6)
    rows = toy.table(17, 8, 6, config.target_len)
    predict = toy.next_token(rows)

    def detailed(tokens, position, state):
        log_probs, state, _ = predict(tokens, position, state)

        def details(beams, chosen):
            value = log_probs[jnp.arange(len(rows))[:, None], beams, chosen]
            return jnp.stack([value, chosen.astype(jnp.float32)], axis=-1)

        return Prediction(log_probs, state, details)

    state = toy.first_state(len(rows), config.num_beams)
    done = beam_search(
        detailed, toy.reorder, state, jnp.ones(len(rows), bool), config=config, tokens=toy.TOKENS, num_details=2
    )
    ids, scores, lengths = map(np.asarray, done.hypotheses)
    inside = np.arange(config.target_len) < lengths[..., None]
    np.testing.assert_array_equal(done.details[..., 1], np.where(inside, ids, 0))
    np.testing.assert_allclose(done.details[..., 0].sum(-1), scores * lengths, rtol=1e-5)
    best = first(done, 1)
    assert best.hypotheses.ids.shape == (8, 1, 5) and best.details.shape == (8, 1, 5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"num_hypotheses": 5}, "expected at most num_beams=4, got 5; search with more beams"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"min_length": 60}, "min_length must be at most max_length=50, got 60"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0; for the likeliest tokens use sample=False"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"length_penalty": float("nan")}, "length_penalty must be finite"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**changes)
