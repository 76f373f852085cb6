"""Scores of found names, worked by hand."""

import pytest

from realm_jax.data.conll import AnnotatedSentence, Name, joined
from realm_jax.evaluation.names import KindRecall, Scores, score_names, touched_words

# Ann Lee (York) saw Rex.
TEXT = joined(
    AnnotatedSentence(
        ("Ann", "Lee", "(", "York", ")", "saw", "Rex", "."), (Name(0, 2, "PER"), Name(3, 4, "LOC"), Name(6, 7, "PER"))
    )
)


def test_scores_by_hand():
    # "Ann" touches a name; "York" and its brackets touch it; "saw" is none; nothing touches Rex
    scores = score_names([TEXT, TEXT], [[(0, 3), (8, 14), (15, 18)], [(0, 7), (0, 6)]])
    assert TEXT.text[8:14] == "(York)" and TEXT.text[15:18] == "saw" and TEXT.text[0:7] == "Ann Lee"
    # the second sentence's two spans touch the same words, so they count once
    assert (scores.names, scores.predicted) == (6, 4)
    assert scores.exact == Scores(1 / 4, 1 / 6, 0.2)
    assert scores.overlap == Scores(3 / 4, 3 / 6, pytest.approx(0.6))
    assert scores.by_kind == {"LOC": KindRecall(2, 0.0, 0.5), "PER": KindRecall(4, 0.25, 0.5)}
    assert scores.wrong == [[(0, 1), (2, 5), (5, 6)], []]
    assert scores.missed == [[(0, 2), (3, 4), (6, 7)], [(3, 4), (6, 7)]]


def test_precision_and_recall_are_not_swapped():
    scores = score_names([TEXT], [[(0, 7)]])
    assert scores.exact == Scores(1.0, 1 / 3, 0.5) == scores.overlap


def test_nothing_to_count_gives_zero():
    bare = joined(AnnotatedSentence(("so",), ()))
    assert score_names([bare], [[]]).exact == Scores(0.0, 0.0, 0.0)
    assert score_names([bare], [[(0, 2)]]).overlap == Scores(0.0, 0.0, 0.0)
    assert score_names([], []).names == 0


def test_a_span_stands_for_the_words_that_it_touches():
    assert touched_words(TEXT, 5, 10) == (1, 4)
    assert touched_words(TEXT, 3, 4) is None  # the space
