"""Files of questions, which may be compressed: as lines, or as one JSON document. A damaged file is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realm_jax.corpus.sources.article import DAMAGED_FILE
from realm_jax.corpus.sources.files import read_chunks, read_lines
from realm_jax.data.question_formats.question import OnCause

_MAX_LINE_BYTES = 1 << 30


def question_lines(path: Path, on_drop: OnCause) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) that are not blank; those that are not UTF-8 are counted and left out.

    Raises:
      ValueError: when the file is cut short or damaged: figures on a part of it would be compared with the whole.
    """

    def on_cause(cause: str) -> None:
        _refuse_damage(path, cause)
        on_drop(cause)

    for number, line in read_lines(path, on_cause, _MAX_LINE_BYTES):
        if line.strip():
            yield number, line


def json_document(path: Path) -> Any:
    """A file that is one JSON document, whole.

    Raises:
      ValueError: when it is not, naming file and line, or is cut short or damaged.
    """
    content = b"".join(read_chunks(path, lambda cause: _refuse_damage(path, cause)))
    try:
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno} is not JSON: {error.msg} (column {error.colno})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _refuse_damage(path: Path, cause: str) -> None:
    if cause == DAMAGED_FILE:
        raise ValueError(f"{path} is a {DAMAGED_FILE}; get it again")
