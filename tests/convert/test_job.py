"""The convert job: a run directory that other jobs start from, and a trained run as a folder."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from realm_jax import config
from realm_jax.__main__ import main
from realm_jax.convert import load_hugging_face
from realm_jax.convert.job import convert
from realm_jax.convert.starting_point import with_document_encoder
from realm_jax.run_dir import RunDir
from realm_jax.text.word_piece import WordPieceTokenizer
from realm_jax.training.checkpoint import check_tokenizer, load_params
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.snapshots import load_snapshot
from tests import tiny
from tests.convert.made import VOCAB, golden_folder, sentence_transformer


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "name", ["RealmForOpenQA", "RealmKnowledgeAugEncoder", "RealmScorer-untied", "BertForPreTraining"]
)
def test_in_and_out_again_is_exact(name: str, tmp_path: Path):
    folder, case = golden_folder(name, tmp_path / "theirs", VOCAB if name != "RealmForOpenQA" else None)
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(folder))
    model = load_hugging_face(folder)
    step, params = load_params(run)
    assert step == 0
    # RealmForOpenQA's embedder embeds questions alone
    same(params, dict((with_document_encoder(model) if name == "RealmForOpenQA" else model).params))
    check_tokenizer(run, model.tokenizer.fingerprint)
    convert(run_dir=str(run.path), direction="out")
    again = load_hugging_face(run.path / "weights-out" / name.partition("-")[0])
    same(dict(again.params), dict(model.params))
    same(dict(again.unused), dict(model.unused))
    assert len(model.unused) > 0
    if name == "RealmForOpenQA":
        np.testing.assert_array_equal(again.block_embeds, case.arrays["model/block_emb"])
        assert again.settings["searcher_beam_size"] == case.metadata["config"]["searcher_beam_size"]


def test_a_run_starts_from_it_with_the_gin_files_it_wrote(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = sentence_transformer(tmp_path / "theirs")
    run = RunDir.of(tmp_path / "run")
    with caplog.at_level("INFO", logger="realm_jax"):
        assert main(["convert", f"--run_dir={run.path}", f"--gin.convert.source={folder}"]) == 0
    said = caplog.text
    assert f"--gin.corpus.tokenizer={run.weights / 'tokenizer'}" in said
    assert f"--gin_file={run.weights / 'retriever.gin'} --gin.train.warm_start=\"('{run.path}',)\"" in said
    bound = config.bind("train", ["runs/ict_documents.gin", str(run.weights / "retriever.gin")], ["CORPUS=nowhere"])
    expected = load_hugging_face(folder).retriever
    assert dataclasses.replace(bound["task"].retriever, score_scale=1.0) == dataclasses.replace(
        expected, encoder=dataclasses.replace(expected.encoder, unroll_layers=2)  # how it runs is the run file's
    )  # fmt: skip
    assert bound["task"].retriever.score_scale == 20.0  # of cosines
    pieces = WordPieceTokenizer(VOCAB)
    assert load_snapshot(run, 0, pieces.fingerprint).keys() == {"shared_encoder"}


def test_the_reader_of_a_run_file_is_set_in_its_scope(tmp_path: Path):
    folder, _ = golden_folder("RealmKnowledgeAugEncoder", tmp_path / "theirs", VOCAB)
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(folder))
    bound = config.bind("train", ["runs/reader_documents.gin", str(run.weights / "reader.gin")], ["CORPUS=nowhere"])
    expected = load_hugging_face(folder).knowledge_encoder
    assert dataclasses.replace(bound["task"].reader, unroll_layers=1) == expected


@pytest.mark.slow
def test_ict_starts_from_bert_with_a_new_projection(tmp_path: Path):
    source, _ = golden_folder("BertForMaskedLM", tmp_path / "theirs", VOCAB)
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(source), projection_size=6, span_reader=True, seed=3)
    _, params = load_params(run)
    assert set(params) == {"retriever", "knowledge_encoder", "span_reader"}
    encoder = params["retriever"]["shared_encoder"]
    assert encoder["projection"]["kernel"].shape == (8, 6) and encoder["projection"]["kernel"].std() > 0.01
    same(encoder["encoder"], params["knowledge_encoder"]["encoder"])
    same(params["span_reader"]["encoder"], params["knowledge_encoder"]["encoder"])
    assert params["span_reader"]["span_hidden"]["kernel"].shape == (8, 512)

    corpus = tiny.corpus(tmp_path / "corpus", words=VOCAB[5:])
    retriever = dataclasses.replace(load_hugging_face(source).retriever, projection_size=6)
    task = tiny.ict(corpus.directory, retriever=retriever, query_len=8, document_len=16)
    rate = 1e-3
    settings = {"optimizer": OptimizerConfig(learning_rate=rate, warmup_steps=0), "num_steps": 1, "batch_size": 8}
    train(run_dir=str(tmp_path / "ict"), task=task, warm_start=(str(run.path),), **settings)
    trained = load_params(RunDir.of(tmp_path / "ict"))[1]["retriever"]["shared_encoder"]
    moved = jax.tree.leaves(jax.tree.map(lambda new, old: float(np.abs(new - old).max()), trained, encoder))
    assert 0.5 * rate < max(moved) < 2 * rate  # one step of Adam from the converted parameters

    others = tiny.corpus(tmp_path / "others", words=VOCAB[:4:-1])
    other_task = dataclasses.replace(task, corpus=str(others.directory))
    with pytest.raises(ValueError, match=r"was trained on the pieces of tokenizer .*build the corpus with"):
        train(run_dir=str(tmp_path / "refused"), task=other_task, warm_start=(str(run.path),), **settings)


def test_a_retriever_without_a_masked_lm_head_gets_one_to_be_taught(tmp_path: Path):
    source, _ = golden_folder("BertModel", tmp_path / "theirs", VOCAB)
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(source), masked_lm=True, span_reader=True, seed=3)
    _, params = load_params(run)
    assert set(params) == {"retriever", "knowledge_encoder", "span_reader"}
    for learner in ("knowledge_encoder", "span_reader"):
        same(params[learner]["encoder"], params["retriever"]["shared_encoder"]["encoder"])
    assert params["knowledge_encoder"]["transform"]["kernel"].std() > 0.01
    bound = config.bind("train", ["runs/reader_documents.gin", str(run.weights / "reader.gin")], ["CORPUS=nowhere"])
    expected = load_hugging_face(source).retriever.encoder
    assert dataclasses.replace(bound["task"].reader, unroll_layers=1) == expected
    with pytest.raises(ValueError, match="masked_lm=True adds a masked-LM head to a model without; the source has one"):
        convert(
            run_dir=str(tmp_path / "again"),
            source=str(golden_folder("BertForMaskedLM", tmp_path / "lm", VOCAB)[0]),
            masked_lm=True,
        )


@pytest.mark.slow
def test_a_trained_run_goes_out(tmp_path: Path):
    """Trained with gin, so that the run knows its own configuration."""
    corpus = tiny.corpus(tmp_path / "corpus")
    run = tmp_path / "ict"
    (tmp_path / "ict.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom realm_jax.models import retriever\n"
        "from realm_jax.models import transformer\nfrom realm_jax.tasks import ict\n"
        "from realm_jax.training import loop\nfrom realm_jax.training import optimizer\n"
        f"loop.train:\n  task = @ict.Ict()\n  optimizer = @optimizer.OptimizerConfig()\n  num_steps = 1\n  batch_size = 8\n"
        f"ict.Ict:\n  corpus = '{corpus.directory}'\n  retriever = @retriever.RetrieverConfig()\n"
        "  query_len = 8\n  document_len = 16\n"
        "retriever.RetrieverConfig:\n  encoder = @transformer.TransformerConfig()\n  projection_size = 6\n"
        "  pooling = 'pooler'\n"
        "transformer.TransformerConfig:\n  vocab_size = 64\n  hidden_size = 8\n  num_layers = 1\n  num_heads = 2\n"
        "  intermediate_size = 12\n  max_length = 32\n"
    )
    assert main(["train", f"--run_dir={run}", f"--gin_file={tmp_path / 'ict.gin'}"]) == 0
    out = ["convert", f"--run_dir={run}", "--gin.convert.direction=out"]
    assert main([*out, "--gin.convert.architecture=RealmEmbedder", f"--gin.convert.destination={tmp_path / 'hf'}"]) == 0
    model = load_hugging_face(tmp_path / "hf")
    same(dict(model.params), load_params(RunDir.of(run))[1])
    assert model.retriever.encoder.hidden_size == 8 and model.retriever.pooling == "pooler"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["retriever_proj_size"] == 6
    with pytest.raises(
        ValueError,
        match=r"say which class retriever shall be \(--gin\.convert\.architecture=CLASS\), one of: BertModel",
    ):
        convert(run_dir=str(run), direction="out")
    with pytest.raises(ValueError, match=r"has no version, and RealmForOpenQA holds its documents' embeddings"):
        convert(run_dir=str(run), direction="out", architecture="RealmForOpenQA")
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        convert(run_dir=str(run), direction="out", architecture="RealmEmbedder", step=7)


def test_refusals(tmp_path: Path):
    folder, _ = golden_folder("RealmReader", tmp_path / "theirs")
    run = str(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"has no vocab.txt; name the model's WordPiece vocabulary \(--gin\.convert\.tokenizer=FILE\)"
    ):
        convert(run_dir=run, source=str(folder))
    (tmp_path / "long.txt").write_text("\n".join([*VOCAB, "more"]))
    with pytest.raises(ValueError, match="the vocabulary has 32 pieces, the span_reader 31 rows"):
        convert(run_dir=run, source=str(folder), tokenizer=str(tmp_path / "long.txt"))
    with pytest.raises(ValueError, match="unknown architecture 'Bert', valid: BertModel"):
        convert(run_dir=run, source=str(folder), architecture="Bert")
    with pytest.raises(ValueError, match="direction='in' needs a source"):
        convert(run_dir=run)
    with pytest.raises(ValueError, match="direction='out' reads --run_dir"):
        convert(run_dir=run, direction="out", source=str(folder))
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB))
    with pytest.raises(
        ValueError, match="projection_size=4 adds a projection to a retriever without; the source has no"
    ):
        convert(run_dir=run, source=str(folder), tokenizer=str(tmp_path / "vocab.txt"), projection_size=4)
    with pytest.raises(
        ValueError, match="masked_lm=True needs a tied retriever's BERT to start from; the source has none"
    ):
        convert(run_dir=run, source=str(folder), tokenizer=str(tmp_path / "vocab.txt"), masked_lm=True)
    with pytest.raises(ValueError, match="span_reader=True adds a span reader to a model without; the source has one"):
        convert(run_dir=run, source=str(folder), tokenizer=str(tmp_path / "vocab.txt"), span_reader=True)
    assert not Path(run).exists()
    convert(run_dir=run, source=str(folder), tokenizer=str(tmp_path / "vocab.txt"))
    with pytest.raises(ValueError, match="holds checkpoints of steps 0; convert into another --run_dir"):
        convert(run_dir=run, source=str(folder), tokenizer=str(tmp_path / "vocab.txt"))
