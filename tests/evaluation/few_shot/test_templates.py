"""Templates are data: the package's are those of the paper, and what a file of one's own may hold is checked."""

import pytest

from realm_jax.evaluation.few_shot.example import Example
from realm_jax.evaluation.few_shot.templates import MARKERS, load_templates, template

FIELDS = dict.fromkeys(MARKERS, "") | {"question": "Where is {Oslo}?", "choices": "A. north\nB. south"}


def test_the_packages_templates():
    known = load_templates()
    assert {"mmlu", "nq", "trivia_qa", "hotpot_qa", "fever", "eli5", "aida", "zsre", "trex", "wow"} <= set(known)
    assert {name for name, one in known.items() if 64 in one.shots} == {"nq", "trivia_qa"}
    assert all(one.shots[:2] == (0, 5) for name, one in known.items() if name != "fever_three_way")
    example = Example(FIELDS, ("B", "b"))
    assert known["mmlu"].question_and_answer(example) == "Question: Where is {Oslo}?\nA. north\nB. south\nA: B"
    assert known["mmlu"].query.format_map(FIELDS) == "Where is {Oslo}?\nA. north\nB. south"
    assert known["nq"].question(example) == "Q: Where is {Oslo}?\nA:"
    assert known["fever"].question(example) == "Is this statement true? Where is {Oslo}?\nA:"


def test_an_own_file(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        '[quiz]\nprompt = "{question} ="\nquery = "{question}"\nanswers = "text"\nmetrics = ["f1"]\nstop = ["\\n", "."]\n'
    )
    quiz = template("quiz", file)
    assert quiz.stop == ("\n", ".") and quiz.metrics == ("f1",)
    with pytest.raises(ValueError, match=r"expected a template among \['quiz'\], got 'nq'"):
        template("nq", file)


GOOD = {"prompt": '"{question}:"', "query": '"{question}"', "answers": '"text"', "metrics": '["f1"]'}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": '["accuracy"]'}, r"template x, metrics: expected some of \['exact_match'"),
        ({"metrics": "[]"}, "metrics: expected some of"),
        ({"prompt": '"{question}: "'}, "prompt: expected a text without white space at its end"),
        ({"prompt": '"{topic}:"'}, r"prompt: expected markers among .* got \['topic'\]"),
        ({"query": '"{question"'}, "query: expected a text with"),
        ({"answers": '"both"'}, "own.toml: template x.answers must be 'choice' or 'text'"),
        ({"max_tokens": "0"}, "max_tokens: expected at least 1"),
        ({"max_tokens": '"8"'}, "template x.max_tokens must be int, got '8'"),
        ({"shots": "[-1]"}, "shots: expected numbers"),
        ({"labels": '{a = "x", b = "x"}'}, "labels: expected another word for each"),
        ({"promt": '"x"'}, r"own.toml, x: expected a table with .* and no keys but .*, got .*'promt'"),
        ({"prompt": None}, r"x: expected a table with \['prompt', .*, got \['answers', 'metrics', 'query'\]"),
        ({"prompt": '"'}, "own.toml is not TOML"),
    ],
)
def test_what_is_refused(tmp_path, changes, message):
    file = tmp_path / "own.toml"
    values = {key: value for key, value in (GOOD | changes).items() if value is not None}
    file.write_text("[x]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))
    with pytest.raises(ValueError, match=message):
        load_templates(file)
    (tmp_path / "flat.toml").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"flat.toml, x: expected a table with .* got 1"):
        load_templates(tmp_path / "flat.toml")
