r"""Predicted answers against reference answers, as the official scorers do: exact match, F1, regular expressions.

Exact match is NQ-open's and ORQA's (arXiv:1906.00300), F1 SQuAD's (arXiv:1606.05250), the regular expressions those of
CuratedTREC as DrQA (arXiv:1704.00051) and ORQA score them. All take the best of several references.
"""

from collections import Counter
from collections.abc import Sequence

from realm_jax.data.answer_patterns import compiled
from realm_jax.evaluation.answers import normalise_answer


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the prediction equals one of the references, both normalised (`normalise_answer`).

    >>> exact_match("the Beatles!", ["The Rolling Stones", "Beatles"])
    True

    Raises:
      ValueError: without a reference.
    """
    _check_references(references)
    normal = normalise_answer(prediction)
    return any(normal == normalise_answer(reference) for reference in references)


def f1(prediction: str, references: Sequence[str]) -> float:
    """The best token F1 with one of the references: 2 p r / (p + r) over the multisets of normalised words.

    Where nothing is left of prediction or reference after normalising ("The The"), 1 if nothing is left of both, else
    0: the rule of SQuAD 2.0's scorer; that of 1.1 gives 0 even to a reference scored against itself. Words are compared
    in NFD, as for exact match; SQuAD's scorer leaves composed and decomposed letters different.

    >>> round(f1("Claude Oscar Monet", ["Claude Monet"]), 3)
    0.8

    Raises:
      ValueError: without a reference.
    """
    _check_references(references)
    words = normalise_answer(prediction).split()
    return max(_f1(words, normalise_answer(reference).split()) for reference in references)


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))  # = 2 p r / (p + r)


def regex_match(prediction: str, patterns: Sequence[str]) -> bool:
    r"""Whether one of the patterns matches at the beginning of the prediction (`re.match`), ignoring case.

    As in the official scorer the prediction is not normalised, what follows the match does not matter, and a pattern
    that does not compile matches nothing.

    >>> regex_match("February 2", [r"Sept?(ember)?|Feb(ruary)?"]), regex_match("in February", ["Feb"])
    (True, False)

    Raises:
      ValueError: without a pattern.
    """
    _check_references(patterns)
    found = (compiled(pattern) for pattern in patterns)
    return any(pattern is not None and pattern.match(prediction) is not None for pattern in found)


def is_correct(prediction: str, references: Sequence[str], is_regex: bool) -> bool:
    """`regex_match` where the references are regular expressions, else `exact_match`: what tables call EM."""
    return (regex_match if is_regex else exact_match)(prediction, references)


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ValueError(f"expected a sequence of at least one reference answer, got {references!r}")
