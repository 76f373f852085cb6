"""A file that is one JSON document, which may be compressed."""

import json
from pathlib import Path
from typing import Any

from realm_jax.corpus.sources.article import DAMAGED_FILE, OVER_COMPRESSED
from realm_jax.corpus.sources.files import read_chunks


def json_document(path: Path) -> Any:
    """The whole document.

    Raises:
      ValueError: when it is none, naming file and line, or when the file is cut short or damaged.
    """
    content = b"".join(read_chunks(path, lambda cause: refuse_damage(path, cause)))
    try:
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno} is not JSON: {error.msg} (column {error.colno})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def refuse_damage(path: Path, cause: str) -> None:
    """For readers to whom half a file is of no use.

    Raises:
      ValueError: when the cause is damage.
    """
    if cause in (DAMAGED_FILE, OVER_COMPRESSED):
        raise ValueError(f"{path} is a {cause}; get it again")
