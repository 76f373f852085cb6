"""Questions held out of others."""

import pytest

from realm_jax.data.question_splits import hold_out, without
from realm_jax.data.questions import Question, QuestionSet, read_questions


def made(*texts):
    return QuestionSet(
        tuple(Question(text, ("x",), id=str(i)) for i, text in enumerate(texts)), "q.jsonl", {"odd": 2}, {}
    )


def texts(questions):
    return [question.text for question in questions.questions]


def test_a_part_is_held_out_whatever_the_order():
    names = [f"who is {i}" for i in range(500)]
    split = hold_out(made(*names), 50)
    assert len(split.held_out.questions) == 50 and len(split.train.questions) == 450
    assert sorted(texts(split.train) + texts(split.held_out)) == sorted(names)
    assert texts(split.train) == sorted(texts(split.train), key=names.index)  # in the order of the file
    assert split.train.dropped == {"odd": 2, "held out": 50} and split.held_out.dropped == {}
    backwards = hold_out(made(*reversed(names)), 50)
    assert set(texts(backwards.held_out)) == set(texts(split.held_out))
    other = hold_out(made(*names), 50, seed=1)
    assert 0 < len(set(texts(other.held_out)) & set(texts(split.held_out))) < 20  # five are expected by chance
    fewer = hold_out(made(*names[:400]), 40)
    assert len(set(texts(fewer.held_out)) & set(texts(split.held_out))) > 30  # hardly depends on the other questions


def test_no_question_stands_on_both_sides():
    names = [f"who is {i}" for i in range(100)]
    split = hold_out(made(*names, *(f"Who  is {i}?" for i in range(100))), 15)
    assert len(split.held_out.questions) == 15
    asked = {text.lower().replace("  ", " ").rstrip("?") for text in texts(split.held_out)}
    assert not asked & {text.lower().replace("  ", " ").rstrip("?") for text in texts(split.train)}
    assert split.train.dropped["asked in the held-out questions too"] == 200 - 15 - len(split.train.questions) == 1


def test_without():
    rest = without(made("Who was it?", "when", "where"), made("who was  it", "why"))
    assert texts(rest) == ["when", "where"]
    assert rest.dropped == {"odd": 2, "asked in the held-out questions too": 1}
    assert without(rest, made("why")) == rest


@pytest.mark.parametrize("count", [0, 3, -1])
def test_something_must_be_left(count):
    with pytest.raises(ValueError, match=rf"between 1 and 2 of the 3 questions of q\.jsonl, got {count}"):
        hold_out(made("a", "b", "c"), count)


@pytest.mark.needs_data
def test_sizes_of_web_questions(shared_data):
    train = read_questions(shared_data / "openqa" / "webquestions" / "webquestions.train.jsonl")
    split = hold_out(train, 361)
    assert (len(split.train.questions), len(split.held_out.questions)) == (3417, 361)


@pytest.mark.needs_data
def test_the_questions_set_aside_from_nq_open(shared_data):
    """8757 were set aside; none of them is in the published dev part, which is the test part since ORQA."""
    aside = read_questions(shared_data / "openqa" / "nq_open.train_part.jsonl")
    test = read_questions(shared_data / "openqa" / "nq_open.dev.first_half.jsonl")
    assert len(aside.questions) == 8757 and without(test, aside) == test
    assert without(aside, aside).questions == ()
