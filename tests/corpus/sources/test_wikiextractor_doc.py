"""WikiExtractor's <doc> files, whole and damaged."""

import bz2

from realm_jax.corpus.sources import Article
from tests.corpus.sources.reading import read

WIKI_DOC = """<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="A "quoted" title &amp; more">
A "quoted" title & more

It began in 1990 &lt;ca.&gt;.

Early life.
He lived.
</doc>
"""


def test_wikiextractor_doc_folders(tmp_path):
    for folder in ("AA", "AB"):
        (tmp_path / folder).mkdir()
    (tmp_path / "AA" / "wiki_00").write_text(WIKI_DOC)
    (tmp_path / "AA" / "wiki_01.bz2").write_bytes(bz2.compress(WIKI_DOC.replace('id="12"', 'id="13"').encode()))
    (tmp_path / "AB" / "wiki_00").write_bytes(WIKI_DOC.replace('id="12"', 'id="14"').replace("\n", "\r\n").encode())
    (tmp_path / "AB" / ".wiki_00.swp").write_bytes(b"\x00")
    articles, dropped = read(tmp_path)
    assert [article.id for article in articles] == ["12", "13", "14"]
    assert {article.title for article in articles} == {'A "quoted" title & more'}
    assert {article.text for article in articles} == {"It began in 1990 <ca.>.\n\nEarly life.\nHe lived."}
    assert dropped == {"hidden file": 1}


def test_bad_wikiextractor_docs(tmp_path):
    (tmp_path / "wiki_00").write_text(
        '<doc id="1" url="u" title="Redirect">\nRedirect\n\n</doc>\n'
        + "stray\nlines\n"
        + '<doc id="2" url="u" title="Not closed">\nNot closed\ntext\n'
        + '<doc id="3" no title>\ntext\n</doc>\n'
        + '<doc id="4" url="u" title="Long">\n'
        + "word " * 500
        + "\n</doc>\n"
        + '<doc id="5" revid="9" url="u" title="Good">\nGood\n\ntext\n</doc>\n'
        + '<doc id="6" url="u" title="Cut">\nCut\ntex'
    )
    articles, dropped = read(tmp_path / "wiki_00", max_text_chars=1000)
    assert articles == [Article("5", "Good", "text")]
    assert dropped == {
        "page without text (a redirect, or only lists and tables)": 1,
        "malformed record": 4,
        "over-long record": 1,
    }


def test_an_opening_tag_of_many_titles_is_read_once(tmp_path):
    """It took hours when every one was tried as the beginning of the title."""
    many = ' title="' * 100_000
    (tmp_path / "wiki_00").write_text(f'<doc id="1"{many}\nText.\n</doc>\n<doc id="2"{many}">\nText.\n</doc>\n')
    articles, dropped = read(tmp_path)
    assert [(article.id, len(article.title)) for article in articles] == [("2", len(many) - len(' title="') - 1)]
    assert dropped == {"malformed record": 1}
