"""Every template on a made record, the draw of markers, and records and templates that are not as they should be."""

import dataclasses
import random
import re

import numpy as np
import pytest

from realm_jax.instructions.example import GROUPS, InstructionExample
from realm_jax.instructions.fields import RecordError
from realm_jax.instructions.template_file import own_templates, read_templates
from tests.instructions import made_records

OWN = own_templates()
# Table 1 of the paper: those of the language model, and two more for the retriever.
TWENTY = set(
    "oasst1 commonsense_qa math_qa web_questions wiki_qa yahoo_answers_qa coqa drop narrativeqa newsqa pubmed_qa quail quarel "
    "squad_v2 cnn_dailymail aqua_rat ecqa gsm8k math strategyqa".split()
)


def with_first_markers(template):
    return dataclasses.replace(template, markers={name: values[:1] for name, values in template.markers.items()})


def test_the_sets_are_those_of_the_paper():
    trained_on = {name for name, t in OWN.by_name.items() if "language_model" in t.used_by and t.sources}
    assert trained_on == TWENTY and len(TWENTY) == 20
    assert {name for name, t in OWN.by_name.items() if t.used_by == ("retriever",)} == {"freebase_qa", "ms_marco"}
    assert {t.group for t in OWN.by_name.values()} == set(GROUPS)
    assert {made.name for made in made_records.MADE} | {"coqa"} == set(OWN.by_name)


@pytest.mark.parametrize("made", made_records.MADE, ids=lambda made: made.name)
def test_a_made_record(made):
    template = OWN.get(made.name)
    (example,) = with_first_markers(template).examples(made.record, seed=0)
    assert example.id == made.id or (not made.id and re.fullmatch("[0-9a-f]{16}", example.id))
    assert example._replace(id="") == InstructionExample(
        made.name, template.group, made.prompt, made.answer, made.query, (made.answer, *made.references)
    )


def test_every_answer_of_a_conversation_is_an_example():
    first, second = with_first_markers(OWN.get("coqa")).examples(made_records.COQA, seed=0)
    assert first[2:5] == ("Ann has a cat.\nQ: Who has a cat?\nA:", "Ann", "Who has a cat?")
    assert second[2:5] == (
        "Ann has a cat.\nQ: Who has a cat?\nA: Ann\nQ: Is it a dog?\nA:", "no", "Is it a dog?"
    )  # fmt: skip
    assert (first.id[-2:], second.id[-2:]) == ("#0", "#1")


def test_drop_as_tfds_has_it():
    record = {
        "passage": b"Ann scored.",
        "question": b"Who?",
        "answer": b"Ann",
        "validated_answers": np.array([], object),
    }
    (example,) = with_first_markers(OWN.get("drop")).examples(record, seed=0)
    assert (example.prompt, example.answer) == ("Ann scored.\nQ: Who?\nA:", "Ann")


def test_markers_are_drawn_and_drawn_again_alike():
    template, record = OWN.get("commonsense_qa"), dict(made_records.MADE[1].record)
    drawn = [template.examples(record | {"question": f"Where? {i}"}, seed=3)[0] for i in range(200)]
    assert drawn == [template.examples(record | {"question": f"Where? {i}"}, seed=3)[0] for i in range(200)]
    for mark in ("Q: W", "Question: W"):
        assert 70 < sum(example.prompt.startswith(mark) for example in drawn) < 130  # 100 ± 4 deviations of 7
    endings = {example.prompt.rpartition("\n")[2] for example in drawn}
    assert endings == {"A:", "Answer:"}
    # a marker of the choices is that of the answer, and all four markers of an example are drawn by themselves
    for example in drawn:
        assert example.answer in example.prompt.split("\n")
    assert {example.answer for example in drawn} == {"B. library", "(B) library", "B) library"}
    both = {(example.prompt[:2], example.prompt[-2:]) for example in drawn}
    assert both == {("Q:", "A:"), ("Q:", "r:"), ("Qu", "A:"), ("Qu", "r:")}
    other_seed = [template.examples(record | {"question": f"Where? {i}"}, seed=4)[0] for i in range(200)]
    assert 0.8 * 200 < sum(one != other for one, other in zip(drawn, other_seed, strict=True)) < 200
    assert all(one.id == other.id == "c1" for one, other in zip(drawn, other_seed, strict=True))


def test_a_record_is_never_read_as_a_pattern():
    record = {"question": "{answers} {q.__class__} {0} %s {{", "answers": ["{question}"]}
    (example,) = with_first_markers(OWN.get("web_questions")).examples(record, seed=0)
    assert example[2:5] == (
        "Q: {answers} {q.__class__} {0} %s {{\nA:",
        "{question}",
        "{answers} {q.__class__} {0} %s {{",
    )


