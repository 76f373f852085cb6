"""Where words end, told from pieces alone: a run of pieces may be a part of a word."""

import unicodedata

import numpy as np
from jaxtyping import Bool, Int

from realm_jax.text.tokenizer import Tokenizer


class WordEdges:
    """Tells runs of pieces that are whole words from those that are a part of one: "1895" stands in "in 1895", not in "18951".

    A border between two pieces lies inside a word when the second is written without a space and letters or digits stand on
    both sides. Letters without case (Han, Kana, Thai, …) join nothing: such scripts put no space between words.
    """

    def __init__(self, tokenizer: Tokenizer):
        spelled = [tokenizer.spelled(piece) for piece in range(tokenizer.vocab_size)]
        self._joins = np.array([joined and _in_word(text[:1]) for joined, text in spelled], bool)
        self._ends_inside = np.array([_in_word(text[-1:]) for _, text in spelled], bool)

    def are_whole(
        self,
        rows: Int[np.ndarray, "rows length"],
        row: Int[np.ndarray, "found"],
        start: Int[np.ndarray, "found"],
        size: Int[np.ndarray, "found"],
    ) -> Bool[np.ndarray, "found"]:
        """Whether the runs `rows[row, start : start + size]` begin and end where words do; ids below 0 are no pieces."""
        return ~(self._inside_word(rows, row, start) | self._inside_word(rows, row, start + size))

    def _inside_word(self, rows: np.ndarray, row: np.ndarray, border: np.ndarray) -> np.ndarray:
        """Whether the border before position `border` lies inside a word."""
        between = (border > 0) & (border < rows.shape[1])
        before = rows[row, np.where(between, border - 1, 0)]
        after = rows[row, np.where(between, border, 0)]
        there = between & (before >= 0) & (after >= 0)
        return there & self._ends_inside[np.where(there, before, 0)] & self._joins[np.where(there, after, 0)]


def _in_word(character: str) -> bool:
    return character.isalnum() and unicodedata.category(character) != "Lo"
