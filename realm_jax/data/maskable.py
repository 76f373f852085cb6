"""Which salient spans can be masked, and which documents have one."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

from realm_jax.corpus.store import Corpus

_HASH_BASE, _HASH_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, so that they have inverses


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


def repeats_elsewhere(
    spans: Integer[np.ndarray, "num_spans 2"],
    documents: Integer[np.ndarray, "num_spans"],
    sentences: Integer[np.ndarray, "num_spans"],
    pieces: Integer[np.ndarray, "num_pieces"],
) -> Bool[np.ndarray, "num_spans"]:
    """Whether the same pieces are a span of another sentence of the same document too.

    >>> spans, pieces = np.array([[0, 2], [3, 5], [6, 8]]), np.array([7, 8, 1, 7, 8, 1, 9, 8])
    >>> repeats_elsewhere(spans, np.zeros(3, int), np.array([0, 1, 1]), pieces).tolist()
    [True, True, False]

    Spans are compared by their length and a polynomial hash modulo 2^64, taken from running sums: no loop over spans. Two
    different spans of a document are taken for one with a chance of about 2^-50.

    Args:
      spans: half-open ranges of `pieces`.
      documents: of each span.
      sentences: of each span, numbered over all documents.
      pieces: of all documents, end to end.
    """
    base = np.full(len(pieces) + 1, _HASH_BASE, np.uint64)
    base[0] = 1
    powers = np.cumprod(base)  # wraps around, as do all products and sums here
    inverse = np.full(len(pieces) + 1, pow(int(_HASH_BASE), -1, 1 << 64), np.uint64)
    inverse[0] = 1
    mixed = (pieces.astype(np.uint64) + np.uint64(1)) * _HASH_MIX
    sums = np.append(np.uint64(0), np.cumsum((mixed ^ (mixed >> np.uint64(29))) * powers[:-1]))
    hashes = (sums[spans[:, 1]] - sums[spans[:, 0]]) * np.cumprod(inverse)[spans[:, 0]]
    lengths = spans[:, 1] - spans[:, 0]
    order = np.lexsort((sentences, hashes, lengths, documents))
    same = np.ones(len(order) - 1, bool) if len(order) else np.zeros(0, bool)
    for key in (documents, lengths, hashes):
        same &= key[order][1:] == key[order][:-1]
    group = np.cumsum(np.append(0, ~same)) if len(order) else np.zeros(0, np.int64)
    several = np.zeros(group[-1] + 1 if len(group) else 0, bool)
    several[group[1:][same & (sentences[order][1:] != sentences[order][:-1])]] = True
    repeated = np.zeros(len(spans), bool)
    repeated[order] = several[group]
    return repeated


def maskable_documents(
    corpus: Corpus,
    max_pieces: int,
    min_sentences: int = 1,
    repeated: bool = False,
    at_once: int = 1 << 16,
) -> MaskableDocuments:
    """The documents with a maskable span and at least `min_sentences` sentences; spans are read once, `at_once` documents.

    With `repeated` only those in which another sentence has the same span too, so that it can be looked up there.
    """
    usable: list[np.ndarray] = []
    without_span = too_few_sentences = no_fitting_span = not_repeated = 0
    for first in range(0, corpus.num_documents, at_once):
        documents = np.arange(first, min(first + at_once, corpus.num_documents))
        span_counts = corpus.salient_spans.lengths(documents)
        sentence_counts = corpus.sentence_ends.lengths(documents)
        starts = np.cumsum(corpus.bodies.lengths(documents)) - corpus.bodies.lengths(documents)
        owner = np.repeat(np.arange(len(documents)), span_counts)
        spans = corpus.salient_spans.values_of(first, first + len(documents)) + starts[owner][:, None]
        ends = corpus.sentence_ends.values_of(first, first + len(documents)) + np.repeat(starts, sentence_counts)
        maskable = is_maskable(spans, ends, max_pieces)
        fits = np.bincount(owner[maskable], minlength=len(documents)) > 0
        has_span, has_sentences = span_counts > 0, sentence_counts >= min_sentences
        without_span += int((~has_span).sum())
        too_few_sentences += int((has_span & ~has_sentences).sum())
        no_fitting_span += int((has_span & has_sentences & ~fits).sum())
        wanted = has_sentences & fits
        if repeated:
            sentences = np.searchsorted(ends, spans[:, 0], side="right")
            pieces = corpus.bodies.values_of(first, first + len(documents))
            again = repeats_elsewhere(spans[maskable], owner[maskable], sentences[maskable], pieces)
            found = np.bincount(owner[maskable][again], minlength=len(documents)) > 0
            not_repeated += int((wanted & ~found).sum())
            wanted &= found
        usable.append(documents[wanted])
    causes = {
        "no salient span": without_span,
        f"fewer than {min_sentences} sentences": too_few_sentences,
        f"no salient span of at most {max_pieces} pieces within a sentence": no_fitting_span,
        "no salient span that another sentence repeats": not_repeated,
    }
    ids = np.concatenate([np.zeros(0, np.int64), *usable])
    return MaskableDocuments(ids, {cause: count for cause, count in causes.items() if count})


def listed(left_out: dict[str, int]) -> str:
    """The causes as text."""
    return "; ".join(f"{count}: {cause}" for cause, count in left_out.items())
