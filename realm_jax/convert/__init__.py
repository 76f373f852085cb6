"""Weights in from elsewhere and out again: see docs/weights.md."""

from realm_jax.convert.hugging_face import ARCHITECTURES, Model, load_hugging_face, save_hugging_face

__all__ = ["ARCHITECTURES", "Model", "load_hugging_face", "save_hugging_face"]
