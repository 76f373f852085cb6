"""How a language model is asked: `[bos] Background: title : text ⏎⏎ prompt`, the document in front, cut where there is no room for it.

Documents come as the pieces that a corpus holds, so that nothing is tokenised twice. The parts between are tokenised by themselves.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.text.generator_tokenizer import GeneratorTokenizer

LEAST_BODY = 8
"""Pieces of a document's text below which it is left out whole: a stump says nothing."""


class BackgroundLengths(NamedTuple):
    """How much of each document is read. Both are 0 of a document that is left out."""

    titles: Int64[np.ndarray, "*rows"]
    bodies: Int64[np.ndarray, "*rows"]


class PromptFormat(NamedTuple):
    """The pieces around document and prompt."""

    bos: int
    eos: int
    pad: int
    before: Int32[np.ndarray, "_"]
    before_title: Int32[np.ndarray, "_"]  # the space, of tokenizers that give a text's first word none
    after_title: Int32[np.ndarray, "_"]
    after: Int32[np.ndarray, "_"]

    @classmethod
    def of(
        cls, tokenizer: GeneratorTokenizer, before: str = "Background:", after_title: str = " :", after: str = "\n\n"
    ) -> "PromptFormat":
        """In a tokenizer's pieces; RA-DIT's words (arXiv:2310.01352, section 2.3), but for what parts title and text."""
        pieces = [encoding.ids for encoding in tokenizer.encode_batch([before, after_title, after, "a", " "])]
        apart = tokenizer.decode([*pieces[0], *pieces[3]]).endswith(" a")
        space = pieces[4][:0] if apart else pieces[4]
        return cls(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, pieces[0], space, pieces[1], pieces[2])

    def lengths(
        self, titles: Int64[np.ndarray, "*rows"], bodies: Int64[np.ndarray, "*rows"], room: Int64[np.ndarray, "*#rows"]
    ) -> BackgroundLengths:
        """What is read of documents of these lengths where all of the background has `room` pieces.

        The text is cut, and the title left out where both have no room. A document that is empty, or of whose text fewer than `LEAST_BODY`
        pieces would be left, is left out.
        """
        room = room - len(self.before) - len(self.after)
        of_title = len(self.before_title) + len(self.after_title)
        with_title = titles + of_title + np.minimum(bodies, LEAST_BODY) <= room
        kept_titles = np.where(with_title, titles, 0)
        kept = np.minimum(bodies, room - kept_titles - of_title * (kept_titles > 0))
        there = (kept >= np.minimum(bodies, LEAST_BODY)) & (kept_titles + kept > 0)
        return BackgroundLengths(np.where(there, kept_titles, 0), np.where(there, kept, 0))

    def total(self, lengths: BackgroundLengths) -> Int64[np.ndarray, "*rows"]:
        """Pieces of backgrounds of which so much is read."""
        of_title = len(self.before_title) + len(self.after_title)
        around = len(self.before) + len(self.after) + of_title * (lengths.titles > 0)
        return np.where(lengths.titles + lengths.bodies > 0, lengths.titles + lengths.bodies + around, 0)

    def background(
        self, title: Int32[np.ndarray, "title_len"], body: Int32[np.ndarray, "body_len"]
    ) -> Int32[np.ndarray, "_"]:
        """Of one document, of which this much is read; nothing of one without pieces."""
        if not len(title) + len(body):
            return np.zeros(0, np.int32)
        around = (self.before_title, self.after_title) if len(title) else (title, title)
        return np.concatenate([self.before, around[0], title, around[1], body, self.after])

    def prompt(
        self,
        pieces: DocumentPieces,
        document: int,
        title_len: int,
        body_len: int,
        prompt: Int32[np.ndarray, "prompt_len"],
    ) -> Int32[np.ndarray, "_"]:
        """`[bos] background prompt`, with that much of a document; negative: `[bos] prompt`."""
        background = prompt[:0]
        if document >= 0:
            background = self.background(pieces.titles[document][:title_len], pieces.bodies[document][:body_len])
        return np.concatenate([np.asarray([self.bos], np.int32), background, prompt])
