"""Tokenizers of language models against LlamaTokenizer, LlamaTokenizerFast and PreTrainedTokenizerFast on thousands of real strings."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from realm_jax.text.llama_tokenizer import LlamaTokenizer
from tests.parity.conftest import HARD, PYTHON
from tests.text.made_llama import (
    llama2_json,
    llama3_json,
    sentencepiece_model,
    splits,
    write_json,
    write_llama2,
    write_llama3,
)

pytestmark = [pytest.mark.parity, pytest.mark.needs_data]

SCRIPT = Path(__file__).parent / "llama_tokenizer_reference.py"
SLOW = ("slow legacy=True", "slow legacy=False")


@pytest.fixture(scope="module")
def model(strings: list[str]) -> bytes:
    return sentencepiece_model(2000, tuple(text for text in strings if text not in HARD))


def rows_of(tokenizer: LlamaTokenizer, texts: list[str]) -> list[list[int]]:
    """What a model may write: texts with special ids about, whole characters."""
    found = [encoding.ids.tolist() for encoding in tokenizer.encode_batch(texts)]
    return [[tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id] for ids in found if ids]


def answers(folder: Path, texts: list[str], rows: list[list[int]], scratch: Path) -> dict:
    assert PYTHON.is_file(), f"no environment of the other side at {PYTHON}; `make parity` makes it"
    (scratch / "asked.json").write_text(json.dumps({"texts": texts, "rows": rows}), encoding="utf-8")
    command = [str(PYTHON), str(SCRIPT), str(folder), str(scratch / "asked.json"), str(scratch / "answered.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((scratch / "answered.json").read_text(encoding="utf-8"))


def check(tokenizer: LlamaTokenizer, theirs: dict, texts: list[str], rows: list[list[int]]) -> None:
    """Of texts that begin with white space the part after it is compared: it goes on after other text here."""
    ours = [encoding.ids.tolist() for encoding in tokenizer.encode_batch(texts)]
    different = [text for text, one, other in zip(texts, ours, theirs["ids"], strict=True) if one != other]
    assert different == [], (len(different), different[:3])
    assert theirs["special"] == [tokenizer.bos_id, tokenizer.eos_id]
    wrong = [
        pair
        for pair in zip([tokenizer.decode(row) for row in rows], theirs["texts"], strict=True)
        if len(set(pair)) > 1
    ]
    assert wrong == [], (len(wrong), wrong[:3])


def check_parts(tokenizer: LlamaTokenizer, texts: list[str]) -> None:
    """Two parts of a text, encoded one by one, are the pieces of the whole."""
    pairs = [(text, *parts) for text in texts for parts in splits(text)[:3]]
    assert len(pairs) > 3000
    whole, first, second = (tokenizer.encode_batch(list(column)) for column in zip(*pairs, strict=True))
    different = [
        pair
        for pair, one, *parts in zip(pairs, whole, first, second, strict=True)
        if one.ids.tolist() != np.concatenate([part.ids for part in parts]).tolist()
    ]
    assert different == [], different[:3]


@pytest.mark.parametrize("kinds", ["json model", "model"])
def test_llama2(kinds: str, model: bytes, strings: list[str], tmp_path: Path):
    folder = write_llama2(tmp_path / "llama", kinds)
    if "json" in kinds:
        write_json(folder / "tokenizer.json", llama2_json(model))
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer = LlamaTokenizer.from_folder(folder)
    texts = [text for text in strings if not text[:1].isspace()]
    rows = rows_of(tokenizer, texts[:1500])
    theirs = answers(folder, texts, rows, tmp_path)
    assert {said["class"] for said in theirs.values()} == {"LlamaTokenizer", "LlamaTokenizerFast"}
    for kind in theirs:
        check(tokenizer, theirs[kind], texts, rows)
    check_parts(tokenizer, texts)
    saved = LlamaTokenizer.from_folder(tmp_path / "llama-saved")  # as transformers writes one
    assert (saved.bos_id, saved.eos_id, saved.vocab_size) == (1, 2, 2000)
    check(saved, theirs["fast"], texts, rows)


def test_newer_llama2(model: bytes, strings: list[str], tmp_path: Path):
    """A Metaspace in the place of the normalizer, merges as pairs: as newer libraries than transformers 4.39's write them."""
    folder = write_llama2(tmp_path / "newer", "newer")
    write_json(folder / "tokenizer.json", llama2_json(model, legacy=False, pairs=True))
    older = write_llama2(tmp_path / "older")
    write_json(older / "tokenizer.json", llama2_json(model))
    one, other = LlamaTokenizer.from_folder(folder), LlamaTokenizer.from_folder(older)
    for first, second in zip(one.encode_batch(strings), other.encode_batch(strings), strict=True):
        np.testing.assert_array_equal(first.ids, second.ids)
    check_parts(one, strings)


@pytest.mark.parametrize("clean_up", [True, False])
def test_llama3(clean_up: bool, strings: list[str], tmp_path: Path):
    folder = write_llama3(tmp_path / "llama", llama3_json(strings, 2000), clean_up_tokenization_spaces=clean_up)
    tokenizer = LlamaTokenizer.from_folder(folder)
    rows = [row[: len(row) // 2] for row in rows_of(tokenizer, strings[:1500])]  # cut inside of a character, too
    theirs = answers(folder, strings, rows, tmp_path)
    assert theirs["auto"]["class"] == "PreTrainedTokenizerFast"
    check(tokenizer, theirs["auto"], strings, rows)
    check_parts(tokenizer, strings)
