"""Documents in the pieces of a second tokenizer: complete, found again, refused where they are another corpus's."""

import json
import shutil

import numpy as np
import pytest

from realm_jax.corpus import generator_pieces
from realm_jax.corpus.build import corpus as corpus_job
from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.generator_pieces import add_pieces, open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from tests import tiny


@pytest.fixture
def knowledge(tmp_path):
    return make_corpus(tmp_path / "z", tiny.blocks(), tiny.tokenizer())


@pytest.fixture
def second():
    """The same words under other ids."""
    return tiny.tokenizer([*reversed(tiny.WORDS), "extra"])


def test_every_document_is_there_in_the_second_pieces(knowledge, second, monkeypatch):
    monkeypatch.setattr(generator_pieces, "_AT_ONCE", 7)  # the last batch is a part
    add_pieces(knowledge, second)
    pieces = open_pieces(knowledge, second)
    assert len(pieces.titles) == len(pieces.bodies) == 40
    for document in range(40):
        title, text = document_text(knowledge, document)
        assert second.decode(pieces.titles[document]) == title and second.decode(pieces.bodies[document]) == text
    assert pieces.bodies[3].tolist() != knowledge.bodies[3].tolist()
    place = knowledge.directory / "pieces" / second.fingerprint[:16]
    written = (place / "bodies.values.npy").stat().st_mtime_ns
    add_pieces(knowledge, second)  # not done again
    assert (place / "bodies.values.npy").stat().st_mtime_ns == written


def test_the_corpus_own_pieces_need_nothing(knowledge):
    add_pieces(knowledge, knowledge.tokenizer)
    assert not (knowledge.directory / "pieces").exists()
    assert open_pieces(knowledge, knowledge.tokenizer).bodies is knowledge.bodies


def test_what_is_not_there_or_another_corpus_is_refused(knowledge, second, tmp_path):
    with pytest.raises(
        ValueError, match=r"no documents in the pieces of tokenizer .*--gin.corpus.generator_tokenizer="
    ):
        open_pieces(knowledge, second)
    add_pieces(knowledge, second)
    place = knowledge.directory / "pieces" / second.fingerprint[:16]
    (place / "pieces.json").rename(place / "aside")  # as killed before the end
    with pytest.raises(ValueError, match="no documents in the pieces"):
        open_pieces(knowledge, second)
    add_pieces(knowledge, second)
    assert not (place / "aside").exists()  # begun anew
    other = make_corpus(tmp_path / "other", tiny.blocks()[:39], tiny.tokenizer())
    shutil.copytree(knowledge.directory / "pieces", other.directory / "pieces")
    with pytest.raises(ValueError, match="is of another corpus or tokenizer"):
        open_pieces(other, second)
    (place / "bodies.values.npy").write_bytes((place / "bodies.values.npy").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"bodies.values.npy is damaged or cut short"):
        open_pieces(knowledge, second)
    with pytest.raises(ValueError, match="was made without text, which a second tokenizer must read"):
        add_pieces(tiny.corpus(tmp_path / "bare"), second)


def test_the_corpus_job_adds_them_at_once_or_later(second, tmp_path):
    second.save(tmp_path / "second")
    tiny.tokenizer().save(tmp_path / "first")
    rows = [{"title": block.title, "text": block.text} for block in tiny.blocks()]
    (tmp_path / "z.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {
        "source": str(tmp_path / "z.jsonl"),
        "tokenizer": str(tmp_path / "first"),
        "tagger": "none",
        "num_workers": 0,
    }
    for run, begins in (("one", {"generator_tokenizer": str(tmp_path / "second")}), ("two", {})):
        corpus_job(run_dir=str(tmp_path / run), **job, **begins)
        corpus_job(run_dir=str(tmp_path / run), **job, generator_tokenizer=str(tmp_path / "second"))
    one, two = (open_pieces(Corpus.open(tmp_path / run / "corpus"), second) for run in ("one", "two"))
    for document in range(len(one.bodies)):
        np.testing.assert_array_equal(one.bodies[document], two.bodies[document])
    with pytest.raises(ValueError, match="no tokenizer at"):
        corpus_job(run_dir=str(tmp_path / "two"), **job, generator_tokenizer=str(tmp_path))
