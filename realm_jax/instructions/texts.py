"""What language models are trained on, as token ids: documents by themselves, and instructions after a document."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64

from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.corpus.ragged import Ragged
from realm_jax.data.packing import Text
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.prompts import BackgroundLengths, PromptFormat
from realm_jax.text.generator_tokenizer import GeneratorTokenizer


def ragged_of(rows: Sequence[Int32[np.ndarray, "_"]]) -> Ragged:
    """Rows of ids in one array."""
    return Ragged(np.concatenate([np.zeros(0, np.int32), *rows]), np.cumsum([0, *map(len, rows)]))


class DocumentTexts:
    """A corpus's documents, `[bos] title body [eos]`, every token of which is learned; see `data.packing.TextGroup`.

    A document longer than a row is learned as far as the row goes.
    """

    def __init__(self, pieces: DocumentPieces, form: PromptFormat, length: int):
        """Args:
        pieces: of the language model's tokenizer.
        form: whose special ids there are.
        length: tokens of a row.
        """
        self._pieces, self._form, self._length = pieces, form, length
        sizes = pieces.titles.lengths() + pieces.bodies.lengths()
        self._documents = np.flatnonzero(pieces.bodies.lengths() > 0)
        self.lengths: Int64[np.ndarray, "texts"] = np.minimum(sizes[self._documents] + 2, length).astype(np.int64)

    def text(self, number: int) -> Text:
        document = int(self._documents[number])
        bos, eos = (np.asarray([piece], np.int32) for piece in (self._form.bos, self._form.eos))
        whole = np.concatenate([bos, self._pieces.titles[document], self._pieces.bodies[document], eos])
        return Text(whole[: self._length], 0)


class RecallTexts:
    """`[bos] background excerpt [eos]`: a document in front of an excerpt of itself, which is learned but for its first `GIVEN` tokens.

    What is learned is to look back and go on as there, which large language models have from their text and a small one needs to be
    taught: without it no document can help. See `data.packing.TextGroup`.
    """

    GIVEN = 2
    EXCERPTS = 8
    """Of each document."""

    def __init__(self, pieces: DocumentPieces, form: PromptFormat, length: int, seed: int, longest: int = 32):
        """Args:
        pieces: of the language model's tokenizer.
        form: of the background.
        length: tokens of a row; the document is cut so that the excerpt fits.
        seed: of the excerpts.
        longest: tokens of an excerpt.

        Raises:
          ValueError: rows too short for that.
        """
        self._pieces, self._form = pieces, form
        body_lens = pieces.bodies.lengths()
        room = np.full(len(body_lens), length - 2 - min(longest, length // 2), np.int64)
        documents = np.flatnonzero(form.lengths(pieces.titles.lengths(), body_lens, room).bodies > self.GIVEN)
        if not len(documents):
            raise ValueError(
                f"no document has room before an excerpt of itself in a row of {length} tokens; use longer rows"
            )
        self._documents = np.repeat(documents, self.EXCERPTS)
        self._kept = form.lengths(
            pieces.titles.lengths(self._documents), body_lens[self._documents], room[self._documents]
        )
        rng = np.random.default_rng(seed)
        most = np.minimum(self._kept.bodies, min(longest, length // 2))
        sizes = np.minimum(most, rng.integers(self.GIVEN + 1, longest + 1, len(most)))
        self._starts = rng.integers(0, np.maximum(self._kept.bodies - sizes, 0) + 1)
        self._sizes = sizes
        self.lengths: Int64[np.ndarray, "texts"] = form.total(self._kept) + sizes + 2

    def text(self, number: int) -> Text:
        document, start, size = int(self._documents[number]), int(self._starts[number]), int(self._sizes[number])
        body = self._pieces.bodies[document][: int(self._kept.bodies[number])]
        background = self._form.background(self._pieces.titles[document][: int(self._kept.titles[number])], body)
        bos, eos = (np.asarray([piece], np.int32) for piece in (self._form.bos, self._form.eos))
        whole = np.concatenate([bos, background, body[start : start + size], eos])
        return Text(whole, 1 + len(background) + self.GIVEN)


class InstructionTexts:
    """Instructions, each once after each of its documents: `[bos] background prompt answer [eos]`, of which the answer and its end are
    learned (RA-DIT, arXiv:2310.01352, section 2.3); see `data.packing.TextGroup`.

    Where a row has no room, the document is cut or left out, never prompt or answer; an instruction that fits no row by itself is left
    out, and so is one without an answer in the tokenizer's pieces.

    Attributes:
      lengths: tokens of each text.
      num_too_long: instructions that fit no row.
      num_unanswered: instructions whose answer has no piece.
      num_cut: texts whose document is cut.
      num_without: texts whose document has no room, or no piece.
    """

    def __init__(
        self,
        examples: Sequence[InstructionExample],
        documents: Int64[np.ndarray, "examples num_documents"],
        pieces: DocumentPieces,
        tokenizer: GeneratorTokenizer,
        length: int,
    ):
        """Args:
        examples: the instructions.
        documents: of each, best first; negative: none. One without any stands by itself, once.
        pieces: of all documents.
        tokenizer: of the language model.
        length: tokens of a row.
        """
        self._pieces, self._form = pieces, PromptFormat.of(tokenizer)
        self._prompts, self._answers = encoded(examples, tokenizer)
        prompt_lens, answer_lens = self._prompts.lengths(), self._answers.lengths()
        room = length - 2 - prompt_lens - answer_lens
        self.num_too_long, self.num_unanswered = int((room < 0).sum()), int((answer_lens == 0).sum())
        usable = (room >= 0) & (answer_lens > 0)
        read = documents >= 0
        if documents.shape[1]:
            read[:, 0] |= ~read.any(axis=1)  # by itself
            self._rows, columns = np.nonzero(read & usable[:, None])
            self._documents = documents[self._rows, columns]
        else:
            self._rows = np.flatnonzero(usable)
            self._documents = np.full(len(self._rows), -1, np.int64)
        titles, bodies = (part.lengths(self._documents) for part in pieces)
        self._background = self._form.lengths(titles, bodies, room[self._rows])
        kept = self._background.titles + self._background.bodies
        wanted = self._documents >= 0
        self.num_cut = int((wanted & (kept > 0) & (kept < titles + bodies)).sum())
        self.num_without = int((wanted & (kept == 0)).sum())
        alone = np.flatnonzero(kept == 0)  # of one instruction all the same: once is enough
        again = np.setdiff1d(alone, alone[np.unique(self._rows[alone], return_index=True)[1]])
        left = np.setdiff1d(np.arange(len(self._rows)), again)
        self._rows, self._documents = self._rows[left], self._documents[left]
        self._background = BackgroundLengths(*(part[left] for part in self._background))
        own = 2 + prompt_lens + answer_lens
        self.lengths: Int64[np.ndarray, "texts"] = self._form.total(self._background) + own[self._rows]

    def text(self, number: int) -> Text:
        example, document = int(self._rows[number]), int(self._documents[number])
        title_len, body_len = (int(part[number]) for part in self._background)
        before = self._form.prompt(self._pieces, document, title_len, body_len, self._prompts[example])
        eos = np.asarray([self._form.eos], np.int32)
        return Text(np.concatenate([before, self._answers[example], eos]), len(before))


def encoded(examples: Sequence[InstructionExample], tokenizer: GeneratorTokenizer) -> tuple[Ragged, Ragged]:
    """Pieces of the prompts, and of the answers, which follow them after a space."""
    prompts = tokenizer.encode_batch([example.prompt for example in examples])
    answers = tokenizer.encode_batch([f" {example.answer}" for example in examples])
    return ragged_of([found.ids for found in prompts]), ragged_of([found.ids for found in answers])
