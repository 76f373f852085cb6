"""Files of any compression, whole and damaged, however long."""

import bz2
import gzip
import itertools
import json
import lzma
import tracemalloc

import pytest

from realm_jax.corpus.sources import Article, read_articles
from realm_jax.data.questions import read_questions
from tests.corpus.sources.reading import PASSAGES, json_line, read


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_compression_is_told_by_content_and_damage_is_counted(tmp_path, compress):
    whole = compress(PASSAGES.encode())
    (tmp_path / "whole").write_bytes(whole)
    articles, dropped = read(tmp_path / "whole")
    assert len(articles) == 200
    assert dropped == {}
    if compress is bytes:
        return
    big = "".join(
        json_line(id=f"p{i}", text=f"{[(i + j) * 7919 % 104729 for j in range(100)]}") for i in range(4000)
    ).encode()
    packed = compress(big)
    (tmp_path / "cut").write_bytes(packed[: len(packed) * 3 // 4])
    articles, dropped = read(tmp_path / "cut")
    assert 500 < len(articles) < 4000  # what came before the cut is used
    assert articles == list(read_articles_head(big, len(articles)))
    assert dropped == {"truncated or corrupted file": 1}
    flipped = bytearray(packed)
    flipped[len(packed) // 2 : len(packed) // 2 + 8] = b"\xff" * 8
    (tmp_path / "flipped").write_bytes(flipped)
    articles, dropped = read(tmp_path / "flipped", "jsonl")
    assert dropped.get("truncated or corrupted file") == 1


def read_articles_head(content, count):
    for line in itertools.islice(content.decode().splitlines(), count):
        record = json.loads(line)
        yield Article(record["id"], "", record["text"])


def test_memory_stays_flat(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        for i in range(2000):
            file.write(json_line(id=str(i), text=f"{i} " * 4000))  # 40 MB
    tracemalloc.start()
    count = sum(1 for _ in read_articles(tmp_path / "a.jsonl.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 12_000_000


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress, gzip.compress])
def test_files_made_to_fill_the_memory(tmp_path, compress):
    """90 MB of nothing in less than a thousandth: given up after 64 MiB, and not held in memory even so."""
    packed = b"".join(compress(b" " * (30 << 20)) for _ in range(3))
    (tmp_path / "a.jsonl").write_bytes(compress(PASSAGES.encode()) + packed)
    (tmp_path / "questions.json").write_bytes(compress(b"[") + packed)
    tracemalloc.start()
    articles, dropped = read(tmp_path / "a.jsonl", "jsonl", max_text_chars=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(articles) == 200 and peak < 20_000_000
    assert dropped == {"file that holds over 200 times its size": 1, "over-long record": 1}
    with pytest.raises(ValueError, match=r"questions.json is a file that holds over 200 times its size; get it again"):
        read_questions(tmp_path / "questions.json")


def test_links_to_files_are_read_and_links_to_folders_are_not(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("From elsewhere.")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("From here.")
    (tmp_path / "texts" / "link.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (tmp_path / "texts" / "folder").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "texts" / "dangling.txt").symlink_to(tmp_path / "nothing")
    articles, dropped = read(tmp_path / "texts")
    assert [article.id for article in articles] == ["a.txt", "link.txt"] and dropped == {}
