"""Reads a source and counts what was dropped; records in short."""

import collections
import json

from realm_jax.corpus.sources import read_articles


def read(path, source_format="auto", **settings):
    dropped = collections.Counter()
    articles = list(read_articles(path, source_format, lambda cause: dropped.update([cause]), **settings))
    return articles, dict(dropped)


def json_line(**record):
    return json.dumps(record, ensure_ascii=False) + "\n"


PASSAGES = "".join(json_line(id=f"p{i}", title=f"Title {i}", text=f"Text number {i} is here.") for i in range(200))
