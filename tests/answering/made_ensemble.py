"""A language model that retrieves, of random weights, and what it finds likely, read whole."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.answering.documents import CorpusDocuments
from realm_jax.answering.ensemble import RetrievalAugmentedLm
from realm_jax.answering.likelihoods import LikelihoodJudge
from realm_jax.answering.retrieving import RetrievingAnswerer
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.models import LanguageModel, LanguageModelConfig, Retriever
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.text.generator_tokenizer import GeneratorTokenizer, as_generator_tokenizer
from realm_jax.training.sharding import MeshConfig
from tests import tiny


class Parts(NamedTuple):
    """Of a pair."""

    corpus: Corpus
    tokenizer: GeneratorTokenizer
    config: LanguageModelConfig
    params: Any
    finder: RetrievingAnswerer


def made_parts(directory: Path) -> Parts:
    """A corpus with a random retriever's index, its pieces, and a random language model of 64 positions."""
    corpus = make_corpus(directory / "corpus", tiny.blocks(), tiny.tokenizer())
    tokenizer = as_generator_tokenizer(corpus.tokenizer)
    config = tiny.language_model(
        vocab_size=tokenizer.vocab_size, num_layers=1, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=0
    )
    ids = jnp.ones((1, 8), jnp.int32)
    params = LanguageModel(config).init(jax.random.key(0), ids, ids)["params"]
    retriever = tiny.retriever()
    of_retriever = Retriever(retriever).init(jax.random.key(1), ids, ids * 0, ids > 0)["params"]
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((corpus.num_documents, retriever.embed_dim)).astype(np.float32)
    finder = RetrievingAnswerer(
        CorpusDocuments(corpus), ExactIndex(embeds), retriever, of_retriever, query_len=12, document_len=24, num_read=3
    )
    return Parts(corpus, tokenizer, config, params, finder)


def made_model(parts: Parts, **changes: Any) -> RetrievalAugmentedLm:
    """The pair of these parts, three documents a query; `changes` of its settings."""
    judge = LikelihoodJudge(parts.config, parts.params, mesh=MeshConfig(), tokens_at_once=1024)
    pieces = open_pieces(parts.corpus, parts.tokenizer)
    return RetrievalAugmentedLm(judge, parts.tokenizer, parts.finder, pieces, **{"num_documents": 3, **changes})


@functools.lru_cache
def _reader(config: LanguageModelConfig) -> Any:
    return jax.jit(lambda params, ids, segments: LanguageModel(config).apply({"params": params}, ids, segments))


def log_probs_after(parts: Parts, context: list[int], continuation: list[int]) -> np.ndarray:
    """log p of every token at each place of the continuation, the whole text being read at once: [len + 1, vocab]."""
    config = parts.config
    ids = np.zeros((1, config.max_length), np.int32)
    whole = [*context, *continuation]
    ids[0, : len(whole)] = whole
    segments = (np.arange(config.max_length) < len(whole)).astype(np.int32)[None]
    logits = np.asarray(_reader(config)(parts.params, jnp.asarray(ids), jnp.asarray(segments)))[0].astype(np.float64)
    at = logits[len(context) - 1 : len(whole)]
    return at - np.logaddexp.reduce(at, axis=-1, keepdims=True)


def log_prob(parts: Parts, context: list[int], continuation: list[int]) -> float:
    steps = log_probs_after(parts, context, continuation)
    return float(sum(steps[place, token] for place, token in enumerate(continuation)))


def greedy(parts: Parts, context: list[int], num_tokens: int) -> list[int]:
    """What is likeliest token by token, up to the end of text or so many tokens."""
    found: list[int] = []
    while len(found) < num_tokens and (not found or found[-1] != parts.tokenizer.eos_id):
        found.append(int(log_probs_after(parts, context, found)[-1].argmax()))
    return found
