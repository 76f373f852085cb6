"""Tells the format of a file of questions by its content."""

import json
from pathlib import Path
from typing import Any

from realm_jax.data.question_formats.lines import question_lines
from realm_jax.data.question_formats.question import shortened

JSON_LINES, JSON_LIST, DPR_TSV, CURATED_TREC = "jsonl", "json_list", "dpr_tsv", "curated_trec"
WEB_QUESTIONS, TRIVIA_QA, SQUAD, TFDS = "web_questions", "trivia_qa", "squad", "tfds"

FORMATS = {
    JSON_LINES: 'JSON lines, one {"question", "answer" or "answers"} a line (NQ-open, EfficientQA), or FEVER\'s {"claim", "label"}, or KILT\'s {"input", "output"}',
    JSON_LIST: 'a JSON list of {"question", "answers"} (DPR\'s training files)',
    DPR_TSV: "a question, a tab, a list of answers ['…', '…'] (DPR's qas/*.csv)",
    CURATED_TREC: "id, kind, question and regular expression between tabs (CuratedTREC)",
    WEB_QUESTIONS: 'a JSON list of {"utterance", "targetValue"} or {"qText", "answers"} (WebQuestions)',
    TRIVIA_QA: 'JSON {"Data": [{"Question", "Answer"}]} (TriviaQA)',
    SQUAD: 'JSON {"data": [{"title", "paragraphs"}]} (SQuAD)',
    TFDS: "a TFDS data set, as in tfds:natural_questions_open?split=validation",
}
LINE_FORMATS = (JSON_LINES, DPR_TSV, CURATED_TREC)


class UnknownFormatError(ValueError):
    """A file of questions in none of the formats."""

    def __init__(self, what: str):
        super().__init__(f"{what}; expected one of these: {meanings()}")
        self.what = what


def format_of_lines(path: Path) -> str | None:
    """The format of a file of lines by its first line that is not blank; None when the file seems one JSON document.

    Raises:
      UnknownFormatError: when it is neither.
      ValueError: when there is no line.
    """
    _, line = next(question_lines(path, lambda cause: None), (0, ""))
    if not line:
        raise ValueError(
            f"expected questions in {path}, but the file {'holds no line of text' if path.stat().st_size else 'is empty'}"
        )
    if line.lstrip().startswith("["):
        return None
    if line.lstrip().startswith("{"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # an object over several lines
            return None
        return None if "question" not in record and format_of_document(record) else JSON_LINES
    columns = line.split("\t")
    if len(columns) == 2 and columns[1].lstrip(' "').startswith("["):
        return DPR_TSV
    if len(columns) >= 4:
        return CURATED_TREC
    raise UnknownFormatError(f"cannot tell the format of {path}, which begins with {shortened(line, 80)}")


def format_of_document(document: Any) -> str | None:
    """The format of a JSON document by its keys, of a list by those of its first element; None if it has none of them."""
    if isinstance(document, dict):
        return next((name for key, name in (("data", SQUAD), ("Data", TRIVIA_QA)) if key in document), None)
    if isinstance(document, list) and document and isinstance(document[0], dict):
        if {"utterance", "targetValue"} <= set(document[0]) or {"qText", "answers"} <= set(document[0]):
            return WEB_QUESTIONS
        return JSON_LIST if "question" in document[0] else None
    return None


def meanings() -> str:
    """The formats, in words."""
    return "; ".join(FORMATS.values())
