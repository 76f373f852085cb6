"""WikiExtractor's own format: `<doc id="12" url="…" title="Anarchism">`, the title, the text, `</doc>`."""

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from realm_jax.corpus.sources.article import MALFORMED, OVER_LONG, PAGE_WITHOUT_TEXT, Article, ArticleFilter, OnDrop
from realm_jax.corpus.sources.files import read_lines
from realm_jax.corpus.sources.json_lines import without_title_line

# The title is greedy: some versions do not escape the quotation marks in it. Where it begins is not tried twice.
_OPENING = re.compile(r'<doc id="([^"]*)"(?>.*? title=")(.*)"[^"<>]*>\s*$')


def read_wikiextractor_doc(files: Sequence[Path], on_drop: OnDrop, max_text_chars: int) -> Iterator[Article]:
    """Articles between `<doc …>` and `</doc>`; one that is not closed, or text outside of any, is malformed."""
    keep = ArticleFilter(on_drop, max_text_chars, PAGE_WITHOUT_TEXT)
    for path in files:
        for article_id, title, text in _documents(path, on_drop, max_text_chars):
            if article := keep.article(article_id, title, without_title_line(title, text)):
                yield article


def _documents(path: Path, on_drop: OnDrop, max_text_chars: int) -> Iterator[tuple[str, str, str]]:
    opening: re.Match[str] | None = None
    lines: list[str] = []
    num_chars = 0
    inside = stray = False  # stray: in a run of lines outside of any document, counted once
    for _, line in read_lines(path, on_drop, 4 * max_text_chars):
        if line.startswith("<doc "):
            if inside:
                on_drop(MALFORMED)
            opening, lines, num_chars, inside, stray = _OPENING.match(line), [], 0, True, False
        elif line.strip() == "</doc>" and inside:
            inside = stray = False
            if opening is None:
                on_drop(MALFORMED)
            elif num_chars > max_text_chars:
                on_drop(OVER_LONG)
            else:
                yield opening[1], html.unescape(opening[2]), "\n".join(lines)
            lines = []
        elif inside:
            num_chars += len(line) + 1
            if num_chars <= max_text_chars:
                lines.append(line)
        elif line.strip() and not stray:
            stray = True
            on_drop(MALFORMED)
    if inside:
        on_drop(MALFORMED)
