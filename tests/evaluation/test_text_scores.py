"""ROUGE-L and BLEU against numbers worked by hand."""

import importlib.util
import math

import pytest

from realm_jax.evaluation.text_scores import check_packages, text_scores


def test_by_hand():
    text, reference = "the cat sat on the mat today", "the cat sat on a mat today"
    # longest common subsequence: 6 of 7 words either way
    assert text_scores([text], [[reference]]).rouge_l == pytest.approx(6 / 7)
    # n-gram precisions 6/7, 4/6, 2/5, 1/4; as long as the reference: no brevity penalty
    expected = math.exp(sum(map(math.log, (6 / 7, 4 / 6, 2 / 5, 1 / 4))) / 4)
    assert text_scores([text], [[reference]]).bleu == pytest.approx(expected, rel=1e-6)


def test_the_best_of_several_references_counts():
    texts, known = (
        ["in oslo by the sea", "a painter of portraits"],
        [["rome", "in oslo by the sea"], ["a painter of portraits"]],
    )
    scores = text_scores(texts, known)
    assert scores.rouge_l == 1.0 and scores.bleu == pytest.approx(1.0)
    worse = text_scores(texts, [["rome"], ["a painter of portraits"]])
    assert worse.rouge_l == 0.5 and worse.bleu < 0.7


def test_what_cannot_be_scored_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="expected texts with a reference each, got 0 and 0"):
        text_scores([], [])
    with pytest.raises(ValueError, match="got 2 and 1"):
        text_scores(["a", "b"], [["a"], []])
    check_packages()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else found(name))
    with pytest.raises(ValueError, match=r"ROUGE and BLEU need sacrebleu: pip install 'realm_jax\[text-scores\]'"):
        check_packages()
