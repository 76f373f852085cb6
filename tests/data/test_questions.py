"""Questions are read, checked and counted."""

import bz2
import gzip
import json

import pytest

from realm_jax.data.questions import Passage, Question, read_questions


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_lines(tmp_path):
    path = lines(
        tmp_path / "q.jsonl",
        {"question": "who?", "answer": ["Ann", "Bob", "Ann"], "passage_id": "p1", "title": "T", "passage": "Ann."},
        {"question": "where", "answer": "Oslo", "gold_id": 7, "id": "q2"},
        {"question": "when", "answers": ["19.."], "answer_is_regex": True, "id": 0},
        {"question": "what"},
    )
    found = read_questions(path)
    assert found.questions == (
        Question("who?", ("Ann", "Bob"), False, "p1", "1", Passage("T", "Ann.")),
        Question("where", ("Oslo",), False, "7", "q2"),
        Question("when", ("19..",), True, None, "0"),
        Question("what", (), False, None, "4"),
    )
    assert found.source == str(path) and found.dropped == {} and found.noted == {}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_whatever_the_name(tmp_path, compress):
    path = tmp_path / "q.jsonl"
    path.write_bytes(compress(b'{"question": "who", "answer": "Ann"}\n'))
    assert [question.answers for question in read_questions(path).questions] == [("Ann",)]
    path.write_bytes(compress(b'{"question": "who", "answer": "Ann"}\n' * 9)[:-12])
    with pytest.raises(ValueError, match=r"q\.jsonl is a truncated or corrupted file; get it again"):
        read_questions(path)


def test_claims_and_kilt_tasks_are_questions(tmp_path):
    """FEVER's labels are what is to be written; of KILT only outputs that answer count, each once."""
    records = [
        {"id": 75397, "verifiable": "VERIFIABLE", "label": "SUPPORTS", "claim": "Ada Brook was a painter.", "evidence": [[]]},
        {"id": 6, "claim": "Of the unlabelled test set."},
        {"id": "k1", "input": "who sang?", "output": [{"answer": "Elin Frost", "provenance": [{}]}, {"provenance": []},
                                                      {"answer": "Elin Frost"}, {"answer": "Frost"}]},
    ]  # fmt: skip
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read_questions(tmp_path / "dev.jsonl").questions
    assert [(q.text, q.answers, q.id) for q in found] == [
        ("Ada Brook was a painter.", ("SUPPORTS",), "75397"),
        ("Of the unlabelled test set.", (), "6"),
        ("who sang?", ("Elin Frost", "Frost"), "k1"),
    ]


def test_what_is_left_out_is_counted(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(
        b'{"question": "  ", "answer": "x"}\n'
        b'{"question": "\\ud800", "answer": "x"}\n'
        b'{"question": "caf\xe9", "answer": "x"}\n'
        b"\n"
        b'{"question": "who", "answer": ["Ann", " ", ""]}\n'
        b'{"question": "a", "answer": ["(", "x{99999999999}", "b+"], "answer_is_regex": true}\n'
    )
    found = read_questions(path)
    assert [(question.text, question.answers, question.id) for question in found.questions] == [
        ("who", ("Ann",), "5"),
        ("a", ("(", "x{99999999999}", "b+"), "6"),
    ]
    assert found.dropped == {
        "empty question": 1,
        "text that is no Unicode (half a surrogate pair)": 1,
        "not UTF-8": 1,
    }
    assert found.noted == {"empty answer left out": 2, "answer pattern that does not compile, matches nothing": 2}


def test_answers_are_regular_expressions_when_told_so(tmp_path):
    path = lines(tmp_path / "q.jsonl", {"question": "when", "answer": ["19["]})
    assert read_questions(path).noted == {} and not read_questions(path).questions[0].is_regex
    told = read_questions(path, answers_are_regex=True)
    assert told.questions[0].is_regex and sum(told.noted.values()) == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"answer": "x"}',
        '{"question": 3, "answer": "x"}',
        '{"question": "x", "answer": 3}',
        '{"question": "x", "answer": [3]}',
        '{"question": "x", "answer": {"Type": "y"}}',
        '{"question": "x", "answer": "y", "answer_is_regex": "yes"}',
        '{"question": "x", "answer": "y", "gold_id": [1]}',
        '{"question": "x", "answers": ["y"], "positive_ctxs": [{"title": "no text"}]}',
        "[1]",
        '{"question": "x", "answer": ' + '{"Value": ' * 400 + '"y"' + "}" * 400 + "}",
    ],
)
def test_a_line_that_is_not_what_the_format_says_is_named(tmp_path, line):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "fine", "answer": "x"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r'q\.jsonl, line 3: expected {"question": str, "answer" or "answers"'):
        read_questions(path)


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "fine", "answer": "x"}\n{"question": "x"\n')
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2 is not JSON: Expecting ',' delimiter"):
        read_questions(path)


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r"format of questions among \['auto', 'jsonl'.*got 'csv'"):
        read_questions(tmp_path / "q.csv", "csv")


def test_a_file_that_is_not_there(tmp_path):
    for source, what in ((tmp_path / "q.csv", "not there"), (tmp_path, "a folder")):
        told = rf"^expected a file of questions at {source}, which is {what}; name a file, or a TFDS data set as tfds:"
        for source_format in ("auto", "jsonl", "squad"):
            with pytest.raises(FileNotFoundError, match=told):
                read_questions(source, source_format)
