"""WebQuestions, TriviaQA, SQuAD and DPR as JSON documents."""

import gzip
import json

import pytest

from realm_jax.data.question_formats.web_questions import target_values
from realm_jax.data.questions import Passage, Question, read_questions


def document(path, content, **settings):
    path.write_text(json.dumps(content, **settings))
    return path


@pytest.mark.parametrize("indent", [None, 1])
def test_web_questions(tmp_path, indent):
    original = [
        {
            "url": "http://www.freebase.com/view/en/x",
            "targetValue": '(list (description "Jazmyn Bieber") (description "Jaxon Bieber"))',
            "utterance": "who?",
        },
        {"url": "u", "targetValue": "(list (description Oslo))", "utterance": "where?"},
    ]
    again = [{"qId": "wqr0", "answers": ["Jazmyn Bieber", "Jaxon Bieber"], "qText": "who?"}]
    found = read_questions(document(tmp_path / "train.json", original, indent=indent))
    assert found.questions == (
        Question("who?", ("Jazmyn Bieber", "Jaxon Bieber"), id="1"),
        Question("where?", ("Oslo",), id="2"),
    )
    found = read_questions(document(tmp_path / "val.json", again, indent=indent))
    assert found.questions == (Question("who?", ("Jazmyn Bieber", "Jaxon Bieber"), id="wqr0"),)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('(list (description Abduction) (description "Valentine\'s Day"))', ("Abduction", "Valentine's Day")),
        (r'(list (description "The \"Great\" (one)") (description A\\B))', ('The "Great" (one)', r"A\\B")),
        ('(list (description ") (description ") (description 7up))', (") (description ", "7up")),
        ("(list)", ()),
    ],
)
def test_target_values(text, values):
    assert target_values(text) == values


@pytest.mark.parametrize(
    "text", ["", "Oslo", '(list (description "open))', "(list (name Oslo))", "(list (description a(b))"]
)
def test_other_expressions_are_refused(tmp_path, text):
    path = document(tmp_path / "q.json", [{"url": "", "targetValue": text, "utterance": "who?"}])
    with pytest.raises(ValueError, match=r"q\.json, record 1: expected .*targetValue"):
        read_questions(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_trivia_qa(tmp_path, compressed):
    answer = {
        "Aliases": ["(Harry) Sinclair Lewis", "Sinclair Lewis"],
        "NormalizedAliases": ["harry sinclair lewis", "sinclair lewis"],
        "HumanAnswers": ["Lewis"],
        "NormalizedValue": "sinclair lewis", "Type": "WikipediaEntity", "Value": "Sinclair Lewis",
    }  # fmt: skip
    content = {
        "Data": [
            {"Answer": answer, "Question": "Which American?", "QuestionId": "tc_1", "EntityPages": []},
            {"Question": "Of the test part?", "QuestionId": "tc_2"},
        ],
        "Domain": "Web", "Split": "train", "VerifiedEval": False, "Version": 1.0,
    }  # fmt: skip
    path = document(tmp_path / "unfiltered-web-dev.json", content, indent=4)
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    found = read_questions(path)
    names = ("Sinclair Lewis", "(Harry) Sinclair Lewis", "Lewis", "harry sinclair lewis", "sinclair lewis")
    assert found.questions == (Question("Which American?", names, id="tc_1"), Question("Of the test part?", id="tc_2"))
    content["Data"][1] = {"Question": "who", "Answer": {"Type": "x"}}
    with pytest.raises(ValueError, match=r'record 2 of "Data": expected .*"Answer": {"Value", "Aliases"}}, got {'):
        read_questions(document(path, content))


def squad(*questions, context="Ann was born in Oslo.", title="New_York"):
    return {"version": "1.1", "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def test_squad(tmp_path):
    content = squad(
        {"id": "a", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann", "answer_start": 0}]},
        {"id": "b", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 15}]},
        {"id": "c", "question": "Why?", "answers": [], "is_impossible": True},
    )  # fmt: skip
    content["data"] += squad({"id": "d", "question": "When?", "answers": []}, context="Bob.")["data"]
    found = read_questions(document(tmp_path / "dev.json", content))
    ann, bob = Passage("New York", "Ann was born in Oslo."), Passage("New York", "Bob.")
    assert found.questions == (
        Question("Who?", ("Ann",), False, "New_York#0", "a", ann),
        Question("Where?", ("Oslo",), False, "New_York#0", "b", ann),
        Question("When?", (), False, "New_York#1", "d", bob),
    )
    assert found.dropped == {"question that its passage does not answer": 1}
    assert found.noted == {"answer_start that does not point at the answer": 1}  # 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (squad({"id": "a", "question": "Who?"}), r'passage New_York#0: expected {"question", "id", "answers"'),
        (squad({"question": "Who?", "answers": [{"text": "Ann"}]}), "passage New_York#0: expected"),
        ({"data": [{"title": "x"}]}, r'article 1: expected {"title", "paragraphs"'),
        ({"data": {"title": "x"}}, r'expected {"data": \['),
    ],
)
def test_what_is_not_as_squad_says_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"dev\.json.*{message}"):
        read_questions(document(tmp_path / "dev.json", content))


