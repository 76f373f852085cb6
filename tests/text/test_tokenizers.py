import pickle

import numpy as np
import pytest

from realm_jax.text.tokenizers import (
    SPECIAL_PIECES,
    Tokenizer,
    VocabularyTooLargeError,
    WordPieceTokenizer,
    load_tokenizer,
    train_sentencepiece,
)

LINES = [
    f"{name} was born in {place} in {year} and founded the {noun} of {place}."
    for year, (name, place, noun) in enumerate(
        [(n, p, o) for n in ("Zoë", "Amélie", "Bob") for p in ("Köln", "Łódź", "Oslo") for o in ("bank", "museum")],
        1900,
    )
]
ODD_TEXT = "  Zoë  was [MASK] in 日本語 🎉🎉 ﬁne e\u0301tude\n\n Łódź\tİstanbul ½ naïve"
WORDS = ["zoe", "was", "in", "born", "bank", "##s", "a", "##b", "[", "]", "mask", "日", "1", "##9", "😀", "."]


@pytest.fixture(scope="module")
def sentencepiece_tokenizer():
    return train_sentencepiece(LINES, 46, character_coverage=1.0)


@pytest.fixture(scope="module")
def wordpiece_tokenizer():
    return WordPieceTokenizer([*SPECIAL_PIECES, *WORDS])


@pytest.fixture(params=["sentencepiece", "wordpiece"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")


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


def test_offsets_match_pieces(sentencepiece_tokenizer):
    text = "  Zoë was born in Köln.\nBob \t founded the bank of Łódź in 1900"
    ids, offsets = sentencepiece_tokenizer.encode(text)
    for piece_id, (start, end) in zip(ids, offsets, strict=True):
        piece = sentencepiece_tokenizer.decode([piece_id])
        if piece_id != sentencepiece_tokenizer.unk_id:
            assert " ".join(text[start:end].split()).lower() == piece


def test_wordpiece_offsets(wordpiece_tokenizer):
    text = " Zoë was 日born banks 😀."
    ids, offsets = wordpiece_tokenizer.encode(text)
    assert [text[s:e] for s, e in offsets] == ["Zoë", "was", "日", "born", "bank", "s", "😀", "."]
    assert wordpiece_tokenizer.decode(ids) == "zoe was 日 born banks 😀 ."


def test_wordpiece_cased():
    tokenizer = WordPieceTokenizer([*SPECIAL_PIECES, "zoe", "Zoë"], lower_case=False)
    assert tokenizer.encode("Zoë zoe ZOE").ids.tolist() == [6, 5, 1]


def test_decode(sentencepiece_tokenizer):
    t = sentencepiece_tokenizer
    ids = t.encode("Bob founded the bank").ids.tolist()
    assert t.decode(np.array([t.cls_id, *ids, t.mask_id, t.sep_id, 0, 0])) == "bob founded the bank [MASK]"


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


def test_save_load_pickle(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    want = tokenizer.encode(ODD_TEXT).ids
    for copy in (load_tokenizer(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint and copy.vocab_size == tokenizer.vocab_size
        np.testing.assert_array_equal(copy.encode(ODD_TEXT).ids, want)


def test_load_bare_files(wordpiece_tokenizer, sentencepiece_tokenizer, tmp_path):
    wordpiece_tokenizer.save(tmp_path / "bert")
    (tmp_path / "bert/settings.json").unlink()
    assert load_tokenizer(tmp_path / "bert").fingerprint == wordpiece_tokenizer.fingerprint
    assert load_tokenizer(tmp_path / "bert/vocab.txt").fingerprint == wordpiece_tokenizer.fingerprint
    sentencepiece_tokenizer.save(tmp_path / "sp")
    loaded = load_tokenizer(tmp_path / "sp/sentencepiece.model")
    assert loaded.fingerprint == sentencepiece_tokenizer.fingerprint


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


def test_load_errors(wordpiece_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*: expected a directory with sentencepiece.model"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "bad.model").write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
    wordpiece_tokenizer.save(tmp_path / "t")
    with (tmp_path / "t/vocab.txt").open("a") as file:
        file.write("extra\n")
    with pytest.raises(ValueError, match="is not the one that was saved there"):
        load_tokenizer(tmp_path / "t")
