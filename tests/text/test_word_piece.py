"""WordPiece over a vocabulary worked out by hand."""

import pytest

from realm_jax.text.loading import load_tokenizer
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer


def test_wordpiece_offsets(wordpiece_tokenizer):
    text = " Zoë was 日born banks 😀."
    ids, offsets = wordpiece_tokenizer.encode(text)
    assert [text[s:e] for s, e in offsets] == ["Zoë", "was", "日", "born", "bank", "s", "😀", "."]
    assert wordpiece_tokenizer.decode(ids) == "zoe was 日 born banks 😀 ."


def test_wordpiece_cased():
    tokenizer = WordPieceTokenizer([*SPECIAL_PIECES, "zoe", "Zoë"], lower_case=False)
    assert tokenizer.encode("Zoë zoe ZOE").ids.tolist() == [6, 5, 1]


def test_vocab_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no \[CLS\]; expected all of \[PAD\], \[UNK\], \[CLS\]"):
        WordPieceTokenizer(["[PAD]", "[UNK]", "[SEP]", "[MASK]", "a"])
    with pytest.raises(ValueError, match=r"\[PAD\] on the first line .* got line 2"):
        WordPieceTokenizer(["a", *SPECIAL_PIECES])
    with pytest.raises(ValueError, match="1 repeated lines"):
        WordPieceTokenizer([*SPECIAL_PIECES, "a", "a"])
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"vocab.txt: expected a UTF-8 vocab.txt"):
        load_tokenizer(tmp_path / "vocab.txt")