@pytest.mark.parametrize(
    ("name", "changes", "cause"),
    [
        ("web_questions", {"question": None}, "empty field: question is empty"),
        ("web_questions", {"question": " \x00\n"}, "empty field: question"),
        ("web_questions", {"answers": []}, "no answer: answers is empty"),
        ("web_questions", {"answers": ["", " "]}, "no answer"),
        ("web_questions", {"answers": 3}, "value of a wrong type: answers is 3, not text"),
        ("web_questions", {"answers": [{"text": "x"}]}, "value of a wrong type"),
        ("web_questions", {"question": ["who", "what"]}, "value of a wrong type: several texts"),
        ("web_questions", {"question": "\ud800"}, "text that is no Unicode (half a surrogate pair)"),
        ("web_questions", {"question": b"\xff"}, "not UTF-8"),
        ("web_questions", {"question": ...}, "missing field: question"),
        ("web_questions", {"answers": [[[[[[[[[[[[[[[[[["x"]]]]]]]]]]]]]]]]]]}, "value of a wrong type: lists within"),
        ("commonsense_qa", {"answerKey": ""}, "no answer: no choice is said to be right"),
        ("commonsense_qa", {"answerKey": "F"}, "no answer: 'F' is none of 5 choices"),
        ("commonsense_qa", {"choices": {"text": ["one"]}}, "choices that cannot be told apart: 1 choices"),
        ("commonsense_qa", {"choices": {"text": ["one", ""]}}, "choices that cannot be told apart: 2 choices, of them 1 empty"),
        ("commonsense_qa", {"choices": {"text": ["x"] * 27}}, "choices that cannot be told apart: 27"),
        ("commonsense_qa", {"choices": "x"}, "missing field: choices.text"),
        ("quail", {"correct_answer_id": True}, "no answer: True"),
        ("quail", {"correct_answer_id": -1}, "no answer: -1"),
        ("quarel", {"question": "No marks"}, "choices that cannot be told apart: 0"),
        ("ecqa", {"q_ans": "moon"}, "no answer: 'moon'"),
        ("strategyqa", {"answer": "perhaps"}, "label that the template does not name: answer is 'perhaps'"),
        ("strategyqa", {"answer": None}, "no answer: result is empty"),
        ("gsm8k", {"answer": "no mark of the result"}, "no answer: result"),
        ("math", {"solution": "\\boxed{1"}, "no answer: result"),
        ("ms_marco", {"answers": ["No Answer Present."]}, "no answer"),
        ("coqa", {"questions": ["one"]}, "value of a wrong type: 1 questions, but 2 answers"),
        ("coqa", {"questions": [], "answers": {"input_text": []}}, "empty prompt"),
        ("coqa", {"questions": ["one", " "]}, "empty field: an empty turn"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_used(name, changes, cause):
    made = {m.name: m.record for m in made_records.MADE} | {"coqa": made_records.COQA}
    record = {key: value for key, value in {**made[name], **changes}.items() if value is not ...}
    with pytest.raises(RecordError, match=re.escape(cause)) as raised:
        OWN.get(name).examples(record, seed=0)
    assert cause.startswith(raised.value.cause)


GOOD = """
[markers]
q = ["Q:"]
choice = ["A. "]
[sets.mine]
group = "open_qa"
fields = { question = "question", answer = "answer" }
prompt = "{q} {question} {{x}}"
answer = "{answer}"
query = "{question}"
"""


def read(path, text):
    path.write_text(text, encoding="utf-8")
    return read_templates(path)


def test_a_file_of_ones_own(tmp_path):
    templates = read(tmp_path / "t.toml", GOOD)
    assert templates.get("mine").title == "mine" and templates.get("mine").used_by == ("language_model", "retriever")
    (example,) = templates.get("mine").examples({"question": "who?", "answer": "Ann"}, seed=0)
    assert example[:5] == ("mine", "open_qa", "Q: who? {x}", "Ann", "who?")
    with pytest.raises(ValueError, match=r"among \['mine'\], got 'yours'"):
        templates.get("yours")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{q} {question}", "{q} {question.__class__}", r"set mine, prompt: expected a name among .* got '{question.__class__}'; there are no attributes"),
        ("{q} {question}", "{question[0]}", "there are no attributes, indices or formats"),
        ("{q} {question}", "{question!r}", "got '{question!r}'"),
        ("{q} {question}", "{question:>9999999999}", "there are no attributes, indices or formats"),
        ("{q} {question}", "{}{question}", "got '{}'"),
        ("{q} {question}", "{0}{question}", "got '{0}'"),
        ("{q} {question}", "{passage}", r"expected a name among \['answer', 'q', 'question'\]|expected a name among \['answer', 'choice', 'q', 'question'\]"),
        ("{q} {question}", "{q} {question", r"a single '{' in .*write '{{'"),
        ("{q} {question} {{x}}", "{q} } {question}", "a single '}'"),
        ("{q} {question} {{x}}", "{q}", r"set mine, prompt: expected at least one of \['answer', 'question'\]"),
        ('"{answer}"', "3", "set mine, answer: expected a string, got 3"),
        ('query = "{question}"', "", "set mine: expected the key 'query'"),
        ('query = "{question}"', 'query = "{question}"\nexec = "x"', r"expected keys among .* got \['exec'\]"),
        ('"open_qa"', '"opinions"', r"set mine: mine: expected a group among \['dialogue'"),
        ('q = ["Q:"]', "q = []", "marker q: expected texts to draw from"),
        ('q = ["Q:"]', 'question = ["Q:"]', r"neither marker nor given twice, got \['question'\]"),
        ('"A. "', '"An. "', "marker choice: expected a mark of choices with A or a as its only letter"),
        ('answer = "answer"', 'answer = "answer..text"', 'field answer, path: expected keys with dots between'),
        ('answer = "answer"', 'answer = { path = "answer", eval = "1" }', r"got \['eval'\]"),
        ('answer = "answer"', 'answer = { path = "answer", without = ["<<"] }', "a beginning and an end"),
        ('answer = "answer"', 'answer = { join = "," }', "field answer: expected a path"),
        ("[sets.mine]", "[sets.mine", "is no TOML"),
        (GOOD[GOOD.index("[sets"):], "", "expected tables .sets.NAME."),
    ],
)  # fmt: skip
def test_templates_that_are_refused(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "t.toml", GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('choices = { texts = "c", correct = "k" }', "choices: expected the keys .*got none of .'correct_is'."),
        ('choices = { texts = "c", correct = "k", correct_is = "guess" }', 'correct_is = "letter", "index" or "text"'),
        ('choices = { correct = "k", correct_is = "text" }', "expected either texts or each"),
        ('turns = { questions = "q", answers = "a", earlier = "{question}" }', "turns, earlier: expected a name among"),
        ('turns = { questions = "q", answers = "a", earlier = "", each = 1 }', "each: expected true or false"),
        ('threads = { message = "m" }', "threads: expected the keys"),
        ("keep = { label = 1 }", "keep, label: expected a list of the values to keep"),
        ('used_by = ["everyone"]', "expected used_by among"),
    ],
)
def test_sections_that_are_refused(tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "t.toml", GOOD + section)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a template file"):
        read_templates(tmp_path / "none.toml")


