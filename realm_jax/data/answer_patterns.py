"""Answers that are regular expressions (CuratedTREC): compiled once, as the official scorers compile them."""

import functools
import re
import unicodedata
import warnings
from collections.abc import Iterable

_FLAGS = re.IGNORECASE | re.UNICODE | re.MULTILINE
# What re.compile raises besides re.error: for a count beyond its range, for thousands of nested groups.
_BROKEN = (re.error, OverflowError, RecursionError)


@functools.lru_cache(10_000)
def compiled(pattern: str) -> re.Pattern[str] | None:
    """The pattern with the official flags (ignore case, Unicode, ^ and $ at every line); None if it does not compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constructs that a later Python may read in another way
        try:
            return re.compile(pattern, _FLAGS)
        except _BROKEN:
            return None


def contains_match(text: str, patterns: Iterable[str]) -> bool:
    r"""Whether one of the patterns matches anywhere in the text, as DPR judges passages of CuratedTREC.

    Text and patterns are brought to NFD and not normalised further (DPR, arXiv:2004.04906, `has_answer` of the released
    code for regular expressions). A broken pattern matches nothing.

    >>> contains_match("It is 20,320 feet high.", [r"20\s?,?\s?(32|40)0\s?-?\s?f(ee|oo)t"])
    True
    """
    found = unicodedata.normalize("NFD", text)
    return nfd_contains_match(found, patterns)


def nfd_contains_match(text: str, patterns: Iterable[str]) -> bool:
    """`contains_match` for a text that is in NFD already."""
    found = (compiled(unicodedata.normalize("NFD", pattern)) for pattern in patterns)
    return any(pattern is not None and pattern.search(text) is not None for pattern in found)


def matches(text: str, patterns: Iterable[str]) -> set[str]:
    r"""What the patterns match anywhere in the text, in NFD; a broken pattern matches nothing.

    >>> sorted(matches("Born in 1903, died in 1950.", [r"19\d\d", "("]))
    ['1903', '1950']
    """
    found = unicodedata.normalize("NFD", text)
    usable = (compiled(unicodedata.normalize("NFD", pattern)) for pattern in patterns)
    return {match[0] for pattern in usable if pattern is not None for match in pattern.finditer(found)}
