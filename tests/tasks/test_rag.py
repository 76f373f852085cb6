"""RAG: its losses against ones written document by document, what is trained, and that it learns beside a hot-swapped index."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realm_jax.models import EncoderDecoder, Retriever
from realm_jax.run_dir import RunDir
from realm_jax.tasks.rag import adopt, generator_logits, init_params
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.snapshots import load_snapshot
from tests import tiny

BATCH = 4
MARGINALS = ["sequence", "token", "joint"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return tiny.questions_file(tmp_path_factory.mktemp("q") / "questions.jsonl")


@pytest.fixture(scope="module")
def settings(corpus, questions):
    return tiny.rag(corpus.directory, questions)


@pytest.fixture(scope="module")
def params(settings):
    return init_params(jax.random.key(0), retriever=settings.retriever, generator=settings.generator)


FOUND = np.array([[3, 5, 8], [0, 7, -1], [-1, -1, -1], [12, 13, 14]], np.int64)


def joined(settings, found=FOUND):
    task = settings.build(seed=1)
    examples = task.examples(0, BATCH, slice(None))
    embeds = np.random.default_rng(3).standard_normal((*found.shape, 16)).astype(np.float32)
    batch = task.retrieval.join_embedded(examples, found, embeds * (found >= 0)[..., None])
    return task, examples, jax.tree.map(jnp.asarray, batch)


def test_the_batch_holds_what_generator_and_retriever_read(corpus, settings):
    task, examples, batch = joined(dataclasses.replace(settings, train_documents=True))
    spoken = corpus.tokenizer.decode
    for row, question in enumerate(examples.questions):
        (answer,) = question.answers
        assert spoken(batch.targets[row]) == answer and int(batch.target_mask[row].sum()) == 2
        for column, document in enumerate(FOUND[row]):
            read = spoken(batch.source_ids[row, column])
            body = spoken(corpus.bodies[document]) if document >= 0 else ""
            assert read.endswith(question.text) and (read == question.text) == (document < 0)
            assert bool(batch.has_answer[row, column]) == (answer in body.split())
            if document >= 0:
                title = spoken(corpus.titles[document])
                embedded = spoken(batch.documents.ids[row, column])
                assert (
                    embedded == " ".join(filter(None, [title, *body.split()]))[: len(embedded)] and len(embedded) > 20
                )
    assert batch.document_mask.tolist() == (FOUND >= 0).tolist()
    assert task.data["generator_tokenizer"] == corpus.tokenizer.fingerprint


@pytest.mark.parametrize(("marginal", "train_documents"), [("sequence", True), ("token", False), ("joint", False)])
def test_the_loss_is_the_papers(settings, params, marginal, train_documents):
    settings = dataclasses.replace(settings, marginal=marginal, train_documents=train_documents)
    task, _, batch = joined(settings)
    loss, metrics = jax.jit(lambda p, b: task.loss(p, b, None))(params, batch)
    retriever, generator = Retriever(settings.retriever), EncoderDecoder(settings.generator)
    variables = {"params": params["generator"]}
    encode = jax.jit(lambda ids: generator.apply(variables, ids, ids != 0, method="encode"))
    decode = jax.jit(
        lambda ids, hidden, mask: jax.nn.softmax(generator.apply(variables, ids, hidden, mask, method="decode"))
    )
    embed = jax.jit(
        lambda inputs, method: retriever.apply({"params": params["retriever"]}, *inputs, inputs[0] != 0, method=method),
        static_argnames="method",
    )
    queries = np.asarray(embed(tuple(batch.query), "embed_queries"), np.float64)
    expected, entropy = 0.0, 0.0
    for row in range(BATCH):
        there = [column for column in range(3) if FOUND[row, column] >= 0]
        length = int(batch.target_mask[row].sum())
        embeds = batch.retrieved_embeds[row]
        if train_documents:
            embeds = embed(tuple(part[row] for part in batch.documents), "embed_documents")
        scores = (np.asarray(embeds, np.float64) @ queries[row])[there]
        p_z = np.exp(scores) / np.exp(scores).sum() if there else np.ones(1)
        if there:
            entropy -= (p_z * np.log(p_z)).sum()
        read = batch.source_ids[row]  # of a question without documents the question alone, in each place
        hidden, mask = encode(read), read != 0
        inputs, target = batch.target_inputs[row], np.asarray(batch.targets[row, :length])
        if marginal == "joint":
            mask = (mask & jnp.isin(jnp.arange(3), jnp.asarray(there or [0]))[:, None]).reshape(1, -1)
            probs, p_z = decode(inputs[None], hidden.reshape(1, mask.shape[1], -1), mask), np.ones(1)
        else:
            probs = decode(jnp.repeat(inputs[None], 3, axis=0), hidden, mask)[jnp.asarray(there or [0])]
        probs = np.asarray(probs, np.float64)[:, np.arange(length), target]
        per_row = (
            (p_z * probs.prod(axis=1)).sum() if marginal == "sequence" else (p_z[:, None] * probs).sum(axis=0).prod()
        )
        expected -= np.log(per_row)
    assert float(loss.total) == pytest.approx(expected, rel=1e-4) and float(loss.weight) == BATCH
    assert float(metrics["token_nll"].total) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["token_nll"].weight) == 2 * BATCH
    # of a question without documents the slots are all alike
    assert float(metrics["retrieval_entropy"].total) == pytest.approx(entropy + np.log(3), rel=1e-3)
    has_answer = np.asarray(batch.has_answer)
    assert float(metrics["answer_retrieved"].total) == has_answer.any(axis=1).sum()


@pytest.mark.parametrize(
    "marginal", [pytest.param(m, marks=pytest.mark.slow) if m != "joint" else m for m in MARGINALS]
)
def test_only_what_shall_learn_has_a_gradient(settings, params, marginal):
    task, _, batch = joined(dataclasses.replace(settings, marginal=marginal))
    gradient = jax.grad(lambda p: task.loss(p, batch, jax.random.key(0))[0].total)(params)

    def largest(tree):
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    assert largest(gradient["generator"]) > 1e-3
    assert largest(gradient["retriever"]["document_encoder"]) == 0.0
    assert (largest(gradient["retriever"]["query_encoder"]) > 1e-6) == (marginal != "joint")
    assert task.frozen == (("retriever",) if marginal == "joint" else ("retriever/document_encoder",))


def test_without_documents_there_is_no_retriever(settings, params):
    task = dataclasses.replace(settings, num_documents=0).build(seed=1)
    assert task.retrieval is None and set(task.init(jax.random.key(0))) == {"generator"} and task.frozen == ()
    examples = task.examples(0, BATCH, slice(None))
    batch = jax.tree.map(jnp.asarray, task.batch(examples))
    assert batch.source_ids.shape == (BATCH, 1, settings.source_len)
    loss, metrics = task.loss({"generator": params["generator"]}, batch, None)
    # as with documents of which none was found
    _, _, nothing = joined(settings, np.full_like(FOUND, -1))
    expected, _ = settings.build(seed=1).loss(params, nothing, None)
    assert float(loss.total) == pytest.approx(float(expected.total), rel=1e-5) and set(metrics) == {"token_nll"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_documents": 41}, r"num_documents=41, but the corpus has 40 documents; retrieve fewer"),
        ({"num_documents": -1}, r"num_documents must be 0 or more, got -1"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie between 0 and 1, got 1.0"),
        ({"source_len": 65}, r"source_len must lie between 8 and the generator's max_length=64, got 65"),
        ({"target_len": 7}, r"target_len must lie between 8 and"),
        ({"retriever": tiny.retriever(tied=True)}, r"expected tied=False"),
        ({"marginal": "joint", "train_documents": True}, r"no gradient reaches the retriever in marginal=joint"),
        ({"num_documents": 0, "train_documents": True}, r"no gradient reaches the retriever without documents"),
        ({"generator": tiny.encoder_decoder()}, r"generator.pad_id: expected the tokenizer's 0, got 1; set it so"),
        ({"generator": tiny.encoder_decoder(vocab_size=8)}, r"tokenizer has \d+ pieces, Rag.generator.vocab_size is 8"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(settings, **changes).build(seed=0)


def test_answers_that_cannot_be_written_are_refused(settings, tmp_path):
    (tmp_path / "patterns.jsonl").write_text('{"question": "who", "answer": ["an+"], "answer_is_regex": true}\n')
    with pytest.raises(ValueError, match=r"regular expressions, which no generator can learn to write"):
        dataclasses.replace(settings, questions=str(tmp_path / "patterns.jsonl")).build(seed=0)
    (tmp_path / "some.jsonl").write_text(
        '{"question": "who", "answer": ["\\u200b", "ann"]}\n{"question": "where", "answer": ["\\u200b"]}\n'
    )
    task = dataclasses.replace(settings, questions=str(tmp_path / "some.jsonl")).build(seed=0)
    assert {question.answers for question in task.examples(0, 4, slice(None)).questions} == {("ann",)}


def test_a_tied_retriever_becomes_both_encoders(params):
    shared = params["retriever"]["query_encoder"]
    found = adopt({"retriever": {"shared_encoder": shared}, "generator": params["generator"]})
    assert found["retriever"] == {"query_encoder": shared, "document_encoder": shared}
    assert found["generator"] is params["generator"]


@pytest.mark.parametrize(
    "marginal", ["token", *(pytest.param(marginal, marks=pytest.mark.slow) for marginal in ("sequence", "joint"))]
)
def test_it_learns_to_answer(settings, params, marginal):
    """Questions that it is trained on; the documents' ranks follow, where the loss reaches the retriever."""
    found = np.array([[3, 5, 8], [0, 7, 9], [1, 2, 4], [12, 13, 14]], np.int64)
    task, _, batch = joined(dataclasses.replace(settings, marginal=marginal), found)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def update(params, state):
        loss, grads = jax.value_and_grad(lambda p: task.loss(p, batch, None)[0].total)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(40):
        params, state, loss = update(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


def fine_tune(run_dir, task, **changes):
    settings = {
        "run_dir": str(run_dir),
        "task": task,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        "num_steps": 6,
        "batch_size": 8,
        "dropout": False,
        "checkpoint_every_steps": 2,
        "refresh": RefreshConfig(mode="synchronous", embedder="in_trainer", snapshot_every_steps=2, timeout_secs=120.0),
    } | changes
    return train(**settings)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """Both encoders trained, beyond the paper, and an index that follows."""
    run_dir = tmp_path_factory.mktemp("whole")
    fine_tune(run_dir, dataclasses.replace(settings, marginal="token", train_documents=True, label_smoothing=0.1))
    return run_dir


def test_the_hot_swap_applies_unchanged(whole):
    run = RunDir.of(whole)
    assert [entry["index_version"] for entry in read_metrics(run)] == [0, 0, 2, 2, 4, 4]
    before, (_, after) = load_snapshot(run, 4), load_params(run)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), before, after["retriever"])
    assert not all(jax.tree.leaves(same["document_encoder"])) and not all(jax.tree.leaves(same["query_encoder"]))
    assert {"token_nll", "answer_retrieved", "answer_first", "retrieval_entropy", "loss"} <= set(read_metrics(run)[-1])


