"""Answers in texts."""

import pytest

from realm_jax.evaluation.answers import contains_answer, normalise_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Beatles", "beatles"),
        ("  A  man,\tan idea -- the plan! ", "man idea plan"),
        ("theatre and Anna", "theatre and anna"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("30-year", "30year"),
        ("Caf\u00e9", "cafe\u0301"),  # decomposed, not stripped
        ("", ""),
        ("The?!", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("Founded in the year 1895, it", ["1895"], True),
        ("Founded in 18951", ["1895"], False),
        ("He met Ann Arborist", ["Ann Arbor"], False),
        ("in ann arbor.", ["Ann Arbor"], True),
        ("King of the Hill", ["king of hill"], True),  # articles drop on both sides
        ("cafe\u0301 noir", ["Café"], True),
        ("nothing here", ["The", "!"], False),
        ("one of them", ["two", "one"], True),
        ("anything", [], False),
    ],
)
def test_contains(text, answers, found):
    assert contains_answer(text, answers) is found
