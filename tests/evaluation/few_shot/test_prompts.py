"""Demonstrations: which ones, in which order, and which go first where a prompt is too long."""

import pytest

from realm_jax.evaluation.few_shot.example import Example, ExampleSet
from realm_jax.evaluation.few_shot.prompts import Demonstrations, build_prompt, room_for
from realm_jax.evaluation.few_shot.templates import MARKERS, Template
from tests.evaluation.few_shot.fake_model import FakeModel

NQ = Template("nq", "Q: {question}\nA:", "{question}", "text", ("f1",), max_tokens=4)
MMLU = Template("mmlu", "{question}\n{choices}\nA:", "{question}", "choice", ("accuracy",), demonstrations="first")


def example(question, answer="so", subject="", options=()):
    fields = dict.fromkeys(MARKERS, "") | {"question": question, "choices": "A. x", "subject": subject}
    return Example(fields, (answer,), options, subject=subject)


def pool(*examples):
    return ExampleSet(examples, "train.jsonl", {}, {})


def questions(examples):
    return [known.fields["question"] for known in examples]


def test_drawn_by_the_seed_alone():
    many = [example(f"q{number}") for number in range(50)]
    asked = example("another")
    drawn = questions(Demonstrations(NQ, pool(*many), 3).of(asked, 5))
    assert len(set(drawn)) == 5 and drawn != questions(many[:5])
    assert (
        questions(Demonstrations(NQ, pool(*reversed(many)), 3).of(asked, 5)) == drawn
    )  # whatever the order of the file
    assert questions(Demonstrations(NQ, pool(*many), 3).of(asked, 2)) == drawn[:2]
    assert questions(Demonstrations(NQ, pool(*many), 4).of(asked, 5)) != drawn
    assert Demonstrations(NQ, None, 3).of(asked, 5) == ()


def test_a_question_does_not_demonstrate_itself():
    many = [example(f"q{number}") for number in range(6)]
    demonstrations = Demonstrations(NQ, pool(*many, *many), 0)
    for known in many:
        found = questions(demonstrations.of(known, 5))
        assert sorted([*found, *questions([known])]) == [f"q{number}" for number in range(6)]


def test_the_first_ones_of_the_subject():
    dev = [example(f"{subject} {number}", subject=subject) for number in (2, 1, 3) for subject in ("law", "art")]
    demonstrations = Demonstrations(MMLU, pool(*dev), 0)
    assert questions(demonstrations.of(example("?", subject="art"), 2)) == ["art 2", "art 1"]
    demonstrations.check(["art", "law", "biology"], 0)
    with pytest.raises(ValueError, match=r"at least 4 examples of art to demonstrate mmlu with, got 3 in train.jsonl"):
        demonstrations.check(["law", "art"], 4)
    with pytest.raises(ValueError, match="got 0 in no source; name a training or development part"):
        Demonstrations(NQ, None, 0).check([""], 1)


def test_the_text_of_a_prompt():
    shown = [example("one?", "1"), example("two?", "2")]
    prompt = build_prompt(NQ, example("three?", "3"), shown, lambda text: True)
    assert prompt == ("Q: one?\nA: 1\n\nQ: two?\nA: 2\n\nQ: three?\nA:", 2, 0)
    headed = Template("nq", "Q: {question}\nA:", "{question}", "text", ("f1",), header="On {subject}.", separator="\n")
    asked = example("three?", subject="towns")
    assert build_prompt(headed, asked, shown[:1], lambda text: True).text == "On towns.\nQ: one?\nA: 1\nQ: three?\nA:"


def test_the_first_demonstrations_go_where_there_is_no_room():
    # "Q : who ? A :" are 6 tokens, an answer is one: with its demonstrations a prompt has 7 n + 6, the beginning 1, the answer 4
    asked, shown = example("ann?"), [example(f"{name}?") for name in ("bob", "cem", "dan")]
    assert room_for(FakeModel(max_length=7 * 3 + 11), NQ, asked)(build_prompt(NQ, asked, shown, lambda text: True).text)
    for room, left_out in ((7 * 3 + 11, 0), (7 * 3 + 10, 1), (7 * 2 + 11, 1), (7 * 2 + 10, 2), (11, 3)):
        prompt = build_prompt(NQ, asked, shown, room_for(FakeModel(max_length=room), NQ, asked))
        assert (prompt.demonstrations, prompt.left_out) == (3 - left_out, left_out), room
        expected = [f"Q: {name}?\nA: so" for name in ("bob", "cem", "dan")[left_out:]]
        assert prompt.text == "\n\n".join([*expected, "Q: ann?\nA:"])
    assert build_prompt(NQ, asked, shown, room_for(FakeModel(max_length=10), NQ, asked)) is None


def test_a_choice_needs_room_for_the_longest_option():
    asked = example("ann?", options=("oslo", "lima cork nice"))
    fits = room_for(FakeModel(max_length=1 + 2 + 3), MMLU, asked)
    assert fits("oslo rome") and not fits("oslo rome bern")
