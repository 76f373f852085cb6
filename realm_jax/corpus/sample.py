"""A bounded sample of a corpus's text, to train a tokenizer and to count words on."""

import heapq
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

# A source is not read beyond this much text for its sample: Wikipedia would take hours.
MAX_READ_CHARS = 1 << 30


class TextSample(NamedTuple):
    """Texts in the order of the source.

    `num_read` and `chars_read` count what the sample was drawn from; `is_whole` says that this was the whole source.
    """

    texts: list[str]
    num_read: int
    chars_read: int
    is_whole: bool


def sample_texts(texts: Iterable[str], max_chars: int, seed: int, max_read_chars: int = MAX_READ_CHARS) -> TextSample:
    """Draws whole texts of together at most `max_chars` characters, each with the same chance.

    Which texts depends on the seed and on their place in the source alone, so the sample repeats.
    """
    kept: list[tuple[int, int, str]] = []  # a heap with the least wanted text in front
    total = chars_read = number = 0
    is_whole = True
    for number, text in enumerate(texts, 1):
        chars_read += len(text)
        text = text[:max_chars]
        priority = int.from_bytes(blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), "little")
        if total + len(text) <= max_chars or -priority > kept[0][0]:
            heapq.heappush(kept, (-priority, number, text))
            total += len(text)
        while total > max_chars:
            total -= len(heapq.heappop(kept)[2])
        if chars_read >= max_read_chars:
            is_whole = False
            break
    return TextSample([text for _, _, text in sorted(kept, key=lambda item: item[1])], number, chars_read, is_whole)
