"""WordPiece and encode_candidates against RealmTokenizer and RealmTokenizerFast, on thousands of real strings."""

import collections
import json
import re
from pathlib import Path

import numpy as np
import pytest

from realm_jax.data.candidate_inputs import encode_candidates
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from tests.parity.conftest import run_reference

pytestmark = [pytest.mark.parity, pytest.mark.needs_data]

MAX_LENGTH = 24
HARD = ["", " ", "\t\n", "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m", "e\u0301 combining", "\u65e5\u672c\u8a9e text", "\U0001f600!", "a\u200bb \u00adsoft", "\x00\x07 bell", "\ufffd",
        "x" * 101, "\u0130stanbul \u1e9e", "\u03a3\u03c3\u03c2", "don't-stop...\u2014\u201cquoted\u201d", "\uac00\ub098\ub2e4 \u0e01\u0e33", "\u2028line\u2029", "\u00bd \u2163 \ufb01"]  # fmt: skip


@pytest.fixture(scope="module")
def strings(shared_data: Path) -> list[str]:
    """Questions, answers and sentences of every question file, some long passages, and odd ones."""
    found = []
    for path in sorted((shared_data / "openqa").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == 400:
                    break
                record = json.loads(line)
                found += [record["question"], *record.get("answer", []), record.get("passage", "")[:1500]]
    kept = list(dict.fromkeys(text for text in found if isinstance(text, str)))
    assert len(kept) > 3000
    return [*HARD, *kept]


@pytest.fixture(scope="module")
def vocab(strings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frequent words, pieces of words and characters of the strings: some words whole, some cut, some unknown."""
    words = collections.Counter(re.findall(r"\w+|[^\w\s]", " ".join(strings).lower()))
    frequent = [word for word, _ in words.most_common(3000)]
    endings = collections.Counter(word[-n:] for word in frequent for n in (1, 2, 3) if len(word) > n)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    continuing = [f"##{ending}" for ending, _ in endings.most_common(800)]
    pieces = dict.fromkeys([*SPECIAL_PIECES, *letters, *frequent, *continuing, *(f"##{letter}" for letter in letters)])
    place = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    place.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return place


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
