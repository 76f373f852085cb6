"""The questions of the predict job: a file of any format that the project reads, arguments, or standard input."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from realm_jax.corpus.sources.tfds import PREFIX
from realm_jax.data.question_formats.json_lines import question_of
from realm_jax.data.question_formats.question import QuestionFilter
from realm_jax.data.questions import Question, read_questions

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"


class Asked(NamedTuple):
    """Questions to answer, in order."""

    questions: Iterable[Question]
    name: str | None  # of a file of questions: what its predictions are named after
    one_by_one: bool = False  # someone waits for each answer


def asked(questions: str | tuple[str, ...]) -> Asked:
    """What `predict.questions` stands for.

    Args:
      questions: "-" for standard input; a file or `tfds:NAME?split=…`; else a question. Of a tuple each is a question.

    Raises:
      FileNotFoundError: one word without a question mark, or the name of a data file, that is not there.
      ValueError: nothing to answer, or a file that holds no questions.
    """
    if questions == STANDARD_INPUT:
        return Asked(_from_lines(sys.stdin), None, sys.stdin.isatty())
    if isinstance(questions, str) and _is_file(questions):
        found = read_questions(questions)
        for cause, count in found.dropped.items():
            logger.warning("%s: left out %d: %s; no answer is written for them", questions, count, cause)
        if not found.questions:
            raise ValueError(f"{questions} holds no question")
        return Asked(found.questions, Path(questions.removeprefix(PREFIX)).name.split(".")[0])
    texts = (questions,) if isinstance(questions, str) else questions
    return Asked(list(_from_lines(texts, may_be_json=False, must_be_any=True)), None)


def _is_file(text: str) -> bool:
    if text.startswith(PREFIX) or (len(text) < 4096 and "\0" not in text and Path(text).is_file()):
        return True
    looks_like_a_file = text.endswith((".jsonl", ".json", ".gz", ".xz", ".bz2", ".csv", ".tsv", ".txt"))
    if text.strip() and (looks_like_a_file or (len(text.split()) == 1 and not text.endswith(("?", "？")))):
        raise FileNotFoundError(
            f"no file of questions at {text}; a question has several words or a question mark, - reads standard input"
        )
    return False


def _from_lines(lines: Iterable[str], may_be_json: bool = True, must_be_any: bool = False) -> Iterator[Question]:
    """One question a line: plain text, or an object as in files of JSON lines."""
    dropped: Counter[str] = Counter()

    def on_drop(cause: str) -> None:
        dropped[cause] += 1

    keep = QuestionFilter(on_drop, lambda cause: None)
    kept = 0
    for number, line in enumerate(lines, 1):
        if may_be_json and not line.strip():
            continue
        raw = Question(line.strip(), id=str(number))
        if may_be_json and line.lstrip().startswith("{"):
            where = f"standard input, line {number}"
            try:
                raw = question_of(json.loads(line), where, number)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON: {error}") from error
        question = keep.question(raw)
        if question is not None:
            kept += 1
            yield question
    for cause, count in dropped.items():
        logger.warning("left out %d: %s", count, cause)
    if must_be_any and not kept:
        raise ValueError(f"predict.questions holds no question ({', '.join(dropped) or 'it is empty'})")
