"""Which salient spans can be masked, and which documents have one."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

from realm_jax.corpus.store import Corpus


class MaskableDocuments(NamedTuple):
    """Documents with a span that can be masked, ascending; how many have none, by cause."""

    ids: Int64[np.ndarray, "num_usable"]
    left_out: dict[str, int]


def is_maskable(
    spans: Integer[np.ndarray, "num_spans 2"], sentence_ends: Integer[np.ndarray, "num_sentences"], max_pieces: int
) -> Bool[np.ndarray, "num_spans"]:
    """Whether a span lies within one sentence and has at most `max_pieces` pieces.

    >>> is_maskable(np.array([[0, 2], [3, 5], [5, 9]]), np.array([4, 9]), max_pieces=3).tolist()
    [True, False, False]

    Args:
      spans: half-open ranges of pieces.
      sentence_ends: the piece behind the last one of each sentence, ascending; counted as the spans are: from the start
        of a document, or of many laid end to end.
      max_pieces: what a longer span has is more than can be masked at once.
    """
    starts, ends = spans[:, 0], spans[:, 1]
    end_of_sentence = np.append(sentence_ends, -1)[np.searchsorted(sentence_ends, starts, side="right")]
    return (starts < ends) & (ends - starts <= max_pieces) & (ends <= end_of_sentence)


def maskable_documents(
    corpus: Corpus, max_pieces: int, min_sentences: int = 1, at_once: int = 1 << 16
) -> MaskableDocuments:
    """The documents with a maskable span and at least `min_sentences` sentences; spans are read once, `at_once` documents."""
    usable: list[np.ndarray] = []
    without_span = too_few_sentences = no_fitting_span = 0
    for first in range(0, corpus.num_documents, at_once):
        documents = np.arange(first, min(first + at_once, corpus.num_documents))
        span_counts = corpus.salient_spans.lengths(documents)
        sentence_counts = corpus.sentence_ends.lengths(documents)
        starts = np.cumsum(corpus.bodies.lengths(documents)) - corpus.bodies.lengths(documents)
        owner = np.repeat(np.arange(len(documents)), span_counts)
        spans = corpus.salient_spans.values_of(first, first + len(documents)) + starts[owner][:, None]
        ends = corpus.sentence_ends.values_of(first, first + len(documents)) + np.repeat(starts, sentence_counts)
        fits = np.bincount(owner[is_maskable(spans, ends, max_pieces)], minlength=len(documents)) > 0
        has_span, has_sentences = span_counts > 0, sentence_counts >= min_sentences
        without_span += int((~has_span).sum())
        too_few_sentences += int((has_span & ~has_sentences).sum())
        no_fitting_span += int((has_span & has_sentences & ~fits).sum())
        usable.append(documents[has_sentences & fits])
    causes = {
        "no salient span": without_span,
        f"fewer than {min_sentences} sentences": too_few_sentences,
        f"no salient span of at most {max_pieces} pieces within a sentence": no_fitting_span,
    }
    ids = np.concatenate([np.zeros(0, np.int64), *usable])
    return MaskableDocuments(ids, {cause: count for cause, count in causes.items() if count})


def listed(left_out: dict[str, int]) -> str:
    """The causes as text."""
    return "; ".join(f"{count}: {cause}" for cause, count in left_out.items())
