"""What is masked of a sentence: a salient span (REALM), a random span, or single pieces at random (BERT)."""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How a sentence is masked. REALM's Table 2 compares the three kinds."""

    kind: Literal["salient", "random_span", "uniform"] = "salient"
    max_masks: int = 10  # masked pieces an example; a longer salient span is never chosen
    uniform_rate: float = 0.15  # share of pieces masked by "uniform"
    mean_span_pieces: float = 3.0  # of "random_span", geometric (Joshi et al. 2020, arXiv:1907.10529)
    spans_per_sentence: int = 1  # salient spans masked at once

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_masks < 1 or self.spans_per_sentence < 1:
            raise ValueError("MaskingConfig.max_masks and spans_per_sentence must be at least 1")
        if not 0 < self.uniform_rate < 1:
            raise ValueError(f"MaskingConfig.uniform_rate must lie between 0 and 1, got {self.uniform_rate}")
        if self.mean_span_pieces < 1:
            raise ValueError(f"MaskingConfig.mean_span_pieces must be at least 1, got {self.mean_span_pieces}")


class Sentence(NamedTuple):
    """A sentence to mask: its pieces and the salient spans within it, as half-open piece ranges."""

    pieces: Int32[np.ndarray, "length"]
    salient_spans: Int32[np.ndarray, "num_spans 2"]


def choose_masks(sentence: Sentence, config: MaskingConfig, rng: np.random.Generator) -> Int32[np.ndarray, "num_masks"]:
    """Positions to mask, ascending; empty where the kind finds nothing to mask."""
    return _KINDS[config.kind](sentence, config, rng)


def _salient(sentence: Sentence, config: MaskingConfig, rng: np.random.Generator) -> Int32[np.ndarray, "num_masks"]:
    chosen: list[np.ndarray] = []
    budget = config.max_masks
    for index in rng.permutation(len(sentence.salient_spans)):
        start, end = sentence.salient_spans[index]
        if len(chosen) < config.spans_per_sentence and 0 < end - start <= budget:
            chosen.append(np.arange(start, end, dtype=np.int32))
            budget -= int(end - start)
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int32)


def _random_span(sentence: Sentence, config: MaskingConfig, rng: np.random.Generator) -> Int32[np.ndarray, "num_masks"]:
    length = min(int(rng.geometric(1 / config.mean_span_pieces)), config.max_masks, len(sentence.pieces))
    start = int(rng.integers(0, len(sentence.pieces) - length + 1))
    return np.arange(start, start + length, dtype=np.int32)


def _uniform(sentence: Sentence, config: MaskingConfig, rng: np.random.Generator) -> Int32[np.ndarray, "num_masks"]:
    length = len(sentence.pieces)
    count = min(max(1, round(length * config.uniform_rate)), config.max_masks, length)
    return np.sort(rng.choice(length, size=count, replace=False)).astype(np.int32)


_KINDS = {"salient": _salient, "random_span": _random_span, "uniform": _uniform}
