"""JSON lines: one object a line, `{"id"?, "title"?, "text"}`; also what WikiExtractor writes with --json."""

import html
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from realm_jax.corpus.sources.article import MALFORMED, PAGE_WITHOUT_TEXT, Article, ArticleFilter, OnDrop
from realm_jax.corpus.sources.files import read_lines

_ID_KEYS = ("id", "_id", "docid")
_TEXT_KEYS = ("text", "contents")


def read_json_lines(
    files: Sequence[Path], on_drop: OnDrop, max_text_chars: int, folder: Path | None = None
) -> Iterator[Article]:
    """Articles of JSON lines; a record without an id is named by its line and its file: by its path below `folder`."""
    keep = ArticleFilter(on_drop, max_text_chars)
    for path, number, record in json_objects(files, on_drop, max_text_chars):
        article_id, title, text = _first(record, _ID_KEYS), record.get("title"), _first(record, _TEXT_KEYS)
        if not isinstance(text, str) or not isinstance(title, str | None) or isinstance(article_id, dict | list | bool):
            on_drop(MALFORMED)
            continue
        file_name = path.name if folder is None else path.relative_to(folder).as_posix()
        name = f"{file_name}:{number}" if article_id in (None, "") else str(article_id)
        if article := keep.article(name, title or "", text):
            yield article


def read_wikiextractor_json(files: Sequence[Path], on_drop: OnDrop, max_text_chars: int) -> Iterator[Article]:
    """Articles of WikiExtractor --json; older versions repeat the title as the first line of the text."""
    keep = ArticleFilter(on_drop, max_text_chars, PAGE_WITHOUT_TEXT)
    for _, _, record in json_objects(files, on_drop, max_text_chars):
        article_id, title, text = record.get("id"), record.get("title"), record.get("text")
        if not isinstance(text, str) or not isinstance(title, str) or not isinstance(article_id, str | int):
            on_drop(MALFORMED)
        elif article := keep.article(str(article_id), html.unescape(title), without_title_line(title, text)):
            yield article


def without_title_line(title: str, text: str) -> str:
    """A WikiExtractor text without its first line where that repeats the title, and with HTML entities decoded."""
    first, _, rest = text.lstrip().partition("\n")
    return html.unescape(rest if first.strip() == title.strip() else text)


def naming_folder(files: Sequence[Path]) -> Path | None:
    """The common folder of files of which two have the same name, so that it does not tell them apart; else None."""
    if len({path.name for path in files}) == len(files):
        return None
    return Path(os.path.commonpath([path.parent for path in files]))


def json_objects(
    files: Sequence[Path], on_drop: OnDrop, max_text_chars: int
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """The objects of JSON lines with file and line; lines that hold none are counted."""
    for path in files:
        for number, line in read_lines(path, on_drop, 4 * max_text_chars):
            if not line.strip():
                continue
            try:
                record = json.loads(line, strict=False)
            except (ValueError, RecursionError):  # RecursionError: a line of ten thousand brackets
                record = None
            if isinstance(record, dict):
                yield path, number, record
            else:
                on_drop(MALFORMED)


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((record[key] for key in keys if key in record), None)
