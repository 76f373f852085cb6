"""How well spans find annotated names: precision, recall and F1, of whole names and of names that are touched at all."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from realm_jax.data.conll import AnnotatedText


class Scores(NamedTuple):
    """Precision, recall and their harmonic mean; 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float


class KindRecall(NamedTuple):
    """Of the names of one kind: how many there are, the share found whole, the share touched."""

    names: int
    exact: float
    overlap: float


class NameScores(NamedTuple):
    """What `score_names` counts.

    Attributes:
      names: annotated.
      predicted: spans.
      exact: a span is right if it covers the very words of a name.
      overlap: a span is right if it shares a word with a name, and a name is found if it shares one with a span.
      by_kind: recall by kind of name.
      wrong: predicted words [start, end) that are no name, a list a sentence.
      missed: names not found whole, a list a sentence.
    """

    names: int
    predicted: int
    exact: Scores
    overlap: Scores
    by_kind: dict[str, KindRecall]
    wrong: list[list[tuple[int, int]]]
    missed: list[list[tuple[int, int]]]


def score_names(texts: Sequence[AnnotatedText], predicted: Sequence[Sequence[tuple[int, int]]]) -> NameScores:
    """Scores predicted spans of characters; kinds are not compared, since rules and masking know none.

    Args:
      texts: annotated sentences.
      predicted: of each, half-open spans of characters. A span stands for the words that it touches.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    num_predicted = right = right_overlap = 0
    wrong, missed = [], []
    for text, spans in zip(texts, predicted, strict=True):
        found = {words for start, end in spans if (words := touched_words(text, start, end)) is not None}
        names = {(name.start, name.end): name.kind for name in text.names}
        num_predicted += len(found)
        right += len(found & names.keys())
        right_overlap += sum(any(_meet(span, name) for name in names) for span in found)
        for name, kind in names.items():
            count = counts[kind]
            count[0] += 1
            count[1] += name in found
            count[2] += any(_meet(span, name) for span in found)
        wrong.append(sorted(found - names.keys()))
        missed.append(sorted(names.keys() - found))
    num_names, exact, overlap = (sum(count[i] for count in counts.values()) for i in range(3))
    return NameScores(
        num_names,
        num_predicted,
        _scores(right, exact, num_predicted, num_names),
        _scores(right_overlap, overlap, num_predicted, num_names),
        {kind: KindRecall(n, whole / n, touched / n) for kind, (n, whole, touched) in sorted(counts.items())},
        wrong,
        missed,
    )


def touched_words(text: AnnotatedText, start: int, end: int) -> tuple[int, int] | None:
    """Words [first, last + 1) that a span of characters touches; None if it touches none."""
    touched = [place for place, (first, last) in enumerate(text.word_spans) if first < end and start < last]
    return (touched[0], touched[-1] + 1) if touched else None


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _scores(right: int, found: int, num_predicted: int, num_names: int) -> Scores:
    precision, recall = right / max(1, num_predicted), found / max(1, num_names)
    return Scores(precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)
