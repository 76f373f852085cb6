"""CuratedTREC and DPR between tabs."""

import csv
import io
import json

import pytest

from realm_jax.data.question_formats.tsv import unquoted
from realm_jax.data.questions import Question, read_questions


def test_curated_trec(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("1756\tfactoid\tWhen?\tSept?(ember)?|Feb\n17\tfactoid\tWho?\t(broken\n3\tlist\tTab?\ta\tb\n")
    found = read_questions(path)
    assert found.questions == (
        Question("When?", ("Sept?(ember)?|Feb",), True, None, "1756"),
        Question("Who?", ("(broken",), True, None, "17"),
        Question("Tab?", ("a\tb",), True, None, "3"),
    )
    assert found.noted == {"answer pattern that does not compile, matches nothing": 1}
    path.write_text("1\tfactoid\tWhen?\tx\n\n2\tfactoid\tWhen?\n")
    with pytest.raises(ValueError, match=r"train\.tsv, line 3: expected id, kind, question and regular expression"):
        read_questions(path)


def test_dpr(tmp_path):
    path = tmp_path / "nq-test.qa.csv"
    rows = [("who's he", ["Ann's", "Bob"]), ('the "x"', ['"q"', "'", "a\tb", "Ann", "Ann"]), ("none", [])]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([text, repr(answers)] for text, answers in rows)
    found = read_questions(path)
    assert found.questions == (
        Question("who's he", ("Ann's", "Bob"), id="1"),
        Question('the "x"', ('"q"', "'", "a\tb", "Ann"), id="2"),
        Question("none", (), id="3"),
    )


@pytest.mark.parametrize("field", ["", '"', '""', "plain", '"quoted ""word"""', '"end of a title" she said "so"'])
def test_fields_are_read_as_the_csv_module_writes_them(field):
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="").writerow([field])
    assert unquoted(written.getvalue()) == field
    assert unquoted('"end" of "title"') == '"end" of "title"'  # written by hand, not by csv


@pytest.mark.parametrize("listed", ["['a'", "['a', 3]", "{'a'}", "[__import__('os').getcwd()]", "[" * 300, ""])
def test_a_list_is_a_literal_and_nothing_is_executed(tmp_path, listed):
    path = tmp_path / "q.csv"
    path.write_text(f"fine\t['x']\nwho\t{listed}\n")
    with pytest.raises(ValueError, match=r"q\.csv, line 2: expected a question, a tab and a list such as"):
        read_questions(path)


@pytest.mark.needs_data
@pytest.mark.parametrize("name", ["curated-train", "curated-test", "large2470-train", "large2470-test"])
def test_the_published_files(shared_data, name):
    """The original files say what the JSON lines made of them say."""
    folder = shared_data / "openqa" / "curatedtrec"
    found = read_questions(folder / "original" / f"{name}.tsv")
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    assert found.questions == read_questions(folder / f"{name}.jsonl").questions and len(found.questions) > 400
    assert [q.as_written for q in found.questions] == [row["question"] for row in rows]
    assert [list(q.answers) for q in found.questions] == [row["answer"] for row in rows]
    assert found.dropped == {} == found.noted


@pytest.mark.parametrize(
    "listed",
    [
        "[{[]: 1}]",
        "[" * 190,
        "[" + "-" * 5000 + "1]",
        "[1" + "+1" * 5000 + "]",
        "['a', 3]",
        "['\\N{x}']",
        "[__import__('os')]",
    ],
)
def test_lists_that_are_no_lists_of_texts_are_refused(tmp_path, listed):
    path = tmp_path / "nq.qa.csv"
    path.write_text(f"who\t{listed}\n")
    with pytest.raises(ValueError, match=r"nq\.qa\.csv, line 1: expected a question, a tab and a list"):
        read_questions(path, "dpr_tsv")
