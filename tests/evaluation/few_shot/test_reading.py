"""Every published form of an evaluation's questions is read, and what is malformed is refused or counted."""

import gzip
import json

import pytest

from realm_jax.evaluation.few_shot.multiple_choice import EMPTY_CHOICE
from realm_jax.evaluation.few_shot.reading import NO_ANSWER, OTHER_LABEL, read_examples
from realm_jax.evaluation.few_shot.templates import template

CSV = """Which town lies on a fjord?,Oslo,Rome,Bern,Lima,A
"Two lines:
the second says ""which""?","a, b",c,d,e,D
"""


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_mmlu_folders(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "world_towns_test.csv").write_text(CSV)
    (folder / "algebra_test.csv.gz").write_bytes(gzip.compress(b"1 + 1?,0,1,2,3,C\n"))
    (folder / "README.txt").write_text("no questions")
    found = read_examples(template("mmlu"), folder)
    assert [example.subject for example in found.examples] == ["algebra", "world_towns", "world_towns"]
    first, _, last = found.examples
    assert first.references == ("C",) and first.options == ("A", "B", "C", "D")
    assert first.fields["choices"] == "A. 0\nB. 1\nC. 2\nD. 3"
    assert last.fields["question"] == 'Two lines:\nthe second says "which"?' and last.references == ("D",)
    assert last.fields["subject"] == "world towns" and last.id == "world_towns-2"
    alone = read_examples(template("mmlu"), folder / "world_towns_test.csv")
    assert alone.examples == found.examples[1:] and alone.dropped == {}


