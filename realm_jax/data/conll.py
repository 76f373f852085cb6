"""Reads CoNLL files: a word and its tag a line, sentences between blank lines, names in IOB1, IOB2 or BIOES."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from realm_jax.corpus.sources.files import read_lines
from realm_jax.storage import fetch

logger = logging.getLogger(__name__)

WITHOUT_TAG, UNKNOWN_TAG, UNREADABLE = "line without a tag", "unknown tag", "line that is damaged or not UTF-8"
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_STARTS, _ENDS = "BSU", "ESLU"  # BIOES and BILOU say the same with other letters
_MAX_LINE_BYTES = 1 << 16
_NO_SPACE_BEFORE = frozenset([",", ".", ";", ":", "!", "?", ")", "]", "%", "'s", "’s", "n't"])
_NO_SPACE_AFTER = frozenset(["(", "["])


class Name(NamedTuple):
    """A named entity: words [start, end) of a sentence."""

    start: int
    end: int
    kind: str


class AnnotatedSentence(NamedTuple):
    """Words with the names among them, sorted and disjoint."""

    words: tuple[str, ...]
    names: tuple[Name, ...]


class AnnotatedText(NamedTuple):
    """A sentence as running text: characters [start, end) of each word, and the names in words."""

    text: str
    word_spans: tuple[tuple[int, int], ...]
    names: tuple[Name, ...]

    def name_spans(self) -> list[tuple[int, int]]:
        """The names in characters."""
        return [(self.word_spans[name.start][0], self.word_spans[name.end - 1][1]) for name in self.names]


class ConllFile(NamedTuple):
    """What a file holds, and how many sentences were left out for a malformed line, by cause."""

    path: Path
    sentences: list[AnnotatedSentence]
    dropped: dict[str, int]


def read_conll(path: str | Path, max_dropped_share: float = 0.01) -> ConllFile:
    """Reads a CoNLL file, plain or compressed.

    Columns are parted by tabs or spaces; the first is the word, the last the tag (CoNLL-2003 has others between). `#`
    lines whose last column is no tag are comments; `-DOCSTART-` ends a sentence and is none itself. A sentence with a
    malformed line is left out whole, since its words would no longer be those that were annotated; causes and first
    lines are logged.

    Args:
      path: the file.
      max_dropped_share: of the sentences; more malformed ones fail.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no sentence, or too many malformed ones, naming the first line of each cause.
    """
    path = fetch(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; expected a CoNLL file: a word and its tag a line")
    sentences: list[AnnotatedSentence] = []
    dropped: Counter[str] = Counter()
    first_line: dict[str, str] = {}
    words: list[str] = []
    tags: list[str] = []
    problem = ""

    def finish() -> None:
        nonlocal problem
        if problem:
            dropped[problem] += 1
        elif words:
            sentences.append(AnnotatedSentence(tuple(words), tuple(decode_tags(tags))))
        words.clear()
        tags.clear()
        problem = ""

    def fail(cause: str, number: int, line: str) -> None:
        nonlocal problem
        problem = problem or cause
        first_line.setdefault(cause, f"line {number}: {line[:60]!r}")

    unreadable: Counter[str] = Counter()
    last = 0
    for number, line in read_lines(path, lambda cause: unreadable.update([cause]), _MAX_LINE_BYTES):
        if number != last + 1:
            fail(UNREADABLE, last + 1, "")
        last = number
        columns = [column for column in re.split(r"[ \t]+", line.strip(" \t\r")) if column]
        if not columns or columns[0] == "-DOCSTART-":
            finish()
        elif _TAG.fullmatch(columns[-1]) and len(columns) > 1:
            words.append(columns[0])
            tags.append(columns[-1])
        elif not columns[0].startswith("#"):
            fail(UNKNOWN_TAG if len(columns) > 1 else WITHOUT_TAG, number, line)
    if sum(unreadable.values()) and UNREADABLE not in first_line:  # the damage is at the end
        fail(UNREADABLE, last + 1, "")
    finish()
    causes = "; ".join(f"{count} with {cause} (first: {first_line[cause]})" for cause, count in dropped.items())
    total = len(sentences) + dropped.total()
    if not sentences or dropped.total() > max_dropped_share * total:
        raise ValueError(
            f"{path}: expected sentences of a word and a tag a line (O, B-PER, I-PER, ...), got {dropped.total()} malformed of "
            f"{total}{': ' if causes else ''}{causes}; repair the file, or raise max_dropped_share={max_dropped_share}"
        )
    if dropped:
        logger.warning("%s: left out %d of %d sentences: %s", path, dropped.total(), total, causes)
    return ConllFile(path, sentences, dict(dropped))


def decode_tags(tags: Sequence[str]) -> list[Name]:
    """Names of a sentence's tags, whichever of IOB1, IOB2, BIOES and BILOU they are in.

    A name begins at a B, S or U, where its kind changes, and after an E, L, S or U. So I after O begins a name, as in IOB1,
    and a sequence that a model made up has a meaning too.

    >>> [tuple(name) for name in decode_tags(["I-PER", "B-PER", "O", "B-LOC", "E-LOC", "I-LOC"])]
    [(0, 1, 'PER'), (1, 2, 'PER'), (3, 5, 'LOC'), (5, 6, 'LOC')]
    """
    names: list[Name] = []
    is_open = False
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "O":
            is_open = False
            continue
        if is_open and prefix not in _STARTS and names[-1].kind == kind:
            names[-1] = names[-1]._replace(end=place + 1)
        else:
            names.append(Name(place, place + 1, kind))
        is_open = prefix not in _ENDS
    return names


def joined(sentence: AnnotatedSentence) -> AnnotatedText:
    """The words as text: with a space between them, but none before `, . ; : ! ? ) ] % 's n't` and after `( [`."""
    text, spans = "", []
    for word, previous in zip(sentence.words, ["(", *sentence.words], strict=False):
        if word not in _NO_SPACE_BEFORE and previous not in _NO_SPACE_AFTER:
            text += " "
        spans.append((len(text), len(text) + len(word)))
        text += word
    return AnnotatedText(text, tuple(spans), sentence.names)
