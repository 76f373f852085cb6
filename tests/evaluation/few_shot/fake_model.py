"""A model that answers what it is told to, and remembers what it was asked."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from tests import tiny


class Scored(NamedTuple):
    log_prob: float
    is_greedy: bool
    num_tokens: int


@dataclasses.dataclass
class FakeModel:
    """Each word is a token; `likes` scores (prompt, continuation, query), `writes` answers (prompt, query).

    It cuts a background whenever the query is "long".
    """

    likes: Callable[[str, str, str | None], float] = lambda prompt, continuation, query: -1.0
    writes: Callable[[str, str | None], str] = lambda prompt, query: ""
    max_length: int = 2048
    asked: list[Any] = dataclasses.field(default_factory=list)  # (prompt, continuation or settings, query)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    def __post_init__(self):
        self.tokenizer = as_generator_tokenizer(tiny.tokenizer())

    def log_likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[str], queries: Sequence[str] | None = None
    ) -> list[Scored]:
        rows = list(zip(prompts, continuations, queries or [None] * len(prompts), strict=True))
        self.asked += rows
        self.counts.update("backgrounds cut" for _, _, query in rows if query == "long")
        return [Scored(score, score == 0.0, 1) for score in (self.likes(*row) for row in rows)]

    def generate(
        self, prompts: Sequence[str], queries: Sequence[str] | None = None, *, max_tokens: int, stop: Sequence[str] = ()
    ) -> list[str]:
        rows = list(zip(prompts, queries or [None] * len(prompts), strict=True))
        self.asked += [(prompt, (max_tokens, tuple(stop)), query) for prompt, query in rows]
        return [self.writes(*row) for row in rows]

    def rolling_log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        self.asked += [(text, None, None) for text in texts]
        return [-float(len(text.split())) for text in texts]
