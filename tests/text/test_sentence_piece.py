"""SentencePiece: its own offsets are the reference; training repeats, and says what it cannot do."""

import numpy as np
import pytest

from realm_jax.text.sentence_piece import VocabularyTooLargeError, train_sentencepiece
from tests.text.sample_texts import LINES, ODD_TEXT


def test_offsets_match_pieces(sentencepiece_tokenizer):
    text = "  Zoë was born in Köln.\nBob \t founded the bank of Łódź in 1900"
    ids, offsets = sentencepiece_tokenizer.encode(text)
    for piece_id, (start, end) in zip(ids, offsets, strict=True):
        piece = sentencepiece_tokenizer.decode([piece_id])
        if piece_id != sentencepiece_tokenizer.unk_id:
            assert " ".join(text[start:end].split()).lower() == piece


def test_decode(sentencepiece_tokenizer):
    t = sentencepiece_tokenizer
    ids = t.encode("Bob founded the bank").ids.tolist()
    assert t.decode(np.array([t.cls_id, *ids, t.mask_id, t.sep_id, 0, 0])) == "bob founded the bank [MASK]"


def test_offsets_are_sentencepieces_own(sentencepiece_tokenizer):
    """Most offsets are computed from the lengths of pieces; SentencePiece's own are the reference."""
    odd = [
        "Zoë  was",
        " a",
        "b ",
        "½ of Köln",
        "ﬁne e\u0301 bank",
        "日本 ™ Oslo",
        "ǆ ß İ",
        "a\u00a0b",
        "\u200bBob",
        "Bob.",
    ]
    lines = [*LINES, *odd, *(f"{a}{b}" for a in odd for b in odd), ODD_TEXT.replace("\n", "\t")]
    processor = sentencepiece_tokenizer._processor
    for line, got in zip(lines, sentencepiece_tokenizer.encode_batch(lines), strict=True):
        want = processor.encode(line, return_type="offset_mapping")
        assert got.ids.tolist() == list(want["ids"]), line
        assert got.offsets.tolist() == [list(pair) for pair in want["offsets"]], line
    text = "\n".join(lines)
    (start, end) = sentencepiece_tokenizer.encode(text).offsets[-1]
    assert end == len(text) and start < end


def test_offsets_around_unknown_pieces_are_sentencepieces_own(sentencepiece_tokenizer):
    rng = np.random.default_rng(0)
    # No pieces of the vocabulary: * ~ Ж ᄀ ᅡ 가; characters that normalization drops, joins or multiplies.
    parts = ["Bob ", "was", "in ", "Köln", "*", "~", "Ж", "가", "ᄀ", "ᅡ", " ", "  ", "½", "e\u0301", "\u200b", "İ"]
    lines = ["".join(rng.choice(parts, rng.integers(1, 9))) for _ in range(2000)]
    encodings = sentencepiece_tokenizer.encode_batch(lines)
    num_unknown = np.asarray([np.count_nonzero(e.ids == sentencepiece_tokenizer.unk_id) for e in encodings])
    assert np.count_nonzero(num_unknown == 1) > 300 and np.count_nonzero(num_unknown > 1) > 300
    for line, got in zip(lines, encodings, strict=True):
        want = sentencepiece_tokenizer._processor.encode(line, return_type="offset_mapping")["offsets"]
        assert got.offsets.tolist() == [list(pair) for pair in want], line


def test_training_repeats(sentencepiece_tokenizer):
    assert train_sentencepiece(LINES, 46, character_coverage=1.0).fingerprint == sentencepiece_tokenizer.fingerprint
    assert train_sentencepiece(LINES, 42, character_coverage=1.0).fingerprint != sentencepiece_tokenizer.fingerprint


def test_punctuation_is_its_own_piece():
    tokenizer = train_sentencepiece(["In 1862. (Bob's) bank, 1862."] * 40, 22)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("in 1862. (1862), bob's").ids]
    assert [p for p in pieces if p and not p.isalnum()] == [".", "(", ")", ",", "'"]


def test_vocabulary_too_large_names_the_maximum():
    with pytest.raises(VocabularyTooLargeError, match=r"at most \d+ pieces, got vocab_size=30000") as info:
        train_sentencepiece(LINES, 30000)
    assert train_sentencepiece(LINES, info.value.maximum).vocab_size == info.value.maximum


def test_training_errors():
    with pytest.raises(ValueError, match="expected text to train a tokenizer on, got none"):
        train_sentencepiece(["", " \n "], 100)
    with pytest.raises(ValueError, match=r"vocab_size of at least \d+ .* got 6"):
        train_sentencepiece(LINES, 6)


def test_long_training_lines_are_used():
    long = " ".join(f"word{i % 50}" for i in range(5000))
    assert 1 not in train_sentencepiece([long], 20).encode("word1 word49").ids