def test_a_resumed_run_equals_the_whole_one(settings, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    fine_tune(
        tmp_path / "run", dataclasses.replace(settings, marginal="token", train_documents=True, label_smoothing=0.1)
    )
    (step, resumed), (_, expected) = (load_params(RunDir.of(place)) for place in (tmp_path / "run", whole))
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)


@pytest.mark.slow
def test_one_device_trains_as_eight(settings, whole, tmp_path, monkeypatch):
    task = dataclasses.replace(settings, marginal="token", train_documents=True, label_smoothing=0.1)
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    fine_tune(tmp_path, task, mesh=MeshConfig())
    monkeypatch.undo()
    found = [[entry["loss"] for entry in read_metrics(RunDir.of(place))] for place in (whole, tmp_path)]
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.slow
def test_as_published_the_document_side_stays_as_it_is(settings, tmp_path):
    fine_tune(
        tmp_path, settings, refresh=RefreshConfig(mode="frozen", embedder="in_trainer", timeout_secs=120.0), num_steps=2
    )
    run = RunDir.of(tmp_path)
    before, (_, after) = load_snapshot(run, 0), load_params(run)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), before, after["retriever"])
    assert all(jax.tree.leaves(same["document_encoder"])) and not all(jax.tree.leaves(same["query_encoder"]))