JUNK = [
    None,
    True,
    -1,
    3.5,
    float("nan"),
    "",
    " ",
    "\x00",
    "{q}",
    "\ud800",
    [],
    {},
    [[]],
    {"text": "x"},
    b"\xff",
    b"x",
    ["x", None],
]


def mutated(value, rng):
    """The value with some of its parts replaced, removed, repeated or cut."""
    if rng.random() < 0.2:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        return {k: mutated(v, rng) if rng.random() < 0.6 else v for k, v in value.items() if rng.random() < 0.97}
    if isinstance(value, list):
        return [mutated(v, rng) for v in value if rng.random() < 0.95] * rng.choice([1, 1, 1, 2])
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice(["", "<<", ">>", "\\boxed{", "{", "}", "####", "(A)"]) + value[place:]
    return value


def test_hostile_records_give_a_cause_or_an_example_that_can_be_written():
    rng, num_examples = random.Random(0), 0
    records = [*((made.name, made.record) for made in made_records.MADE), ("coqa", made_records.COQA)]
    for _ in range(3000):
        name, record = rng.choice(records)
        hostile = {key: mutated(value, rng) for key, value in record.items()}
        try:
            examples = OWN.get(name).examples(hostile, seed=0)
        except RecordError:
            continue
        for example in examples:
            num_examples += 1
            assert example.answer in example.references and example.query
            assert all(text and text == text.strip() for text in (example.prompt, example.answer))
            "".join([*example[:5], *example.references, example.id]).encode()
    assert num_examples > 1000


def test_the_page_names_every_set_and_its_example_is_read(repository, tmp_path):
    page = (repository / "docs" / "instructions.md").read_text(encoding="utf-8")
    for name, template in OWN.by_name.items():
        assert f"`{name}`" in page
        for source in template.sources:
            assert re.split("[:?]", source)[1] in page
    written = re.search("```toml\n(.*?)```", page, re.DOTALL)[1]
    record = {"context": {"text": "A ship sank."}, "q": "What sank?", "answers": ["A ship", "a ship"], "id": 4}
    (example,) = with_first_markers(read(tmp_path / "t.toml", written).get("mine")).examples(record, seed=0)
    assert example == InstructionExample(
        "mine",
        "reading_comprehension",
        "A ship sank.\nQ: What sank?\nA:",
        "A ship",
        "What sank?",
        ("A ship", "a ship"),
        "4",
    )
