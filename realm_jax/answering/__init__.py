"""Questions to answers: what `evaluate`, `predict` and the page have in common."""

from realm_jax.answering.answerer import Answer, Answerer, Span, WeighedDocument

__all__ = ["Answer", "Answerer", "Span", "WeighedDocument"]
