"""A folder of plain-text and Markdown files, one article each: the user's own documents."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from realm_jax.corpus.sources.article import (
    BINARY_FILE,
    DAMAGED_FILE,
    NOT_UTF8,
    OTHER_FILE,
    OVER_LONG,
    Article,
    ArticleFilter,
    OnDrop,
    clean_text,
)
from realm_jax.corpus.sources.files import looks_binary, read_chunks

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown", ".mkd"})
TEXT_SUFFIXES = MARKDOWN_SUFFIXES | {"", ".txt", ".text"}
_COMPRESSION_SUFFIXES = frozenset({".gz", ".bz2", ".xz"})

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:(.+)$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*)$", re.MULTILINE)
_UNDERLINED_HEADING = re.compile(r"^(?![ \t]*$)(.+)\n {0,3}(?:=+|-{2,})[ \t]*$", re.MULTILINE)
# The search for a second mark ends at a further first one, or after so many characters: else a file of marks takes hours.
_IMAGE = re.compile(r"!\[[^\[\]\n]*+\](?:\([^)\n]{0,2000}\)|\[[^\[\]\n]*+\])")
_LINK = re.compile(r"\[([^\[\]\n]++)\](?:\([^)\n]{0,2000}\)|\[[^\[\]\n]*+\])")
_LINK_DEFINITION = re.compile(r"^ {0,3}\[[^\]\n]+\]:[ \t]*\S+.*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3}|_{1,3})(?=\S)(.{1,300}?)(?<=\S)\1(?![\w*])")
_CODE = re.compile(r"(?<!`)`+([^`\n]+)`+")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]*>")
_TABLE_OR_RULE = re.compile(r"^ {0,3}(?:\|.*|[-*_=](?:[ \t]*[-*_=]){2,})[ \t]*$", re.MULTILINE)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+")
_QUOTE_MARK = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)


def is_text_name(path: Path) -> bool:
    """Whether the name of a file is that of plain text or Markdown, compressed or not."""
    return _suffix(path) in TEXT_SUFFIXES


def read_text_folder(files: Sequence[Path], root: Path, on_drop: OnDrop, max_text_chars: int) -> Iterator[Article]:
    """One article a file, named by its path below `root`; its title is its first heading, or else its file name."""
    keep = ArticleFilter(on_drop, max_text_chars)
    for path in files:
        if not is_text_name(path):
            on_drop(OTHER_FILE)
            continue
        text = _read_text(path, on_drop, max_text_chars)
        if text is None:
            continue
        name = path.relative_to(root).as_posix() if path != root else path.name
        title, text = (_from_markdown if _suffix(path) in MARKDOWN_SUFFIXES else _from_plain)(clean_text(text).strip())
        if article := keep.article(name, title or _title_of_name(path), text):
            yield article


def _suffix(path: Path) -> str:
    return (Path(path.stem) if path.suffix.lower() in _COMPRESSION_SUFFIXES else path).suffix.lower()


def _title_of_name(path: Path) -> str:
    stem = Path(path.stem).stem if path.suffix.lower() in _COMPRESSION_SUFFIXES else path.stem
    return re.sub(r"[_\-]+", " ", stem).strip()


def _read_text(path: Path, on_drop: OnDrop, max_text_chars: int) -> str | None:
    content = bytearray()
    damaged = False

    def note_damage(cause: str) -> None:
        nonlocal damaged
        damaged = True

    for chunk in read_chunks(path, note_damage):
        content += chunk
        if len(content) > 4 * max_text_chars:
            on_drop(OVER_LONG)
            return None
    if damaged or looks_binary(content):
        on_drop(DAMAGED_FILE if damaged else BINARY_FILE)
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        on_drop(NOT_UTF8)
        return None


def _from_markdown(text: str) -> tuple[str, str]:
    """Title and text of Markdown, its marks removed; code blocks and tables go, paragraphs become lines."""
    title = ""
    if front := _FRONT_MATTER.match(text + "\n"):
        if found := _FRONT_TITLE.search(front[1]):
            title = _unquoted(found[1].strip())
        text = text[front.end() :]
    text = _FENCE.sub("", text)
    last_end = text.rfind("-->") + 3  # a comment that begins behind it has no end to search for
    text = _COMMENT.sub("", text[:last_end]) + text[last_end:] if last_end > 2 else text
    text = _UNDERLINED_HEADING.sub(lambda match: f"\n# {match[1]}\n", text)
    text = _TABLE_OR_RULE.sub("", _LINK_DEFINITION.sub("", _QUOTE_MARK.sub("", text)))
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
    text = _TAG.sub("", _CODE.sub(r"\1", _EMPHASIS.sub(r"\2", text)))
    first_heading = _HEADING.search(text)
    if first_heading and not title:
        title = _heading(first_heading)
        if not text[: first_heading.start()].strip():
            text = text[first_heading.end() :]  # the document's own title stands beside the text, not in it
    text = _HEADING.sub(lambda match: f"\n{_heading(match)}\n", text)
    return title.strip(), _join_paragraphs(text)


def _heading(match: re.Match[str]) -> str:
    """Its text, without the number signs that may stand behind it too."""
    return match[1].rstrip(" \t").rstrip("#").rstrip(" \t")


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _from_plain(text: str) -> tuple[str, str]:
    """Title ("" if there is none) and text of a plain file; lines wrapped at a fixed width are joined to paragraphs."""
    first, _, rest = text.partition("\n")
    first = first.strip()
    title = ""
    if 0 < len(first) <= 100 and first[-1] not in ".!?:;," and rest.startswith("\n") and rest.strip():
        title, text = first, rest  # a first line on its own that is no sentence: the heading
    return title, _join_paragraphs(text) if _is_wrapped(text) else re.sub(r"\n\s*\n+", "\n", text)


def _is_wrapped(text: str) -> bool:
    """Whether the lines look broken at a fixed width: most that another follows are nearly as long as the longest."""
    lines = text[:100_000].split("\n")
    inner = [len(line) for line, following in itertools.pairwise(lines) if line.strip() and following.strip()]
    if len(inner) < 2:
        return False
    width = max(inner)
    return width <= 120 and sum(length >= 0.75 * width for length in inner) >= 0.6 * len(inner)


def _join_paragraphs(text: str) -> str:
    """One line a paragraph or list item; a blank line or the mark of a list item begins a new one."""
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if not line.strip():
            paragraphs.append([])
        elif item := _LIST_ITEM.match(line):
            paragraphs.append([line[item.end() :].strip()])
        else:
            paragraphs[-1].append(line.strip())
    return "\n".join(" ".join(lines) for lines in paragraphs if lines)
