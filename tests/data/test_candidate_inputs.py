"""Candidates as one array: layout, truncation by hand, refusals. tests/parity compares it with the Hugging Face tokenizers."""

import numpy as np
import pytest

from realm_jax.data.candidate_inputs import encode_candidates
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

TOKENIZER = WordPieceTokenizer([*SPECIAL_PIECES, *"abcdefgh"])  # a is 5, b is 6, …


def test_single_texts():
    encoded = encode_candidates(TOKENIZER, [["a b", "c"], ["", "d e f g h a"]], max_length=6)
    assert encoded.ids.tolist() == [
        [[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]],
        [[2, 3, 0, 0, 0, 0], [2, 8, 9, 10, 11, 3]],
    ]
    np.testing.assert_array_equal(encoded.mask, encoded.ids != 0)
    assert not encoded.segment_ids.any()


def test_pairs_lose_from_the_longer_then_from_the_second():
    encoded = encode_candidates(
        TOKENIZER,
        [["a b c d", "a", "a b c", "a b c d e f"]],
        max_length=7,
        text_pairs=[["e f", "b c d e f", "d e f", "g"]],
    )
    assert encoded.ids.tolist() == [[
        [2, 5, 6, 3, 9, 10, 3],  # 4 + 2 pieces to 4: the first gives two
        [2, 5, 3, 6, 7, 8, 3],
        [2, 5, 6, 3, 8, 9, 3],  # 3 + 3: second, first
        [2, 5, 6, 7, 3, 11, 3],
    ]]  # fmt: skip
    assert encoded.segment_ids.tolist()[0][1] == [0, 0, 0, 1, 1, 1, 1]
    odd = encode_candidates(TOKENIZER, [["a b c"]], max_length=8, text_pairs=[["d e f"]])
    assert odd.ids.tolist() == [[[2, 5, 6, 7, 3, 8, 9, 3]]]  # 3 + 3 to 5: the second gives first


def test_refusals():
    with pytest.raises(ValueError, match=r"texts must have as many candidates in every row, got \[1, 2\]"):
        encode_candidates(TOKENIZER, [["a"], ["a", "b"]], 8)
    with pytest.raises(ValueError, match="got no rows"):
        encode_candidates(TOKENIZER, [], 8)
    with pytest.raises(ValueError, match=r"texts are \[1, 2\], text_pairs \[1, 1\]; expected the same"):
        encode_candidates(TOKENIZER, [["a", "b"]], 8, [["a"]])
    with pytest.raises(ValueError, match="max_length=2 has no room for the 3 special pieces"):
        encode_candidates(TOKENIZER, [["a"]], 2, [["a"]])
