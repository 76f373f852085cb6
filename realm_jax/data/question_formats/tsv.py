"""Questions between tabs: CuratedTREC as published, and the question files of DPR."""

import ast
from collections.abc import Iterator
from pathlib import Path

from realm_jax.data.question_formats.lines import question_lines
from realm_jax.data.question_formats.question import OnCause, Question, shortened


def read_curated_trec(path: Path, on_drop: OnCause) -> Iterator[Question]:
    """CuratedTREC (github.com/brmson/dataset-factoid-curated): id, kind, question, regular expression; no header.

    Raises:
      ValueError: for a line of fewer columns, naming file and line.
    """
    for number, line in question_lines(path, on_drop):
        columns = line.split("\t", 3)  # the expression may hold anything
        if len(columns) != 4 or not columns[3]:
            raise ValueError(
                f"{path}, line {number}: expected id, kind, question and regular expression between tabs, "
                f"got {shortened(line)}"
            )
        yield Question(columns[2], (columns[3],), True, None, columns[0] or str(number))


def read_dpr_tsv(path: Path, on_drop: OnCause) -> Iterator[Question]:
    """DPR's qas/*.csv: a question, a tab, and its answers as a Python list of strings; no header.

    The list is read as a literal; nothing is executed. Its CuratedTREC files hold regular expressions without saying so.

    Raises:
      ValueError: for a line of another form, naming file and line.
    """
    for number, line in question_lines(path, on_drop):
        text, _, listed = line.partition("\t")
        try:
            answers = ast.literal_eval(unquoted(listed.strip()))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: [{[]: 1}]
            answers = None
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(
                f"{path}, line {number}: expected a question, a tab and a list such as ['Oslo', 'Christiania'], "
                f"got {shortened(line)}"
            )
        yield Question(unquoted(text), tuple(dict.fromkeys(answers)), False, None, str(number))


def unquoted(field: str) -> str:
    """A field as the csv format writes it: a field with quotation marks stands in such marks, its own ones doubled."""
    if len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field
