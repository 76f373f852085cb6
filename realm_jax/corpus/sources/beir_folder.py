"""The documents of a BEIR folder: its corpus.jsonl, and not the queries beside it."""

from collections.abc import Iterator
from pathlib import Path

from realm_jax.corpus.sources.article import MALFORMED, Article, ArticleFilter, OnDrop
from realm_jax.corpus.sources.json_lines import json_objects


def beir_file(folder: Path, name: str) -> Path:
    """`corpus` or `queries` of a BEIR folder, compressed or not; the path that it should have if there is none."""
    plain = folder / f"{name}.jsonl"
    compressed = folder / f"{name}.jsonl.gz"
    return compressed if compressed.exists() and not plain.exists() else plain


def is_beir_folder(path: Path) -> bool:
    return path.is_dir() and all(beir_file(path, name).is_file() for name in ("corpus", "queries"))


def read_beir_corpus(folder: Path, on_drop: OnDrop, max_text_chars: int) -> Iterator[Article]:
    """One article a line of {"_id", "title", "text"}; a document that is a title alone has it for its text too."""
    keep = ArticleFilter(on_drop, max_text_chars)
    for _, _, record in json_objects([beir_file(folder, "corpus")], on_drop, max_text_chars):
        article_id, title, text = record.get("_id"), record.get("title") or "", record.get("text")
        if not isinstance(article_id, str | int) or not isinstance(title, str) or not isinstance(text, str):
            on_drop(MALFORMED)
        elif article := keep.article(str(article_id), title, text if text.strip() else title):
            yield article
