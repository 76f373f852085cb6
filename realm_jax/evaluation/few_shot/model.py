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

    A model that has less room than a document, a prompt and a continuation need cuts the document. Where prompt and continuation alone
    are too long it cuts the prompt's beginning, and a continuation never.
    """

    @property
    def max_length(self) -> int:
        """The most tokens of background, prompt and continuation together, the token at the beginning included, and the last one,
        though nothing is read after it. So a continuation, judged or written, has at most `max_length - 1`."""
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

        Raises:
          ValueError: a continuation of more than `max_length - 1` tokens.
        """
        ...

    def generate(
        self, prompts: Sequence[str], queries: Sequence[str] | None = None, *, max_tokens: int, stop: Sequence[str] = ()
    ) -> Sequence[str]:
        """What the model writes after each prompt, at most `max_tokens` tokens, up to one of the texts in `stop`.

        Raises:
          ValueError: `max_tokens` below 1, or above `max_length - 1`.
        """
        ...

    def rolling_log_likelihoods(self, texts: Sequence[str]) -> Sequence[float]:
        """Natural logarithm of the probability of each whole text, without documents; of one that is longer than the model reads, in
        parts, each token once."""
        ...