def test_dpr_training_files(tmp_path):
    content = [
        {
            "dataset": "nq_train", "question": "who", "answers": ["Ann"],
            "positive_ctxs": [{"title": "T", "text": "Ann.", "passage_id": 12}, {"title": "U", "text": "x", "passage_id": 3}],
            "negative_ctxs": [], "hard_negative_ctxs": [],
        },
        {"dataset": "nq_train", "question": "where", "answers": ["Oslo"], "positive_ctxs": []},
    ]  # fmt: skip
    expected = (Question("who", ("Ann",), False, "12", "1", Passage("T", "Ann.")), Question("where", ("Oslo",), id="2"))
    assert read_questions(document(tmp_path / "list.json", content, indent=2)).questions == expected
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in content))
    assert read_questions(lines).questions == expected
    content[1]["answers"] = [3]
    with pytest.raises(ValueError, match=r"list\.json, record 2: expected"):
        read_questions(document(tmp_path / "list.json", content))


@pytest.mark.parametrize("content", ["{}", "[]", "[3]", '[{"x": 1}]', "3", "who was he?", "who\twhere\t[]"])
def test_what_cannot_be_told(tmp_path, content):
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(
        ValueError,
        match=r"(cannot tell the format of .*q\.json.*expected one of these: JSON lines, one \{|line 1: expected)",
    ):
        read_questions(path)


@pytest.mark.parametrize(("content", "what"), [(b"", "is empty"), (b" \n\n\xff\n", "holds no line of text")])
def test_a_file_of_nothing(tmp_path, content, what):
    path = tmp_path / "q.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^expected questions in .*q\.json, but the file {what}$"):
        read_questions(path)


def test_a_document_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "q.json"
    path.write_text('{\n "data": [\n')
    with pytest.raises(ValueError, match=r"q\.json, line 3 is not JSON: Expecting value"):
        read_questions(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"q\.json is not JSON: .*recursion"):
        read_questions(path)


@pytest.mark.parametrize("name", ["json_list", "web_questions", "trivia_qa"])
def test_a_format_by_name_that_the_document_has_not(tmp_path, name):
    with pytest.raises(ValueError, match=r"q\.json.*expected a list of questions, got"):
        read_questions(document(tmp_path / "q.json", {"data": 3}), name)


@pytest.mark.needs_data
def test_the_published_web_questions(shared_data):
    """The original files say what the JSON lines made of them say: 3778 questions to train with, 2032 to test."""
    folder = shared_data / "openqa" / "webquestions"
    test = read_questions(folder / "original" / "test.json")
    assert len(test.questions) == 2032
    assert test.questions == read_questions(folder / "webquestions.test.jsonl").questions
    parts = [read_questions(folder / "original" / f"{part}.json") for part in ("trainmodel", "val", "devtest")]
    train = sorted((question for part in parts for question in part.questions), key=lambda question: question.id)
    assert len(train) == 3778 and tuple(train) == read_questions(folder / "webquestions.train.jsonl").questions


@pytest.mark.needs_data
def test_squad_says_what_its_json_lines_say(shared_data):
    found = read_questions(shared_data / "openqa" / "squad_subset.squad.json")
    lines = read_questions(shared_data / "openqa" / "squad_subset.jsonl")
    assert len(found.questions) == 2575 and found.dropped == {} == found.noted
    assert [q.text for q in found.questions] == [q.text for q in lines.questions]
    assert [set(q.answers) for q in found.questions] == [set(q.answers) for q in lines.questions]
    assert [q.passage for q in found.questions] == [q.passage for q in lines.questions]
    ids = {question.gold_passage: question.passage for question in found.questions}
    assert len(ids) == len(set(ids.values()))  # one id a passage


def test_answers_of_hundreds_of_answers_within_each_other(tmp_path):
    path = tmp_path / "trivia.json"
    answer = '{"Value": ' * 400 + '"y"' + "}" * 400
    path.write_text('{"Data": [{"Question": "x", "QuestionId": "a", "Answer": ' + answer + "}]}")
    with pytest.raises(ValueError, match=r'trivia\.json, record 1 of "Data": expected'):
        read_questions(path)
