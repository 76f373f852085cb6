"""The evaluate job, with models and files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.config import bind
from realm_jax.corpus.blocks import Block
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.data.inputs import SpecialIds, document_inputs
from realm_jax.evaluation import retrieval
from realm_jax.evaluation.retrieval import evaluate, retriever_params
from realm_jax.models import Retriever, RetrieverConfig, TransformerConfig
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings, build_version
from realm_jax.retrieval.embedder import Embedder
from realm_jax.run_dir import RunDir, read_json, write_json_atomically
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from realm_jax.training.snapshots import save_snapshot

NAMES = ["ann", "bob", "cem", "dan", "eva", "fay", "gus"]
TOWNS = ["oslo", "rome", "bern", "kyiv", "lima", "cork", "nice"]
WORDS = [*NAMES, *TOWNS, "was", "born", "in", ".", "lived"]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer([*SPECIAL_PIECES, *WORDS])


def block(source, text, spans=(), title=""):
    whole = np.array([[0, len(text)]], np.int32)
    return Block(f"{source}#0", source, title, text, whole, np.asarray(spans, np.int32).reshape(-1, 2))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("corpora")
    people = list(zip(NAMES, TOWNS, strict=True))
    z = make_corpus(
        place / "z",
        [block(n, f"{n} was born in {t}. " + "was " * i, title=n) for i, (n, t) in enumerate(people)],
        tokenizer,
    )
    x_blocks = [block(f"x-{n}", f"in {t} lived {n} .", [(3, 3 + len(t))]) for n, t in people]
    make_corpus(place / "x", x_blocks, tokenizer, gold_documents=range(7), answers=[[t] for t in TOWNS])
    return z, place


@pytest.fixture(scope="module")
def config():
    encoder = TransformerConfig(
        vocab_size=32, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_length=64,
        dropout_rate=0.0, attention_dropout_rate=0.0, initializer_range=0.5,
    )  # fmt: skip
    return RetrieverConfig(encoder=encoder, projection_size=8)


def init(config, seed):
    ids = jnp.ones((1, 4), jnp.int32)
    variables = jax.jit(Retriever(config).init)(jax.random.key(seed), ids, ids * 0, ids > 0)
    return jax.tree.map(np.asarray, variables["params"])


def test_the_job_measures_bm25_stage_and_checkpoint(corpora, config, tmp_path, capsys):
    place = corpora[1]
    run = RunDir(tmp_path)
    save_snapshot(run, 300, init(config, 1))
    save_snapshot(run.stage("ict"), 100, init(config, 2))
    result = evaluate(
        run_dir=str(run.path), corpus=str(place / "z"), x_corpus=str(place / "x"), retriever=config,
        query_len=16, document_len=32, name="heldout",
    )  # fmt: skip
    assert json.loads(run.evaluation("heldout").read_text()) == result
    assert list(result["rows"]) == ["bm25", "ict", "checkpoint"]
    bm25 = result["rows"]["bm25"]
    assert bm25["recall_at_1"] == bm25["mrr"] == bm25["answer_recall_at_1"] == 1.0  # the name tells it all
    assert result["rows"]["ict"]["step"] == 100 and result["rows"]["checkpoint"]["step"] == 300
    for row in result["rows"].values():
        assert row["recall_at_100"] == 1.0  # seven documents
        assert row["recall_at_1"] <= row["recall_at_5"] <= row["recall_at_20"]
        assert row["queries_with_gold"] == row["queries_with_answers"] == 7
    assert result["rows"]["checkpoint"]["recall_at_1"] < 1.0
    shown = capsys.readouterr().out
    assert "7 queries of" in shown and "checkpoint 300" in shown and "100.0" in shown


def test_the_served_index_stands_in_the_same_table(corpora, config, tmp_path):
    corpus, place = corpora
    run, params = RunDir(tmp_path), init(config, 1)
    save_snapshot(run, 300, params)
    special = SpecialIds.of(corpus.tokenizer)
    embeddings = {300: Embedder(config, params).embed_corpus(corpus, BatchSettings(document_len=32))}
    embeddings[200] = -embeddings[300]  # a stale version that ranks the wrong way round
    for version, rows in embeddings.items():
        inputs = document_inputs(corpus, np.arange(7), 32, special).ids
        by_ids = {tuple(ids[ids > 0]): row for ids, row in zip(inputs, rows, strict=True)}
        build_version(
            run.index, version, lambda ids, _, by_ids=by_ids: np.stack([by_ids[tuple(row[row > 0])] for row in ids]),
            corpus, IndexSettings(backend="exact"), embed_dim=8, snapshot_checksum="0" * 64,
            batches=BatchSettings(document_len=32, batch_size=1),
        )  # fmt: skip
    evaluate_here = functools.partial(
        evaluate, run_dir=str(run.path), corpus=str(place / "z"), x_corpus=str(place / "x"), retriever=config,
        query_len=16, document_len=32, bm25=False,
    )  # fmt: skip
    checkpoint, served = evaluate_here()["rows"].values()
    assert served.pop("version") == 300 and served.pop("search_recall") == 1.0
    assert served == checkpoint
    old = evaluate_here(index_version=200)["rows"]["served_index"]
    assert old["version"] == 200 and old["mrr"] != checkpoint["mrr"]
    write_json_atomically(run.trainer_status(0), {"state": "running", "index_version": 200})
    assert evaluate_here()["rows"]["served_index"]["version"] == 200  # what the trainer uses, not the newest
    stray = RetrieverConfig(config.encoder, projection_size=4)
    with pytest.raises(ValueError, match="expected embed_dim 4, got 8"):
        evaluate_here(retriever=stray)


def test_bm25_alone_needs_no_model(corpora, tmp_path):
    place = corpora[1]
    rows = tmp_path / "q.jsonl"
    rows.write_text('{"question": "bob lived", "answer": "rome", "gold_id": "bob"}\n')
    result = evaluate(run_dir=str(tmp_path), corpus=str(place / "z"), questions=str(rows))
    assert result["rows"]["bm25"]["recall_at_1"] == 1.0


@pytest.mark.parametrize("of_questions", [True, False])
def test_bm25_alone_from_a_run_file_that_binds_a_retriever_and_a_reader(corpora, tmp_path, of_questions):
    """The commands of docs/evaluation.md, in a run directory without a checkpoint or an index."""
    place = corpora[1]
    rows = tmp_path / "q.jsonl"
    rows.write_text('{"question": "bob lived", "answer": "rome", "gold_id": "bob"}\n')
    bindings = [f"CORPUS={place / 'z'}", "evaluate.retriever=None", "evaluate.reading=None", "evaluate.batch_size=7"]
    bindings += [f"evaluate.x_corpus={None if of_questions else place / 'x'}"]
    bindings += [f"evaluate.questions={rows}"] * of_questions
    result = evaluate(run_dir=str(tmp_path), **bind("evaluate", ["runs/realm_documents.gin"], bindings))
    assert list(result["rows"]) == ["bm25"] and result["rows"]["bm25"]["recall_at_1"] == 1.0
    assert result["queries"]["count"] == (1 if of_questions else 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation", "q.jsonl"]


def test_several_files_of_questions_are_measured_apart(corpora, tmp_path, capsys):
    place = corpora[1]
    found, lost = tmp_path / "found.jsonl", tmp_path / "lost.dev.jsonl"
    found.write_text('{"question": "bob lived", "answer": "rome", "gold_id": "bob"}\n')
    lost.write_text('{"question": "bob lived", "answer": "xyz", "gold_id": "ann"}\n' * 2)
    result = evaluate(run_dir=str(tmp_path), corpus=str(place / "z"), questions=(str(found), str(lost)), name="qa")
    assert list(result) == ["qa-found", "qa-lost.dev"]
    assert [one["rows"]["bm25"]["recall_at_1"] for one in result.values()] == [1.0, 0.0]
    for name, one in result.items():
        assert read_json(RunDir(tmp_path).evaluation(name)) == one
    assert "1 queries of" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"found.jsonl and .*found.jsonl would both be written to qa-found"):
        evaluate(run_dir=str(tmp_path), corpus=str(place / "z"), questions=(str(found), str(found)), name="qa")


def test_what_does_not_fit_is_refused(corpora, config, tmp_path):
    place = corpora[1]
    z, x = str(place / "z"), str(place / "x")
    with pytest.raises(ValueError, match=r"either x_corpus .* or questions"):
        evaluate(run_dir=str(tmp_path), corpus=z)
    with pytest.raises(ValueError, match=r"either x_corpus .* or questions"):
        evaluate(run_dir=str(tmp_path), corpus=z, x_corpus=x, questions=x)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        evaluate(run_dir=str(tmp_path), corpus=z, x_corpus=x, retriever=config)
    small = RetrieverConfig(TransformerConfig(vocab_size=8, hidden_size=16, num_heads=2))
    with pytest.raises(ValueError, match="vocab_size=8"):
        evaluate(run_dir=str(tmp_path), corpus=z, x_corpus=x, retriever=small)
    save_snapshot(RunDir(tmp_path / "other"), 5, init(config, 0), tokenizer="zyxwvutsrqponmlk")
    with pytest.raises(ValueError, match="was trained on the pieces of tokenizer zyxwvutsrqpo, the corpus has"):
        evaluate(run_dir=str(tmp_path / "other"), corpus=z, x_corpus=x, retriever=config)
    save_snapshot(RunDir(tmp_path), 5, init(config, 0))
    with pytest.raises(ValueError, match="has no version 7; it has none"):
        evaluate(run_dir=str(tmp_path), corpus=z, x_corpus=x, retriever=config, index_version=7)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 6"):
        retriever_params(RunDir(tmp_path), Corpus.open(z), 6)


def test_a_run_without_a_retriever_is_refused(corpora, config, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "load_params", lambda run, step: (3, {"knowledge_encoder": {}}))
    with pytest.raises(
        ValueError, match=f"{tmp_path} has trained knowledge_encoder and no retriever; name a run that has"
    ):
        evaluate(run_dir=str(tmp_path), corpus=str(corpora[1] / "z"), x_corpus=str(corpora[1] / "x"), retriever=config)
