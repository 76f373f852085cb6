"""A small encyclopedia, and models whose every parameter is set by hand so that they answer "where" questions on it.

The retriever embeds a text as its bag of known words, at unit length: a score is `SCALE` times the cosine of two bags. The
reader scores a span by how many of its ends are a place. Words that the vocabulary does not know count for nothing.
"""

from pathlib import Path

import jax
import numpy as np

from realm_jax.corpus.blocks import Block
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.models import RetrieverConfig, SpanReaderConfig, TransformerConfig
from realm_jax.tasks.open_qa import OpenQa, init_params
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from tests import tiny

PLACES = ["oslo", "rome", "bern", "kyiv", "lima", "cork", "nice", "graz"]
WORDS = [*PLACES, *"ada brook cleo dahl elin frost gita hart born painter bridge library opera festival river".split()]
TEXTS = {
    "Ada Brook": "Ada Brook was a painter. She was born in Oslo, the daughter of a joiner.",
    "Cleo Dahl": "Cleo Dahl, a painter of portraits, was born in Rome.",
    "Elin Frost": "The soprano Elin Frost sang at the opera for thirty years. She was born in Bern.",
    "Gita Hart": "Gita Hart built a bridge over the river; she was born near Kyiv.",
    "The Old Bridge": "A bridge of seven arches crosses the river at Lima.",
    "Night festival": "Each August the festival fills the streets of Cork with lanterns.",
    "City library": "The library of Graz keeps letters, maps and 40,000 glass plates.",
}
SCALE = 4.0
HIDDEN = 32


def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer([*SPECIAL_PIECES, *WORDS])


def blocks() -> list[Block]:
    return [tiny.article(title, [text], source=title) for title, text in TEXTS.items()]


def corpus(directory: Path, block_len: int = 24) -> Corpus:
    return make_corpus(directory, blocks(), tokenizer(), block_len)


def encoder() -> TransformerConfig:
    return TransformerConfig(
        vocab_size=HIDDEN, hidden_size=HIDDEN, num_layers=1, num_heads=2, intermediate_size=8, max_length=64
    )


def task(directory: Path | str, **changes) -> OpenQa:
    settings = {
        "corpus": str(directory),
        "questions": "questions.jsonl",
        "retriever": RetrieverConfig(
            encoder(), projection_size=None, tied=False, score_scale=SCALE, pooling="mean", normalize=True
        ),
        "reader": SpanReaderConfig(encoder(), span_hidden_size=8, max_span_width=3),
        "num_retrieved": 5,
        "num_read": 3,
        "query_len": 24,
        "joint_len": 64,
        "document_len": 48,
    }
    return OpenQa(**(settings | changes))


def params() -> dict:
    """Set by hand: all zero but what is said here."""
    made = init_params(jax.random.key(0), retriever=task("").retriever, reader=task("").reader)
    made = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), made)
    transformers = [made["retriever"][name]["encoder"] for name in ("query_encoder", "document_encoder")]
    for transformer in (*transformers, made["span_reader"]["encoder"]):
        norms = [transformer["norm"], *(transformer["layers"][name] for name in ("attention_norm", "output_norm"))]
        for norm in norms:
            norm["scale"] += 1
    special = len(SPECIAL_PIECES)
    for transformer in transformers:  # each word a direction of its own
        for number in range(len(WORDS)):
            transformer["token_embedding"]["embedding"][special + number, number] = 1
    reader = made["span_reader"]
    reader["encoder"]["token_embedding"]["embedding"][special : special + len(PLACES), 0] = 1
    # [rows, 0] of each end's half sees a place, unit 1 is constant: what LayerNorm leaves of unit 0 rises with it
    reader["span_hidden"]["kernel"][0, [0, 8]] = 1
    reader["span_hidden"]["bias"][1] = 4
    reader["span_norm"]["scale"] += 1
    reader["span_output"]["kernel"][0] = 10
    return made


def bag(text: str) -> np.ndarray:
    """The embedding of a text without its scale, written another way: what the tests compare with."""
    words = [piece for piece in tokenizer().encode(text).ids.tolist() if piece >= len(SPECIAL_PIECES)]
    total = np.zeros(HIDDEN)
    for word in words:
        one = np.eye(HIDDEN)[word - len(SPECIAL_PIECES)]
        total += (one - one.mean()) / one.std()
    return total / max(np.linalg.norm(total), 1e-9)
