"""A tokenizer that was saved is loaded as the same one, or refused."""

import pickle

import numpy as np
import pytest

from realm_jax.text.loading import load_tokenizer
from tests.text.sample_texts import ODD_TEXT


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


def test_an_empty_model_is_damaged(sentencepiece_tokenizer, tmp_path, capfd):
    sentencepiece_tokenizer.save(tmp_path / "t")
    (tmp_path / "t/sentencepiece.model").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"sentencepiece.model: expected a SentencePiece model, got nothing .*damaged .*build"
    ):
        load_tokenizer(tmp_path / "t")
    assert capfd.readouterr().err == ""  # SentencePiece itself says more than once that it has no model


def test_load_errors(wordpiece_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*: expected a directory with sentencepiece.model"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "bad.model").write_bytes(b"hello")
    with pytest.raises(
        ValueError, match=r"bad.model: not a SentencePiece model \(5 bytes.*damaged .*build the corpus again"
    ):
        load_tokenizer(tmp_path / "bad.model")
    wordpiece_tokenizer.save(tmp_path / "t")
    with (tmp_path / "t/vocab.txt").open("a") as file:
        file.write("extra\n")
    with pytest.raises(ValueError, match="is not the one that was saved there"):
        load_tokenizer(tmp_path / "t")
