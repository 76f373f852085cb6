"""Multiple choice: MMLU's CSV files, a folder of them, or JSON lines."""

import csv
import io
import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from realm_jax.corpus.sources.files import read_chunks
from realm_jax.corpus.sources.json_document import refuse_damage
from realm_jax.data.question_formats.lines import question_lines
from realm_jax.data.question_formats.question import EMPTY_QUESTION, NOT_ENCODABLE, shortened
from realm_jax.evaluation.few_shot.example import Example
from realm_jax.storage import fetch

EMPTY_CHOICE = "empty choice"
LETTERS = string.ascii_uppercase

_CSV = "question,A,B,C,D,answer"
_JSON = '{"question": str, "choices": [str, str, …], "answer": letter or place from 0}, also "subject" and "id"'
_PART = re.compile(r"_(dev|val|test)$")  # MMLU's files are called SUBJECT_dev.csv and so on

OnCause = Callable[[str], None]


class _Choices(NamedTuple):
    """A question as it stands in the file."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    id: str


def read_multiple_choice(source: str | Path, on_drop: OnCause) -> Iterator[Example]:
    """The questions of a file, or of all CSV files of a folder, in the order of their names.

    A CSV file has lines of question, four choices and the letter of the right one, without a header, and its subject in
    its name (abstract_algebra_test.csv); a question may span several lines. JSON lines hold from two to 26 choices, the
    subject in the record. Files may be compressed. The options are letters.

    Args:
      source: the file or folder, such as `data/test` of MMLU as published.
      on_drop: called with the cause of each record left out: an empty question or choice, text that is no Unicode.

    Raises:
      FileNotFoundError: nothing lies at the path, or no CSV file in the folder.
      ValueError: for a record of another form or a damaged file, naming file and line.
    """
    folder = Path(source)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if ".csv" in path.suffixes and not path.name.startswith("."))
        if not files:
            raise FileNotFoundError(
                f"expected files such as abstract_algebra_test.csv in {source}, got none; name one of MMLU's folders dev, "
                "val and test, or a file"
            )
    else:
        files = [fetch(str(source))]
        if not files[0].is_file():
            raise FileNotFoundError(
                f"expected multiple choice in CSV files or JSON lines at {source}, which is not there"
            )
    for path in files:
        records = _csv_records(path) if ".csv" in path.suffixes else _json_records(path, on_drop)
        yield from filter(None, (_example(record, on_drop) for record in records))


def choices_text(choices: Sequence[str]) -> str:
    """The choices as a prompt shows them.

    >>> print(choices_text(["Oslo", "Rome"]))
    A. Oslo
    B. Rome
    """
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _example(record: _Choices, on_drop: OnCause) -> Example | None:
    question, choices = record.question.strip(), tuple(choice.strip() for choice in record.choices)
    cause = _unusable(question, choices, record)
    if cause is not None:
        on_drop(cause)
        return None
    fields = {
        "question": question,
        "choices": choices_text(choices),
        "subject": record.subject.replace("_", " "),
        "dialogue": question,
        "mention": question,
    }
    return Example(
        fields, (LETTERS[record.answer],), tuple(LETTERS[: len(choices)]), subject=record.subject, id=record.id
    )


def _unusable(question: str, choices: Sequence[str], record: _Choices) -> str | None:
    """Why a record cannot be asked; None if it can."""
    try:
        "".join((question, *choices, record.subject, record.id)).encode()
    except UnicodeEncodeError:
        return NOT_ENCODABLE
    if not question:
        return EMPTY_QUESTION
    return None if all(choices) else EMPTY_CHOICE


def _csv_records(path: Path) -> Iterator[_Choices]:
    subject = _PART.sub("", path.name.partition(".csv")[0])
    content = b"".join(read_chunks(path, lambda cause: refuse_damage(path, cause)))
    try:
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {first} is not CSV: {error}") from error
        if row is None:
            return
        if not row:  # a blank line
            continue
        if len(row) != 6 or row[5].strip() not in tuple("ABCD"):
            raise ValueError(
                f"{path}, line {first}: expected {_CSV} with a letter for the answer, got {shortened(row)}"
            )
        yield _Choices(row[0], tuple(row[1:5]), LETTERS.index(row[5].strip()), subject, f"{subject}-{first}")


def _json_records(path: Path, on_drop: OnCause) -> Iterator[_Choices]:
    for number, line in question_lines(path, on_drop):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        try:
            yield _choices_of(record, number)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: expected {_JSON}, got {shortened(record)}") from error


def _choices_of(record: Any, number: int) -> _Choices:
    question, choices, answer = record["question"], record["choices"], record["answer"]
    subject, record_id = record.get("subject", ""), record.get("id", number)
    texts = [question, subject, *choices]
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in texts) or isinstance(answer, bool):
        raise TypeError
    letters = LETTERS[: len(choices)]
    place = letters.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if not isinstance(place, int) or not 2 <= len(choices) <= len(LETTERS) or not 0 <= place < len(choices):
        raise TypeError
    return _Choices(question, tuple(choices), place, subject, str(record_id))
