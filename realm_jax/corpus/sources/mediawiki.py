"""A MediaWiki pages-articles dump, streamed: mwxml reads the pages, mwparserfromhell their wikitext."""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError

from realm_jax.corpus.sources.article import (
    MALFORMED,
    NOT_UTF8,
    OTHER_NAMESPACE,
    OVER_LONG,
    PAGE_WITHOUT_TEXT,
    REDIRECT,
    Article,
    ArticleFilter,
    OnDrop,
)
from realm_jax.corpus.sources.files import read_chunks
from realm_jax.corpus.sources.wikitext import is_unbalanced, wikitext_to_text

_REDIRECT_LINE = re.compile(r"\s*#\s*redirect\b", re.IGNORECASE)
_OPEN, _CLOSE = b"<page>", b"</page>"


def read_mediawiki(files: Sequence[Path], on_drop: OnDrop, max_text_chars: int) -> Iterator[Article]:
    """The articles (namespace 0) of a dump, newest revision, as text; redirects and other namespaces are counted."""
    try:
        import mwxml
        from mwxml.errors import MalformedXML
    except ImportError as error:
        raise ValueError(
            "reading a MediaWiki dump needs mwxml and mwparserfromhell: pip install 'realm_jax[mediawiki]'"
        ) from error
    logging.getLogger("mwxml").setLevel(logging.ERROR)  # it warns about each element that it does not know
    keep = ArticleFilter(on_drop, max_text_chars, PAGE_WITHOUT_TEXT)
    for path in files:
        for page_xml in _page_elements(path, on_drop, 4 * max_text_chars):
            try:
                page = next(iter(mwxml.Dump.from_page_xml(page_xml)))
                if page.redirect is not None:
                    on_drop(REDIRECT)
                    continue
                if page.namespace not in (0, None):
                    on_drop(OTHER_NAMESPACE)
                    continue
                wikitext = None
                for revision in page:  # the last is the newest
                    wikitext = revision.text or ""
            except (ParseError, MalformedXML, ValueError, TypeError, AttributeError, KeyError, StopIteration):
                # mwxml meets a page without a title, say, with whatever error its absence leads to
                on_drop(MALFORMED)
                continue
            if wikitext is None or page.id is None or page.title is None or is_unbalanced(wikitext):
                on_drop(MALFORMED)
            elif _REDIRECT_LINE.match(wikitext):
                on_drop(REDIRECT)
            elif article := keep.article(str(page.id), page.title, wikitext_to_text(wikitext)):
                yield article


def _page_elements(path: Path, on_drop: OnDrop, max_page_bytes: int) -> Iterator[str]:
    """The `<page>` elements one by one, so that a malformed page costs that page, and memory holds one page.

    Inside wikitext `<` is escaped, so neither tag can occur within a page.
    """
    buffer = b""
    skipping = False
    for chunk in read_chunks(path, on_drop):
        buffer += chunk
        while True:
            if skipping:
                end = buffer.find(_CLOSE)
                if end < 0:
                    buffer = buffer[-len(_CLOSE) :]
                    break
                buffer, skipping = buffer[end + len(_CLOSE) :], False
            start = buffer.find(_OPEN)
            if start < 0:
                buffer = buffer[-len(_OPEN) :]
                break
            end = buffer.find(_CLOSE, start)
            if end < 0:
                buffer = buffer[start:]
                if len(buffer) > max_page_bytes:
                    on_drop(OVER_LONG)
                    skipping = True
                    continue
                break
            page, buffer = buffer[start : end + len(_CLOSE)], buffer[end + len(_CLOSE) :]
            try:
                yield page.decode("utf-8")
            except UnicodeDecodeError:
                on_drop(NOT_UTF8)
    if buffer.startswith(_OPEN) and not skipping:
        on_drop(MALFORMED)
