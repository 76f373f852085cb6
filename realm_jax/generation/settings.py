"""How to generate: the settings of a search or of sampling, and the token ids that mean something to it."""

import dataclasses
import math
from typing import Literal, NamedTuple

from realm_jax.typed import check_fields


class TokenIds(NamedTuple):
    """Ids with a meaning; those of BART where nothing else is said."""

    pad: int = 1
    bos: int = 0
    eos: int = 2
    decoder_start: int = 2  # the decoder's first input, never among the generated tokens
    forced_bos: int | None = None  # the first generated token, whatever the model says
    forced_eos: int | None = 2  # the last generated token of a hypothesis that reaches max_length


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Settings with the meaning that they have in transformers' `generate`; the defaults are those of the released RAG's evaluation but
    for `bos_after_bos`, which it rules out.

    Lengths count the decoder's start token, as there: at most `max_length - 1` tokens are generated.
    """

    num_beams: int = 4  # 1: greedy
    num_hypotheses: int = 1  # returned per question, best first; of samples: drawn per question
    max_length: int = 50
    min_length: int = 1  # before it the end of the sequence is not generated
    length_penalty: float = 1.0  # hypotheses compete by log-probability / length^length_penalty
    early_stopping: bool | Literal["never"] = False
    # True: stop with num_beams finished hypotheses. False: stop when the best open one, at its length, is no better than the
    # worst finished one. "never": stop when no open one can become better at any length up to max_length
    no_repeat_ngram_size: int = 0  # n-grams of this size are generated once at most; 0: no such rule
    bos_after_bos: bool = (
        True  # False: never two in a row, as in RAG's evaluation (bad_words_ids=[[0, 0]]); BART likes to
    )
    sample: bool = False  # draw tokens instead of searching
    seed: int = 0  # of the draws of the jobs; a function that generates is given a key
    temperature: float = 1.0
    top_k: int = 0  # draw among so many likeliest tokens; 0: among all
    top_p: float = 1.0  # draw among the likeliest tokens that have this probability together
    decoding: Literal["thorough", "fast"] = "thorough"  # of RAG-Sequence alone (Lewis et al. 2020, section 2.5)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (
            ("num_beams", 1), ("num_hypotheses", 1), ("max_length", 2), ("min_length", 0), ("no_repeat_ngram_size", 0),
            ("top_k", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"GenerationConfig.{name} must be at least {least}, got {getattr(self, name)}")
        if self.min_length > self.max_length:
            raise ValueError(
                f"GenerationConfig.min_length must be at most max_length={self.max_length}, got {self.min_length}"
            )
        if not self.sample and self.num_hypotheses > self.num_beams:
            raise ValueError(
                f"GenerationConfig.num_hypotheses: expected at most num_beams={self.num_beams}, "
                f"got {self.num_hypotheses}; search with more beams"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"GenerationConfig.length_penalty must be finite, got {self.length_penalty}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"GenerationConfig.temperature must be above 0, got {self.temperature}; for the likeliest tokens use "
                "sample=False"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"GenerationConfig.top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def target_len(self) -> int:
        """The most tokens that are generated."""
        return self.max_length - 1

    @property
    def num_found(self) -> int:
        """Hypotheses of one source before any are put together: of all beams, or all that are drawn."""
        return self.num_hypotheses if self.sample else self.num_beams
