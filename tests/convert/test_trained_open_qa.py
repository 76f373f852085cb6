"""A run that was fine-tuned here goes out as RealmForOpenQA, and what comes in again gives the same answers."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from realm_jax.__main__ import main
from realm_jax.answering.loading import load_answerer, served_version
from realm_jax.config import bind
from realm_jax.convert import load_hugging_face
from realm_jax.convert.job import convert
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings, build_version
from realm_jax.retrieval.shards import map_embeddings
from realm_jax.retrieval.versions import list_versions, read_manifest
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import load_params
from tests import tiny

pytestmark = pytest.mark.slow  # a training each

ASKED = ["ann 1900 lived in", "who worked in rome", "bob was born in", "then cem"]
# What docs/weights.md says to add to the paper's run files.
POOLER = "--gin.retriever.RetrieverConfig.pooling=pooler"
SMALL = """
from __gin__ import dynamic_registration
from realm_jax.models import retriever
from realm_jax.models import transformer
from realm_jax.training import loop
from realm_jax.training import optimizer
transformer.TransformerConfig:
  vocab_size = 64
  hidden_size = 32
  num_layers = 1
  num_heads = 4
  intermediate_size = 48
  max_length = 64
  initializer_range = 0.2
  dtype = 'float32'
  remat = False
retriever.RetrieverConfig.projection_size = 16
loop.train:
  num_steps = 2
  batch_size = 8
optimizer.OptimizerConfig:
  learning_rate = 1e-2
  warmup_steps = 0
"""
SMALL_OPEN_QA = """
from __gin__ import dynamic_registration
from realm_jax.models import span_reader
from realm_jax.retrieval import build_version
from realm_jax.tasks import open_qa
from realm_jax.training import refresh
span_reader.SpanReaderConfig:
  span_hidden_size = 24
  max_span_width = 3
open_qa.OpenQa:
  num_retrieved = 10
  num_read = 3
  query_len = 8
  joint_len = 32
  document_len = 24
refresh.RefreshConfig.index = @build_version.IndexSettings()
build_version.IndexSettings.backend = 'exact'
build_version.BatchSettings:
  document_len = 24
  batch_size = 8
  num_lengths = 1
  query_len = 8
"""


class Trained(NamedTuple):
    run: RunDir
    ict: RunDir
    corpus: Corpus
    files: list[str]  # to ask it with
    bindings: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Pre-trained by ICT and fine-tuned by the paper's run files, in small; a newer index that the run does not serve."""
    place = tmp_path_factory.mktemp("trained")
    corpus = make_corpus(place / "corpus", tiny.blocks(), tiny.tokenizer())
    (place / "small.gin").write_text(SMALL)
    (place / "small_open_qa.gin").write_text(SMALL_OPEN_QA)
    small = f"--gin_file={place / 'small.gin'}"
    ict, run = RunDir.of(place / "ict"), RunDir.of(place / "qa")
    lengths = ["--gin.ict.Ict.query_len=8", "--gin.ict.Ict.document_len=24"]
    of_corpus = f"--gin.CORPUS={corpus.directory}"
    command = ["train", f"--run_dir={ict.path}", "--gin_file=runs/ict_paper.gin", small, of_corpus, POOLER, *lengths]
    assert main(command) == 0
    questions = tiny.questions_file(place / "questions.jsonl")
    files = ["runs/open_qa_paper.gin", str(place / "small.gin"), str(place / "small_open_qa.gin")]
    flags = [of_corpus, POOLER, f"--gin.QUESTIONS={questions}", "--gin.HELD_OUT=()"]
    warm = f"--gin.WARM_START=('{ict.path}',)"
    assert main(["train", f"--run_dir={run.path}", *(f"--gin_file={file}" for file in files), *flags, warm]) == 0

    def others(ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(ids), 16)).astype(np.float32)

    build_version(
        run.index,
        1,
        others,
        corpus,
        IndexSettings(backend="exact"),
        embed_dim=16,
        snapshot_checksum="of another snapshot",
        batches=BatchSettings(document_len=24, batch_size=8, num_lengths=1, query_len=8),
    )
    assert list_versions(run.index) == [0, 1] and served_version(run) == 0
    return Trained(run, ict, corpus, files, [flag.removeprefix("--gin.") for flag in flags])


@pytest.fixture(scope="module")
def taken_out(trained: Trained) -> tuple[Path, Path]:
    """As RealmForOpenQA, and beside it the encoder of its documents."""
    out = ["convert", f"--run_dir={trained.run.path}", "--gin.convert.direction=out"]
    assert main([*out, "--gin.convert.architecture=RealmForOpenQA"]) == 0
    assert main([*out, "--gin.convert.architecture=RealmEmbedder", "--gin.convert.side=document"]) == 0
    weights = trained.run.path / "weights-out"
    return weights / "RealmForOpenQA", weights / "RealmEmbedder"


