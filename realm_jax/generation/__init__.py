"""Generating text: searches and sampling over a next-token function, and RAG's marginals over documents.

Functions of arrays, made to be jitted; no file, no gin, no corpus, no tokenizer.
"""

from realm_jax.generation.beam_search import Found, Hypotheses, Prediction, beam_search, first
from realm_jax.generation.sampling import sample
from realm_jax.generation.settings import GenerationConfig, TokenIds

__all__ = [
    "Found",
    "GenerationConfig",
    "Hypotheses",
    "Prediction",
    "TokenIds",
    "beam_search",
    "first",
    "sample",
]