def test_multiple_choice_in_json_lines(tmp_path):
    file = lines(
        tmp_path / "questions.jsonl",
        {"question": "Which?", "choices": ["a", "b", "c"], "answer": 2, "subject": "letters", "id": "q7"},
        {"question": "Who?", "choices": ["ann", "bob"], "answer": "A"},
        {"question": "Who?", "choices": ["ann", " "], "answer": "A"},
        {"question": " ", "choices": ["ann", "bob"], "answer": "A"},
        {"question": "Half a \ud83d?", "choices": ["ann", "bob"], "answer": "A"},
    )
    found = read_examples(template("mmlu"), file)
    assert [(e.references, e.options, e.subject, e.id) for e in found.examples] == [
        (("C",), ("A", "B", "C"), "letters", "q7"),
        (("A",), ("A", "B"), "", "2"),
    ]
    assert found.dropped == {EMPTY_CHOICE: 1, "empty question": 1, "text that is no Unicode (half a surrogate pair)": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "one?,1,2,3,4,A\ntwo?,1,2,3,B\n", r"a.csv, line 2: expected question,A,B,C,D,answer"),
        ("a.csv", "one?,1,2,3,4,E\n", "line 1: expected .* with a letter for the answer"),
        ("a.csv", 'one?,1,2,3,4,A\n"two?,1,2\n', "line 2 is not CSV"),
        ("a.csv", "", "got none"),
        ("a.jsonl", '{"question": "x?", "choices": ["a", "b"], "answer": 2}\n', "line 1: expected .*letter or place"),
        ("a.jsonl", '{"question": "x?", "choices": ["a"], "answer": 0}\n', "line 1: expected"),
        ("a.jsonl", '{"question": "x?", "choices": "ab", "answer": 0}\n', "line 1: expected"),
        ("a.jsonl", '{"question": "x?", "choices": ["a", "b"], "answer": true}\n', "line 1: expected"),
        ("a.jsonl", '{"question": "x?", "choices": ["a", "b"], "answer": "AB"}\n', "line 1: expected"),
        ("a.jsonl", '\n{"question"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected"),
    ],
)
def test_malformed_multiple_choice(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_examples(template("mmlu"), tmp_path / name)


def test_what_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected files such as"):
        read_examples(template("mmlu"), tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="which is not there"):
        read_examples(template("mmlu"), tmp_path / "none.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(CSV.encode() * 50)[:-9])
    with pytest.raises(ValueError, match="get it again"):
        read_examples(template("mmlu"), tmp_path / "cut.csv.gz")


def test_short_answers(tmp_path):
    nq = lines(tmp_path / "nq.jsonl", {"question": "who?", "answer": ["Ann", "Anna"]}, {"question": "when?"})
    found = read_examples(template("nq"), nq)
    assert [(e.fields["question"], e.references, e.options) for e in found.examples] == [("who?", ("Ann", "Anna"), ())]
    assert found.dropped == {NO_ANSWER: 1}
    trivia = tmp_path / "trivia.json"
    trivia.write_text(
        json.dumps({"Data": [{"Question": "Where?", "Answer": {"Value": "Oslo", "Aliases": ["Christiania"]}}]})
    )
    assert read_examples(template("trivia_qa"), trivia).examples[0].references == ("Oslo", "Christiania")


def test_hotpot_qa_as_published(tmp_path):
    file = tmp_path / "hotpot.json"
    record = {
        "_id": "5a8b",
        "question": "Same town?",
        "answer": "yes",
        "type": "comparison",
        "supporting_facts": [["Ann", 0]],
    }
    file.write_text(json.dumps([record | {"context": [["Ann", ["Ann was born in Oslo."]]]}]))
    example = read_examples(template("hotpot_qa"), file).examples[0]
    assert (example.id, example.references) == ("5a8b", ("yes",))


def test_fever_in_both_forms(tmp_path):
    published = lines(
        tmp_path / "fever.jsonl",
        {"id": 1, "claim": "Oslo is a town.", "label": "SUPPORTS", "evidence": []},
        {"id": 2, "claim": "Rome is a lake.", "label": "REFUTES"},
        {"id": 3, "claim": "Bern is old.", "label": "NOT ENOUGH INFO"},
    )
    found = read_examples(template("fever"), published)
    assert [(e.references, e.options, e.id) for e in found.examples] == [
        (("true",), ("true", "false"), "1"),
        (("false",), ("true", "false"), "2"),
    ]
    assert found.dropped == {OTHER_LABEL: 1}
    three = read_examples(template("fever_three_way"), published)
    assert [e.references for e in three.examples] == [("true",), ("false",), ("maybe",)] and three.dropped == {}
    kilt = lines(
        tmp_path / "kilt.jsonl",
        {"id": "9", "input": "Oslo is a town.", "output": [{"answer": "SUPPORTS", "provenance": [{"title": "Oslo"}]}]},
    )
    assert read_examples(template("fever"), kilt).examples[0] == found.examples[0]._replace(id="9")


def test_kilt(tmp_path):
    eli5 = lines(
        tmp_path / "eli5.jsonl",
        {
            "id": "1a",
            "input": "Why is the sky blue?",
            "output": [
                {"answer": "Light scatters.", "meta": {"score": 3}},
                {"provenance": [{"wikipedia_id": "7"}]},
                {"answer": "Because of air."},
            ],
        },
        {"id": "1b", "input": "Why not?", "output": [{"provenance": []}]},
    )
    found = read_examples(template("eli5"), eli5)
    assert found.examples[0].references == ("Light scatters.", "Because of air.") and found.dropped == {NO_ANSWER: 1}
    talk = lines(
        tmp_path / "wow.jsonl", {"id": "2", "input": "I ski.\nWhere?\nIn Oslo.", "output": [{"answer": "Nice!"}]}
    )
    wow = template("wow")
    example = read_examples(wow, talk).examples[0]
    assert wow.question(example) == "Q: I ski.\nA: Where?\nQ: In Oslo.\nA:"
    linked = lines(
        tmp_path / "aida.jsonl",
        {"id": "3", "input": "w " * 40 + "[START_ENT] Oslo [END_ENT] won", "output": [{"answer": "Oslo"}]},
    )
    aida = template("aida")
    example = read_examples(aida, linked).examples[0]
    assert aida.query.format_map(example.fields) == "w " * 32 + "[START_ENT] Oslo [END_ENT] won"
    assert aida.question(example).startswith("w " * 40 + "[START_ENT] Oslo [END_ENT] won\nOutput ")


def test_patterns_are_for_exact_match_alone(tmp_path):
    file = lines(tmp_path / "trec.jsonl", {"question": "when?", "answer": [r"19\d\d"], "answer_is_regex": True})
    assert read_examples(template("trex"), file).examples[0].is_regex
    with pytest.raises(ValueError, match="regular expressions for answers, which f1 cannot compare with"):
        read_examples(template("nq"), file)
