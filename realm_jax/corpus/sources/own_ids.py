"""No two articles of a corpus under the same id: where its sources are read as one stream, and where they are not."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from realm_jax.corpus.sources.article import Article, HashSet

_SOURCE_NUMBERS = re.compile(r"^(?:\d+:)+")


def under_own_ids(streams: Sequence[Iterator[Article]], on_rename: Callable[[str, str], None]) -> Iterator[Article]:
    """The articles of all sources; an id that an earlier source has given gets the number of its own source in front."""
    seen = HashSet()
    for number, stream in enumerate(streams, 1):
        for article in stream:
            new_id = _own_id(article.id, number, seen)
            if new_id != article.id:
                on_rename(article.id, new_id)
                article = article._replace(id=new_id)
            yield article


def _own_id(article_id: str, number: int, seen: HashSet) -> str:
    while not seen.add(article_id):
        article_id = f"{number}:{article_id}"
    return article_id


class PlacedId(NamedTuple):
    """An id where it was read: places in ascending order are the order of the sources, which count from 1."""

    place: tuple[int, ...]
    source: int
    id: str


def id_group(article_id: str) -> str:
    """What ids have in common that can meet: all but the numbers of sources in front.

    >>> id_group("2:readme.md")
    'readme.md'
    """
    return _SOURCE_NUMBERS.sub("", article_id)


def settle_ids(group: Iterable[PlacedId]) -> dict[tuple[int, ...], str | None]:
    """What becomes of articles whose ids may meet: the same as where the sources are read as one stream.

    Args:
      group: all ids of one `id_group`, in any order.
    Returns:
      By place, the new id of each article that gets one; None for one whose source has given the id before: it is
      dropped. (Ids that are not the same never meet here; in a stream they do once in 370 000 builds, by their hash.)
    """
    in_source: dict[int, HashSet] = defaultdict(HashSet)
    seen = HashSet()
    changes: dict[tuple[int, ...], str | None] = {}
    for place, source, article_id in sorted(group):
        if not in_source[source].add(article_id):
            changes[place] = None
        elif (new_id := _own_id(article_id, source, seen)) != article_id:
            changes[place] = new_id
    return changes
