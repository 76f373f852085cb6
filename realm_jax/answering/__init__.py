"""Questions to answers: what `evaluate`, `predict` and the page have in common."""

from realm_jax.answering.answer import Answer, Span, WeighedDocument
from realm_jax.answering.answerer import Answerer

__all__ = ["Answer", "Answerer", "Span", "WeighedDocument"]
