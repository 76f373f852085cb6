"""What the ids of an index stand for: pieces for the reader, text for people, and the way from one to the other."""

import difflib
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, joint_inputs
from realm_jax.text.tokenizer import Encoding, Tokenizer


class Text(NamedTuple):
    """A document as people read it."""

    title: str
    text: str


@runtime_checkable
class Documents(Protocol):
    """The documents of an index."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def text(self, document: int) -> Text: ...

    def joint(
        self,
        query_ids: Int32[np.ndarray, "batch query_len"],
        document_ids: Int64[np.ndarray, "batch num_read"],
        joint_len: int,
        special: SpecialIds,
    ) -> Inputs:
        """`[CLS] question [SEP] document [SEP]` of each question and document; negative ids are empty."""
        ...

    def characters(self, document: int, first: int, last: int) -> tuple[int, int]:
        """Where the document's pieces `first` to `last` (inclusive) stand in its text: [start, end)."""
        ...


class CorpusDocuments:
    """The documents of a corpus as it was built."""

    def __init__(self, corpus: Corpus, cached: int = 10_000):
        """Args:
        corpus: with its text.
        cached: documents whose text is remembered.

        Raises:
          ValueError: a corpus that was made without text.
        """
        if not corpus.info.has_blocks:
            raise ValueError(f"{corpus.directory} was made without text; build it with the corpus job to show answers")
        self.corpus = corpus
        self._text = functools.lru_cache(cached)(lambda document: Text(*document_text(corpus, document)))
        self._offsets = functools.lru_cache(cached)(
            lambda document: aligned_offsets(
                np.asarray(corpus.bodies[document]), corpus.tokenizer.encode(self._text(document).text)
            )
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    def text(self, document: int) -> Text:
        return self._text(document)

    def joint(
        self,
        query_ids: Int32[np.ndarray, "batch query_len"],
        document_ids: Int64[np.ndarray, "batch num_read"],
        joint_len: int,
        special: SpecialIds,
    ) -> Inputs:
        return joint_inputs(query_ids, self.corpus, document_ids, joint_len, special)

    def characters(self, document: int, first: int, last: int) -> tuple[int, int]:
        return trimmed(self._text(document).text, self._offsets(document), first, last)


def aligned_offsets(pieces: Int32[np.ndarray, "num_pieces"], encoding: Encoding) -> Int32[np.ndarray, "num_pieces 2"]:
    """Characters of the pieces of a document, by the offsets of the pieces that its text has alone.

    They are mostly the same. A document is cut from an article that was tokenised whole, though, and its first piece may
    be another where no white space stood before it: then the pieces that differ share the characters of those in
    their place.

    >>> import numpy as np
    >>> alone = Encoding(np.array([7, 8, 3], np.int32), np.array([[0, 0], [0, 2], [2, 4]], np.int32))
    >>> aligned_offsets(np.array([9, 3], np.int32), alone).tolist()
    [[0, 2], [2, 4]]
    """
    ids, offsets = encoding
    if np.array_equal(pieces, ids):
        return offsets
    aligned = np.zeros((len(pieces), 2), np.int32)
    matcher = difflib.SequenceMatcher(None, pieces.tolist(), ids.tolist(), autojunk=False)
    for tag, first, last, other_first, other_last in matcher.get_opcodes():
        if tag == "equal":
            aligned[first:last] = offsets[other_first:other_last]
        elif other_last > other_first:
            aligned[first:last] = offsets[other_first, 0], offsets[other_last - 1, 1]
        else:  # nothing stands in their place: no characters, after the piece before them
            aligned[first:last] = offsets[other_first - 1, 1] if other_first else 0
    return aligned


def trimmed(text: str, offsets: Int32[np.ndarray, "num_pieces 2"], first: int, last: int) -> tuple[int, int]:
    """Characters of pieces first to last, without the white space that a SentencePiece piece begins with.

    Raises:
      ValueError: pieces beyond the text: it is not the text that was cut into pieces.
    """
    if not 0 <= first <= last < len(offsets):
        raise ValueError(f"expected pieces within 0 to {len(offsets) - 1}, got {first} to {last}")
    start, end = int(offsets[first, 0]), int(offsets[last, 1])
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
