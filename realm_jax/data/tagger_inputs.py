"""From text to what a tagger reads: words, their first pieces, the shapes of their letters, windows of a fixed length."""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from realm_jax.data.inputs import Inputs, SpecialIds, query_inputs
from realm_jax.text.tokenizer import Tokenizer

_PUNCTUATION = "".join(char for char in map(chr, range(0x10000)) if unicodedata.category(char)[0] in "PS")
_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Japanese and Chinese
# As BERT parts them: runs of what is neither white space nor punctuation; other characters by themselves.
_WORD = re.compile(rf"[^\s{re.escape(_PUNCTUATION)}{_WITHOUT_SPACES}]+|[^\s]")
NO_PIECE = -1
NUM_SHAPES = 4


def word_spans(text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of the words of a text; a punctuation mark is a word of its own.

    >>> [text[a:b] for text in ["Al-Amin's cat, (U.S.)"] for a, b in word_spans(text)]
    ['Al', '-', 'Amin', "'", 's', 'cat', ',', '(', 'U', '.', 'S', '.', ')']
    """
    return [match.span() for match in _WORD.finditer(text)]


def word_shape(word: str) -> int:
    """What lower-casing takes away: 0 no capital, 1 the first letter is one, 2 all of several are, 3 a later one is.

    >>> [word_shape(word) for word in ["cat", "Cat", "A", "NATO", "iPod", "1990", "Élan"]]
    [0, 1, 1, 2, 3, 0, 1]
    """
    if word == word.lower():
        return 0
    if len(word) > 1 and word.isupper():
        return 2
    return 1 if word[0] != word[0].lower() else 3


class SentencePieces(NamedTuple):
    """A sentence as its tagger reads it.

    Attributes:
      ids: its pieces.
      shapes: of the word that each piece belongs to, see `word_shape`.
      words: characters [start, end) of each word.
      first_pieces: of each word; `NO_PIECE` where the tokenizer drops it.
    """

    ids: Int32[np.ndarray, "num_pieces"]
    shapes: Int32[np.ndarray, "num_pieces"]
    words: Int32[np.ndarray, "num_words 2"]
    first_pieces: Int32[np.ndarray, "num_words"]


def sentence_pieces(texts: Sequence[str], tokenizer: Tokenizer, num_shapes: int = NUM_SHAPES) -> list[SentencePieces]:
    """Tokenizes sentences and finds the first piece of every word.

    Args:
      texts: a sentence each.
      tokenizer: gives the pieces.
      num_shapes: how many shapes the model tells apart; higher ones become the highest of these. 1: none.
    """
    found = []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        words = np.asarray(word_spans(text), np.int32).reshape(-1, 2)
        # a tokenizer may order the pieces of one character oddly; binary search needs them ascending
        starts, ends = np.maximum.accumulate(encoding.offsets, axis=0).T
        first = np.searchsorted(ends, words[:, 0], side="right")
        there = first < len(ends)
        there[there] = starts[first[there]] < words[there, 1]
        shapes = np.zeros(len(starts), np.int32)
        if num_shapes > 1 and len(words):
            of_word = [min(word_shape(text[start:end]), num_shapes - 1) for start, end in words.tolist()]
            owner = np.searchsorted(words[:, 0], np.maximum(ends - 1, starts), side="right") - 1
            shapes = np.asarray(of_word, np.int32)[np.maximum(owner, 0)]
        found.append(SentencePieces(encoding.ids, shapes, words, np.where(there, first, NO_PIECE).astype(np.int32)))
    return found


class Window(NamedTuple):
    """Pieces [start, end) that are read together; labels of the pieces [keep_start, keep_end) are taken from it."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def windows(num_pieces: int, size: int) -> list[Window]:
    """Cuts a long sentence into windows of `size` pieces that overlap by half; each piece is kept in one of them.

    A piece is kept where it is furthest from the window's edges, unless that is the sentence's edge.

    >>> [tuple(window) for window in windows(10, 4)]
    [(0, 4, 0, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, 10)]
    >>> windows(3, 4)
    [Window(start=0, end=3, keep_start=0, keep_end=3)]
    """
    if num_pieces <= size:
        return [Window(0, num_pieces, 0, num_pieces)]
    starts = [*range(0, num_pieces - size, max(1, size // 2)), num_pieces - size]
    edges = [0, *((here + size + after) // 2 for here, after in itertools.pairwise(starts)), num_pieces]
    return [Window(start, start + size, *kept) for start, kept in zip(starts, itertools.pairwise(edges), strict=True)]


def tagger_inputs(ids: list[np.ndarray], shapes: list[np.ndarray], length: int, special: SpecialIds) -> Inputs:
    """`[CLS] x [SEP]` rows of at most `length` pieces; the segment of a piece is its word's shape, that of others 0."""
    inputs = query_inputs(ids, length, special)
    for row, values in enumerate(shapes):
        inputs.segment_ids[row, 1 : 1 + len(values)] = values[: length - 2]
    return inputs
