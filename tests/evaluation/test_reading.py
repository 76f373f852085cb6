"""How well a run's reader fills spans: which parameters and which search each row of the table stands for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.inputs import document_inputs
from realm_jax.evaluation import reading, retrieval
from realm_jax.evaluation.bm25 import Bm25Index
from realm_jax.evaluation.masked_spans import MaskedSpanEvaluation
from realm_jax.evaluation.queries import texts_for_search
from realm_jax.evaluation.reading import bm25_search, evaluate_reading, reading_table
from realm_jax.models import Retriever
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.run_dir import RunDir
from realm_jax.tasks.realm import init_params
from realm_jax.training.checkpoint import NO_VERSION, Checkpoints, ResumeUnit
from realm_jax.training.state import TrainState
from tests import tiny

SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z")), tiny.sentences_corpus(tmp_path_factory.mktemp("x"))


@pytest.fixture(scope="module")
def task(places):
    retriever = tiny.retriever(encoder=tiny.encoder(**SMALL))
    return tiny.realm(places[0].directory, retriever=retriever, reader=tiny.encoder(**SMALL))


@pytest.fixture(scope="module")
def init(task, places):
    return jax.jit(functools.partial(init_params, model=task.model(places[0])))


def save(run, params, step=5):
    checkpoints = Checkpoints(run)
    state = TrainState(np.int32(step), params, {"count": np.int32(0)}, np.int32(0))
    checkpoints.save(step, ResumeUnit(jax.tree.map(jnp.asarray, state), NO_VERSION, None))
    checkpoints.wait()
    checkpoints.close()


def embed_one_by_one(corpus, task, params, special):
    embed = jax.jit(functools.partial(Retriever(task.retriever).apply, method="embed_documents"))
    rows = []
    for row in range(corpus.num_documents):
        ids, segment_ids = document_inputs(corpus, np.array([row]), task.document_len, special)
        rows.append(embed({"params": params["retriever"]}, jnp.asarray(ids), jnp.asarray(segment_ids), ids != 0))
    return np.concatenate(rows)


def words(corpus):
    return Bm25Index(texts_for_search(corpus))


def test_rows_are_the_checkpoint_the_warm_starts_and_bm25(places, task, init, tmp_path, monkeypatch):
    corpus, news = places
    compiled_once = functools.cache(MaskedSpanEvaluation)
    monkeypatch.setattr(reading, "MaskedSpanEvaluation", compiled_once)
    trained, warm = (init(jax.random.key(seed)) for seed in (0, 1))
    run = RunDir(tmp_path)
    save(run, trained)
    rows, examples = evaluate_reading(run, task, str(news.directory), num_sentences=16, num_examples=3, batch_size=8)
    assert list(rows) == ["realm", "bm25"] and len(examples) == 3
    save(run.stage("ict"), {"retriever": warm["retriever"]})
    save(run.stage("reader"), {"knowledge_encoder": warm["knowledge_encoder"]})
    again, _ = evaluate_reading(run, task, str(news.directory), num_sentences=16, batch_size=8)
    assert list(again) == ["realm", "ict", "bm25"] and again["realm"] == rows["realm"] and again["bm25"] == rows["bm25"]

    evaluation = compiled_once(task, str(news.directory), 16, 8, 0)
    made = {}
    for name, params in (("realm", trained), ("ict", warm)):
        index = ExactIndex(embed_one_by_one(corpus, task, params, evaluation.model.special))
        search = evaluation.search_in(params, index)
        by_hand = evaluation.evaluate(params, search).figures
        assert again[name] == pytest.approx(by_hand, abs=1e-4), name
        made[name] = index
    # indexes that there are already are searched, not made again
    monkeypatch.setattr(reading, "_exact_index", None)
    shared, _ = evaluate_reading(
        run, task, str(news.directory), num_sentences=16, batch_size=8, indexes=made, bm25=words(corpus)
    )
    assert shared["realm"] == pytest.approx(again["realm"], abs=1e-4) and shared["bm25"] == again["bm25"]
    # one reader, another search: the null document says the same; what is chosen differs
    assert again["bm25"]["null_only"] == again["realm"]["null_only"]
    assert again["bm25"]["retrieval_utility"] != again["realm"]["retrieval_utility"]
    table = reading_table(again).splitlines()
    assert table[0] == "16 masked spans" and [line.split()[0] for line in table[2:]] == ["realm", "ict", "bm25"]
    assert table[1].split() == "with_retrieval null_only retrieval_utility null_document_prob gold_selected".split()
    assert float(table[2].split()[3]) == pytest.approx(again["realm"]["retrieval_utility"], abs=6e-4)


def test_a_run_without_a_reader_is_refused_before_any_work(places, task, init, tmp_path, monkeypatch):
    corpus, news = places
    params = init(jax.random.key(0))
    monkeypatch.setattr(retrieval.Embedder, "embed_corpus", None)  # nothing may be embedded
    monkeypatch.setattr(retrieval, "Bm25Index", None)
    settings = {"corpus": str(corpus.directory), "x_corpus": str(news.directory), "retriever": task.retriever}
    for learner, missing in (("retriever", "knowledge_encoder"), ("knowledge_encoder", "retriever")):
        run = RunDir(tmp_path / learner)
        save(run, {learner: params[learner]})
        with pytest.raises(
            ValueError,
            match=f"expects a checkpoint of the realm task, got {run.path}, which has trained {learner} and no {missing}; "
            "name a run that has, or .* --gin.evaluate.reading=None",
        ):
            retrieval.evaluate(run_dir=str(run.path), reading=task, **settings)
    with pytest.raises(FileNotFoundError, match="no checkpoint under"):
        retrieval.evaluate(run_dir=str(tmp_path / "none"), reading=task, **settings)


def test_bm25_sees_the_words_outside_the_mask(places, task):
    """`in TOWN NAME was .` with the town masked: the name finds the people of that name, the town would find others."""
    corpus, news = places
    batch = next(iter(MaskedSpanEvaluation(task, str(news.directory), 8, 8).batches()))
    found = bm25_search(corpus)(batch, 5)
    texts = list(texts_for_search(corpus))
    for row, sentence in enumerate(batch.sentences):
        name = next(word for word in corpus.tokenizer.decode(sentence).split() if word in tiny.NAMES)
        assert found.ids.shape == (8, 5) and (found.ids[row, :3] >= 0).all()
        assert all(name in texts[document].split() for document in found.ids[row, :3])
