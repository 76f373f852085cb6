"""Flax linen modules over frozen config dataclasses. No loss, no optimizer, no tokenizer, no file, no gin."""

from realm_jax.models.decoder import DecoderCache, Memory, source_attention_flops
from realm_jax.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, decoder_flops, empty_cache
from realm_jax.models.knowledge_encoder import KnowledgeEncoder
from realm_jax.models.language_model import (
    LanguageModel,
    LanguageModelConfig,
    Prompt,
    check_heads,
    empty_continuation,
    language_model_flops,
)
from realm_jax.models.lora import LoraConfig, merge_lora
from realm_jax.models.retriever import Retriever, RetrieverConfig
from realm_jax.models.rotary import RotaryConfig
from realm_jax.models.span_reader import SpanReader, SpanReaderConfig, span_bounds
from realm_jax.models.transformer import Transformer, TransformerConfig, forward_flops

__all__ = [
    "DecoderCache",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "KnowledgeEncoder",
    "LanguageModel",
    "LanguageModelConfig",
    "LoraConfig",
    "Memory",
    "Prompt",
    "Retriever",
    "RetrieverConfig",
    "RotaryConfig",
    "SpanReader",
    "SpanReaderConfig",
    "Transformer",
    "TransformerConfig",
    "check_heads",
    "decoder_flops",
    "empty_cache",
    "empty_continuation",
    "forward_flops",
    "language_model_flops",
    "merge_lora",
    "source_attention_flops",
    "span_bounds",
]
