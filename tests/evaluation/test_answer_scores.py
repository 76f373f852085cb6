"""Scorers against the official behaviour, worked by hand, and on real answers."""

import itertools

import pytest

from realm_jax.data.questions import read_questions
from realm_jax.evaluation.answer_scores import exact_match, f1, is_correct, regex_match


@pytest.mark.parametrize(
    ("prediction", "references", "right"),
    [
        ("The Beatles", ["beatles"], True),
        ("Beatles, the", ["The Beatles"], True),
        ("beatle", ["The Beatles"], False),
        ("caf\u00e9", ["cafe\u0301"], True),  # composed and decomposed
        ("cafe", ["caf\u00e9"], False),  # the accent stays
        ("30 year", ["30-year"], False),  # punctuation is deleted, not replaced by a space
        ("30year", ["30-year"], True),
        ("14 December 1972 UTC", ["December 1972", "14 December 1972 UTC"], True),
        ("December 1972", ["14 December 1972"], False),  # no containment
        ("", ["The The"], True),  # nothing is left of the reference either
        ("", ["x"], False),
        ("STRASSE", ["Straße"], False),  # lower case, not case folding
    ],
)
def test_exact_match(prediction, references, right):
    assert exact_match(prediction, references) is right


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("Claude Oscar Monet", ["Claude Monet"], 0.8),  # p 2/3, r 1
        ("the the claude", ["Claude Monet"], 2 / 3),  # p 1, r 1/2
        ("x x x y", ["x x z"], 4 / 7),  # two x are common: p 2/4, r 2/3
        ("Monet", ["Manet", "Claude Monet", "Oscar Claude Monet"], 2 / 3),  # the best reference
        ("Manet", ["Monet"], 0.0),
        ("!", ["the"], 1.0),
        ("", ["Monet"], 0.0),
        ("Monet", ["The"], 0.0),
    ],
)
def test_f1(prediction, references, score):
    assert f1(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "patterns", "right"),
    [
        ("February 2", [r"Sept?(ember)?|Feb(ruary)?"], True),  # what follows does not matter
        ("in February", [r"Feb(ruary)?"], False),  # anchored at the beginning
        ("LONG island", [r"New\s?York", r"Long Island"], True),
        ("oslo\nrome", [r"rome"], False),  # MULTILINE does not move the beginning
        ("oslo\nrome", [r"oslo$"], True),  # but ends a line
        ("Zürich", [r"z\w+h$"], True),  # Unicode letters
        ("(", ["("], False),  # a broken pattern matches nothing, not even itself
        ("x", ["(", "x"], True),
        ("x", ["x{99999999999}"], False),
        ("x", ["(" * 5000 + "x" + ")" * 5000], False),  # too deep to compile
        ("the 20,320 feet", [r"20\s?,?\s?(32|40)0"], False),  # not normalised: "the" stays
    ],
)
def test_regex_match(prediction, patterns, right):
    assert regex_match(prediction, patterns) is right


def test_which_scorer_is_meant():
    assert is_correct("Feb 2", ["Feb"], is_regex=True) and not is_correct("Feb 2", ["Feb"], is_regex=False)
    assert is_correct("the (", ["("], is_regex=False) and not is_correct("(", ["("], is_regex=True)


@pytest.mark.parametrize("scorer", [exact_match, f1, regex_match])
def test_no_reference_is_an_error(scorer):
    with pytest.raises(ValueError, match=r"at least one reference answer, got \[\]"):
        scorer("x", [])
    with pytest.raises(ValueError, match="got 'Oslo'"):  # its letters would be the references
        scorer("x", "Oslo")


@pytest.mark.needs_data
@pytest.mark.parametrize("name", ["nq_open.dev.first_half.jsonl", "triviaqa.dev.jsonl.gz", "squad_subset.jsonl"])
def test_real_answers(shared_data, name):
    """A reference is right against its list, in any case, with an article and a full stop; F1 1 means the same words."""
    questions = read_questions(shared_data / "openqa" / name).questions
    assert len(questions) in (1790, 8837, 2575)
    sample = questions[:: len(questions) // 300]
    for question, other in itertools.pairwise(sample):
        for answer in question.answers[:5]:
            assert exact_match(answer, question.answers) and f1(answer, question.answers) == 1.0
            assert exact_match(f"The {answer}.", question.answers)
            wrong, score = other.answers[0], f1(other.answers[0], question.answers)
            assert 0.0 <= score <= 1.0 and score == pytest.approx(max(f1(one, [wrong]) for one in question.answers))
            assert not exact_match(wrong, question.answers) or score == 1.0


@pytest.mark.needs_data
def test_real_patterns(shared_data):
    found = read_questions(shared_data / "openqa" / "curatedtrec" / "large2470-train.jsonl")
    assert len(found.questions) == 1704 and found.dropped == {} == found.noted
    plain = [q for q in found.questions if q.answers[0].replace("|", "").replace(" ", "").isalnum()]
    assert len(plain) > 500
    for question in plain:  # alternatives without any operator match themselves, also with something behind them
        for alternative in question.answers[0].split("|"):
            assert regex_match(f"{alternative.upper()} and more", question.answers)
            assert is_correct(alternative, question.answers, question.is_regex)
