"""Masked sentences beside the rest of their own document: on these a reader learns to look its answers up."""

import dataclasses
import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, pair_inputs
from realm_jax.data.maskable import is_maskable, listed, maskable_documents
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)


class OwnDocumentBatch(NamedTuple):
    """Some rows of a batch."""

    joint: Inputs  # [CLS] masked sentences [SEP] the other sentences of the document [SEP]
    mask_positions: Int32[np.ndarray, "batch num_masks"]
    mask_targets: Int32[np.ndarray, "batch num_masks"]
    mask_weights: Float32[np.ndarray, "batch num_masks"]


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A part of the curriculum: up to which step, and how hard its examples are.

    Attributes:
      until_step: the lesson ends before this step; the last lesson goes on to the end of the run.
      joint_len: pieces of a row.
      max_sentences: sentences taken out of a document at once.
      window: of the rest of the document only this many pieces at most on either side of one recurrence of the masked
        span; none: the whole rest.
    """

    until_step: int
    joint_len: int
    max_sentences: int = 1
    window: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.joint_len < 16 or self.max_sentences < 1 or (self.window is not None and self.window < 1):
            raise ValueError("Lesson: joint_len must be at least 16, max_sentences and window at least 1")
        if self.window is not None and self.max_sentences != 1:
            raise ValueError("Lesson.window goes with max_sentences=1: it is laid around the answer of one sentence")


class OwnDocumentExamples:
    """Draws a document, takes some of its sentences out, and masks in each a salient span that the rest repeats.

    A span that stands in no other sentence cannot be looked up: documents that have no other are left out.
    From random parameters, copying out of a whole document is learned very late. It is learned at once where the rest is
    cut to a few pieces around the answer, and grows from there: hence the lessons. While the window is small the masked
    sentence is cut to the pieces around its mask as well.

    Every row has a mask, and no mask is lost at the end of a row: drawn from are documents with two sentences and a
    salient span that lies within a sentence, has at most `max_masks` pieces and fits in a row of the shortest lesson; a
    sentence longer than the row is cut to the pieces around its mask; a further sentence is taken out only if it fits in
    the row beside those before.

    Attributes:
      usable: the documents drawn from, ascending.
      left_out: how many of the corpus's documents are not, by cause.
    """

    def __init__(self, corpus: Corpus, *, lessons: tuple[Lesson, ...], max_masks: int, seed: int):
        self.corpus = corpus
        self.special = SpecialIds.of(corpus.tokenizer)
        self.lessons, self.max_masks, self.seed = lessons, max_masks, seed
        self._longest = min(max_masks, *(_room(lesson) for lesson in lessons))
        self.usable, self.left_out = maskable_documents(corpus, self._longest, min_sentences=2, repeated=True)
        if not len(self.usable):
            logger.warning(
                "%s: no document repeats a salient span; the reader learns to guess, not to look up", corpus.directory
            )
            self.usable, self.left_out = maskable_documents(corpus, self._longest, min_sentences=2)
        if not len(self.usable):
            raise ValueError(
                "no document of the corpus has two sentences and a salient span to mask, so a reader can look nothing up "
                f"in it ({listed(self.left_out)}); build the corpus with longer blocks or another tagger, or raise max_masks"
            )
        if self.left_out:
            logger.info("%s: nothing is masked in %s", corpus.directory, listed(self.left_out))
        self.order = ExampleOrder(len(self.usable), seed)

    def lesson(self, step: int) -> Lesson:
        """The lesson of a step."""
        return next((lesson for lesson in self.lessons if step < lesson.until_step), self.lessons[-1])

    def batch(self, step: int, batch_size: int, rows: slice) -> OwnDocumentBatch:
        """The given rows of the batch of a step: a pure function of (seed, step, row)."""
        lesson = self.lesson(step)
        positions = batch_positions(step, batch_size, rows)
        masked, rests = [], []
        mask_positions, targets = np.zeros((2, len(positions), self.max_masks), np.int32)
        weights = np.zeros((len(positions), self.max_masks), np.float32)
        for row, document_id in enumerate(self.usable[self.order(positions)]):
            rng = example_rng(self.seed, int(positions[row]))
            sentences, where, rest = self._take_out(int(document_id), rng, lesson)
            if lesson.window is not None:
                sentences, where, rest = _cut_around(sentences, where, rest, lesson.window, rng)
            sentences, where = _cut_to_row(sentences, where, _room(lesson))
            mask_positions[row, : len(where)] = where + 1
            targets[row, : len(where)] = sentences[where]
            weights[row, : len(where)] = 1.0
            sentences = sentences.copy()
            sentences[where] = self.special.mask
            masked.append(sentences)
            rests.append(rest)
        joint = pair_inputs(masked, rests, lesson.joint_len, self.special)
        return OwnDocumentBatch(joint, mask_positions, targets, weights)

    def _take_out(
        self, document_id: int, rng: np.random.Generator, lesson: Lesson
    ) -> tuple[Int32[np.ndarray, "length"], Int32[np.ndarray, "num_masks"], Int32[np.ndarray, "rest"]]:
        """(the sentences taken out, positions to mask in them, the sentences left)."""
        body = np.asarray(self.corpus.bodies[document_id], np.int32)
        title = set(np.asarray(self.corpus.titles[document_id]).tolist())
        ends = np.asarray(self.corpus.sentence_ends[document_id])
        starts = np.concatenate([[0], ends[:-1]])
        spans = np.asarray(self.corpus.salient_spans[document_id], np.int32).reshape(-1, 2)
        spans = spans[is_maskable(spans, ends, self._longest)]
        holder = np.searchsorted(ends, spans[:, 0], side="right")
        keys = [tuple(body[start:end].tolist()) for start, end in spans]
        repeated = [
            index
            for index, key in enumerate(keys)
            if any(other == key and holder[j] != holder[index] for j, other in enumerate(keys))
        ]
        worth_asking = [index for index in repeated if not set(keys[index]) <= title]  # the subject is no question
        order = rng.permutation(worth_asking or repeated or np.arange(len(spans)))
        wanted = int(rng.integers(1, lesson.max_sentences + 1))
        chosen = self._choose(order, keys, holder, (ends - starts)[holder], wanted, _room(lesson))
        taken = [int(holder[index]) for index in chosen]
        pieces: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        length = 0
        for index, number in zip(chosen, taken, strict=True):
            masks.append(np.arange(*spans[index], dtype=np.int32) - int(starts[number]) + length)
            pieces.append(body[starts[number] : ends[number]])
            length += len(pieces[-1])
        rest = [body[starts[number] : ends[number]] for number in range(len(ends)) if number not in taken]
        return np.concatenate(pieces), np.concatenate(masks), np.concatenate([np.zeros(0, np.int32), *rest])

    def _choose(
        self,
        order: np.ndarray,
        keys: list[tuple[int, ...]],
        holder: np.ndarray,
        sentence_lengths: np.ndarray,
        wanted: int,
        room: int,
    ) -> list[int]:
        """Up to `wanted` spans of different sentences with different answers, within the room for pieces and masks."""
        chosen: list[int] = []
        masks_left = self.max_masks
        for index in order.tolist():
            fresh = all(keys[index] != keys[c] and holder[index] != holder[c] for c in chosen)
            fits = len(keys[index]) <= masks_left and sentence_lengths[index] <= room
            if fresh and (fits or not chosen):
                chosen.append(index)
                masks_left -= len(keys[index])
                room -= int(sentence_lengths[index])
            if len(chosen) == wanted:
                break
        return chosen


def _room(lesson: Lesson) -> int:
    """Pieces of a row that are neither [CLS] nor [SEP]."""
    return lesson.joint_len - 3


def _cut_to_row(
    sentences: Int32[np.ndarray, "length"], where: Int32[np.ndarray, "num_masks"], room: int
) -> tuple[Int32[np.ndarray, "kept"], Int32[np.ndarray, "num_masks"]]:
    """Cuts a sentence that is longer than a row to the pieces around its mask; several sentences always fit."""
    if len(sentences) <= room:
        return sentences, where
    middle = (int(where[0]) + int(where[-1]) + 1) // 2
    start = min(max(0, middle - room // 2), len(sentences) - room)
    return sentences[start : start + room], where - start


def _cut_around(
    sentence: Int32[np.ndarray, "length"],
    where: Int32[np.ndarray, "num_masks"],
    rest: Int32[np.ndarray, "rest"],
    window: int,
    rng: np.random.Generator,
) -> tuple[Int32[np.ndarray, "kept"], Int32[np.ndarray, "num_masks"], Int32[np.ndarray, "around"]]:
    """Cuts the sentence to the pieces around its mask, and the rest to those around one recurrence of the answer.

    How many are kept on either side of the answer is drawn anew, so that its place tells nothing.
    """
    answer = sentence[where]
    around_mask = max(6, window // 2)
    start = max(0, int(where[0]) - around_mask)
    sentence, where = sentence[start : int(where[-1]) + 1 + around_mask], where - start
    starts = [i for i in range(len(rest) - len(answer) + 1) if np.array_equal(rest[i : i + len(answer)], answer)]
    if not starts:
        return sentence, where, rest[: 2 * window + len(answer)]
    place = starts[int(rng.integers(len(starts)))]
    left, right = rng.integers(0, int(rng.integers(1, window + 1)) + 1, size=2).tolist()
    return sentence, where, rest[max(0, place - 1 - left) : place + len(answer) + right]