def test_the_folder_holds_the_index_that_the_run_serves(trained: Trained, taken_out: tuple[Path, Path]):
    model = load_hugging_face(taken_out[0])
    rows = {}
    for version in (0, 1):
        place = trained.run.index_version(version)
        manifest = read_manifest(place)
        rows[version] = np.concatenate([map_embeddings(place, shard, 16) for shard in manifest.shards])
    np.testing.assert_array_equal(model.block_embeds, rows[0])
    assert np.abs(rows[0] - rows[1]).max() > 0.1
    texts = [json.loads(line)["text"] for line in (taken_out[0] / "block_records.jsonl").read_text().splitlines()]
    assert texts == [block.text for block in tiny.blocks()]
    params = load_params(trained.run)[1]
    sides = params["retriever"]
    jax.tree.map(np.testing.assert_array_equal, model.params["retriever"]["shared_encoder"], sides["query_encoder"])
    jax.tree.map(np.testing.assert_array_equal, dict(model.params["span_reader"]), params["span_reader"])
    # its documents' encoder is ICT's still, BERT's pooler and all, and the questions' has moved
    shared = load_params(trained.ict)[1]["retriever"]["shared_encoder"]
    jax.tree.map(np.testing.assert_array_equal, sides["document_encoder"], shared)
    assert np.abs(sides["query_encoder"]["pooler"]["kernel"] - shared["pooler"]["kernel"]).max() > 1e-3
    said = json.loads((taken_out[0] / "config.json").read_text())
    expected = {"searcher_beam_size": 10, "reader_beam_size": 3, "reader_seq_len": 32, "num_block_records": 40}
    assert {name: said[name] for name in expected} == expected


def test_in_again_it_gives_the_same_answers(trained: Trained, taken_out: tuple[Path, Path], tmp_path: Path):
    again = RunDir.of(tmp_path / "again")
    convert(run_dir=str(again.path), source=str(taken_out[0]), document_embedder=str(taken_out[1]))
    convert(run_dir=str(again.path), direction="index", backend="exact")
    first = bind("predict", trained.files, [*trained.bindings, "predict.questions='who'"])["task"]
    task = bind("predict", [str(again.weights / "open_qa.gin")], ["predict.questions='who'"])["task"]
    assert (task.num_retrieved, task.num_read, task.joint_len) == (10, 3, 32)
    expected = load_answerer(trained.run, first).answerer.answer(ASKED)
    answers = load_answerer(again, task).answerer.answer(ASKED)
    assert len({answer.text for answer in expected}) > 1 and all(answer.text for answer in expected)
    for ours, theirs in zip(answers, expected, strict=True):
        assert (ours.text, ours.document.document) == (theirs.text, theirs.document.document)
        assert ours.prob == pytest.approx(theirs.prob, rel=1e-5)
        assert len(ours.documents) == 4
        for name in ("document", "retrieval_score", "prob"):
            one, other = ([getattr(document, name) for document in answer.documents] for answer in (ours, theirs))
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        for one, other in zip(ours.documents[:-1], theirs.documents[:-1], strict=True):
            assert (one.text, one.best_span[:3]) == (other.text, other.best_span[:3])


def test_a_run_of_another_task_has_no_questions_to_answer(trained: Trained):
    other = trained.ict.index_version(0)
    other.parent.mkdir()
    other.symlink_to(trained.run.index_version(0))
    with pytest.raises(
        ValueError, match=r"ict was trained with the task Ict, and RealmForOpenQA answers questions; name"
    ):
        convert(run_dir=str(trained.ict.path), direction="out", architecture="RealmForOpenQA")


def test_documents_without_text_stay(trained: Trained, tmp_path: Path):
    """Refused before anything is written."""
    info = json.loads((trained.corpus.directory / "corpus.json").read_text())
    (trained.corpus.directory / "corpus.json").write_text(json.dumps({**info, "has_blocks": False}))
    try:
        with pytest.raises(
            ValueError, match="was made without text, and RealmForOpenQA shows its documents; build it with"
        ):
            convert(run_dir=str(trained.run.path), direction="out", architecture="RealmForOpenQA",
                    destination=str(tmp_path / "out"))  # fmt: skip
    finally:
        (trained.corpus.directory / "corpus.json").write_text(json.dumps(info))
    assert not (tmp_path / "out").exists()
