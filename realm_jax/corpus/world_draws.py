"""Random draws of the embedded corpus, the same in every Python version.

Only the stream of Random.random() is promised to stay; that of the other methods of `random.Random` is not.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    result = list(items)
    for i in range(len(result) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        result[i], result[j] = result[j], result[i]
    return result


def sample(rng: Random, items: Sequence[T], size: int) -> list[T]:
    return shuffled(rng, items)[:size]


def other(rng: Random, items: Sequence[str], taken: Iterable[str]) -> str:
    """One of the items that is none of the taken; there are always more items than taken ones."""
    while True:
        item = pick(rng, items)
        if item not in taken:
            return item
