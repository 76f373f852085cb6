"""Held-out spans: what is counted, with figures worked out by hand beside the program's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.inputs import NO_CANDIDATE, NULL_DOCUMENT
from realm_jax.evaluation.masked_spans import MaskedSpanEvaluation, predict_spans, with_blank
from realm_jax.retrieval.index import SearchResult
from realm_jax.tasks.realm import init_params
from tests import tiny


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z")), tiny.sentences_corpus(tmp_path_factory.mktemp("x"))


@pytest.fixture(scope="module")
def evaluation(places):
    corpus, news = places
    return MaskedSpanEvaluation(tiny.realm(corpus.directory), str(news.directory), num_sentences=13, batch_size=8)


@pytest.fixture(scope="module")
def params(evaluation):
    return jax.jit(functools.partial(init_params, model=evaluation.model))(jax.random.key(0))


class GoldIndex:
    """Gives each query's gold document at a rank, by the order of the queries."""

    num_documents, embed_dim = tiny.NUM_DOCUMENTS, 16

    def __init__(self, evaluation, rank):
        self.gold = np.concatenate([batch.gold_documents for batch in evaluation.batches()])
        self.rank, self.asked = rank, 0

    def search(self, queries, num_results):
        gold = self.gold[self.asked : self.asked + len(queries)]
        self.asked += len(queries)
        ids = (gold[:, None] + 1 + np.arange(num_results)) % tiny.NUM_DOCUMENTS
        if self.rank < num_results:
            ids[:, self.rank] = gold
        return SearchResult(ids.astype(np.int64), -np.arange(ids.size, dtype=np.float32).reshape(ids.shape))

    def embeddings(self, document_ids):
        raise AssertionError("recall needs no embeddings")


def test_sentences_are_spread_evenly_and_always_masked_alike(evaluation):
    assert len(evaluation.rows) == 13 and evaluation.rows[0] == 0 and evaluation.rows[-1] == tiny.NUM_DOCUMENTS - 1
    first, again = (list(evaluation.batches()) for _ in range(2))
    assert [len(batch.sentences) for batch in first] == [8, 8]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.query.ids, other.query.ids)
    np.testing.assert_array_equal(first[1].gold_documents[4:], np.repeat(first[1].gold_documents[4], 4))


def test_recall_at_each_depth(evaluation, params):
    for rank, expected in ((0, (1.0, 1.0, 1.0)), (3, (0.0, 1.0, 1.0)), (19, (0.0, 0.0, 1.0)), (25, (0.0, 0.0, 0.0))):
        got = evaluation.recall(params, GoldIndex(evaluation, rank))
        assert tuple(got.values()) == expected and list(got) == [f"heldout_recall_at_{k}" for k in (1, 5, 20)]


def test_an_unknown_gold_document_is_not_found_by_a_missing_hit(evaluation, params):
    """Both are -1."""

    class Empty(GoldIndex):
        def search(self, queries, num_results):
            return SearchResult(
                np.full((len(queries), num_results), -1), np.full((len(queries), num_results), -np.inf, np.float32)
            )

    gold = evaluation.sentences.corpus.gold_documents
    try:
        evaluation.sentences.corpus.gold_documents = np.where(np.arange(len(gold)) % 2, gold, -1)
        assert set(evaluation.recall(params, Empty(evaluation, 0)).values()) == {0.0}
    finally:
        evaluation.sentences.corpus.gold_documents = gold


def test_predictions_and_figures(evaluation, params, places):
    corpus, _ = places

    def search(batch, num_results):
        ids = np.tile(np.arange(num_results), (len(batch.sentences), 1))
        ids[:, 0] = batch.gold_documents
        ids[1, :] = -1
        return SearchResult(ids.astype(np.int64), np.zeros(ids.shape, np.float32))

    spans = evaluation.evaluate(params, search, num_examples=3)
    right = null_right = gain = masks = selected = null_prob = 0.0
    seen = 0
    for batch in evaluation.batches():
        chosen = evaluation.task.select(batch, search(batch, 8), corpus=corpus)
        joined = evaluation.task.join(batch, chosen, corpus=corpus, special=evaluation.model.special)
        got = jax.device_get(evaluation._predict(params, jax.tree.map(jnp.asarray, joined)))
        assert (
            got.retrieval_probs[1].tolist() == [1.0, 0.0, 0.0, 0.0]
            and chosen[1].tolist() == [NULL_DOCUMENT] + [NO_CANDIDATE] * 3
        )
        np.testing.assert_allclose(got.null_log_probs, got.gold_log_probs[:, 0], rtol=1e-5)
        mixture = np.log((got.retrieval_probs[:, :, None] * np.exp(got.gold_log_probs)).sum(1))
        np.testing.assert_allclose(got.marginal_log_probs, mixture, rtol=1e-3, atol=1e-4)
        for row in range(min(8, 13 - seen)):
            used = batch.mask_weights[row] > 0
            right += (got.marginal_ids[row] == batch.mask_targets[row])[used].all()
            null_right += (got.null_ids[row] == batch.mask_targets[row])[used].all()
            gain += (got.marginal_log_probs[row] - got.null_log_probs[row])[used].sum()
            masks += used.sum()
            selected += batch.gold_documents[row] in chosen[row]
            null_prob += got.retrieval_probs[row, 0]
        seen += 8
    figures = spans.figures
    assert figures["sentences"] == 13.0
    assert figures["with_retrieval"] == pytest.approx(right / 13) and figures["null_only"] == pytest.approx(
        null_right / 13
    )
    assert figures["retrieval_utility"] == pytest.approx(gain / masks, rel=1e-3)
    assert figures["gold_selected"] == pytest.approx(selected / 13) and figures["gold_selected"] < 1
    assert figures["null_document_prob"] == pytest.approx(null_prob / 13, rel=1e-4)


def test_the_marginal_prefers_what_likely_documents_say(evaluation, params, places):
    """The predicted piece maximises Σ p(z|x) p(y|z,x), not the best document's own choice."""
    corpus, _ = places
    batch = next(iter(evaluation.batches()))
    ids = np.tile(np.array([-1, 3, 11, 20]), (8, 1))
    joined = jax.tree.map(
        jnp.asarray, evaluation.task.join(batch, ids, corpus=corpus, special=evaluation.model.special)
    )
    got = evaluation._predict(params, joined)
    assert isinstance(
        got, type(jax.eval_shape(functools.partial(predict_spans, model=evaluation.model), params, joined))
    )
    np.testing.assert_allclose(np.asarray(got.retrieval_probs).sum(1), 1.0, rtol=1e-5)
    assert got.candidate_ids.shape == (8, 4, 10) and got.marginal_ids.shape == (8, 10)


def test_runs_of_masks_are_one_blank():
    tokenizer = tiny.tokenizer()
    mask = tokenizer.mask_id
    ann, was = tokenizer.encode("ann was").ids
    assert with_blank(tokenizer, np.array([ann, mask, mask, was], np.int32)) == "ann [MASK] was"
    assert with_blank(tokenizer, np.array([mask, ann], np.int32)) == "[MASK] ann"
    assert with_blank(tokenizer, np.array([ann], np.int32)) == "ann"
