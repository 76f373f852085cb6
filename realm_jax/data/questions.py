"""Questions with their answers, from every format in which the field publishes them: the one reader of the project."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from realm_jax.data.question_formats.json_records import read_json_lines
from realm_jax.data.question_formats.question import OnCause, Passage, Question, QuestionFilter
from realm_jax.evaluation.answer_patterns import compiled

__all__ = ["FORMATS", "Passage", "Question", "QuestionSet", "read_questions"]

BROKEN_PATTERN = "answer pattern that does not compile, matches nothing"

FORMATS = {
    "jsonl": 'JSON lines, one {"question", "answer" or "answers"} a line (NQ-open, EfficientQA, DPR)',
}
_READERS: dict[str, Callable[[Path, OnCause], Iterator[Question]]] = {"jsonl": read_json_lines}


class QuestionSet(NamedTuple):
    """Questions, where they come from, and what was left out or is odd, by cause."""

    questions: tuple[Question, ...]
    source: str
    dropped: dict[str, int]  # records that are no questions
    noted: dict[str, int]  # what is odd about records that are kept


def read_questions(
    source: str | Path, source_format: str = "auto", answers_are_regex: bool | None = None
) -> QuestionSet:
    """Reads all questions of a source.

    Args:
      source: a file, which may be compressed with gzip, bzip2 or xz.
      source_format: one of `FORMATS`, or "auto" to tell by the content.
      answers_are_regex: whether the answers are regular expressions, for files that do not say so themselves; None
        believes the file.

    Returns:
      The questions in the order of the file. Records that are no questions are counted by cause in `dropped`; patterns
      that do not compile are counted in `noted` and kept (they match nothing, as in the official scorer).

    Raises:
      FileNotFoundError: nothing lies at the path.
      ValueError: the format is unknown or cannot be told, or a record is not what the format says; names file and line.
    """
    if source_format != "auto" and source_format not in FORMATS:
        raise ValueError(f"expected a format of questions among {['auto', *FORMATS]}, got {source_format!r}")
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    keep = QuestionFilter(lambda cause: dropped.update([cause]), lambda cause: noted.update([cause]))
    questions = []
    for raw in _READERS["jsonl"](Path(source), lambda cause: dropped.update([cause])):
        question = keep.question(raw if answers_are_regex is None else raw._replace(is_regex=answers_are_regex))
        if question is not None:
            questions.append(question)
            if question.is_regex:
                broken = sum(compiled(answer) is None for answer in question.answers)
                noted.update({BROKEN_PATTERN: broken} if broken else {})
    return QuestionSet(tuple(questions), str(source), dict(dropped), dict(noted))
