"""DPR's passages (psgs_w100.tsv): a header, then id, text and title between tabs, quoted as in csv files."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from realm_jax.corpus.sources.article import MALFORMED, Article, ArticleFilter, OnDrop
from realm_jax.corpus.sources.files import read_lines

COLUMNS = ("id", "text", "title")


def header_of(line: str) -> tuple[str, ...] | None:
    """The columns that a line names if it is the header of such a file, in any order and with further ones."""
    columns = tuple(name.strip().strip('"').lower() for name in line.rstrip("\r\n").split("\t"))
    return columns if set(COLUMNS) <= set(columns) else None


def read_dpr_tsv(files: Sequence[Path], on_drop: OnDrop, max_text_chars: int) -> Iterator[Article]:
    """One article a line.  DPR breaks no line inside quotes: a stray quotation mark spoils one record only."""
    keep = ArticleFilter(on_drop, max_text_chars)
    previous_limit = csv.field_size_limit(max(4 * max_text_chars, csv.field_size_limit()))
    try:
        for path in files:
            columns: tuple[str, ...] | None = None
            for number, line in read_lines(path, on_drop, 4 * max_text_chars):
                if columns is None:
                    columns = header_of(line)
                    if columns is None:
                        raise ValueError(
                            f"{path}, line {number}: expected a header that names the columns id, text and title "
                            f"between tabs, got {line[:80]!r}; write the header, or choose another format"
                        )
                    place = tuple(columns.index(name) for name in COLUMNS)
                elif line.strip():
                    fields = _fields(line)
                    if len(fields) != len(columns) or not fields[place[0]]:
                        on_drop(MALFORMED)
                    elif article := keep.article(fields[place[0]], fields[place[2]], fields[place[1]]):
                        yield article
    finally:
        csv.field_size_limit(previous_limit)


def _fields(line: str) -> list[str]:
    """The fields of one line; none when its quoting is broken."""
    if '"' not in line:
        return line.split("\t")
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except (csv.Error, StopIteration):
        return []
