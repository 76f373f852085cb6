"""Where text comes from: files, folders and data sets of many formats, read as one stream of articles.

What cannot be used is reported to `on_drop` by cause and skipped.  Records are streamed: memory holds one article (and
at most 24 bytes for each id, to notice duplicates), whatever the size of the source.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from realm_jax.corpus.sources import tfds
from realm_jax.corpus.sources.article import MAX_TEXT_CHARS, ORDINARY_CAUSES, OTHER_FILE, Article, OnDrop
from realm_jax.corpus.sources.beir_folder import beir_file, is_beir_folder, read_beir_corpus
from realm_jax.corpus.sources.dpr_tsv import header_of, read_dpr_tsv
from realm_jax.corpus.sources.files import first_bytes, list_files, looks_binary
from realm_jax.corpus.sources.json_lines import naming_folder, read_json_lines, read_wikiextractor_json
from realm_jax.corpus.sources.mediawiki import read_mediawiki
from realm_jax.corpus.sources.own_ids import under_own_ids
from realm_jax.corpus.sources.squad import read_squad_paragraphs
from realm_jax.corpus.sources.text_folder import is_text_name, read_text_folder
from realm_jax.corpus.sources.wikiextractor_doc import read_wikiextractor_doc

__all__ = [
    "FORMATS",
    "ORDINARY_CAUSES",
    "Article",
    "OnDrop",
    "OpenSource",
    "open_source",
    "read_articles",
    "read_sources",
]

TEXT_FOLDER, TFDS, BEIR, UNSEEN = "text_folder", "tfds", "beir", "not looked at"
_MAX_SNIFFED = 500
JSONL = "jsonl"
# What one worker reads at a time of a source that several share; a file is not divided.
PART_BYTES = 16 << 20
PART_RECORDS = 20_000
_RECORD_READERS: dict[str, Callable[[Sequence[Path], OnDrop, int], Iterator[Article]]] = {
    "wikiextractor_json": read_wikiextractor_json,
    "wikiextractor_doc": read_wikiextractor_doc,
    "mediawiki": read_mediawiki,
    "dpr_tsv": read_dpr_tsv,
    "squad": read_squad_paragraphs,
}
FORMATS = {
    "wikiextractor_json": 'WikiExtractor --json, one {"id", "url", "title", "text"} a line',
    "wikiextractor_doc": 'WikiExtractor, <doc id="…" url="…" title="…"> … </doc>',
    "mediawiki": "a MediaWiki pages-articles XML dump",
    JSONL: 'JSON lines, one {"text", "title"?, "id"?} a line',
    "dpr_tsv": "DPR's tsv with the header id, text, title",
    "squad": "the paragraphs of a file in SQuAD's JSON form",
    BEIR: "the documents of a BEIR folder (corpus.jsonl, queries.jsonl, qrels/)",
    TEXT_FOLDER: "a folder of .txt and .md files, one document each",
    TFDS: "a TFDS data set, as in tfds:wikipedia/20230601.en?split=train[:1%]&title=title&text=text",
}
_SQUAD = re.compile(r'\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*\[')
_COMPANIONS = ("readme", "license", "licence", "copying", "notice", "changelog", "sha256sums", "md5sums")


class OpenSource(NamedTuple):
    """A source whose format is known and whose files are listed, or a part of one.

    Attributes:
      path: a file, a folder, or `tfds:NAME?split=…`.
      source_format: one of `FORMATS`.
      files: to read, in order; none of a TFDS data set.
      naming_folder: of JSON lines, see `naming_folder`.
      records: of a TFDS data set, from the first up to the second; None is all.
    """

    path: str | Path
    source_format: str
    files: tuple[Path, ...] = ()
    naming_folder: Path | None = None
    records: tuple[int, int] | None = None

    def read(self, on_drop: OnDrop, max_text_chars: int = MAX_TEXT_CHARS) -> Iterator[Article]:
        """Streams the articles, no two under the same id."""
        if self.source_format == TFDS:
            return tfds.read_tfds(str(self.path), on_drop, max_text_chars, self.records)
        if self.source_format == BEIR:
            return read_beir_corpus(Path(self.path), on_drop, max_text_chars)
        if self.source_format == TEXT_FOLDER:
            return read_text_folder(self.files, Path(self.path), on_drop, max_text_chars)
        if self.source_format == JSONL:
            return read_json_lines(self.files, on_drop, max_text_chars, self.naming_folder)
        return _RECORD_READERS[self.source_format](self.files, on_drop, max_text_chars)

    def parts(self) -> "list[OpenSource]":
        """The source in parts, which give the same articles one after the other, and drop the same records.

        But for ids that are in two parts: a part knows its own.
        """
        if self.source_format == TFDS:
            stop = tfds.num_records(str(self.path))
            starts = range(0, stop, PART_RECORDS)
            return [self._replace(records=(start, min(start + PART_RECORDS, stop))) for start in starts] or [self]
        return [self._replace(files=tuple(files)) for files in _in_parts(self.files)]


def _in_parts(files: Sequence[Path]) -> Iterator[list[Path]]:
    part: list[Path] = []
    num_bytes = 0
    for file in files:
        size = file.stat().st_size
        if part and num_bytes + size > PART_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(file)
        num_bytes += size
    if part:
        yield part


def read_articles(
    path: str | Path,
    source_format: str = "auto",
    on_drop: OnDrop = lambda cause: None,
    max_text_chars: int = MAX_TEXT_CHARS,
    leave_out: Collection[Path] = (),
) -> Iterator[Article]:
    """Streams the articles of a file, of all files below a folder, or of a TFDS data set.

    Args:
      path, source_format, on_drop, leave_out: see `open_source`, which is called before an iterator is returned.
      max_text_chars: longer texts are dropped.
    """
    return open_source(path, source_format, on_drop, leave_out).read(on_drop, max_text_chars)


def open_source(
    path: str | Path,
    source_format: str = "auto",
    on_drop: OnDrop = lambda cause: None,
    leave_out: Collection[Path] = (),
) -> OpenSource:
    """Lists the files of a source and tells its format.

    Files may be compressed with gzip, bzip2 or xz, whatever their names.  They are read in sorted order.

    Args:
      path: a file, a folder, or `tfds:NAME?split=…`.
      source_format: one of `FORMATS`, or "auto" to tell by the content.
      on_drop: called with the cause of each record or file left out; those in `ORDINARY_CAUSES` are no defects.
      leave_out: folders that are not looked into where they lie below `path`.
    Raises:
      FileNotFoundError: nothing lies at the path.
      ValueError: the format is unknown, or cannot be told from the content.
    """
    if source_format != "auto" and source_format not in FORMATS:
        raise ValueError(f"expected a source format among {['auto', *FORMATS]}, got {source_format!r}")
    if source_format == TFDS or str(path).startswith(tfds.PREFIX):
        if source_format not in ("auto", TFDS):
            raise ValueError(
                f"a source that begins with {tfds.PREFIX!r} has the format {TFDS!r}, got {source_format!r}; use 'auto'"
            )
        return OpenSource(str(path), TFDS)
    path = Path(path)
    if source_format == BEIR or (source_format == "auto" and is_beir_folder(path)):
        if not is_beir_folder(path):
            raise ValueError(f"expected a BEIR folder with corpus.jsonl and queries.jsonl, got {path}")
        return OpenSource(path, BEIR, (beir_file(path, "corpus"),))
    files = list_files(path, on_drop, leave_out)
    if not files:
        raise ValueError(f"{path} holds no file (hidden ones aside); {_choose_among()}")
    sniffed = _sniff_all(files)
    if source_format == "auto":
        source_format = _decide(path, sniffed)
    if source_format == TEXT_FOLDER:
        return OpenSource(path, TEXT_FOLDER, tuple(files))
    chosen = tuple(_files_of(source_format, sniffed, on_drop))
    return OpenSource(path, source_format, chosen, naming_folder(chosen) if source_format == JSONL else None)


def read_sources(
    paths: Sequence[str | Path],
    source_format: str = "auto",
    on_drop: OnDrop = lambda cause: None,
    on_rename: Callable[[str, str], None] = lambda old, new: None,
    leave_out: Collection[Path] = (),
) -> Iterator[Article]:
    """Streams the articles of several sources, one source after the other, no two under the same id.

    An id that an earlier source has given gets the number of its own source in front ("2:readme.md"), so that two
    folders with a file of the same name, or two lists numbered from 0, lose nothing. All other ids stay as they are.

    Args:
      paths, source_format, on_drop, leave_out: see `read_articles`; "auto" tells the format of each by itself.
      on_rename: called with the old and the new id of each article that had to be renamed.
    Returns:
      An iterator; all paths are checked before it is returned: a mistake in the last should not show after hours.
    """
    streams = [read_articles(path, source_format, on_drop, leave_out=leave_out) for path in paths]
    return streams[0] if len(streams) == 1 else under_own_ids(streams, on_rename)


def _sniff_all(files: list[Path]) -> dict[Path, str | None]:
    """The format of each file; of a long list, of a sample spread over it (the others count as what is asked for)."""
    every = max(1, len(files) // _MAX_SNIFFED)
    return {file: _sniff(file) if place % every == 0 else UNSEEN for place, file in enumerate(files)}


def _decide(path: Path, sniffed: dict[Path, str | None]) -> str:
    found = {kind for kind in sniffed.values() if kind not in (None, TEXT_FOLDER, UNSEEN)}
    documents = [
        file for file, kind in sniffed.items() if kind == TEXT_FOLDER and is_text_name(file) and not _is_companion(file)
    ]
    if len(found) + bool(documents) > 1:
        kinds = sorted(filter(None, found)) + ([TEXT_FOLDER] if documents else [])
        raise ValueError(f"{path} holds files of more than one format ({', '.join(kinds)}); {_choose_among()}")
    if found:
        return str(found.pop())
    if documents or any(kind == TEXT_FOLDER and is_text_name(file) for file, kind in sniffed.items()):
        return TEXT_FOLDER
    if not any(first_bytes(file, 1) for file in sniffed):
        empty = all(file.stat().st_size == 0 for file in sniffed)
        got = (
            "nothing (0 bytes)" if empty else "a truncated or damaged file: not even its beginning can be decompressed"
        )
        raise ValueError(f"{path}: expected text, got {got}; fetch it again")
    raise ValueError(f"cannot tell the format of {path}; {_choose_among()}")


def _choose_among() -> str:
    listed = "; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items())
    return f"expected one of these, named as the source format if need be: {listed}"


def _files_of(wanted: str, sniffed: dict[Path, str | None], on_drop: OnDrop) -> list[Path]:
    """The files to read as records of a format: not the README beside them, not files plainly of another format."""
    if len(sniffed) == 1:
        return list(sniffed)
    json_formats = {"jsonl", "wikiextractor_json"}
    chosen = []
    for file, own in sniffed.items():
        other = own not in (None, TEXT_FOLDER, UNSEEN, wanted) and not {own, wanted} <= json_formats
        if other or _is_companion(file) or (own == TEXT_FOLDER and file.suffix.lower() in (".md", ".txt")):
            on_drop(OTHER_FILE)
        else:
            chosen.append(file)
    return chosen


def _is_companion(file: Path) -> bool:
    return file.name.lower().startswith(_COMPANIONS)


def _sniff(file: Path) -> str | None:
    """The format of one file by its first bytes: `text_folder` for any other text, None for what is not text."""
    head = first_bytes(file)
    if looks_binary(head):
        return None
    text = head.decode("utf-8", "replace").lstrip()
    if text.startswith("{"):
        if _SQUAD.match(text) and '"paragraphs"' in text:
            return "squad"
        return _sniff_json(text.split("\n", 1)[0])
    if text.startswith("<doc "):
        return "wikiextractor_doc"
    if text.startswith("<") and "<mediawiki" in text[:4096]:
        return "mediawiki"
    if header_of(text.split("\n", 1)[0]):
        return "dpr_tsv"
    return TEXT_FOLDER if text and text.count("\ufffd") <= len(text) // 10 else None


def _sniff_json(line: str) -> str:
    try:
        record = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        record = {}
    return "wikiextractor_json" if isinstance(record, dict) and {"url", "title", "text"} <= set(record) else "jsonl"
