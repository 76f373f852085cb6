"""Questions with their answers, from every format in which the field publishes them: the one reader of the project."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from realm_jax.corpus.sources import tfds
from realm_jax.corpus.sources.json_document import json_document
from realm_jax.data.answer_patterns import compiled
from realm_jax.data.question_formats import recognise
from realm_jax.data.question_formats.json_lines import read_json_lines, read_json_list
from realm_jax.data.question_formats.question import OnCause, Passage, Question, QuestionFilter
from realm_jax.data.question_formats.recognise import FORMATS, TFDS
from realm_jax.data.question_formats.squad import read_squad
from realm_jax.data.question_formats.tfds import read_tfds_questions
from realm_jax.data.question_formats.trivia_qa import read_trivia_qa
from realm_jax.data.question_formats.tsv import read_curated_trec, read_dpr_tsv
from realm_jax.data.question_formats.web_questions import read_web_questions
from realm_jax.storage import fetch

__all__ = ["FORMATS", "Passage", "Question", "QuestionSet", "read_questions"]

BROKEN_PATTERN = "answer pattern that does not compile, matches nothing"

_LINE_READERS: dict[str, Callable[[Path, OnCause], Iterator[Question]]] = {
    recognise.JSON_LINES: read_json_lines,
    recognise.DPR_TSV: read_dpr_tsv,
    recognise.CURATED_TREC: read_curated_trec,
}
_DOCUMENT_READERS: dict[str, Callable[[Any, str], Iterator[Question]]] = {
    recognise.JSON_LIST: read_json_list,
    recognise.WEB_QUESTIONS: read_web_questions,
    recognise.TRIVIA_QA: read_trivia_qa,
}


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
      source: a file, which may be compressed with gzip, bzip2 or xz, or `tfds:NAME?split=…`.
      source_format: one of `FORMATS`, or "auto" to tell by the content.
      answers_are_regex: whether the answers are regular expressions, for files that do not say so themselves; None
        believes the file.

    Returns:
      The questions in the order of the source. Records that are no questions are counted by cause in `dropped`; patterns
      that do not compile are counted in `noted` and kept (they match nothing, as in the official scorer).

    Raises:
      FileNotFoundError: no file lies at the path.
      ValueError: the format is unknown or cannot be told, or a record is not what the format says; names file and line.
    """
    if source_format != "auto" and source_format not in FORMATS:
        raise ValueError(f"expected a format of questions among {['auto', *FORMATS]}, got {source_format!r}")
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()

    def on_drop(cause: str) -> None:
        dropped[cause] += 1

    def on_note(cause: str) -> None:
        noted[cause] += 1

    keep = QuestionFilter(on_drop, on_note)
    questions = []
    for raw in _raw_questions(str(source), source_format, on_drop, on_note):
        question = keep.question(raw if answers_are_regex is None else raw._replace(is_regex=answers_are_regex))
        if question is not None:
            questions.append(question)
            if question.is_regex:
                for _ in filter(lambda pattern: compiled(pattern) is None, question.answers):
                    on_note(BROKEN_PATTERN)
    return QuestionSet(tuple(questions), str(source), dict(dropped), dict(noted))


def _raw_questions(source: str, source_format: str, on_drop: OnCause, on_note: OnCause) -> Iterator[Question]:
    if source_format == TFDS or source.startswith(tfds.PREFIX):
        if source_format not in ("auto", TFDS):
            raise ValueError(
                f"a source that begins with {tfds.PREFIX!r} has the format {TFDS!r}, got {source_format!r}; use 'auto'"
            )
        return read_tfds_questions(source, on_drop)
    path = fetch(source)
    if not path.exists() or path.is_dir():  # a pipe is neither
        raise FileNotFoundError(
            f"expected a file of questions at {source}, which is {'a folder' if path.is_dir() else 'not there'}; name a "
            f"file, or a TFDS data set as {tfds.PREFIX}NAME?split=SPLIT"
        )
    found = recognise.format_of_lines(path) if source_format == "auto" else source_format
    if found in _LINE_READERS:
        return _LINE_READERS[found](path, on_drop)
    document = json_document(path)
    found = found or recognise.format_of_document(document)
    if found is None:
        raise recognise.UnknownFormatError(f"cannot tell the format of {source}")
    if found == recognise.SQUAD:
        return read_squad(document, source, on_drop, on_note)
    return _DOCUMENT_READERS[found](document, source)
