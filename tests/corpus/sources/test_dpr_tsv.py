"""DPR's tsv, whole and damaged."""

import gzip

import pytest

from realm_jax.corpus.sources import Article
from tests.corpus.sources.reading import read


def test_dpr_tsv(tmp_path):
    file = tmp_path / "psgs.tsv.gz"
    file.write_bytes(
        gzip.compress(
            b'id\ttext\ttitle\n1\t"Aaron Aaron ( or ; ""Ahar"") is, \'so\'."\tAaron\r\n'
            b'2\tPlain text\t"""Hello"" song"\n'
            b'3\t"not closed\tTitle\n4\ttoo few\n\n5\t\tEmpty\n6\tNo title\t\n'
        )
    )
    articles, dropped = read(file)
    assert articles == [
        Article("1", "Aaron", "Aaron Aaron ( or ; \"Ahar\") is, 'so'."),
        Article("2", '"Hello" song', "Plain text"),
        Article("6", "", "No title"),
    ]
    assert dropped == {"malformed record": 2, "empty text": 1}


def test_dpr_tsv_needs_its_header(tmp_path):
    (tmp_path / "a.tsv").write_text("1\ttext\ttitle\n")
    with pytest.raises(
        ValueError, match=r"a\.tsv, line 1: expected a header that names the columns id, text and title.*got '1"
    ):
        read(tmp_path / "a.tsv", "dpr_tsv")
