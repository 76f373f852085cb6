"""WordPiece and encode_candidates against RealmTokenizer and RealmTokenizerFast, on thousands of real strings."""

import json
from pathlib import Path

import numpy as np
import pytest

from realm_jax.data.candidate_inputs import encode_candidates
from realm_jax.text.word_piece import WordPieceTokenizer
from tests.parity.conftest import HARD, run_reference

pytestmark = [pytest.mark.parity, pytest.mark.needs_data]

MAX_LENGTH = 24


@pytest.fixture(scope="module")
def theirs(strings: list[str], vocab: Path) -> dict:
    rows = [strings[start : start + 4] for start in range(0, len(strings) - 7, 4)]
    pairs = [strings[start + 1 : start + 5] for start in range(2, len(strings) - 5, 4)][: len(rows)]
    rows = rows[: len(pairs)]
    asked = {"texts": strings, "candidates": rows, "pairs": pairs, "max_length": MAX_LENGTH}
    place = vocab.parent
    (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    run_reference("tokenizers", vocab, place / "asked.json", place / "answered.json")
    return asked | json.loads((place / "answered.json").read_text(encoding="utf-8"))


def test_ids_are_the_fast_tokenizers(strings: list[str], vocab: Path, theirs: dict):
    ours = [encoding.ids.tolist() for encoding in WordPieceTokenizer.from_vocab_file(vocab).encode_batch(strings)]
    different = [text for text, one, other in zip(strings, ours, theirs["fast"]["ids"], strict=True) if one != other]
    assert different == []


def test_ids_are_the_slow_tokenizers(strings: list[str], vocab: Path, theirs: dict):
    ours = [encoding.ids.tolist() for encoding in WordPieceTokenizer.from_vocab_file(vocab).encode_batch(strings)]
    different = [text for text, one, other in zip(strings, ours, theirs["slow"]["ids"], strict=True) if one != other]
    # the slow one keeps what the fast one cleans away only in these hand-made strings
    assert set(different) <= set(HARD), different[:3]


@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_candidates(kind: str, vocab: Path, theirs: dict):
    tokenizer = WordPieceTokenizer.from_vocab_file(vocab)
    pairs = theirs["pairs"] if kind == "pairs" else None
    ours = encode_candidates(tokenizer, theirs["candidates"], MAX_LENGTH, pairs)
    slow, fast = theirs["slow"][kind], theirs["fast"][kind]
    hard = np.array([
        [text in HARD or (pair is not None and pair in HARD) for text, pair in zip(row, pair_row, strict=True)]
        for row, pair_row in zip(theirs["candidates"], pairs or [[None] * len(row) for row in theirs["candidates"]], strict=True)
    ])  # fmt: skip
    assert hard.mean() < 0.02
    for name, array in (("input_ids", ours.ids), ("token_type_ids", ours.segment_ids), ("attention_mask", ours.mask)):
        np.testing.assert_array_equal(array[~hard], np.array(slow[name])[~hard], err_msg=name)
    same = (np.array(slow["input_ids"]) == np.array(fast["input_ids"])).all(axis=-1)
    np.testing.assert_array_equal(ours.ids[same & hard], np.array(fast["input_ids"])[same & hard])
    assert same[~hard].mean() > (0.99 if kind == "single" else 0.5)  # of long pairs the fast one keeps another piece


def test_special_pieces_in_text_are_text_here(vocab: Path):
    """The one difference meant: "[MASK]" in a document is a mask there, and five pieces here."""
    tokenizer = WordPieceTokenizer.from_vocab_file(vocab)
    assert tokenizer.mask_id not in tokenizer.encode("a [MASK] b [SEP]").ids
    assert tokenizer.sep_id not in tokenizer.encode("a [MASK] b [SEP]").ids
