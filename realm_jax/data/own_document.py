"""Masked sentences beside the rest of their own document: on these a reader learns to look its answers up."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, pair_inputs
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng
from realm_jax.typed import check_fields


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

    A span that stands in no other sentence cannot be looked up; it is masked only where a document has no better one.
    From random parameters, copying out of a whole document is learned very late. It is learned at once where the rest is
    cut to a few pieces around the answer, and grows from there: hence the lessons. While the window is small the masked
    sentence is cut to the pieces around its mask as well.
    """

    def __init__(self, corpus: Corpus, *, lessons: tuple[Lesson, ...], max_masks: int, seed: int):
        self.corpus = corpus
        self.special = SpecialIds.of(corpus.tokenizer)
        self.lessons, self.max_masks, self.seed = lessons, max_masks, seed
        self.usable = np.flatnonzero((corpus.salient_spans.lengths() > 0) & (corpus.sentence_ends.lengths() > 1))
        if not len(self.usable):
            raise ValueError(
                "no document of the corpus has two sentences and a salient span, so a reader can look nothing up in it; "
                "build the corpus with longer blocks or another tagger"
            )
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
            sentences, where, rest = self._take_out(int(document_id), rng, lesson.max_sentences)
            if lesson.window is not None:
                sentences, where, rest = _cut_around(sentences, where, rest, lesson.window, rng)
            # a mask beyond the row's end would point at nothing
            where = where[where < lesson.joint_len - 3][: self.max_masks]
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
        self, document_id: int, rng: np.random.Generator, max_sentences: int
    ) -> tuple[Int32[np.ndarray, "length"], Int32[np.ndarray, "num_masks"], Int32[np.ndarray, "rest"]]:
        """(the sentences taken out, positions to mask in them, the sentences left)."""
        body = np.asarray(self.corpus.bodies[document_id], np.int32)
        title = set(np.asarray(self.corpus.titles[document_id]).tolist())
        ends = np.asarray(self.corpus.sentence_ends[document_id])
        starts = np.concatenate([[0], ends[:-1]])
        spans = np.asarray(self.corpus.salient_spans[document_id], np.int32).reshape(-1, 2)
        holder = np.minimum(np.searchsorted(ends, spans[:, 0], side="right"), len(ends) - 1)
        keys = [tuple(body[start:end].tolist()) for start, end in spans]
        repeated = [
            index
            for index, key in enumerate(keys)
            if any(other == key and holder[j] != holder[index] for j, other in enumerate(keys))
        ]
        worth_asking = [index for index in repeated if not set(keys[index]) <= title]  # the subject is no question
        order = rng.permutation(worth_asking or repeated or np.arange(len(spans)))
        chosen = self._choose(order, keys, holder, int(rng.integers(1, max_sentences + 1)))
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

    def _choose(self, order: np.ndarray, keys: list[tuple[int, ...]], holder: np.ndarray, wanted: int) -> list[int]:
        """Up to `wanted` spans of different sentences with different answers, within the room for masks."""
        chosen: list[int] = []
        room = self.max_masks
        for index in order.tolist():
            fresh = all(keys[index] != keys[c] and holder[index] != holder[c] for c in chosen)
            if fresh and (len(keys[index]) <= room or not chosen):
                chosen.append(index)
                room -= len(keys[index])
            if len(chosen) == wanted:
                break
        return chosen


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
