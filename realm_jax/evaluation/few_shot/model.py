"""What the evaluation asks of a language model that retrieves; the class of the project is in `realm_jax.answering.ensemble`."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from realm_jax.text.generator_tokenizer import GeneratorTokenizer


@runtime_checkable
class ScoredContinuation(Protocol):
    """How likely a continuation is after its prompt."""

    @property
    def log_prob(self) -> float:
        """Natural logarithm of its probability, summed over its tokens."""
        ...

    @property
    def is_greedy(self) -> bool:
        """Whether each of its tokens is the likeliest after those before."""
        ...

    @property
    def num_tokens(self) -> int: ...


@runtime_checkable
class AugmentedModel(Protocol):
    """A decoder that reads retrieved documents before a prompt, and mixes over them by p_R(c|query).

    A model that has less room than a document, a prompt and a continuation need cuts the document, and nothing else.
    """

    @property
    def max_length(self) -> int:
        """Positions of prompt and continuation together, the token at the beginning included."""
        ...

    @property
    def tokenizer(self) -> GeneratorTokenizer: ...

    @property
    def counts(self) -> Mapping[str, int]:
        """How often something had to be cut since the model was made, by cause."""
        ...

    def log_likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[str], queries: Sequence[str] | None = None
    ) -> Sequence[ScoredContinuation]:
        """Scores each continuation after its prompt; it is written as it is, with the space that it may begin with.

        Args:
          prompts: each with a continuation.
          continuations: as many.
          queries: as many, what the retriever is asked; "" of one, and None of all, for no documents.
        """
        ...

    def generate(
        self, prompts: Sequence[str], queries: Sequence[str] | None = None, *, max_tokens: int, stop: Sequence[str] = ()
    ) -> Sequence[str]:
        """What the model writes after each prompt, at most `max_tokens` tokens, up to one of the texts in `stop`."""
        ...

    def rolling_log_likelihoods(self, texts: Sequence[str]) -> Sequence[float]:
        """Natural logarithm of the probability of each whole text, without documents."""
        ...
