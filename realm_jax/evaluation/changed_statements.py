"""Statements that two revisions of a text make alike, but for one name or number: what is asked when documents have changed.

Lewis et al. 2020 (arXiv:2005.11401, section 4.5) ask who held an office at two dates. Here the changed statements are found by
comparing the revisions, so that any two states of a collection can be asked about.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources import Article
from realm_jax.evaluation.answers import normalise_answer

_FEWEST_WORDS, _MOST_WORDS = 6, 60
_MOST_CHANGED = 4  # words, on either side
_LEAST_SHARED = 0.6  # of a sentence's different words
_AS_SPELLED = 0.6
_BLANK = "what"
_TELLING = re.compile(r"\d|[A-Z]")
_MARKS = re.compile(r"[;:()\"“”]|,(?!\d)")
_LEAD, _TAIL = re.compile(r"^[\W_]+"), re.compile(r"[\W_]+$")


class ChangedStatement(NamedTuple):
    """One sentence of an article in two revisions.

    Attributes:
      article_id: of both revisions.
      question: title and sentence, with "what" for that in which they differ.
      before, after: what stands there.
    """

    article_id: str
    question: str
    before: str
    after: str


def changed_statements(before: Iterable[Article], after: Iterable[Article]) -> Iterator[ChangedStatement]:
    """The changed statements of all articles that both have, matched by id, in the order of `after`.

    What differs must be up to four words that hold a digit or a capital on both sides, do not begin the sentence, stand nowhere in
    it besides, and are different answers: another spelling or punctuation is no change.
    """
    earlier = {article.id: article for article in before}
    for article in after:
        if article.id in earlier:
            yield from _changed(earlier[article.id], article)


def _changed(before: Article, after: Article) -> Iterator[ChangedStatement]:
    old, new = _sentences(before.text), _sentences(after.text)
    kept = set(old) & set(new)
    come = [sentence for sentence in new if sentence not in kept]
    for sentence in (sentence for sentence in old if sentence not in kept):
        words = sentence.split()
        if not _FEWEST_WORDS <= len(words) <= _MOST_WORDS:
            continue
        for other in come:
            found = _difference(words, other.split())
            if found is not None:
                context, was, now = found
                yield ChangedStatement(after.id, f"{after.title}: {context}", was, now)
                break


def _difference(old: Sequence[str], new: Sequence[str]) -> tuple[str, str, str] | None:
    """(sentence with a blank, old words, new words), if that is the one difference and it tells something."""
    different = set(old)
    if abs(len(old) - len(new)) > _MOST_CHANGED or len(different & set(new)) < _LEAST_SHARED * len(different):
        return None
    changes = [op for op in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if op[0] != "equal"]
    if len(changes) != 1:
        return None
    _, old_start, old_end, new_start, new_end = changes[0]
    if old_start == 0 or not 0 < old_end - old_start <= _MOST_CHANGED or not 0 < new_end - new_start <= _MOST_CHANGED:
        return None
    was, now = (" ".join(part) for part in (old[old_start:old_end], new[new_start:new_end]))
    # what surrounds the blank keeps the marks that both revisions have there
    lead, tail = _shared_marks(was, now)
    was, now = was[len(lead) : len(was) - len(tail)], now[len(lead) : len(now) - len(tail)]
    answers = [normalise_answer(part) for part in (was, now)]
    rest = " ".join([*old[:old_start], f"{lead}{_BLANK}{tail}", *old[old_end:]])
    if not all(_TELLING.search(part) and not _MARKS.search(part) for part in (was, now)) or _same(was, now):
        return None
    if any(f" {answer} " in f" {normalise_answer(rest)} " for answer in answers):
        return None
    return rest, was, now


def _same(one: str, other: str) -> bool:
    """Whether two answers are the same in another spelling: of the same numbers, part of each other, or nearly as spelled."""
    numbers = [re.findall(r"\d+", part) for part in (one, other)]
    one, other = normalise_answer(one), normalise_answer(other)
    if not one or not other or f" {one} " in f" {other} " or f" {other} " in f" {one} ":
        return True
    if any(numbers):
        return numbers[0] == numbers[1]
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() > _AS_SPELLED


def _shared_marks(one: str, other: str) -> tuple[str, str]:
    """The punctuation that both begin with, and end with."""
    lead = tail = ""
    begins, ends = _LEAD.search(one), _TAIL.search(one)
    if begins and other.startswith(begins[0]):
        lead = begins[0]
    if ends and other.endswith(ends[0]):
        tail = ends[0]
    return (lead, tail) if len(lead) + len(tail) < min(len(one), len(other)) else ("", "")


def _sentences(text: str) -> list[str]:
    return [" ".join(text[start:end].split()) for start, end in sentence_spans(text)]
