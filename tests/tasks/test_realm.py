"""The REALM loss against one written candidate by candidate, and what its gradient does to the retriever."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.data.inputs import NO_CANDIDATE, NULL_DOCUMENT, Inputs
from realm_jax.retrieval.build_version import IndexSettings
from realm_jax.retrieval.index import SearchResult
from realm_jax.retrieval.versions import list_versions
from realm_jax.run_dir import RunDir
from realm_jax.tasks.realm import check_same_tokenizer, init_params, realm_loss
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from tests import tiny
from tests.models.test_transformer import bert

BATCH = 4
CANDIDATES = np.array([[-1, 3, 11, 7], [-1, 20, NO_CANDIDATE, NO_CANDIDATE], [-1, 5, 9, 8], [-1, 33, 2, 1]], np.int64)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def settings(corpus):
    return tiny.realm(corpus.directory)


@pytest.fixture(scope="module")
def params(settings, corpus):
    return jax.jit(functools.partial(init_params, model=settings.model(corpus)))(jax.random.key(0))


@pytest.fixture(scope="module")
def examples(settings):
    return settings.build(seed=1).examples(0, BATCH, slice(None))


def join(settings, corpus, examples, candidate_ids):
    joined = settings.join(examples, candidate_ids, corpus=corpus, special=settings.model(corpus).special)
    return jax.tree.map(jnp.asarray, joined)


@functools.lru_cache
def program(model, marginal, gradient=False):
    loss = functools.partial(realm_loss, model=model, marginal=marginal)
    if not gradient:
        return jax.jit(lambda params, batch: loss(params, batch, None))

    def total(params, batch):
        value, metrics = loss(params, batch, None)
        return value.total / value.weight, metrics

    return jax.jit(jax.value_and_grad(total, has_aux=True))


# --- the reference, in float64


def norm(x):
    return (x - x.mean()) / x.std()


def pair(first, second):
    ids = [2, *first, 3, *second, 3]
    return np.array([ids]), np.array([[0] * (2 + len(first)) + [1] * (1 + len(second))])


def embed(params, config, ids, segments):
    encoder = params["retriever"]["shared_encoder"]
    cls = bert(encoder["encoder"], config.encoder, ids, segments, ids != 0)[0, 0]
    return norm(cls @ np.asarray(encoder["projection"]["kernel"], np.float64))


def mask_log_probs(params, config, ids, segments, positions):
    reader = params["knowledge_encoder"]
    hidden = bert(reader["encoder"], config, ids, segments, ids != 0)[0, positions]
    hidden = hidden @ np.asarray(reader["transform"]["kernel"], np.float64)
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False), np.float64)
    hidden = np.stack([norm(row) for row in hidden])
    logits = hidden @ np.asarray(reader["encoder"]["token_embedding"]["embedding"], np.float64).T
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reference(params, settings, corpus, examples, candidate_ids):
    """Per example: log p(z|x) of the candidates there are, and log p(y_j|z,x) of each."""
    rows = []
    for row in range(BATCH):
        query = examples.query.ids[row][examples.query.ids[row] != 0]
        x = query[1:-1]
        q = (
            embed(params, settings.retriever, query[None], np.zeros((1, len(query)), int))
            * settings.retriever.score_scale
        )
        used = examples.mask_weights[row] > 0
        positions, targets = examples.mask_positions[row][used], examples.mask_targets[row][used]
        scores, golds = [], []
        for z in candidate_ids[row]:
            if z == NO_CANDIDATE:
                continue
            title, body = ([], []) if z == NULL_DOCUMENT else (corpus.titles[z], corpus.bodies[z])
            document_room, joint_room = settings.document_len - 3 - len(title), settings.joint_len - 3 - len(x)
            scores.append(q @ embed(params, settings.retriever, *pair(title, body[:document_room])))
            log_probs = mask_log_probs(params, settings.reader, *pair(x, body[:joint_room]), positions)
            golds.append(log_probs[np.arange(len(targets)), targets])
        scores = np.array(scores)
        rows.append((scores - np.log(np.exp(scores).sum()), np.array(golds)))
    return rows


@pytest.mark.parametrize("null_document", [True, False])
def test_the_loss_is_the_papers(settings, corpus, params, examples, null_document):
    settings = tiny.realm(corpus.directory, null_document=null_document)
    candidate_ids = CANDIDATES if null_document else np.where(CANDIDATES == -1, 30, CANDIDATES)
    batch = join(settings, corpus, examples, candidate_ids)
    rows = reference(params, settings, corpus, examples, candidate_ids)
    masks = sum(gold.shape[1] for _, gold in rows)
    assert masks == examples.mask_weights.sum() >= BATCH
    per_token = -sum(np.log(np.exp(p_z[:, None] + gold).sum(0)).sum() for p_z, gold in rows)
    per_span = -sum(np.log(np.exp(p_z + gold.sum(1)).sum()) for p_z, gold in rows)
    for marginal, expected in (("per_token", per_token), ("per_span", per_span)):
        loss, metrics = program(settings.model(corpus), marginal)(params, batch)
        assert float(loss.total) == pytest.approx(expected, rel=1e-4), marginal
        assert float(loss.weight) == masks
        entropy = -sum((np.exp(p_z) * p_z).sum() for p_z, _ in rows) / BATCH
        assert float(metrics["retrieval_entropy"].total) / BATCH == pytest.approx(entropy, rel=1e-3)
        if null_document:
            assert float(metrics["null_document_prob"].total) == pytest.approx(
                sum(np.exp(p[0]) for p, _ in rows), rel=1e-3
            )
            gain = sum((np.log(np.exp(p[:, None] + g).sum(0)) - g[0]).sum() for p, g in rows)
            assert float(metrics["retrieval_utility"].total) == pytest.approx(gain, rel=1e-2, abs=1e-3)
        else:
            assert not {"null_document_prob", "retrieval_utility"} & set(metrics)


def test_the_gradient_reaches_the_retriever_and_masked_candidates_do_not_count(settings, corpus, params, examples):
    step = program(settings.model(corpus), "per_token", gradient=True)
    batch = join(settings, corpus, examples, CANDIDATES)
    (loss, _), grads = step(params, batch)
    for learner in ("retriever", "knowledge_encoder"):
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads[learner])) > 1e-3
    assert float(jnp.abs(grads["retriever"]["shared_encoder"]["projection"]["kernel"]).max()) > 1e-4

    # whatever stands in an empty slot is never seen
    filled = np.where(CANDIDATES == NO_CANDIDATE, 17, CANDIDATES)
    other = join(settings, corpus, examples, filled)._replace(candidate_mask=batch.candidate_mask)
    (same, _), same_grads = step(params, other)
    assert float(same) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), same_grads, grads)
    assert float(step(params, join(settings, corpus, examples, filled))[0][0]) != pytest.approx(float(loss), rel=1e-6)

    # nor does the order of the candidates matter
    turned = np.concatenate([CANDIDATES[:, :1], CANDIDATES[:, :0:-1]], axis=1)
    (reordered, _), reordered_grads = step(params, join(settings, corpus, examples, turned))
    assert float(reordered) == pytest.approx(float(loss), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), reordered_grads, grads)


def test_a_document_that_predicts_better_than_average_gains_score(settings, corpus, params, examples):
    """One step on the retriever alone; by REALM's r(z) the sign of each score's move is known."""
    step = program(settings.model(corpus), "per_span", gradient=True)
    one = CANDIDATES.copy()
    one[1:] = [-1, NO_CANDIDATE, NO_CANDIDATE, NO_CANDIDATE]  # only example 0 has a choice
    batch = join(settings, corpus, examples, one)
    (_, _), grads = step(params, batch)
    log_p_z, gold = reference(params, settings, corpus, examples, one)[0]
    posterior = np.exp(log_p_z + gold.sum(1))
    posterior /= posterior.sum()
    best = int(np.argmax(posterior - np.exp(log_p_z)))
    moved = {**params, "retriever": jax.tree.map(lambda p, g: p - 0.01 * g, params["retriever"], grads["retriever"])}
    after, _ = reference(moved, settings, corpus, examples, one)[0]
    assert posterior[best] > np.exp(log_p_z[best])
    assert after[best] > log_p_z[best] + 1e-5


@pytest.mark.slow
def test_a_document_side_that_is_not_trained_has_no_gradient(corpus, examples):
    """The loss is the same to the bit; the document encoder gets nothing, the query encoder and the reader what they got."""
    retriever = dataclasses.replace(tiny.retriever(), tied=False)
    found = {}
    for train_documents in (True, False):
        settings = tiny.realm(corpus.directory, retriever=retriever, train_documents=train_documents)
        model = settings.model(corpus)
        params = jax.jit(functools.partial(init_params, model=model))(jax.random.key(0))
        step = program(model, "per_token", gradient=True)
        found[train_documents] = step(params, join(settings, corpus, examples, CANDIDATES))
    (loss, _), trained = found[True]
    (same, _), kept = found[False]
    assert float(loss) == float(same)
    largest = functools.partial(jax.tree.reduce, lambda most, leaf: max(most, float(jnp.abs(leaf).max())))
    assert largest(trained["retriever"]["document_encoder"], 0.0) > 1e-3
    assert largest(kept["retriever"]["document_encoder"], 0.0) == 0.0
    for path in (("retriever", "query_encoder"), ("knowledge_encoder",)):
        expected, got = (functools.reduce(lambda tree, name: tree[name], path, grads) for grads in (trained, kept))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


@pytest.mark.slow
def test_a_document_side_that_is_not_trained_keeps_its_index(corpus, tmp_path):
    """Trained over the index of the tied run that it starts from: the document encoder and every embedding stay, all else moves."""
    ict = tiny.ict(corpus.directory)
    settings = {"optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=0), "batch_size": 8}
    train(run_dir=str(tmp_path / "ict"), task=ict, num_steps=1, **settings)
    realm = tiny.realm(
        corpus.directory, retriever=dataclasses.replace(tiny.retriever(), tied=False), train_documents=False
    )
    refresh = RefreshConfig(mode="frozen", embedder="in_trainer", index=IndexSettings(backend="exact"))
    train(
        run_dir=str(tmp_path / "realm"), task=realm, num_steps=2, refresh=refresh, warm_start=(str(tmp_path / "ict"),),
        **settings,
    )  # fmt: skip
    started = load_params(RunDir.of(tmp_path / "ict"))[1]["retriever"]["shared_encoder"]
    trained = load_params(RunDir.of(tmp_path / "realm"))[1]["retriever"]
    jax.tree.map(np.testing.assert_array_equal, trained["document_encoder"], started)
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), trained["query_encoder"], started)
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert list_versions(RunDir.of(tmp_path / "realm").index) == [0]


def test_selection_leaves_out_the_source_and_is_told_by_the_settings(settings, corpus, examples):
    ids = np.stack([np.array([source, 3, 11, 20, 30, 31, 32, 33]) for source in examples.source_documents])
    results = SearchResult(ids.astype(np.int64), np.zeros(ids.shape, np.float32))
    chosen = settings.select(examples, results, corpus=corpus)
    assert chosen.shape == (BATCH, 4) and (chosen[:, 0] == NULL_DOCUMENT).all()
    assert not (chosen[:, 1:] == examples.source_documents[:, None]).any()
    without = tiny.realm(corpus.directory, null_document=False).select(examples, results, corpus=corpus)
    assert (without >= 0).all() and without.shape == (BATCH, 4)


def test_gold_is_measured_where_it_is_known(corpus, tmp_path_factory):
    news = tiny.sentences_corpus(tmp_path_factory.mktemp("x"))
    settings = tiny.realm(corpus.directory, x_corpus=str(news.directory))
    task = settings.build(seed=0)
    examples = task.examples(0, 4, slice(None))
    ids = np.stack([np.full(4, -1), examples.gold_documents, examples.gold_documents - 1, np.full(4, NO_CANDIDATE)], 1)
    batch = join(settings, corpus, examples, ids)
    assert np.asarray(batch.is_gold).tolist() == [[False, True, False, False]] * 4
    assert np.asarray(batch.candidate_mask).tolist() == [[True, True, True, False]] * 4
    assert task.retrieval is not None and task.retrieval.num_results == 8
    with pytest.raises(AssertionError, match=r"Task\.retrieval"):
        task.batch(examples)


def test_settings_that_do_not_fit(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"train_documents=False trains the query encoder alone.*needs tied=False"):
        tiny.realm(corpus.directory, train_documents=False)
    with pytest.raises(ValueError, match=r"num_candidates must be at least 2 .* got 1"):
        tiny.realm(corpus.directory, num_candidates=1)
    with pytest.raises(ValueError, match=r"joint_len must exceed query_len=16, got 16"):
        tiny.realm(corpus.directory, joint_len=16)
    small = tiny.realm(corpus.directory, reader=tiny.encoder(vocab_size=20))
    with pytest.raises(ValueError, match=r"the reader has vocab_size=20, but the corpus's tokenizer has \d+ pieces"):
        small.build(0)
    other_tokenizer = type(tiny.tokenizer())([*tiny.SPECIAL_PIECES, *reversed(tiny.WORDS)])
    other = make_corpus(tmp_path, tiny.blocks(), other_tokenizer, with_text=False)
    with pytest.raises(ValueError, match=r"x_corpus was cut with tokenizer .*build x_corpus again"):
        check_same_tokenizer(corpus, Corpus.open(other.directory))


def test_the_null_document_is_read_as_the_joint_input_of_an_empty_body(settings, corpus, examples):
    from realm_jax.data.inputs import joint_inputs
    from realm_jax.tasks.realm import null_joint_inputs

    special = settings.model(corpus).special
    got = null_joint_inputs(jnp.asarray(examples.query.ids), special)
    expected = joint_inputs(examples.query.ids, corpus, np.full((BATCH, 1), -1), 17, special)
    assert isinstance(got, Inputs)
    np.testing.assert_array_equal(got.ids, expected.ids[:, 0])
    np.testing.assert_array_equal(got.segment_ids, expected.segment_ids[:, 0])
