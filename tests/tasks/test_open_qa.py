"""Open-domain QA: its loss against one written question by question, what is trained, and that it learns."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realm_jax.models import Retriever, SpanReader, span_bounds
from realm_jax.retrieval.index import SearchResult
from realm_jax.run_dir import RunDir
from realm_jax.tasks.open_qa import adopt, init_params
from realm_jax.tasks.realm import init_params as realm_params
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.snapshots import load_snapshot
from tests import tiny

BATCH = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return tiny.questions_file(tmp_path_factory.mktemp("q") / "questions.jsonl")


@pytest.fixture(scope="module")
def settings(corpus, questions):
    return tiny.open_qa(corpus.directory, questions, num_retrieved=4, num_read=2)


@pytest.fixture(scope="module")
def params(settings):
    return init_params(jax.random.key(0), retriever=settings.retriever, reader=settings.reader)


@pytest.fixture(scope="module")
def found(corpus, settings):
    """Question 0: answers among those read; 1: only beyond them; 2: none anywhere; 3: fewer found than asked for."""
    rows = []
    for question in settings.build(seed=1).examples(0, BATCH, slice(None)).questions:
        holds = [question.answers[0] in text_of(corpus, document) for document in range(40)]
        yes, no = [d for d in range(40) if holds[d]], [d for d in range(40) if not holds[d]]
        arranged = [[yes[0], no[0], no[1], yes[1]], [no[0], no[1], yes[0], yes[1]], no[:4], [yes[0], -1, -1, -1]]
        rows.append(arranged[len(rows)])
    return np.array(rows, np.int64)


def joined(settings, found):
    task = settings.build(seed=1)
    examples = task.examples(0, BATCH, slice(None))
    embeds = np.random.default_rng(3).standard_normal((*found.shape, 16)).astype(np.float32)
    return (
        task,
        examples,
        jax.tree.map(jnp.asarray, task.retrieval.join_embedded(examples, found, embeds * (found >= 0)[..., None])),
    )


def text_of(corpus, document):
    return corpus.tokenizer.decode(corpus.bodies[document]).split() if document >= 0 else []


def test_the_batch_says_where_the_answers_stand(corpus, settings, found):
    _, examples, batch = joined(settings, found)
    starts, ends = span_bounds(settings.joint_len, settings.reader.max_span_width)
    for row, question in enumerate(examples.questions):
        (answer,) = question.answers
        for column, document in enumerate(found[row]):
            assert bool(batch.has_answer[row, column]) == (answer in text_of(corpus, document))
            if column < 2:
                spans = np.flatnonzero(batch.is_answer[row, column])
                ids, segments = batch.joint.ids[row, column], batch.joint.segment_ids[row, column]
                read = corpus.tokenizer.decode(ids[segments == 1]).split()  # as far as there is room
                assert len(spans) == read.count(answer) and (len(read) > 10 or document < 0)
                for span in spans:
                    pieces = batch.joint.ids[row, column, starts[span] : ends[span] + 1]
                    assert corpus.tokenizer.decode(pieces) == answer
    assert batch.retrieved_mask.tolist() == (found >= 0).tolist()


def log_sum(values):
    return np.logaddexp.reduce(values) if len(values) else -np.inf


@pytest.mark.parametrize("train_documents", [False, True])
def test_the_loss_is_the_papers(corpus, settings, params, found, train_documents):
    settings = dataclasses.replace(settings, train_documents=train_documents)
    task, _, batch = joined(settings, found)
    loss, metrics = jax.jit(lambda p, b: task.loss(p, b, None))(params, batch)
    retriever = {"params": params["retriever"]}
    embed = functools.partial(Retriever(settings.retriever).apply, retriever)
    query = np.asarray(embed(*batch.query, batch.query.ids != 0, method="embed_queries"), np.float64)
    starts, ends = span_bounds(settings.joint_len, settings.reader.max_span_width)
    reader_loss = retriever_loss = entropy = best_right = 0.0
    for row in range(BATCH):
        documents = np.asarray(batch.retrieved_embeds[row], np.float64)
        if train_documents:  # what is read has today's embedding
            ids, segments = (part[row, :2] for part in batch.documents)
            documents[:2] = embed(ids, segments, ids != 0, method="embed_documents")
        scores = documents @ query[row]
        valid, has_answer = np.asarray(batch.retrieved_mask[row]), np.asarray(batch.has_answer[row])
        if has_answer.any():
            retriever_loss += log_sum(scores[valid]) - log_sum(scores[valid & has_answer])
        all_spans, right = [], []
        for column in range(2):
            ids, segments = batch.joint.ids[row, column], batch.joint.segment_ids[row, column]
            logits = SpanReader(settings.reader).apply(
                {"params": params["span_reader"]}, ids[None], segments[None], ids[None] != 0
            )[0]
            for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
                inside = all(segments[p] == 1 and ids[p] not in (0, corpus.tokenizer.sep_id) for p in (start, end))
                if inside and valid[column]:
                    score = float(logits[number]) + scores[column]
                    all_spans.append(score)
                    if batch.is_answer[row, column, number]:
                        right.append(score)
        if right:
            reader_loss += log_sum(all_spans) - log_sum(right)
        best_right += bool(right) and max(right) == max(all_spans)
        read = scores[:2][valid[:2]]
        entropy -= (np.exp(read - log_sum(read)) * (read - log_sum(read))).sum()
    assert float(loss.total) == pytest.approx(reader_loss + retriever_loss, rel=1e-4)
    assert float(loss.weight) == BATCH
    assert float(metrics["reader_loss"].total) == pytest.approx(reader_loss, rel=1e-4)
    has_answer = np.asarray(batch.has_answer)
    assert float(metrics["early_update_loss"].total) == pytest.approx(retriever_loss, rel=1e-4)
    assert float(metrics["answer_retrieved"].total) == has_answer.any(axis=1).sum() == 3
    assert float(metrics["answer_first"].total) == has_answer[:, 0].sum()
    assert float(metrics["answer_read"].total) == batch.is_answer.any(axis=(1, 2)).sum() == 2
    assert float(metrics["best_span_right"].total) == best_right
    assert float(metrics["retrieval_entropy"].total) == pytest.approx(entropy, rel=1e-4)


def test_only_what_shall_learn_has_a_gradient(settings, params, found):
    trained = {"train_documents": True}
    for changes in ({}, trained, {"num_hard_negatives": 2}, {**trained, "num_hard_negatives": 2}):
        task, _, batch = joined(dataclasses.replace(settings, **changes), found)
        grads = jax.jit(jax.grad(lambda p, task=task, batch=batch: task.loss(p, batch, None)[0].total))(params)
        norms = {name: sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(grads["retriever"][name]))
                 for name in ("query_encoder", "document_encoder")}  # fmt: skip
        learns = "train_documents" in changes  # hard negatives alone leave the documents as the index has them
        assert norms["query_encoder"] > 0 and (norms["document_encoder"] > 0) == learns
        assert task.frozen == (() if learns else ("retriever/document_encoder",))


def test_hard_negatives_are_the_best_documents_without_an_answer(corpus, settings, found):
    settings = dataclasses.replace(settings, num_hard_negatives=2)
    _, examples, batch = joined(settings, found)
    for row, question in enumerate(examples.questions):
        (gold,) = corpus.documents_of(question.gold_passage)
        without = [d for d in found[row] if d >= 0 and question.answers[0] not in text_of(corpus, d) and d != gold]
        expected = [gold, *without[:2]]
        assert batch.contrasted_ids[row].tolist() == expected + [-1] * (3 - len(expected))
        assert batch.is_positive[row].tolist() == [True, False, False]
        body = np.asarray(corpus.bodies[int(gold)])[:8]
        assert set(body.tolist()) <= set(batch.documents.ids[row, 0].tolist())
    assert batch.contrasted_mask.tolist() == (batch.contrasted_ids >= 0).tolist()


def test_a_gold_passage_that_was_not_found_is_read_last(corpus, settings):
    task = dataclasses.replace(settings, gold_passages=True).build(seed=1)
    examples = task.examples(0, BATCH, slice(None))
    gold = [int(corpus.documents_of(question.gold_passage)[0]) for question in examples.questions]
    others = [d for d in range(40) if d not in gold]
    a, b, c, d = others[:4]
    found = np.array([
        [a, b, c, d],  # not found: takes the place of the last one read
        [a, gold[1], c, d],  # read already
        [a, b, c, gold[2]],  # found, but not read: changes places with the last one read
        [a, -1, -1, -1],  # fewer found than are read
    ], np.int64)  # fmt: skip
    results = SearchResult(found, np.zeros(found.shape, np.float32))
    assert task.retrieval.select(examples, results).tolist() == [
        [a, gold[0], c, d],
        [a, gold[1], c, d],
        [a, gold[2], c, b],
        [a, gold[3], -1, -1],
    ]
    assert results.ids[0, 1] == b  # what was found is not written over
    as_published = settings.build(seed=1).retrieval.select(examples, results)
    assert as_published.tolist() == found.tolist()


def test_without_a_gold_passage_nothing_takes_a_place(settings, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "ann lived in", "answer": ["oslo"]}\n')
    task = dataclasses.replace(settings, gold_passages=True, questions=str(tmp_path / "q.jsonl")).build(seed=1)
    examples = task.examples(0, 1, slice(None))
    results = SearchResult(np.array([[3, 0, 11, 7]]), np.zeros((1, 4), np.float32))
    assert task.retrieval.select(examples, results).tolist() == [[3, 0, 11, 7]]


def test_without_a_gold_passage_the_best_document_that_answers_is_the_positive(corpus, settings, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "ann lived in", "answer": ["oslo"]}\n')
    answers = [d for d in range(40) if "oslo" in text_of(corpus, d)]
    others = [d for d in range(40) if "oslo" not in text_of(corpus, d)]
    found = np.array([[others[0], answers[0], answers[1], others[1]]], np.int64)
    for changes, expected in (
        ({}, [answers[0], others[0], others[1]]),
        ({"num_hard_negatives": 1}, [answers[0], others[0]]),
    ):
        settings = dataclasses.replace(settings, num_hard_negatives=2, questions=str(tmp_path / "q.jsonl"))
        task = dataclasses.replace(settings, **changes).build(seed=1)
        examples = task.examples(0, 1, slice(None))
        batch = task.retrieval.join_embedded(examples, found, np.zeros((1, 4, 16), np.float32))
        assert batch.contrasted_ids.tolist() == [expected]
    nothing = task.retrieval.join_embedded(examples, np.array([others[:4]], np.int64), np.zeros((1, 4, 16), np.float32))
    assert nothing.contrasted_ids[0, 0] == -1 and not nothing.is_positive.any()


def test_patterns_are_answers_in_training(corpus, settings, tmp_path):
    """CuratedTREC: spans that a pattern matches are right, a broken one matches nothing."""
    line = '{"question": "when", "answer": ["190[0-3]", "(broken"], "answer_is_regex": true}\n'
    (tmp_path / "patterns.jsonl").write_text(line)
    task = dataclasses.replace(settings, questions=str(tmp_path / "patterns.jsonl")).build(seed=1)
    examples = task.examples(0, 1, slice(None))
    years = {str(year) for year in range(1900, 1904)}
    matching = [d for d in range(40) if years & set(text_of(corpus, d))]
    others = [d for d in range(40) if not years & set(text_of(corpus, d))]
    found = np.array([[others[0], matching[0], others[1], matching[1]]], np.int64)
    batch = task.retrieval.join_embedded(examples, found, np.ones((1, 4, 16), np.float32))
    assert batch.has_answer.tolist() == [[False, True, False, True]]
    starts, ends = span_bounds(settings.joint_len, settings.reader.max_span_width)
    spans = np.flatnonzero(batch.is_answer[0, 1])
    assert len(spans) and not batch.is_answer[0, 0].any()
    for span in spans:
        assert corpus.tokenizer.decode(batch.joint.ids[0, 1, starts[span] : ends[span] + 1]) in years
    params = init_params(jax.random.key(0), retriever=settings.retriever, reader=settings.reader)
    loss, metrics = task.loss(params, jax.tree.map(jnp.asarray, batch), None)
    assert np.isfinite(float(loss.total)) and float(metrics["answer_read"].total) == 1.0
    literal = dataclasses.replace(
        settings, questions=str(tmp_path / "patterns.jsonl"), answers_are_regex=False
    ).training_questions()
    assert [question.is_regex for question in literal] == [False]


def test_held_out_questions_are_not_trained_on(settings, tmp_path, caplog):
    lines = [json.dumps({"question": f"Where is {name}?", "answer": ["oslo"]}) for name in tiny.NAMES]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, '{"question": "who", "answer": []}']))
    (tmp_path / "dev.jsonl").write_text('{"question": "where is  ANN", "answer": ["rome"]}\n')
    settings = dataclasses.replace(settings, questions=str(tmp_path / "train.jsonl"))
    with caplog.at_level("INFO"):
        left = dataclasses.replace(settings, held_out=str(tmp_path / "dev.jsonl")).training_questions()
    assert [question.text for question in left] == [f"Where is {name}?" for name in tiny.NAMES[1:]]
    assert "11 questions to train with (asked in the held-out questions too: 1; no answer: 1)" in caplog.text
    drawn = dataclasses.replace(settings, num_held_out=3).training_questions()
    assert len(drawn) in (9, 10)  # the question without an answer may be among those held out
    with pytest.raises(ValueError, match="num_held_out must be 0 or more, got -1"):
        dataclasses.replace(settings, num_held_out=-1)


def test_pre_trained_learners_warm_start_both_encoders_and_the_reader(corpus, settings, params):
    realm = tiny.realm(corpus.directory)
    found = realm_params(jax.random.key(7), model=realm.model(corpus))
    adopted = adopt(found)
    assert sorted(adopted["retriever"]) == ["document_encoder", "query_encoder"]
    for name in ("query_encoder", "document_encoder"):
        jax.tree.map(np.testing.assert_array_equal, adopted["retriever"][name], found["retriever"]["shared_encoder"])
        assert jax.tree.map(np.shape, adopted["retriever"][name]) == jax.tree.map(np.shape, params["retriever"][name])
    assert jax.tree.map(np.shape, adopted["span_reader"]["encoder"]) == jax.tree.map(
        np.shape, params["span_reader"]["encoder"]
    )
    own = adopt(params)
    assert own["retriever"] is params["retriever"] and own["span_reader"] is params["span_reader"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retriever": tiny.retriever()}, "expected tied=False"),
        ({"num_read": 11}, "num_read must lie between 1 and num_retrieved=4, got 11"),
        ({"num_read": 0}, "num_read must lie between 1 and num_retrieved=4, got 0"),
        ({"joint_len": 8}, "joint_len must exceed query_len=8, got 8"),
        ({"num_hard_negatives": -1}, "num_hard_negatives must be 0 or more, got -1"),
    ],
)
def test_settings_that_do_not_fit(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(settings, **changes)


def test_what_the_files_must_give(settings, tmp_path):
    with pytest.raises(ValueError, match="num_retrieved=41, but the corpus has 40 documents; retrieve fewer"):
        dataclasses.replace(settings, num_retrieved=41).build(seed=0)
    (tmp_path / "none.jsonl").write_text('{"question": "who", "answer": []}\n')
    with pytest.raises(ValueError, match=r"none.jsonl gives no question with an answer"):
        dataclasses.replace(settings, questions=(str(tmp_path / "none.jsonl"),)).build(seed=0)
    (tmp_path / "two.jsonl").write_text('{"question": "who", "answer": ["ann", "bob"]}\n')
    several = dataclasses.replace(settings, questions=(str(tmp_path / "two.jsonl"), settings.questions))
    assert [len(q.answers) for q in several.training_questions()[:2]] == [2, 1]
    first = dataclasses.replace(several, answers="first").training_questions()
    assert len(first) == 41 and first[0].answers == ("ann",)


def fine_tune(run_dir, task, **changes):
    settings = {
        "run_dir": str(run_dir),
        "task": task,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        "num_steps": 6,
        "batch_size": 8,
        "dropout": False,
        "checkpoint_every_steps": 2,
        "refresh": RefreshConfig(mode="frozen", embedder="in_trainer", timeout_secs=120.0),
    } | changes
    return train(**settings)


@pytest.fixture(scope="module")
def whole(corpus, questions, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    fine_tune(run_dir, tiny.open_qa(corpus.directory, questions))
    return run_dir


def test_the_document_encoder_and_its_index_stay_as_they_are(whole):
    run = RunDir.of(whole)
    before, (_, after) = load_snapshot(run, 0), load_params(run)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), before, after["retriever"])
    assert all(jax.tree.leaves(same["document_encoder"])) and not all(jax.tree.leaves(same["query_encoder"]))
    entries = read_metrics(run)
    assert {entry["index_version"] for entry in entries} == {0}
    assert {"reader_loss", "early_update_loss", "answer_read", "answer_retrieved", "best_span_right"} <= set(
        entries[-1]
    )


def test_a_resumed_run_equals_the_whole_one(corpus, questions, whole, tmp_path):
    """Its next documents, and their embeddings, are those that were selected before it stopped."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    fine_tune(tmp_path / "run", tiny.open_qa(corpus.directory, questions))
    (step, resumed), (_, expected) = (load_params(RunDir.of(place)) for place in (tmp_path / "run", whole))
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)


