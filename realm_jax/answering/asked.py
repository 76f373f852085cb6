"""The questions of the predict job: a file of any format that the project reads, arguments, or standard input."""

import codecs
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from realm_jax.corpus.sources.article import NOT_UTF8
from realm_jax.corpus.sources.tfds import PREFIX
from realm_jax.data.question_formats.json_lines import question_of
from realm_jax.data.question_formats.question import QuestionFilter
from realm_jax.data.question_formats.recognise import UnknownFormatError, meanings
from realm_jax.data.questions import Question, read_questions
from realm_jax.storage import is_remote

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
NO_RECORD = 'line that is no {"question": …} object'
# How a question ends in Latin, Chinese and Japanese, Arabic, Greek (with either code point), Armenian and Ethiopic script;
# and the full stops of scripts that put no spaces between words.
_QUESTION_MARKS = ("?", "\uff1f", "\u061f", ";", "\u037e", "\u055e", "\u1367", "\u3002", "\uff61", "\u1362")
_SUFFIXES = (".jsonl", ".json", ".gz", ".xz", ".bz2", ".csv", ".tsv", ".txt")


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
      FileNotFoundError: what can only be the name of a file that is not there.
      ValueError: nothing to answer, or a file that holds no questions.
    """
    if questions == STANDARD_INPUT:
        return Asked(_from_lines(_standard_input()), None, sys.stdin.isatty())
    if isinstance(questions, str) and _is_file(questions):
        try:
            found = read_questions(questions)
        except UnknownFormatError as error:
            raise ValueError(
                f"{error.what}; expected questions as plain text, one a line, on standard input "
                f"(--gin.predict.questions={STANDARD_INPUT} < {questions}), or a file of one of these: {meanings()}"
            ) from error
        for cause, count in found.dropped.items():
            logger.warning("%s: left out %d: %s; no answer is written for them", questions, count, cause)
        if not found.questions:
            raise ValueError(f"{questions} holds no question")
        return Asked(found.questions, Path(questions.removeprefix(PREFIX)).name.split(".")[0])
    texts = (questions,) if isinstance(questions, str) else questions
    return Asked(list(_from_lines(enumerate(texts, 1), may_be_json=False, must_be_any=True)), None)


def _is_file(text: str) -> bool:
    """Whether a text names a file, which must be there, rather than asks a question. Many scripts write no spaces."""
    if text.startswith(PREFIX) or is_remote(text) or os.path.isfile(text):  # noqa: PTH113 - a text too long for a path is no error to it
        return True
    if not text.strip() or text.rstrip().endswith(_QUESTION_MARKS):
        return False
    one_word = len(text.split()) == 1
    if (
        text.lower().endswith(_SUFFIXES)
        or text.startswith(("/", "./", "../", "~/"))
        or (one_word and (text.isascii() or "/" in text or os.sep in text))
    ):
        raise FileNotFoundError(
            f"no file of questions at {text}; to ask this as a question end it with a question mark, "
            f"{STANDARD_INPUT} reads standard input"
        )
    return False


def _standard_input() -> Iterator[tuple[int, str | None]]:
    """Its lines as they come, numbered; None for one that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield number, line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8")
        except UnicodeDecodeError:
            yield number, None


def _from_lines(
    lines: Iterable[tuple[int, str | None]], may_be_json: bool = True, must_be_any: bool = False
) -> Iterator[Question]:
    """One question a numbered line: plain text, or an object as in files of JSON lines. What is none is counted."""
    dropped: Counter[str] = Counter()
    first_without = 0  # the first line that begins an object and is none with a question

    def on_drop(cause: str) -> None:
        dropped[cause] += 1

    keep = QuestionFilter(on_drop, lambda cause: None)
    kept = 0
    for number, line in lines:
        if line is None:
            on_drop(NOT_UTF8)
            continue
        if may_be_json and not line.strip():
            continue
        raw = Question(line.strip(), id=str(number))
        if may_be_json and line.lstrip().startswith("{"):
            try:
                raw = question_of(json.loads(line), "", number)
            except (ValueError, RecursionError):
                first_without = first_without or number
                on_drop(NO_RECORD)
                continue
        question = keep.question(raw)
        if question is not None:
            kept += 1
            yield question
    for cause, count in dropped.items():
        which = f" (the first is line {first_without})" if cause == NO_RECORD else ""
        logger.warning("left out %d: %s%s; no answer is written for them", count, cause, which)
    if must_be_any and not kept:
        raise ValueError(f"predict.questions holds no question ({', '.join(dropped) or 'it is empty'})")