@pytest.mark.slow
def test_a_generator_without_retrieval_trains_without_an_index(settings, tmp_path):
    fine_tune(tmp_path, dataclasses.replace(settings, num_documents=0), num_steps=2, refresh=RefreshConfig())
    run = RunDir.of(tmp_path)
    assert set(load_params(run)[1]) == {"generator"} and not run.index.exists()
    assert "token_nll" in read_metrics(run)[-1] and "answer_retrieved" not in read_metrics(run)[-1]


def test_a_first_token_that_does_not_count_must_be_there(tmp_path):
    settings = tiny.rag(tmp_path, tmp_path / "questions.jsonl")
    with pytest.raises(ValueError, match=r"leaves out generator\.forced_bos_id, and there is none"):
        dataclasses.replace(settings, exclude_bos_score=True)
    begins = dataclasses.replace(settings.generator, forced_bos_id=2)
    assert dataclasses.replace(settings, exclude_bos_score=True, generator=begins).exclude_bos_score
    with pytest.raises(ValueError, match="with marginal=token leave it out"):
        dataclasses.replace(settings, exclude_bos_score=True, generator=begins, marginal="token")


def test_a_first_token_that_does_not_count_is_read_all_the_same(settings, params):
    begins = dataclasses.replace(settings, generator=dataclasses.replace(settings.generator, forced_bos_id=2))
    whole, _, batch = joined(begins)
    without, _, same = joined(dataclasses.replace(begins, exclude_bos_score=True))
    jax.tree.map(np.testing.assert_array_equal, batch, same)
    assert (batch.targets[:, 0] == 2).all() and (batch.target_inputs[:, 1] == 2).all()
    # one document of probability 1: what is left out is the first token's own log-probability
    logits = generator_logits(params, batch.source_ids, batch.document_mask, batch.target_inputs, None, generator=begins.generator, joint=True)  # fmt: skip
    first = -jax.nn.log_softmax(logits[:, 0, 0])[:, 2].sum()
    joint = [dataclasses.replace(begins, marginal="joint", exclude_bos_score=leave) for leave in (False, True)]
    losses = [float(one.build(seed=1).loss(params, batch, None)[0].total) for one in joint]
    assert losses[0] - losses[1] == pytest.approx(float(first), rel=1e-4)
    assert float(without.loss(params, batch, None)[0].total) < float(whole.loss(params, batch, None)[0].total)
