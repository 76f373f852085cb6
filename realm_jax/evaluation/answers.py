"""Whether a text contains an answer, both normalised as the field does (ORQA, arXiv:1906.00300; SQuAD).

How predicted answers are scored is in `answer_scores`.
"""

import re
import string
import unicodedata
from collections.abc import Iterable

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """NFD, lower case, without ASCII punctuation and the articles a/an/the, white space collapsed.

    As in the released scorer, punctuation is deleted and not replaced by a space: "30-year" becomes "30year".

    >>> normalise_answer("  The  Beatles' (1965–66)")
    'beatles 1965–66'
    """
    plain = unicodedata.normalize("NFD", text).lower().translate(_DROP_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers occurs in the text as a run of whole words, after normalising both.

    An answer with nothing left of it ("The", "?!") occurs nowhere.

    >>> contains_answer("It opened in 1895.", ["1895"]), contains_answer("In 18951 they met.", ["1895"])
    (True, False)
    """
    return normalised_contains(normalise_answer(text), [normalise_answer(answer) for answer in answers])


def normalised_contains(text: str, answers: Iterable[str]) -> bool:
    """`contains_answer` for a text and answers that are normalised already."""
    padded = f" {text} "
    return any(answer and f" {answer} " in padded for answer in answers)
