"""What holds for tokenizers of every kind."""

import numpy as np
import pytest

from realm_jax.text.tokenizer import SPECIAL_PIECES, Tokenizer
from tests.text.sample_texts import LINES, ODD_TEXT


def test_special_ids(sentencepiece_tokenizer, wordpiece_tokenizer):
    for tokenizer in (sentencepiece_tokenizer, wordpiece_tokenizer):
        assert isinstance(tokenizer, Tokenizer)
        ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        assert ids == (0, 1, 2, 3, 4)
    assert sentencepiece_tokenizer.vocab_size == 46


@pytest.mark.parametrize("literal", SPECIAL_PIECES)
def test_literal_special_piece_is_text(tokenizer, literal):
    text = f"Bob was {literal} born in a bank"
    special = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    assert not special & set(tokenizer.encode(text).ids.tolist())


def test_offsets_are_characters_of_the_given_text(tokenizer):
    ids, offsets = tokenizer.encode(ODD_TEXT)
    assert ids.dtype == np.int32 and offsets.shape == (len(ids), 2)
    assert (offsets[:, 0] <= offsets[:, 1]).all() and (np.diff(offsets[:, 0]) >= 0).all()
    assert offsets[-1, 1] == len(ODD_TEXT)
    covered = "".join(ODD_TEXT[start:end] for start, end in offsets)
    assert [c for c in covered if not c.isspace()] == [c for c in ODD_TEXT if not c.isspace()]


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b"])
def test_empty_texts(tokenizer, text):
    ids, offsets = tokenizer.encode(text)
    assert len(ids) == len(offsets) and offsets.shape[1:] == (2,)
    if not text.strip("\u200b"):
        assert len(ids) == 0 or tokenizer.unk_id in ids


def test_batch_equals_single(tokenizer):
    texts = [ODD_TEXT, "", *LINES, "A\0b", "x" * 5000]
    for text, (ids, offsets) in zip(texts, tokenizer.encode_batch(texts), strict=True):
        single = tokenizer.encode(text)
        np.testing.assert_array_equal(ids, single.ids)
        np.testing.assert_array_equal(offsets, single.offsets)
