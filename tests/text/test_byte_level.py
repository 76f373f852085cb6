"""Byte-level BPE over a vocabulary worked out by hand."""

import json
import pickle

import numpy as np
import pytest

from realm_jax.text.byte_level import SPECIAL_PIECES, ByteLevelTokenizer, byte_symbols
from realm_jax.text.generator_tokenizer import GeneratorTokenizer, as_generator_tokenizer
from realm_jax.text.loading import load_generator_tokenizer, load_tokenizer
from realm_jax.text.tokenizer import Tokenizer
from tests.text.made_bpe import MERGES, byte_level_tokenizer, vocabulary

TEXTS = [
    "low",
    " low lower",
    "",
    " ",
    "\n\ttab  two",
    "Zoë 日本 😀!",
    "<s> a <mask></s>",
    "don't, it 's; n't .",
    "\x00\u2028",
]


def pieces_of(tokenizer, text):
    names = {number: piece for piece, number in vocabulary().items()}
    return [names[number] for number in tokenizer.encode(text).ids.tolist()]


def test_pieces_by_hand():
    tokenizer = byte_level_tokenizer()
    assert pieces_of(tokenizer, "low low") == ["low", "Ġlow"]
    assert pieces_of(tokenizer, " lower lo") == ["Ġlow", "er", "Ġl", "o"]  # "Ġ l" is an earlier merge than "l o"
    # a byte that stands for itself, one that is shown as another, and two of them for one character
    assert pieces_of(tokenizer, "a\në") == ["a", "Ċ", "Ã", "«"]
    assert pieces_of(tokenizer, "low  low") == ["low", "Ġ", "Ġlow"]  # of two spaces the last belongs to the word
    offsets = tokenizer.encode("low ëlow").offsets.tolist()
    assert offsets == [[0, 3], [3, 4], [4, 5], [4, 5], [5, 8]]  # characters, both bytes of ë the same


def test_special_ids():
    tokenizer = byte_level_tokenizer()
    ids = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, tokenizer.vocab_size - 1)
    found = np.concatenate([encoding.ids for encoding in tokenizer.encode_batch(TEXTS)])
    assert not set(ids) & set(found.tolist())  # a literal "<s>" is text
    assert len(set(byte_symbols())) == 256


def test_what_is_encoded_is_decoded():
    tokenizer = ByteLevelTokenizer(vocabulary(), MERGES, clean_up=False)
    for text, encoding in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(encoding.ids) == text
        np.testing.assert_array_equal(encoding.ids, tokenizer.encode(text).ids)


def test_decoding_leaves_out_special_ids_and_mends_spaces():
    tokenizer = byte_level_tokenizer()
    ids = [0, *tokenizer.encode("low").ids, 2, 1, 1, tokenizer.mask_id, 3, tokenizer.vocab_size, -1]
    assert tokenizer.decode(ids) == "low"
    text = "he 's here , is n't he ? I 'm ' so ' . They 've ! we 're"
    assert tokenizer.decode(tokenizer.encode(text).ids) == "he's here, isn't he? I'm'so '. They've! we're"
    half = tokenizer.encode("ë").ids[:1]
    assert tokenizer.decode(half) == "\ufffd"


def test_a_space_in_front():
    spaced = ByteLevelTokenizer(vocabulary(), MERGES, add_prefix_space=True)
    assert pieces_of(spaced, "low") == pieces_of(spaced, " low") == ["Ġlow"]
    assert spaced.fingerprint != byte_level_tokenizer().fingerprint
    quiet = ByteLevelTokenizer(vocabulary(), MERGES, clean_up=False)
    assert quiet.fingerprint == byte_level_tokenizer().fingerprint  # it encodes alike


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True, "clean_up": False}])
def test_save_load_pickle(settings, tmp_path):
    tokenizer = ByteLevelTokenizer(vocabulary(), MERGES, **settings)
    tokenizer.save(tmp_path / "t")
    for copy in (load_generator_tokenizer(tmp_path / "t"), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint
        for text in TEXTS:
            ids = copy.encode(text).ids
            np.testing.assert_array_equal(ids, tokenizer.encode(text).ids)
            assert copy.decode(ids) == tokenizer.decode(ids)


def test_files_as_they_are_published(tmp_path):
    """Sorted by name, another version of the header, Windows line ends."""
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary(), sort_keys=True))
    (tmp_path / "merges.txt").write_bytes("\r\n".join(["#version: 0.1", *map(" ".join, MERGES), ""]).encode())
    assert load_generator_tokenizer(tmp_path).fingerprint == byte_level_tokenizer().fingerprint


def test_of_which_protocol(wordpiece_tokenizer, sentencepiece_tokenizer, tmp_path):
    own = byte_level_tokenizer()
    assert isinstance(own, GeneratorTokenizer) and not isinstance(own, Tokenizer)
    assert as_generator_tokenizer(own) is own
    for kind, tokenizer in (("wordpiece", wordpiece_tokenizer), ("sentencepiece", sentencepiece_tokenizer)):
        tokenizer.save(tmp_path / kind)
        loaded = load_generator_tokenizer(tmp_path / kind)
        assert isinstance(loaded, GeneratorTokenizer) and loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, tokenizer.cls_id, tokenizer.sep_id)
        ids = loaded.encode("zoe was born").ids
        np.testing.assert_array_equal(ids, tokenizer.encode("zoe was born").ids)
        assert loaded.decode([loaded.bos_id, *ids, loaded.eos_id, loaded.pad_id]) == tokenizer.decode(ids)


def test_a_corpus_cannot_have_it(tmp_path):
    byte_level_tokenizer().save(tmp_path)
    with pytest.raises(
        ValueError, match=r"a generator's byte-level BPE, without \[CLS\].*need a SentencePiece or WordPiece"
    ):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_cannot_be():
    lacking = {
        piece: number for number, piece in enumerate(piece for piece in vocabulary() if piece not in ("<pad>", "a"))
    }
    with pytest.raises(ValueError, match=r"has no <pad>, a; expected <s>, <pad>, .* a piece for each of the 256 bytes"):
        ByteLevelTokenizer(lacking, MERGES)
    with pytest.raises(ValueError, match=r"ids with gaps or twice; expected each from 0 to"):
        ByteLevelTokenizer({**vocabulary(), "Ġlow": 5}, MERGES)
    with pytest.raises(ValueError, match=r"has '日', which stands for no bytes; .* such as BART's"):
        ByteLevelTokenizer({**vocabulary(), "日": len(vocabulary())}, MERGES)
    with pytest.raises(ValueError, match=r"merges do not belong to the vocabulary .*; take both from one folder"):
        ByteLevelTokenizer(vocabulary(), [*MERGES, ("a", "b")])


def test_files_that_cannot_be(tmp_path):
    byte_level_tokenizer().save(tmp_path)
    merges = (tmp_path / "merges.txt").read_text()
    (tmp_path / "merges.txt").write_text(merges + "one two three\n")
    with pytest.raises(ValueError, match=rf"merges.txt, line {len(MERGES) + 2}: expected two pieces .*'one two three'"):
        load_generator_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n\xff \xfe\n")
    with pytest.raises(ValueError, match=r"merges.txt: expected UTF-8"):
        load_generator_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("".join(line + "\n" for line in merges.splitlines()[:-1]))
    with pytest.raises(ValueError, match="is not the one that was saved there"):
        load_generator_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(list(SPECIAL_PIECES)))
    with pytest.raises(ValueError, match=r"vocab.json: expected a JSON object with the id of each piece"):
        load_generator_tokenizer(tmp_path)
