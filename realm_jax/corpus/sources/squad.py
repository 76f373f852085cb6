"""The paragraphs of files in SQuAD's form, under the ids that the reader of their questions gives them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from realm_jax.corpus.sources.article import Article, ArticleFilter, OnDrop
from realm_jax.corpus.sources.json_document import json_document
from realm_jax.data.question_formats.squad import paragraphs


def read_squad_paragraphs(files: Sequence[Path], on_drop: OnDrop, max_text_chars: int) -> Iterator[Article]:
    """One article a paragraph, its id `TITLE#PLACE`. A file is read whole.

    Raises:
      ValueError: for a file that is not as SQuAD has it, naming file and place.
    """
    keep = ArticleFilter(on_drop, max_text_chars)
    for path in files:
        for paragraph in paragraphs(json_document(path), str(path)):
            if article := keep.article(paragraph.id, paragraph.passage.title, paragraph.passage.text):
                yield article
