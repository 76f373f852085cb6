"""Corrupted documents and what they were: what BART learns from (Lewis et al. 2019, arXiv:1910.13461, section 2.2)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng
from realm_jax.data.rag import targets
from realm_jax.models import EncoderDecoderConfig


class DenoisingBatch(NamedTuple):
    """Documents with spans missing, and whole."""

    source_ids: Int32[np.ndarray, "batch source_len"]
    target_inputs: Int32[np.ndarray, "batch target_len"]
    targets: Int32[np.ndarray, "batch target_len"]
    target_mask: Bool[np.ndarray, "batch target_len"]


def infill(
    ids: Int32[np.ndarray, "length"], rng: np.random.Generator, mask_id: int, share: float, mean_span: float
) -> Int32[np.ndarray, "shorter"]:
    """Text infilling: spans of Poisson(mean_span) tokens, `share` of all in sum, each replaced by a single mask.

    A span of length 0 puts a mask between two tokens. What is left between masks keeps its order.
    """
    wanted = round(share * len(ids))
    hidden = np.zeros(len(ids), bool)
    begins = np.zeros(len(ids) + 1, bool)  # where a mask stands
    covered = 0
    for _ in range(4 * len(ids)):  # spans that would meet are drawn again; few do
        if covered >= wanted:
            break
        length = min(int(rng.poisson(mean_span)), wanted - covered) if wanted else 0
        start = int(rng.integers(0, len(ids) - length + 1))
        if hidden[max(0, start - 1) : start + length + 1].any() or begins[start : start + length + 1].any():
            continue
        hidden[start : start + length] = True
        begins[start] = True
        covered += length
    result = []
    for place, token in enumerate(ids.tolist()):
        if begins[place]:
            result.append(mask_id)
        if not hidden[place]:
            result.append(token)
    if begins[len(ids)]:
        result.append(mask_id)
    return np.asarray(result, np.int32)


class DenoisingExamples:
    """Documents in shuffled epochs, corrupted afresh each time: a pure function of (seed, step, row)."""

    def __init__(
        self,
        pieces: DocumentPieces,
        generator: EncoderDecoderConfig,
        mask_id: int,
        *,
        length: int,
        share: float,
        mean_span: float,
        seed: int,
    ):
        """Args:
        pieces: the documents.
        generator: whose special ids there are.
        mask_id: of its tokenizer.
        length: pieces of source and target, special ones included; a longer document gives a part of it, drawn each time.
        share: of the tokens that are hidden.
        mean_span: of the Poisson distribution of the spans' lengths.
        seed: of all draws.

        Raises:
          ValueError: there is no document with text.
        """
        self._bodies, self._generator, self._mask_id = pieces.bodies, generator, mask_id
        self._length, self._share, self._mean_span, self._seed = length, share, mean_span, seed
        self._usable = np.flatnonzero(pieces.bodies.lengths() > 0)
        self._order = ExampleOrder(len(self._usable), seed)

    def batch(self, step: int, batch_size: int, rows: slice) -> DenoisingBatch:
        """The given rows of the batch of a step."""
        positions = batch_positions(step, batch_size, rows)
        sources = np.full((len(positions), self._length), self._generator.pad_id, np.int32)
        whole = []
        for row, (position, number) in enumerate(zip(positions.tolist(), self._order(positions).tolist(), strict=True)):
            rng = example_rng(self._seed, position)
            ids = self._bodies[int(self._usable[number])]
            room = self._length - 3  # for the ends, and for a mask that hides nothing
            start = int(rng.integers(0, max(1, len(ids) - room + 1)))
            ids = ids[start : start + room]
            whole.append(ids)
            corrupted = infill(ids, rng, self._mask_id, self._share, self._mean_span)[: self._length - 2]
            source = [self._generator.bos_id, *corrupted.tolist(), self._generator.eos_id]
            sources[row, : len(source)] = source
        target = targets(whole, self._length, self._generator)
        return DenoisingBatch(sources, target.inputs, target.ids, target.mask)
