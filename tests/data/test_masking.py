"""The three kinds of masks."""

import numpy as np
import pytest

from realm_jax.data.masking import MaskingConfig, Sentence, choose_masks

PIECES = np.arange(100, 120, dtype=np.int32)
SPANS = np.array([[0, 2], [4, 5], [7, 19]], np.int32)


def draw(config, seed, spans=SPANS, pieces=PIECES):
    return choose_masks(Sentence(pieces, spans), config, np.random.default_rng(seed)).tolist()


def test_a_salient_mask_is_a_whole_span_that_fits():
    config = MaskingConfig(max_masks=10)
    drawn = [tuple(draw(config, seed)) for seed in range(60)]
    # the span of 12 pieces is too long for 10 masks; it must not cost an example its mask either
    assert set(drawn) == {(0, 1), (4,)}
    assert 15 < drawn.count((4,)) < 45
    assert {tuple(draw(MaskingConfig(max_masks=12), seed)) for seed in range(60)} == {(0, 1), (4,), tuple(range(7, 19))}


def test_several_spans_at_once_within_the_budget():
    assert all(draw(MaskingConfig(spans_per_sentence=2), seed) == [0, 1, 4] for seed in range(20))
    assert {len(draw(MaskingConfig(spans_per_sentence=3, max_masks=2), seed)) for seed in range(30)} == {1, 2}
    assert draw(MaskingConfig(), 0, SPANS[:0]) == [] and draw(MaskingConfig(max_masks=3), 0, SPANS[2:]) == []


def test_random_spans():
    config = MaskingConfig(kind="random_span", mean_span_pieces=3.0, max_masks=5)
    drawn = [draw(config, seed) for seed in range(2000)]
    assert all(where == list(range(where[0], where[0] + len(where))) for where in drawn)
    assert max(map(len, drawn)) == 5 and max(where[-1] for where in drawn) == 19 and min(w[0] for w in drawn) == 0
    # mean of a geometric of 3, cut at 5: sum over k of (2/3)^k for k < 5
    assert np.mean([len(where) for where in drawn]) == pytest.approx(3 * (1 - (2 / 3) ** 5), abs=0.1)
    assert draw(config, 0, pieces=PIECES[:1]) == [0]


def test_uniform_masks():
    config = MaskingConfig(kind="uniform", uniform_rate=0.15)
    drawn = [draw(config, seed) for seed in range(500)]
    assert {len(where) for where in drawn} == {3} and all(where == sorted(set(where)) for where in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=20)
    assert counts.min() > 40 and counts.max() < 115  # 75 each
    assert draw(config, 0, pieces=PIECES[:2]) in ([0], [1])
    assert len(draw(MaskingConfig(kind="uniform", uniform_rate=0.9, max_masks=4), 0)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_masks": 0}, "at least 1"),
        ({"spans_per_sentence": 0}, "at least 1"),
        ({"uniform_rate": 1.5}, r"uniform_rate must lie between 0 and 1, got 1.5"),
        ({"mean_span_pieces": 0.5}, r"mean_span_pieces must be at least 1, got 0.5"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        MaskingConfig(**changes)