def test_the_index_of_another_run_with_the_same_documents_serves(corpus, questions, whole, tmp_path):
    """No document is embedded again, and the run is the same to the bit."""
    task = tiny.open_qa(corpus.directory, questions)
    fine_tune(
        tmp_path / "run", task,
        refresh=RefreshConfig(mode="frozen", embedder="in_trainer", timeout_secs=120.0, first_index=str(whole)),
    )  # fmt: skip
    (_, found), (_, expected) = (load_params(RunDir.of(place)) for place in (tmp_path / "run", whole))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    theirs, ours = (RunDir.of(place).index_version(0) for place in (whole, tmp_path / "run"))
    shards = [path.relative_to(theirs) for path in theirs.rglob("embeddings.npy")]
    assert shards and all((ours / path).samefile(theirs / path) for path in shards)


DENSE = {"train_documents": True, "num_hard_negatives": 2}
REFRESHED = RefreshConfig(mode="synchronous", embedder="in_trainer", snapshot_every_steps=2, timeout_secs=120.0)


@pytest.fixture(scope="module")
def dense(corpus, questions, tmp_path_factory):
    """Both encoders trained, hard negatives, an index that follows."""
    run_dir = tmp_path_factory.mktemp("dense")
    fine_tune(run_dir, tiny.open_qa(corpus.directory, questions, **DENSE), refresh=REFRESHED)
    return run_dir


