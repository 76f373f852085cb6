"""Byte-level BPE against BartTokenizer and BartTokenizerFast on thousands of real strings, and RagTokenizer on a folder of ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from realm_jax.convert import Model, load_hugging_face, save_hugging_face
from realm_jax.convert.tokenizer_files import write_generator_tokenizer
from realm_jax.models import EncoderDecoder, Retriever
from realm_jax.text.byte_level import ByteLevelTokenizer
from realm_jax.text.word_piece import WordPieceTokenizer
from tests import tiny
from tests.convert.test_rag import random_params
from tests.parity.conftest import HARD, run_reference

pytestmark = [pytest.mark.parity, pytest.mark.needs_data]


def rows_of(tokenizer: ByteLevelTokenizer, strings: list[str]) -> list[list[int]]:
    """What a generator may write: texts with special ids about, cut anywhere, and any ids at all."""
    rng = np.random.default_rng(0)
    rows = []
    for encoding in tokenizer.encode_batch([*strings[:1500], *HARD]):
        ids = encoding.ids.tolist()
        rows.append(
            [tokenizer.eos_id, tokenizer.bos_id, *ids[: rng.integers(1, 60)], tokenizer.eos_id, tokenizer.pad_id]
        )
    return [*rows, *(rng.integers(0, tokenizer.vocab_size, size=12).tolist() for _ in range(500))]


def answers(folder: Path, texts: list[str], rows: list[list[int]], scratch: Path) -> dict:
    (scratch / "asked.json").write_text(json.dumps({"texts": texts, "rows": rows}), encoding="utf-8")
    run_reference("generator_tokenizers", folder, scratch / "asked.json", scratch / "answered.json")
    return json.loads((scratch / "answered.json").read_text(encoding="utf-8"))


def check(tokenizer: ByteLevelTokenizer, theirs: dict, texts: list[str], rows: list[list[int]]) -> None:
    ours = [[tokenizer.bos_id, *encoding.ids.tolist(), tokenizer.eos_id] for encoding in tokenizer.encode_batch(texts)]
    assert [text for text, one, other in zip(texts, ours, theirs["ids"], strict=True) if one != other] == []
    assert [tokenizer.decode(row) for row in rows] == theirs["texts"]
    apart = ByteLevelTokenizer(*tokenizer.__reduce__()[1][:2], clean_up=False)
    assert [apart.decode(row) for row in rows] == theirs["apart"]


def test_ids_and_texts(byte_level: ByteLevelTokenizer, strings: list[str], tmp_path: Path):
    write_generator_tokenizer(tmp_path / "bart", byte_level, 1024)
    rows = rows_of(byte_level, strings)
    theirs = answers(tmp_path / "bart", strings, rows, tmp_path)
    assert [theirs[kind]["class"] for kind in ("slow", "fast")] == ["BartTokenizer", "BartTokenizerFast"]
    for kind in ("slow", "fast"):
        check(byte_level, theirs[kind], strings, rows)
    assert theirs["slow"]["texts"] != theirs["slow"]["apart"]


def test_a_space_in_front(byte_level: ByteLevelTokenizer, strings: list[str], tmp_path: Path):
    spaced = ByteLevelTokenizer(*byte_level.__reduce__()[1][:2], add_prefix_space=True)
    write_generator_tokenizer(tmp_path / "bart", spaced, 1024)
    texts = [text for text in strings if text not in HARD]
    theirs = answers(tmp_path / "bart", texts, [], tmp_path)
    for kind in ("slow", "fast"):
        check(spaced, theirs[kind], texts, [])


def test_rags_two_tokenizers(byte_level: ByteLevelTokenizer, vocab: Path, strings: list[str], tmp_path: Path):
    pieces = WordPieceTokenizer.from_vocab_file(vocab)
    generator = tiny.encoder_decoder(vocab_size=byte_level.vocab_size)
    retriever = tiny.retriever(
        encoder=tiny.encoder(vocab_size=pieces.vocab_size), projection_size=None, score_scale=1.0
    )
    params = {
        "generator": random_params(EncoderDecoder(generator), 0),
        "retriever": random_params(Retriever(retriever), 1),
    }
    model = Model(params, retriever=retriever, generator=generator, tokenizer=pieces, generator_tokenizer=byte_level)
    save_hugging_face(tmp_path / "rag", "RagTokenForGeneration", model)
    texts, rows = strings[len(HARD) : len(HARD) + 500], rows_of(byte_level, strings)
    theirs = answers(tmp_path / "rag", texts, rows, tmp_path)
    assert theirs["rag"]["class"] == "BartTokenizerFast"
    check(byte_level, theirs["rag"], texts, rows)
    ours = [[pieces.cls_id, *encoding.ids.tolist(), pieces.sep_id] for encoding in pieces.encode_batch(texts)]
    assert ours == theirs["question"]
    again = load_hugging_face(tmp_path / "rag")
    assert again.generator_tokenizer.fingerprint == byte_level.fingerprint
