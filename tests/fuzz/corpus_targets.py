"""The sources of a corpus, whole and compressed, and what an article passes on its way into blocks."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

from realm_jax.corpus.blocks import TaggedArticle, cut_articles
from realm_jax.corpus.salient_spans import RuleTagger
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources import read_articles
from realm_jax.corpus.sources.article import clean_text
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from tests.fuzz.target import Target

_MARKDOWN = b"""---
layout: post
title: 'A title'
---
# Heading #

A *b* __c__ [link](http://x) ![image](y.png) `code` <b>tag</b> <!-- note -->
> quoted

Under
=====
- item
1. item
```python
dropped()
```
| a | b |
|---|---|
[x]: http://y
"""
_PLAIN = b"The Heading\n\nThe quick brown fox jumps over\nthe lazy dog, and it goes on to\nrun. It stops.\n\nMore.\n"
_RECORDS = b"".join(
    json.dumps({"id": i, "title": f"T{i}", "text": f"Text {i}.\nMore."}).encode() + b"\n" for i in range(4)
)
_WIKI_JSON = b"".join(
    json.dumps({"id": str(i), "url": "u", "title": f"T&amp;{i}", "text": f"T{i}\n\nText."}).encode() + b"\n"
    for i in range(3)
)
_WIKI_DOC = b'<doc id="12" url="u" title="A &quot;b&quot;">\nA\n\nText &lt;here&gt;.\n</doc>\n' * 3
_DUMP = (
    b'<mediawiki xml:lang="en">\n<siteinfo><namespaces><namespace key="0" /></namespaces></siteinfo>\n'
    + b"".join(
        b"<page><title>Ada</title><ns>0</ns><id>%d</id><revision><id>7</id><timestamp>2020-01-01T00:00:00Z</timestamp>"
        b"<contributor><username>u</username><id>1</id></contributor><model>wikitext</model><format>text/x-wiki</format>"
        b"<text xml:space=\"preserve\">'''Ada''' wrote [[Note G|notes]] {{lang|fr|oui}}&lt;ref name=\"a\"&gt;x&lt;/ref&gt;.\n"
        b"== Life ==\n* Born {{convert|3|km}}\n{| class=a\n| b\n|}\n[http://x y] &amp;nbsp; &lt;!-- c --&gt;</text></revision></page>\n"
        % number
        for number in (12, 13)
    )
    + b"</mediawiki>\n"
)
_TSV = b'id\ttext\ttitle\n1\t"He said ""no""."\tA\n2\tplain text\tB\n3\tmore\tC\n'
_SQUAD = json.dumps(
    {
        "version": "1.1",
        "data": [
            {
                "title": "New_York",
                "paragraphs": [
                    {"context": "It is large.", "qas": [{"id": "a", "question": "Is it?", "answers": [{"text": "large", "answer_start": 6}]}]}
                ],
            }
        ],
    }
).encode()  # fmt: skip
_XML_WORDS = (
    b"<page>", b"</page>", b"<!DOCTYPE a [<!ENTITY b 'ccccccccc'><!ENTITY d '&b;&b;&b;&b;&b;&b;&b;'>]>", b"&d;", b"<![CDATA[",
    b"&#0;", b"&#55296;", b"{{", b"}}", b"[[", b"]]", b"{|", b"|}", b"&lt;ref&gt;", b"&lt;nowiki&gt;", b"'''", b"<text>", b"<revision>",
    b"#REDIRECT [[x]]", b"<ns>1</ns>", b"<id>", b"<id>9999999999999999999999</id>", b"<title/>", b"<x>" * 300,
)  # fmt: skip
_MARKDOWN_WORDS = (b"<!--", b"-->", b"```", b"~~~", b" *a", b"[", b"](", b"![", b"# " + b" " * 300, b"---\n", b"title: a", b"> ", b"|", b"- - -",
                   b"\n===\n", b"`", b"&amp;#", b"<a ")  # fmt: skip


def _packed(*texts: bytes) -> tuple[bytes, ...]:
    return (*texts, *(pack(texts[0]) for pack in (gzip.compress, bz2.compress, lzma.compress)))


def _reader(name: str, source_format: str, tell: bool = True):
    """Reads the input as a file in a folder; the format is told by the content too, if it can be."""

    def run(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        dropped: list[str] = []
        for article in read_articles(path, source_format, dropped.append):
            assert article.text and "\x00" not in article.text and isinstance(article.id, str)
            article.title.encode()
            article.text.encode()
        if tell:
            for _ in read_articles(path, "auto", dropped.append):
                pass

    return run


def _read_beir(data: bytes, folder: Path) -> None:
    (folder / "queries.jsonl").write_bytes(b"")
    (folder / "corpus.jsonl").write_bytes(data)
    for article in read_articles(folder, "beir", lambda cause: None):
        article.text.encode()


_TOKENIZER = WordPieceTokenizer(
    [*SPECIAL_PIECES, *"abcdefghijklmnopqrstuvwxyz.", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
)
_TAGGER = RuleTagger({})


def _cut(data: bytes, folder: Path) -> None:
    """What the corpus job and the page do with a text after it was read."""
    text = clean_text(data.decode("utf-8", "replace")).strip()
    sentences = sentence_spans(text)
    assert all(0 <= a < b <= len(text) for a, b in sentences)
    spans = _TAGGER.spans(text, sentences)
    assert all(0 <= a < b <= len(text) for a, b in spans)
    cut_articles([TaggedArticle("", "t", text, sentences, tuple(spans))], _TOKENIZER, 32, 8)


_PROSE = (
    "Dr. Ho paid $3.50 on 28 September 1990. (He smiled.) “Why?” J. Smith of St. Louis, O'Neill & Co. — 1990–95, 3,000 km/h. 65th "
    "Air Division。日本語です。次。 U.S. e.g. this… No. 5!"
).encode()
_PROSE_WORDS = (
    b"...",
    b".)",
    b"A.",
    b"A.B.",
    b"1,000",
    b" of the ",
    b"O'",
    b"&A",
    b"''",
    "。".encode(),
    "…".encode(),
    b"$1",
    b"12 May ",
    b"-",
)

TARGETS = [
    Target("text_folder", _packed(_PLAIN), _reader("a.txt", "text_folder")),
    Target("markdown", _packed(_MARKDOWN), _reader("a.md", "text_folder"), words=_MARKDOWN_WORDS),
    Target("json_lines", _packed(_RECORDS), _reader("a.jsonl", "jsonl")),
    Target("wikiextractor_json", _packed(_WIKI_JSON), _reader("wiki_00", "wikiextractor_json")),
    Target("wikiextractor_doc", _packed(_WIKI_DOC), _reader("wiki_00", "wikiextractor_doc"), words=(b'<doc id="', b' title="', b"</doc>\n", b'">')),
    Target("mediawiki", _packed(_DUMP), _reader("dump.xml", "mediawiki", tell=False), words=_XML_WORDS),
    Target("dpr_tsv", _packed(_TSV), _reader("psgs.tsv", "dpr_tsv"), words=(b'""', b"\t\t", b"id\ttext\ttitle\n")),
    Target("squad_corpus", _packed(_SQUAD), _reader("train.json", "squad")),
    Target("beir_corpus", _packed(_RECORDS.replace(b'"id"', b'"_id"')), _read_beir),
    Target("cutting", (_PROSE, _PLAIN, _MARKDOWN), _cut, refuses=(), words=_PROSE_WORDS),
]  # fmt: skip
