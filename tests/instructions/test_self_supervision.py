"""The beginning of a document asks for its end: which tokens, which documents, and in which order."""

import numpy as np
import pytest

from realm_jax.corpus.generator_pieces import add_pieces
from realm_jax.corpus.writer import make_corpus
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.self_supervision import CorpusContinuations
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from tests import tiny
from tests.text.made_bpe import byte_level_tokenizer

WORDS = [f"w{number}" for number in range(100)]
# document d: "w0 w1 … " of this length; the last is without white space
LENGTHS = [12, 3, 10, 9, 30, 11]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    blocks = [
        tiny.article(f"w{d}", [" ".join(WORDS[d : d + length])], source=str(d)) for d, length in enumerate(LENGTHS)
    ]
    return make_corpus(tmp_path_factory.mktemp("corpus"), blocks, tiny.tokenizer(WORDS))


def continuations(corpus, tokenizer=None, **settings):
    tokenizer = tokenizer or as_generator_tokenizer(corpus.tokenizer)
    return CorpusContinuations(corpus, tokenizer, **{"prompt_tokens": 4, "answer_tokens": 6, "seed": 0, **settings})


def test_first_tokens_last_tokens(corpus):
    found = continuations(corpus)
    assert found.documents.tolist() == [0, 2, 4, 5] and len(found) == 4
    assert found.left_out == {"document of fewer than 10 tokens": 2}
    by_document = {example.id: example for example in found}
    assert by_document["0"] == InstructionExample(
        "plain_text", "plain_text", "w0 w1 w2 w3", "w6 w7 w8 w9 w10 w11", "w0 w1 w2 w3", ("w6 w7 w8 w9 w10 w11",), "0"
    )
    assert by_document["2"].answer == "w6 w7 w8 w9 w10 w11"  # exactly long enough: no gap
    assert by_document["4"][2:4] == ("w4 w5 w6 w7", "w28 w29 w30 w31 w32 w33")


def test_next_tokens(corpus):
    by_document = {example.id: example for example in continuations(corpus, part="next")}
    assert by_document["0"][2:4] == ("w0 w1 w2 w3", "w4 w5 w6 w7 w8 w9")
    assert by_document["4"][2:4] == ("w4 w5 w6 w7", "w8 w9 w10 w11 w12 w13")


def test_an_item_is_a_function_of_seed_and_number(corpus):
    found, again = continuations(corpus, seed=3), continuations(corpus, seed=3)
    assert [found[number] for number in (2, 0, 3, 1)] == [again[number] for number in (2, 0, 3, 1)]
    assert sorted(example.id for example in found) == ["0", "2", "4", "5"]
    assert [found.document(number) for number in range(4)] == [int(example.id) for example in found]
    orders = {tuple(example.id for example in continuations(corpus, seed=seed)) for seed in range(8)}
    assert len(orders) > 1
    for number in (-1, 4):
        with pytest.raises(IndexError, match=f"example {number} of 4"):
            found[number]


def test_words_are_not_parted(corpus):
    # Byte-level: "w4" and " w5" are two and three pieces, so that 4 pieces end within a word.
    tokenizer = byte_level_tokenizer()
    by_document = {
        example.id: example for example in continuations(corpus, tokenizer, prompt_tokens=10, answer_tokens=10)
    }
    text = " ".join(WORDS[:12])
    pieces = [text[start:end] for start, end in tokenizer.encode(text).offsets]
    assert "".join(pieces[:10]) == "w0 w1 w2 w" and "".join(pieces[-10:]) == "w9 w10 w11"
    assert by_document["0"][2:4] == ("w0 w1 w2", "w9 w10 w11")
    by_document = {
        example.id: example for example in continuations(corpus, tokenizer, prompt_tokens=10, answer_tokens=9)
    }
    assert by_document["0"].answer == "w10 w11"  # "9 w10 w11" would begin within a word
    following = continuations(corpus, tokenizer, prompt_tokens=10, answer_tokens=10, part="next")
    assert {example.id: example.answer for example in following}["0"] == "w3 w4 w5 w6"
    following = continuations(corpus, tokenizer, prompt_tokens=10, answer_tokens=9, part="next")
    assert {example.id: example.answer for example in following}["0"] == "w3 w4 w5"  # the ninth is "w" of "w6"


def test_text_without_white_space(tmp_path):
    text = "東京首都日本大阪名古屋港"
    corpus = make_corpus(tmp_path, [tiny.article("", [text])], tiny.tokenizer([*text]))
    (example,) = continuations(corpus)
    assert (example.prompt, example.answer) == (text[:4], text[-6:])


def test_stored_pieces_give_the_lengths(corpus, tmp_path):
    stored = make_corpus(tmp_path, [corpus.block(d) for d in range(6)], corpus.tokenizer)
    tokenizer = byte_level_tokenizer()
    counted = continuations(stored, tokenizer, prompt_tokens=10, answer_tokens=10)
    add_pieces(stored, tokenizer)
    found = continuations(stored, tokenizer, prompt_tokens=10, answer_tokens=10)
    np.testing.assert_array_equal(found.documents, counted.documents)
    assert list(found) == list(counted)


def test_what_is_refused(corpus):
    with pytest.raises(
        ValueError, match=r"no document of .* has the 100 tokens .* \(the longest has 30\); build the corpus"
    ):
        continuations(corpus, prompt_tokens=50, answer_tokens=50)
    with pytest.raises(ValueError, match="at least 1 token in prompt and answer, got 0 and 6"):
        continuations(corpus, prompt_tokens=0)
