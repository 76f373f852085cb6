"""A model on its way in or out: learners with their configurations, and what its file held beside them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from realm_jax.models import (
    EncoderDecoderConfig,
    LanguageModelConfig,
    RetrieverConfig,
    SpanReaderConfig,
    TransformerConfig,
)
from realm_jax.text.byte_level import ByteLevelTokenizer
from realm_jax.text.llama_tokenizer import LlamaTokenizer
from realm_jax.text.word_piece import WordPieceTokenizer

OfGenerator = ByteLevelTokenizer | WordPieceTokenizer | LlamaTokenizer
"""Kinds of tokenizers that a generator or a language model reads the pieces of."""
WeightsDtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class Model:
    """Learners with their configurations, as a task takes them, and what a file held beside them.

    Attributes:
      params: by learner: `retriever`, `knowledge_encoder`, `span_reader`, `generator`, `language_model`; float32, in numpy but for a
        language model just read, which is spread over the devices.
      retriever, knowledge_encoder, span_reader, generator, language_model: configurations of the learners that are there.
      architecture: the class that the weights were saved from; empty for a model of this project.
      settings: config.json, as it was.
      unused: tensors that the class has and nothing here computes with; written back into the same class.
      block_embeds: RealmForOpenQA's embeddings of its documents, [num_documents, embed].
      tokenizer: the WordPiece of vocab.txt, where there was one; the question encoder's of a RAG.
      generator_tokenizer: the generator's or the language model's, where there was one.
      generation: generation_config.json, as it was, where there was one; written back beside a generator or a language model.
      max_seq_length: pieces at which a sentence-transformers folder says to cut texts, where it does; written back into one.
    """

    params: Mapping[str, Any]
    retriever: RetrieverConfig | None = None
    knowledge_encoder: TransformerConfig | None = None
    span_reader: SpanReaderConfig | None = None
    generator: EncoderDecoderConfig | None = None
    language_model: LanguageModelConfig | None = None
    architecture: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    block_embeds: np.ndarray | None = None
    tokenizer: WordPieceTokenizer | None = None
    generator_tokenizer: OfGenerator | None = None
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_seq_length: int | None = None