def test_a_trained_document_side_is_served_anew(dense):
    assert [entry["index_version"] for entry in read_metrics(RunDir.of(dense))] == [0, 0, 2, 2, 4, 4]
    run = RunDir.of(dense)
    before, (_, after) = load_snapshot(run, 4), load_params(run)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), before, after["retriever"])
    assert not all(jax.tree.leaves(same["document_encoder"]))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["whole", "dense"])
def test_one_device_trains_as_eight(corpus, questions, which, tmp_path, monkeypatch, request):
    """Of the dense run too: its negatives are those of the whole batch."""
    expected, changes = request.getfixturevalue(which), DENSE if which == "dense" else {}
    refresh = {"refresh": REFRESHED} if changes else {}
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    fine_tune(tmp_path, tiny.open_qa(corpus.directory, questions, **changes), mesh=MeshConfig(), **refresh)
    monkeypatch.undo()
    for figure in ("loss", "in_batch_accuracy") if changes else ("loss",):
        found = [[entry[figure] for entry in read_metrics(RunDir.of(place))] for place in (expected, tmp_path)]
        np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"train_documents": True, "num_hard_negatives": 2}], ids=["published", "dense"]
)
def test_it_learns_to_answer(settings, params, found, changes):
    """Questions that it is trained on: their answers are chosen, and the documents that hold them rise."""
    task, _, batch = joined(dataclasses.replace(settings, **changes), found)
    optimizer = optax.adam(3e-3)

    def total(params):
        loss, metrics = task.loss(params, batch, None)
        return loss.total, metrics

    @jax.jit
    def update(params, state):
        (loss, metrics), grads = jax.value_and_grad(total, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss, metrics

    state, losses = optimizer.init(params), []
    for _ in range(40):
        params, state, loss, metrics = update(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    assert float(metrics["best_span_right"].total) == float(metrics["answer_read"].total) > 0
