"""The documents' texts of RealmForOpenQA: JSON lines in and out, a pickle refused unopened."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from realm_jax.convert.block_records import block_texts, check_block_records, write_block_records
from realm_jax.convert.job import convert
from tests.convert.made import golden_folder


class Harm:
    ran = False

    def __reduce__(self):
        return setattr, (Harm, "ran", True)


def test_texts_travel_with_their_embeddings(tmp_path: Path):
    folder, case = golden_folder("RealmForOpenQA", tmp_path / "model")
    blocks = case.metadata["texts"]["blocks"]
    assert len(blocks) == 7
    write_block_records(folder / "block_records.jsonl", blocks)
    run = tmp_path / "run"
    convert(run_dir=str(run), source=str(folder))
    np.testing.assert_array_equal(np.load(run / "weights" / "block_embeddings.npy"), case.arrays["model/block_emb"])
    convert(run_dir=str(run), direction="out", destination=str(tmp_path / "out"))
    assert list(block_texts(tmp_path / "out" / "block_records.jsonl")) == blocks


def test_a_pickle_is_refused_and_not_run(tmp_path: Path):
    folder, _ = golden_folder("RealmForOpenQA", tmp_path / "model")
    np.save(folder / "block_records.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    assert pickle.dumps(Harm())[:1] == b"\x80" and not Harm.ran
    for named in ("", str(folder / "block_records.npy")):
        with pytest.raises(
            ValueError, match=r"block_records.npy is a pickle .*not opened here; if you trust .*> block_records.jsonl"
        ):
            convert(run_dir=str(tmp_path / "run"), source=str(folder), block_records=named)
    assert not Harm.ran and not (tmp_path / "run").exists()


def test_records_that_do_not_belong_to_it(tmp_path: Path):
    folder, _ = golden_folder("RealmForOpenQA", tmp_path / "model")
    write_block_records(tmp_path / "six.jsonl", ["text"] * 6)
    with pytest.raises(ValueError, match=r"six.jsonl has 6 lines, block_emb 7 rows"):
        convert(run_dir=str(tmp_path / "run"), source=str(folder), block_records=str(tmp_path / "six.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: expected \{\"text\": …\}"):
        check_block_records(tmp_path / "bad.jsonl", 2)
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match="line 1: text is a int, expected a string"):
        check_block_records(tmp_path / "number.jsonl", 1)
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"half.jsonl, line 2: expected .*surrogates not allowed"):
        check_block_records(tmp_path / "half.jsonl", 2)
    with pytest.raises(FileNotFoundError, match=r"no nothing.jsonl; expected JSON lines"):
        convert(run_dir=str(tmp_path / "run"), source=str(folder), block_records="nothing.jsonl")
