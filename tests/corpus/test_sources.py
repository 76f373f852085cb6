"""Several sources at once, and telling the format of one by its content."""

import bz2
import gzip
import lzma

import pytest

from realm_jax.corpus import sources
from realm_jax.corpus.sources import FORMATS, open_source, read_articles, read_sources
from tests.corpus.sources.reading import PASSAGES, json_line, read


def test_several_sources_share_no_id(tmp_path):
    for name, ids in (("a", ["1", "2", "2:2"]), ("b", ["2", "3"]), ("c", ["2", "2:2"])):
        (tmp_path / name).write_text("".join(json_line(id=i, title=name, text=f"Of {name}.") for i in ids))
    renamed = []
    articles = read_sources([tmp_path / name for name in "abc"], on_rename=lambda *pair: renamed.append(pair))
    assert [(article.title, article.id) for article in articles] == [
        ("a", "1"),
        ("a", "2"),
        ("a", "2:2"),
        ("b", "2:2:2"),  # "2:2" was taken
        ("b", "3"),
        ("c", "3:2"),
        ("c", "3:2:2"),
    ]
    assert renamed == [("2", "2:2:2"), ("2", "3:2"), ("2:2", "3:2:2")]


def test_the_last_of_several_sources_is_looked_at_before_the_first_is_read(tmp_path):
    (tmp_path / "a").write_text(PASSAGES)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_sources([tmp_path / "a", tmp_path / "absent"])


def test_companions_of_records_are_left_out(tmp_path):
    (tmp_path / "README.md").write_text("# About\n")
    (tmp_path / "part-0.jsonl").write_text(PASSAGES)
    articles, dropped = read(tmp_path)
    assert len(articles) == 200
    assert dropped == {"file of another type": 1}


def test_mixed_folders_are_refused_listing_the_formats(tmp_path):
    (tmp_path / "notes.txt").write_text("Some prose.")
    (tmp_path / "part-0.jsonl").write_text(PASSAGES)
    with pytest.raises(ValueError, match=r"more than one format \(jsonl, text_folder\)") as error:
        read(tmp_path)
    assert all(name in str(error.value) for name in FORMATS)
    assert len(read(tmp_path, "jsonl")[0]) == 200
    assert [article.id for article in read(tmp_path, "text_folder")[0]] == ["notes.txt"]


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"PK\x03\x04\x00\x00", bytes(range(128, 256)) * 10])
def test_unknown_content_lists_the_formats(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot tell the format of .*wikiextractor_json.*dpr_tsv.*text_folder.*tfds"):
        read(tmp_path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_dump_cut_at_its_beginning_is_damaged(tmp_path, compress):
    numbers = " ".join(str(i * 7919 % 104729) for i in range(20_000))
    (tmp_path / "dump.xml").write_bytes(compress(f"<mediawiki>{numbers}</mediawiki>".encode())[:12])
    with pytest.raises(
        ValueError, match=r"dump.xml: expected text, got a truncated or damaged file: .*; fetch it again$"
    ):
        read(tmp_path / "dump.xml")


def test_an_empty_file_is_named_as_such(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.jsonl: expected text, got nothing \(0 bytes\); fetch it again$"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text(PASSAGES)
    assert len(read(tmp_path)[0]) == 200  # one beside it does no harm


def test_folders_to_leave_out(tmp_path):
    for folder in ("run", "run/corpus", "kept/run", "output"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text(f"Some prose of {folder}.")
    dropped = []
    (tmp_path / "link").symlink_to(tmp_path / "run")
    left_out = (tmp_path / "link", tmp_path / "kept" / ".." / "output", tmp_path / "absent")
    articles = list(read_articles(tmp_path, on_drop=dropped.append, leave_out=left_out))
    assert [article.id for article in articles] == ["kept/run/a.txt"]
    assert dropped == ["folder that this run writes to"] * 3  # by its name and by a link, and the other


def test_missing_path_empty_folder_and_unknown_format(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or directory at"):
        read_articles(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no file"):
        read_articles(tmp_path)
    with pytest.raises(ValueError, match=r"expected a source format among \['auto', 'wikiextractor_json'.*got 'xml'"):
        read_articles(tmp_path, "xml")


def test_parts_are_the_whole_in_order(tmp_path, monkeypatch):
    """Records without an id are named by their file: below the common folder of all files, not of those of a part."""
    monkeypatch.setattr(sources, "PART_BYTES", 100)
    for folder, numbers in (("a/x", range(3)), ("a/y", range(3, 5)), ("b/x", range(5, 6))):
        (tmp_path / folder).mkdir(parents=True)
        for i in numbers:
            lines = [json_line(text=f"Article {i} {k}.") for k in range(1 + i % 2)]
            (tmp_path / folder / f"{i % 3}.jsonl").write_text("".join(lines) + "{no\n" * 2)
    whole = open_source(tmp_path)
    parts = whole.parts()
    assert 2 < len(parts) < 6 and [file for part in parts for file in part.files] == list(whole.files)
    dropped, in_parts = [], []
    articles = list(whole.read(dropped.append))
    assert [article for part in parts for article in part.read(in_parts.append)] == articles
    assert dropped == in_parts == ["malformed record"] * 12
    assert {"a/x/0.jsonl:1", "a/y/0.jsonl:1", "b/x/2.jsonl:2"} < {article.id for article in articles}
    assert len(articles) == 9
