"""JSON lines, one question an object, and DPR's training files, which are one list of such objects."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from realm_jax.data.question_formats.lines import question_lines
from realm_jax.data.question_formats.question import OnCause, Passage, Question, answers_of, listed, shortened

EXPECTED = '{"question": str, "answer" or "answers": str or [str, …]}, or an object of FEVER or KILT'


def read_json_lines(path: Path, on_drop: OnCause) -> Iterator[Question]:
    """One question a line: see `question_of`.

    Raises:
      ValueError: for a line that is no such object, naming file and line.
    """
    for number, line in question_lines(path, on_drop):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        yield question_of(record, where, number)


def read_json_list(document: Any, where: str) -> Iterator[Question]:
    """One question an element of a JSON list, as in DPR's training files: see `question_of`.

    Raises:
      ValueError: for an element that is no such object, naming file and place.
    """
    for number, record in enumerate(listed(document, where), 1):
        yield question_of(record, f"{where}, record {number}", number)


def question_of(record: Any, where: str, number: int) -> Question:
    """The question of an object with the keys that the field's files use.

    "question"; "answer" or "answers" (a string, strings, or an object of TriviaQA's or SQuAD's), none if unknown;
    "answer_is_regex"; "gold_id" or "passage_id", the passage that answers it; "title" and "passage", that passage
    itself; "id", or HotpotQA's "_id". Of DPR's "positive_ctxs" the first is the gold passage. FEVER's "claim" is a
    question and its "label" the answer; KILT's "input" and the "answer"s of its "output" likewise.

    Raises:
      ValueError: for any other object, beginning with `where`.
    """
    try:
        if "question" not in record:
            record = _as_question(record)
        text = record["question"]
        answers = answers_of(record.get("answer", record.get("answers", ())))
        is_regex = record.get("answer_is_regex", False)
        gold, passage = _gold(record)
        question_id = record.get("id", record.get("_id"))
        if not isinstance(text, str) or not isinstance(is_regex, bool):
            raise TypeError
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: expected {EXPECTED}, got {shortened(record)}") from error
    return Question(text, answers, is_regex, gold, str(number if question_id in (None, "") else question_id), passage)


def _as_question(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record of FEVER or KILT with the usual keys; any other as it is."""
    if "claim" in record:
        label = record.get("label")
        return {"question": record["claim"], "answer": [] if label is None else label, "id": record.get("id")}
    if "input" in record and "output" in record:
        answers = [output["answer"] for output in record["output"] if output.get("answer")]
        return {"question": record["input"], "answers": list(dict.fromkeys(answers)), "id": record.get("id")}
    return record


def _gold(record: Mapping[str, Any]) -> tuple[str | None, Passage | None]:
    gold, title, text = record.get("gold_id", record.get("passage_id")), record.get("title"), record.get("passage")
    if record.get("positive_ctxs"):
        context = record["positive_ctxs"][0]
        gold, title, text = context.get("passage_id", context.get("psg_id")), context.get("title"), context["text"]
    if isinstance(gold, dict | list | bool):
        raise TypeError
    passage = Passage(str(title or ""), text) if isinstance(text, str) and text else None
    return None if gold in (None, "") else str(gold), passage
