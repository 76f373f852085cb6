"""Masked sentences beside the rest of their own document: on these a reader learns to look its answers up."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, pair_inputs
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng


class OwnDocumentBatch(NamedTuple):
    """Some rows of a batch."""

    joint: Inputs  # [CLS] masked sentences [SEP] the other sentences of the document [SEP]
    mask_positions: Int32[np.ndarray, "batch num_masks"]
    mask_targets: Int32[np.ndarray, "batch num_masks"]
    mask_weights: Float32[np.ndarray, "batch num_masks"]


class OwnDocumentExamples:
    """Draws a document, takes some of its sentences out, and masks in each a salient span that the rest repeats.

    A span that stands in no other sentence cannot be looked up; it is masked only where a document has no better one.
    For the first `short_steps` steps the examples are easy: one sentence, and few other sentences beside those that hold
    the answer. Copying is learned from these first, and the whole document afterwards.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        joint_len: int,
        max_masks: int,
        max_sentences: int,
        short_steps: int,
        short_sentences: int,
        seed: int,
    ):
        self.corpus = corpus
        self.special = SpecialIds.of(corpus.tokenizer)
        self.joint_len, self.max_masks, self.max_sentences = joint_len, max_masks, max_sentences
        self.short_steps, self.short_sentences, self.seed = short_steps, short_sentences, seed
        self.usable = np.flatnonzero((corpus.salient_spans.lengths() > 0) & (corpus.sentence_ends.lengths() > 1))
        if not len(self.usable):
            raise ValueError(
                "no document of the corpus has two sentences and a salient span, so a reader can look nothing up in it; "
                "build the corpus with longer blocks or another tagger"
            )
        self.order = ExampleOrder(len(self.usable), seed)

    def batch(self, step: int, batch_size: int, rows: slice) -> OwnDocumentBatch:
        """The given rows of the batch of a step: a pure function of (seed, step, row)."""
        positions = batch_positions(step, batch_size, rows)
        short = step < self.short_steps
        masked, rests = [], []
        mask_positions, targets = np.zeros((2, len(positions), self.max_masks), np.int32)
        weights = np.zeros((len(positions), self.max_masks), np.float32)
        for row, document_id in enumerate(self.usable[self.order(positions)]):
            rng = example_rng(self.seed, int(positions[row]))
            sentences, where, rest = self._take_out(int(document_id), rng, short)
            # a mask beyond the row's end would point at nothing
            where = where[where + 1 < self.joint_len - 2][: self.max_masks]
            mask_positions[row, : len(where)] = where + 1
            targets[row, : len(where)] = sentences[where]
            weights[row, : len(where)] = 1.0
            sentences = sentences.copy()
            sentences[where] = self.special.mask
            masked.append(sentences)
            rests.append(rest)
        return OwnDocumentBatch(
            pair_inputs(masked, rests, self.joint_len, self.special), mask_positions, targets, weights
        )

    def _take_out(
        self, document_id: int, rng: np.random.Generator, short: bool
    ) -> tuple[Int32[np.ndarray, "length"], Int32[np.ndarray, "num_masks"], Int32[np.ndarray, "rest"]]:
        """(the sentences taken out, positions to mask in them, the sentences left)."""
        body = np.asarray(self.corpus.bodies[document_id], np.int32)
        ends = np.asarray(self.corpus.sentence_ends[document_id])
        starts = np.concatenate([[0], ends[:-1]])
        spans = np.asarray(self.corpus.salient_spans[document_id], np.int32).reshape(-1, 2)
        holder = np.minimum(np.searchsorted(ends, spans[:, 0], side="right"), len(ends) - 1)
        keys = [tuple(body[start:end]) for start, end in spans]
        repeated = [
            index
            for index, key in enumerate(keys)
            if any(other == key and holder[j] != holder[index] for j, other in enumerate(keys))
        ]
        wanted = 1 if short else int(rng.integers(1, self.max_sentences + 1))
        chosen = self._choose(rng.permutation(repeated or np.arange(len(spans))), keys, holder, wanted)
        taken = [int(holder[index]) for index in chosen]
        left = [number for number in range(len(ends)) if number not in taken]
        if short:
            answers = {keys[index] for index in chosen}
            needed = {int(holder[j]) for j, key in enumerate(keys) if key in answers} - set(taken)
            others = rng.permutation([number for number in left if number not in needed])
            left = sorted([*needed, *others[: max(0, self.short_sentences - len(needed))].tolist()])
        pieces: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        length = 0
        for index, number in zip(chosen, taken, strict=True):
            span = np.arange(*spans[index], dtype=np.int32) - starts[number] + length
            masks.append(span)
            pieces.append(body[starts[number] : ends[number]])
            length += len(pieces[-1])
        rest = [body[starts[number] : ends[number]] for number in left]
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
