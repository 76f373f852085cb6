"""Splits text into sentences by rules, with exact character offsets.

Rules, not a model: a corpus of gigabytes passes through here, and a wrong cut costs little (a sentence is the unit
that blocks keep whole, the query of an inverse-cloze example and the text that is masked).  A line break always ends a
sentence, so section headings, list items and paragraphs stay apart.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never the end of a sentence: a name, a number or a date follows.
_LEADING_ABBREVIATIONS = _words(
    "dr mr mrs ms mx messrs prof rev fr hon gen brig lt col maj capt cpt sgt cpl pvt adm cmdr gov sen rep pres supt "
    "amb st ste mt ft vs v viz cf eg ie e.g i.e no nos nr vol vols pp p pg fig figs ch chap sec art op cat approx c ca "
    "circa b d r pt fl née lit trans ed eds dept univ bros al jan feb mar apr jun jul aug sep sept oct nov dec"
)
# May end a sentence: they do when a word follows that commonly opens one.
_TRAILING_ABBREVIATIONS = _words("inc ltd co corp jr sr etc esq ph.d phd m.d a.m p.m am pm plc llc bc ad")
_OPENERS = _words(
    "the a an it its he she they we i his her their this that these those there in on at by from with for after "
    "before during since when while where although though however as if but and or all some many most one two "
    "both each no not under until upon between following according also another other such to then today "
    "additionally despite who what how why once because only over"
)
_CLOSING = "\"'”’»)\\]"
_OPENING = "\"'“‘«(["
# A stop with its closing quotes and brackets, then white space; a line break; or a stop of a script without spaces.
# It begins with one set of characters, on which the search skips ahead three times as fast as on alternatives. Of a run of
# stops only the first is tried: behind all of them stands the same.
_CANDIDATE = re.compile(
    rf"[.!?…\n。！？｡](?:(?<=[.!?…])(?<![.!?…].)([.!?…]*+)[{_CLOSING}]*+"
    rf"(?:[^\S\n]+(?:''[^\S\n]+|[{_CLOSING}][^\S\n]+(?=[A-Z]))?|\n)|(?<=\n)|(?<=[。！？｡])[」』”’）]*+)"
)
_WORD_BEFORE = re.compile(r"(?:\w|[.'’&-](?=\w))+$")
_WORD_AFTER = re.compile(r"\w+")
_MAX_WORD = 24  # how far back to look for the beginning of a word
_LONG_WORD = 7  # so long a word is no abbreviation


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Half-open character spans of the sentences of a text: sorted, disjoint, without white space at their ends.

    Everything that is not white space lies in exactly one span.

    >>> [text[a:b] for text in ["Dr. Ho paid $3.50. (He smiled.) Why?"] for a, b in sentence_spans(text)]
    ['Dr. Ho paid $3.50.', '(He smiled.)', 'Why?']
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        end = match.end()
        further_stops = match.group(1)
        if further_stops is not None and text[end - 1] != "\n":
            stop_at = match.start()
            alone = text[stop_at] == "." and not further_stops
            if not _ends_sentence(text, start, stop_at, end, alone):
                continue
        _append_stripped(spans, text, start, end)
        start = end
    _append_stripped(spans, text, start, len(text))
    return spans


def _append_stripped(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    if start < end:
        spans.append((start, end))


def _ends_sentence(text: str, start: int, stop_at: int, after: int, alone: bool) -> bool:
    """Whether the stop at `stop_at` ends the sentence that began at `start`.

    Args:
      after: where the next word would begin.
      alone: it is a single full stop, the only one that can belong to an abbreviation.
    """
    if after >= len(text):
        return True
    first = text[after]
    while first in _OPENING:
        after += 1
        if after >= len(text):
            return True
        first = text[after]
    if first.islower():
        return False
    if first.isspace() or first in ",;:–—-/&":  # "etc. – and", "Yahoo! & co": the sentence goes on
        return first.isspace()
    if not alone:
        return True
    before = text[max(start, stop_at - _MAX_WORD) : stop_at]
    word_end = before[-_LONG_WORD:]
    if len(word_end) == _LONG_WORD and word_end.isalnum() and "." not in before:
        return True  # most full stops follow a long word: no need to look for its beginning
    word_match = _WORD_BEFORE.search(before, before.rfind(" ") + 1)
    if word_match is None:
        return stop_at > start
    word = word_match.group()
    return _ends_after_word(text, word, stop_at, after)


def _ends_after_word(text: str, word: str, stop_at: int, after: int) -> bool:
    """Whether the full stop after a word ends the sentence: not if it belongs to an abbreviation or an initial."""
    if len(word) >= _LONG_WORD and "." not in word:
        return True
    lowered = word.lower()
    if text[stop_at - len(word) - 1] == "°":  # "at 18 °C. Then"
        return True
    initial = len(word) == 1 and word.isupper()
    if not initial and lowered in _LEADING_ABBREVIATIONS:
        # "No. 5", "fig. 3", "St. Louis"; those that are common words too ("no", "art") must look like the abbreviation.
        return lowered in ("no", "art", "cat", "sec") and not (text[after].isdigit() or word[0].isupper())
    dotted = "." in word
    if dotted or initial or lowered in _TRAILING_ABBREVIATIONS:
        next_word = _WORD_AFTER.match(text, after)
        if dotted and not word.replace(".", "").isalpha():
            return True  # "version 2.0. Next"
        if next_word is None:
            return False
        return next_word.group().lower() in _OPENERS and len(next_word.group()) > (1 if initial or dotted else 0)
    return True
