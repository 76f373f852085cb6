"""A small RAG: DPR's encoder and BART with random parameters, and both tokenizers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.convert import Model
from realm_jax.models import EncoderDecoder, Retriever
from realm_jax.text.word_piece import WordPieceTokenizer
from tests import tiny
from tests.convert.made import VOCAB
from tests.text.made_bpe import byte_level_tokenizer, vocabulary

GENERATOR = tiny.encoder_decoder(vocab_size=len(vocabulary()) + 2, forced_bos_id=0)
RETRIEVER = tiny.retriever(encoder=tiny.encoder(vocab_size=40), projection_size=None, score_scale=1.0)


def random_params(module: Any, seed: int) -> dict[str, Any]:
    ids = jnp.ones((1, 4), jnp.int32)
    inputs = (ids, ids > 0, ids) if isinstance(module, EncoderDecoder) else (ids, ids * 0, ids > 0)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def made(*, retriever: bool = True, generator: bool = True, seed: int = 0, tied: bool = True) -> Model:
    learners: dict[str, Any] = {}
    config = dataclasses.replace(RETRIEVER, tied=tied)
    if retriever:
        learners |= {"retriever": config, "tokenizer": WordPieceTokenizer(VOCAB)}
    if generator:
        learners |= {"generator": GENERATOR, "generator_tokenizer": byte_level_tokenizer()}
    params = {
        "retriever": random_params(Retriever(config), seed),
        "generator": random_params(EncoderDecoder(GENERATOR), seed + 1),
    }
    return Model({name: value for name, value in params.items() if name in learners}, **learners)
