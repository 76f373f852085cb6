"""Tokenizers of Llama's folders: where texts begin and go on, special ids, files that cannot be."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from realm_jax.text.byte_level import byte_symbols
from realm_jax.text.generator_tokenizer import GeneratorTokenizer, MaskingTokenizer, mask_id_of
from realm_jax.text.llama_tokenizer import FILES, LlamaTokenizer
from realm_jax.text.loading import load_any_tokenizer, load_generator_tokenizer, load_tokenizer
from realm_jax.text.tokenizer import Tokenizer
from tests.text.made_bpe import byte_level_tokenizer
from tests.text.made_llama import (
    LINES,
    SPECIAL_3,
    llama2_json,
    llama3_json,
    sentencepiece_model,
    splits,
    write_json,
    write_llama2,
    write_llama3,
)

TEXTS = [
    "lower river",
    "born in 1967",
    "",
    "Zoë 日本 😀!",
    "a  b\n\n\tc ",
    "<s> a </s><unk><|eot_id|>",
    "\x00\u2028x",
    "x" * 300,
]
KINDS = ("json", "newer", "model", "llama3")


def folder_of(kind: str, place: Path) -> Path:
    return write_llama3(place) if kind == "llama3" else write_llama2(place, kind)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> LlamaTokenizer:
    return LlamaTokenizer.from_folder(folder_of(request.param, tmp_path / "theirs"))


def pieces_of(tokenizer: LlamaTokenizer, text: str) -> list[str]:
    names = {number: piece for piece, number in tokenizer._pieces.ids.items()}
    return [names[number] for number in tokenizer.encode(text).ids.tolist()]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_llama2_puts_a_space_in_front_of_what_begins(kind: str, tmp_path: Path):
    tokenizer = LlamaTokenizer.from_folder(folder_of(kind, tmp_path))
    assert pieces_of(tokenizer, "lower") == pieces_of(tokenizer, " lower") == ["▁low", "er"]
    assert pieces_of(tokenizer, "in lower") == ["▁in", "▁low", "er"]
    assert pieces_of(tokenizer, "\nlower") == ["\n", "low", "er"]  # goes on after a line, without a space
    assert pieces_of(tokenizer, "low日") == ["▁low", "<0xE6>", "<0x97>", "<0xA5>"]
    assert tokenizer.encode("in lower").offsets.tolist() == [[0, 2], [2, 6], [6, 8]]
    assert tokenizer.encode(" lower").offsets.tolist() == [[0, 4], [4, 6]]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, 0)  # <unk> pads
    assert tokenizer.vocab_size == 340


def test_llama3_by_hand(tmp_path: Path):
    tokenizer = LlamaTokenizer.from_folder(write_llama3(tmp_path))
    assert pieces_of(tokenizer, " lower")[0] == "Ġlow" and pieces_of(tokenizer, "lower")[0] != "Ġlow"
    assert pieces_of(tokenizer, "日") == ["æ", "Ĺ", "¥"] and tokenizer.encode("日").offsets.tolist() == [[0, 1]] * 3
    # four digits are three and one; an end of line is none of a word
    assert pieces_of(tokenizer, "a\n\n1967")[1:3] == ["Ċ", "Ċ"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (320, 321, 324)
    assert tokenizer.unk_id is None and tokenizer.pad_id == 321  # the piece that ends texts pads
    padded = LlamaTokenizer.from_folder(write_llama3(tmp_path / "padded", pad_token=SPECIAL_3[2]))
    assert padded.pad_id == 322
    ignoring = LlamaTokenizer.from_folder(write_llama3(tmp_path / "ignoring", llama3_json(ignore_merges=True)))
    assert pieces_of(ignoring, " lower river") == pieces_of(tokenizer, " lower river")


def test_parts_are_the_pieces_of_the_whole(tokenizer: LlamaTokenizer):
    pairs = [(text, *parts) for text in LINES[:4] for parts in splits(text)]
    assert len(pairs) > 25
    for whole, *parts in pairs:
        ids = np.concatenate([encoding.ids for encoding in tokenizer.encode_batch(parts)])
        np.testing.assert_array_equal(ids, tokenizer.encode(whole).ids)


def test_special_ids_are_never_cut_from_a_text(tokenizer: LlamaTokenizer):
    found = np.concatenate([encoding.ids for encoding in tokenizer.encode_batch(TEXTS)])
    special = {tokenizer._pieces.ids[piece] for piece in tokenizer._pieces.special}
    assert {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} <= special and len(special) >= 3
    assert not special & set(found.tolist())


def test_what_is_encoded_is_decoded(tokenizer: LlamaTokenizer):
    for text, encoding in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        ids = [tokenizer.bos_id, *encoding.ids, tokenizer.eos_id, tokenizer.pad_id, -1, tokenizer.vocab_size]
        assert tokenizer.decode(ids) == text
        ends = encoding.offsets[:, 1].tolist()
        assert ends == sorted(ends) and ends[-1:] == [len(text)][: len(ends)]


def test_save_load_pickle(tokenizer: LlamaTokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "t")
    for name in {path.name for path in (tmp_path / "theirs").iterdir()} & set(FILES):
        assert (tmp_path / "t" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    for copy in (
        load_generator_tokenizer(tmp_path / "t"),
        load_generator_tokenizer(tmp_path / "theirs"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.fingerprint == tokenizer.fingerprint and copy.vocab_size == tokenizer.vocab_size
        for text in TEXTS:
            np.testing.assert_array_equal(copy.encode(text).ids, tokenizer.encode(text).ids)
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    write_json(tmp_path / "t" / "tokenizer_config.json", config | {"eos_token": config["bos_token"]})
    with pytest.raises(ValueError, match="is not the one that was saved there"):
        load_generator_tokenizer(tmp_path / "t")


def test_of_which_protocol(tokenizer: LlamaTokenizer, tmp_path: Path):
    assert isinstance(tokenizer, GeneratorTokenizer) and tokenizer.keeps_spelling
    assert not isinstance(tokenizer, Tokenizer) and not isinstance(tokenizer, MaskingTokenizer)
    with pytest.raises(ValueError, match=r"such as BART's <mask>, got a LlamaTokenizer without; .* name another"):
        mask_id_of(tokenizer)
    assert mask_id_of(byte_level_tokenizer()) == byte_level_tokenizer().mask_id
    with pytest.raises(
        ValueError, match=r"a language model's tokenizer, without \[CLS\].*need a SentencePiece or WordPiece"
    ):
        load_tokenizer(tmp_path / "theirs")


def test_folders_with_other_files_beside(wordpiece_tokenizer: Any, tmp_path: Path):
    """BERT's and BART's folders have a tokenizer.json, a language model's may have vocab.json and merges.txt."""
    wordpiece_tokenizer.save(tmp_path / "bert")
    byte_level_tokenizer().save(tmp_path / "bart")
    for name in ("bert", "bart"):
        (tmp_path / name / "settings.json").unlink()
        write_json(tmp_path / name / "tokenizer.json", llama3_json())
    assert load_any_tokenizer(tmp_path / "bert").fingerprint == wordpiece_tokenizer.fingerprint
    assert load_any_tokenizer(tmp_path / "bart").fingerprint == byte_level_tokenizer().fingerprint
    folder = write_llama3(tmp_path / "llama")
    write_json(folder / "vocab.json", llama3_json()["model"]["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert isinstance(load_any_tokenizer(folder), LlamaTokenizer)


def test_added_pieces_that_are_not_special_are_cut_whole(tmp_path: Path):
    said = llama3_json()
    tool = {"id": 324, "content": "<tool>", "special": False, "normalized": False}
    tokenizer = LlamaTokenizer.from_folder(
        write_llama3(tmp_path, said | {"added_tokens": [*said["added_tokens"], tool]})
    )
    assert tokenizer.vocab_size == 325
    assert pieces_of(tokenizer, "a<tool>b<|eot_id|>")[:3] == ["a", "<tool>", "b"]
    assert tokenizer.decode(tokenizer.encode("a<tool>b<|eot_id|>").ids) == "a<tool>b<|eot_id|>"


def test_rare_bytes_without_a_piece_are_left_out(tmp_path: Path):
    """As SmolLM2's vocabulary has it; ids are those of Hugging Face's library."""
    said = llama3_json()
    symbols = byte_symbols()
    for byte in (0x04, 0x16, 0xC0, 0xF1, 0xFF):
        del said["model"]["vocab"][symbols[byte]]
    folder = write_llama3(tmp_path, said)
    tokenizer = LlamaTokenizer.from_folder(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("a\x04b", "\x04", "\x16 new\x05 \n", "日本 \U00040000 z", ""):
        assert tokenizer.encode(text).ids.tolist() == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode("a\x04b").ids) == "ab"
    del said["model"]["vocab"][symbols[0xE3]]
    with pytest.raises(ValueError, match=r"has no ã: not every text could be written"):
        LlamaTokenizer.from_folder(write_llama3(tmp_path, said))


def test_the_files_beside_a_sentencepiece_model(tmp_path: Path):
    added = {"340": {"content": "[PAD]", "special": True}, "1": {"content": "<s>", "special": True}}
    folder = write_llama2(tmp_path / "padded", "model", pad_token="[PAD]", added_tokens_decoder=added)
    tokenizer = LlamaTokenizer.from_folder(folder)
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (340, 341)
    assert 340 not in tokenizer.encode("a [PAD]").ids and tokenizer.decode([340, *tokenizer.encode("a").ids]) == "a"
    older = write_llama2(tmp_path / "older", "model")
    write_json(older / "added_tokens.json", {"<more>": 340})
    assert LlamaTokenizer.from_folder(older).vocab_size == 341
    (older / "added_tokens.json").unlink()
    (older / "tokenizer_config.json").unlink()
    alone = LlamaTokenizer.from_folder(older)  # the model itself names what begins and ends
    assert (alone.bos_id, alone.eos_id, alone.pad_id) == (1, 2, 0)
    added["340"]["special"] = False
    with pytest.raises(
        ValueError, match=r"cuts no '\[PAD\]', which the files beside it add as 340; save .* tokenizer.json"
    ):
        LlamaTokenizer.from_folder(write_llama2(tmp_path / "loose", "model", added_tokens_decoder=added))
    (tmp_path / "nfkc").mkdir()
    (tmp_path / "nfkc" / "tokenizer.model").write_bytes(
        sentencepiece_model(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    )
    trimming = LlamaTokenizer.from_folder(tmp_path / "nfkc")
    assert pieces_of(trimming, "lower") == pieces_of(trimming, " lower")
    assert not trimming.keeps_spelling and tokenizer.keeps_spelling


WRONG_JSON = {
    "kind": ({"model": {"type": "Unigram"}}, r"model of the kind 'Unigram'; only BPE, as Llama's"),
    "prefix": ({"model": {"continuing_subword_prefix": "##"}}, r"continuing_subword_prefix='##', which Llama's BPE has not"),
    "vocabulary": ({"model": {"vocab": []}}, r"has no vocabulary: expected an object"),
    "id": ({"model": {"vocab": {"a": -1}}}, r"has the id -1 for 'a'"),
    "twice": ({"added_tokens": [{"id": 3, "content": "<x>"}]}, r"has one id for .*<x>.*expected each id once"),
    "merges": ({"model": {"merges": [["a"]]}}, r"has the merge .*, expected two pieces"),
    "foreign": ({"model": {"merges": ["q w", "qw 日"]}}, r"merges do not belong to the vocabulary"),
    "bytes": ({"model": {"vocab": {"a": 9}}}, r"has no .*: not every text could be written"),
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, r"prepares texts by .*Lowercase.*; only what Llama's tokenizers do"),
    "added": ({"added_tokens": [{"id": 1}]}, r"an added token that has no content or no id"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_JSON)
@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_a_tokenizer_json_that_cannot_be(name: str, kind: str, tmp_path: Path):
    change, message = WRONG_JSON[name]
    said = llama3_json() if kind == "llama3" else llama2_json(sentencepiece_model())
    said |= {**change, "model": {**said["model"], **change.get("model", {})}}
    with pytest.raises(ValueError, match=message):
        LlamaTokenizer.from_folder(write_llama3(tmp_path, said))


def test_folders_that_cannot_be(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model()[:500])
    with pytest.raises(ValueError, match=r"tokenizer.model is no SentencePiece model, or damaged .*fetch it again"):
        LlamaTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenizer.model is empty"):
        LlamaTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(80, byte_fallback=False))
    with pytest.raises(ValueError, match=r"has not a piece for each byte, .*byte_fallback, as Llama's"):
        LlamaTokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has neither tokenizer\.json nor tokenizer\.model"):
        LlamaTokenizer({})
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer.json does not hold JSON .*fetch it again"):
        LlamaTokenizer.from_folder(tmp_path)
    with pytest.raises(
        ValueError, match=r"names the pad_token '\[PAD\]', which is no piece of it; .*correct tokenizer_config"
    ):
        LlamaTokenizer.from_folder(write_llama3(tmp_path / "pad", pad_token="[PAD]"))
    with pytest.raises(ValueError, match=r"has bos_token=\['<s>'\], expected a piece"):
        LlamaTokenizer.from_folder(write_llama3(tmp_path / "list", bos_token=["<s>"]))
    said = llama3_json()
    said["added_tokens"] = said["added_tokens"][2:]
    with pytest.raises(ValueError, match=r"names no bos_token, and has none of the usual pieces; .*name them in"):
        LlamaTokenizer.from_folder(write_llama3(tmp_path / "nameless", said, bos_token=None, eos_token=None))
    split = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    said["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}
    with pytest.raises(ValueError, match=r"splits texts by '\(', no pattern"):
        LlamaTokenizer.from_folder(write_llama3(tmp_path / "pattern", said))
    ordinary = {"bos_token": "er"}
    with pytest.raises(ValueError, match=r"has 'er' as an ordinary piece, which a text can hold"):
        LlamaTokenizer.from_folder(write_llama2(tmp_path / "ordinary", "model", **ordinary))
