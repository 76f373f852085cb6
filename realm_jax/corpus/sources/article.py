"""The record that every source yields, and what every record must pass before it is one."""

import re
from array import array
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

OnDrop = Callable[[str], None]

MAX_TEXT_CHARS = 8_000_000

# Causes that say what a source is like, not that it is damaged: a limit on the dropped share should not count them.
REDIRECT = "redirect"
OTHER_NAMESPACE = "page outside the article namespace"
PAGE_WITHOUT_TEXT = "page without text (a redirect, or only lists and tables)"
HIDDEN_FILE = "hidden file"
OTHER_FILE = "file of another type"
OWN_FOLDER = "folder that this run writes to"
ORDINARY_CAUSES = frozenset({REDIRECT, OTHER_NAMESPACE, PAGE_WITHOUT_TEXT, HIDDEN_FILE, OTHER_FILE, OWN_FOLDER})

# Causes that say that something was wrong.
EMPTY_TEXT = "empty text"
OVER_LONG = "over-long record"
NOT_UTF8 = "not UTF-8"
MALFORMED = "malformed record"
DUPLICATE_ID = "duplicate id"
DAMAGED_FILE = "truncated or corrupted file"
OVER_COMPRESSED = "file that holds over 200 times its size"
BINARY_FILE = "binary file"

_LINE_BREAKS = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff]")
_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u3000]")  # of other widths, or not to be broken
_UNUSUAL = re.compile("[\x00-\x08\x0b-\x1f\x7f\u0085\u00a0\u2000-\u200a\u2028\u2029\u202f\u3000\ufeff]")


class Article(NamedTuple):
    """A titled text before it is cut into blocks: an encyclopedia article, a passage, a file of a folder."""

    id: str  # unique within a source
    title: str
    text: str  # paragraphs, headings and list items one a line
    salient_spans: tuple[tuple[int, int], ...] | None = None  # characters, half open; None: a tagger finds them
    gold_id: str = ""  # of a sentence to mask: the article that holds the masked fact
    answers: tuple[str, ...] = ()


class ArticleFilter:
    """Makes articles out of raw records, or counts why not: the checks that hold for every format."""

    def __init__(self, on_drop: OnDrop, max_text_chars: int = MAX_TEXT_CHARS, empty_cause: str = EMPTY_TEXT):
        self._on_drop = on_drop
        self._max_text_chars = max_text_chars
        self._empty_cause = empty_cause
        self._seen = HashSet()

    def article(self, article_id: str, title: str, text: str) -> Article | None:
        """The cleaned article; None, once its cause has been reported, if it cannot be used."""
        if len(text) > self._max_text_chars:
            return self._on_drop(OVER_LONG)
        title, text = " ".join(clean_text(title).split()), clean_text(text).strip()
        if not text:
            return self._on_drop(self._empty_cause)
        if not (_is_encodable(title) and _is_encodable(text) and _is_encodable(article_id)):
            return self._on_drop(NOT_UTF8)
        if not self._seen.add(article_id):
            return self._on_drop(DUPLICATE_ID)
        return Article(article_id, title, text)


def clean_text(text: str) -> str:
    """Text without control characters, whose only line break is a newline and whose only other space is the space.

    >>> clean_text("one\\r\\ntwo\\x00")
    'one\\ntwo'
    """
    if _UNUSUAL.search(text) is None:
        return text.replace("\t", " ")
    return _CONTROLS.sub("", _SPACES.sub(" ", _LINE_BREAKS.sub("\n", text).replace("\t", " ")))


def _is_encodable(text: str) -> bool:
    """Whether a string is Unicode text: JSON can smuggle in half a surrogate pair, which no tokenizer or file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class HashSet:
    """A set of strings in at most 24 bytes each, by a 64-bit hash (ten million collide once in 370 000 runs).

    A Python set of the ids of a whole Wikipedia would take a gigabyte.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, text: str) -> bool:
        """Whether the string is new."""
        key = int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") or 1
        if not self._insert(key):
            return False
        self._count += 1
        if 2 * self._count > len(self._slots):
            old = self._slots
            self._slots = array("Q", bytes(8 * 3 * len(old) // 2 * 2))
            for slot in old:
                if slot:
                    self._insert(slot)
        return True

    def _insert(self, key: int) -> bool:
        slots, num_slots = self._slots, len(self._slots)
        place = key % num_slots
        while slots[place]:
            if slots[place] == key:
                return False
            place = place + 1 if place + 1 < num_slots else 0
        slots[place] = key
        return True
