"""A small tokenizer of each kind."""

import pytest

from realm_jax.text.sentence_piece import train_sentencepiece
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from tests.text.sample_texts import LINES

WORDS = ["zoe", "was", "in", "born", "bank", "##s", "a", "##b", "[", "]", "mask", "日", "1", "##9", "😀", "."]


@pytest.fixture(scope="session")
def sentencepiece_tokenizer():
    return train_sentencepiece(LINES, 46, character_coverage=1.0)


@pytest.fixture(scope="session")
def wordpiece_tokenizer():
    return WordPieceTokenizer([*SPECIAL_PIECES, *WORDS])


@pytest.fixture(params=["sentencepiece", "wordpiece"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")
