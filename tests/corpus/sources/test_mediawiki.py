"""MediaWiki dumps, whole and damaged, and what is left of their wikitext."""

import bz2

import pytest

from realm_jax.corpus.sources import Article
from tests.corpus.sources.reading import read

DUMP_HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n<siteinfo/>\n'


def page(page_id, title, wikitext, namespace=0, extra=""):
    text = wikitext.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page>\n<title>{title}</title>\n<ns>{namespace}</ns>\n<id>{page_id}</id>\n{extra}<revision><id>1{page_id}</id>"
        "<timestamp>2020-01-01T00:00:00Z</timestamp><model>wikitext</model><format>text/x-wiki</format>"
        f'<text xml:space="preserve">{text}</text>'
        "<sha1>x</sha1></revision>\n</page>\n"
    )


WIKITEXT = """{{Short description|x}}{{Infobox|name=A|born={{date|1}}}}
[[File:x.jpg|thumb|A ''caption'' with a [[link]]]]
'''Ada''' (''née'' {{lang|fr|Béa}}; {{IPA|x}})
ran {{convert|5|km|mi}} to [[London|the city]]<ref>Cite</ref>.<!-- no --> She&nbsp;won.
== Life ==
* First [[item]]
# ''Second'' [http://x.y named link] http://bare.url
{| class="wikitable"
! A !! B
|-
| 1 || 2
|}
=== Empty ===
== References ==
<references/>
{{reflist}}
[[Category:People]] [[de:Ada]]
"""


def test_mediawiki_dump(tmp_path):
    dump = DUMP_HEAD + page(1, "Ada", WIKITEXT) + page(2, "Talk:Ada", "Hello.", namespace=1)
    dump += page(3, "Moved", "#REDIRECT [[Ada]]", extra='<redirect title="Ada" />\n') + page(
        4, "Old move", "#redirect [[Ada]]"
    )
    dump += page(8, "No title", "x").replace("<title>No title</title>", "") + page(9, "No id", "x").replace(
        "<id>9</id>", ""
    )
    dump += page(5, "Table only", "{|\n|x\n|}") + page(6, "Broken", "x").replace("<ns>", "<n>")
    dump += page(7, "Last &amp; good", "Some text.") + "</mediawiki>\n"
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(dump.encode()))
    articles, dropped = read(tmp_path)
    assert articles == [
        Article(
            "1",
            "Ada",
            "Ada (née Béa)\nran 5 km to the city. She won.\nLife\nFirst item\nSecond named link",
        ),
        Article("7", "Last & good", "Some text."),
    ]
    assert dropped == {
        "page outside the article namespace": 1,
        "redirect": 2,
        "page without text (a redirect, or only lists and tables)": 1,
        "malformed record": 3,
    }


def test_mediawiki_dump_on_one_line_cut_short(tmp_path):
    dump = (DUMP_HEAD + "".join(page(i, f"P{i}", f"Text {i}.") for i in range(50))).replace("\n", "")
    (tmp_path / "dump.xml").write_bytes(dump.encode()[:-100])
    articles, dropped = read(tmp_path / "dump.xml")
    assert [article.text for article in articles] == [f"Text {i}." for i in range(49)]
    assert dropped == {"malformed record": 1}


def test_mediawiki_pages_that_are_too_long_or_not_utf8(tmp_path):
    dump = DUMP_HEAD + page(1, "Long", "word " * 2_000_000) + page(2, "Latin", "caf%") + page(3, "Good", "Text.")
    (tmp_path / "dump.xml").write_bytes(dump.encode().replace(b"caf%", b"caf\xe9"))
    articles, dropped = read(tmp_path / "dump.xml", max_text_chars=10_000)
    assert articles == [Article("3", "Good", "Text.")]
    assert dropped == {"over-long record": 1, "not UTF-8": 1}


@pytest.mark.parametrize("marks", ["[[a|", "{{a|{{b", "<b a=", "<ref>", "<b>", "\n{|\n|", "[http://a "])
def test_mediawiki_pages_of_marks_without_an_end(tmp_path, marks):
    """The parser looks for the end of each through the whole page: of such pages it took hours."""
    dump = DUMP_HEAD + page(1, "Marks", marks * 50_000) + page(2, "Good", "Text <br>" * 900) + "</mediawiki>\n"
    (tmp_path / "dump.xml").write_text(dump)
    articles, dropped = read(tmp_path / "dump.xml")
    assert [article.id for article in articles] == ["2"] and dropped == {"malformed record": 1}


@pytest.mark.needs_data
def test_real_mediawiki_dump(shared_data):
    articles, dropped = read(shared_data / "mediawiki_dump" / "enwiki-table-markup.xml.bz2")
    assert (len(articles), dropped) == (5, {})
    for article in articles:
        assert len(article.text) > 100
        for mark in ("{{", "}}", "[[", "]]", "{|", "|}", "<ref", "'''"):
            assert mark not in article.text, article.title
