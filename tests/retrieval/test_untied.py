"""An untied retriever: documents go through the document encoder and queries through the query encoder, everywhere.

A tied one, which every other test has, cannot tell the two apart.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import losses
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, document_inputs, query_inputs
from realm_jax.evaluation.queries import masked_sentences
from realm_jax.evaluation.retrieval import evaluate
from realm_jax.models.retriever import TextEncoder
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.embed import embed
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.versions import read_manifest
from realm_jax.run_dir import RunDir
from realm_jax.tasks.ict import ict_loss
from realm_jax.tasks.realm import embed_queries, retrieval_scores
from realm_jax.training.snapshots import save_snapshot
from tests import tiny

CONFIG = tiny.retriever(tied=False)
DOCUMENT_LEN, QUERY_LEN = 24, 16
SIDES = ("query", "document")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def params(corpus):
    settings = tiny.realm(corpus.directory, retriever=CONFIG)
    return jax.jit(settings.build(seed=0).init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnames="side")
def embed_by(side: str, params, inputs: Inputs) -> jax.Array:
    """Embeddings by one of the two encoders, without the class that chooses between them."""
    encoder = {"params": params["retriever"][f"{side}_encoder"]}
    embeds = TextEncoder(CONFIG).apply(encoder, inputs.ids, inputs.segment_ids, inputs.ids != 0)
    return embeds * (CONFIG.score_scale if side == "query" else 1.0)


def assert_by(side: str, got, params, inputs: Inputs):
    (other,) = set(SIDES) - {side}
    np.testing.assert_allclose(got, embed_by(side, params, inputs), atol=2e-5)
    assert np.abs(got - embed_by(other, params, inputs)).max() > 0.1


def all_documents(corpus: Corpus) -> Inputs:
    return document_inputs(corpus, np.arange(corpus.num_documents), DOCUMENT_LEN, SpecialIds.of(corpus.tokenizer))


def some_queries(corpus: Corpus) -> Inputs:
    pieces = [np.asarray(corpus.bodies[row][:QUERY_LEN - 2]) for row in range(8)]  # fmt: skip
    return query_inputs(pieces, QUERY_LEN, SpecialIds.of(corpus.tokenizer))


def test_the_embed_job_publishes_documents_by_the_document_encoder(corpus, params, tmp_path):
    run = RunDir(tmp_path)
    save_snapshot(run, 3, jax.device_get(params["retriever"]))
    embed(
        run_dir=str(run.path), corpus=str(corpus.directory), retriever=CONFIG, once=True, progress=False,
        index=IndexSettings(backend="exact", recall_queries=4, recall_results=4),
        batches=BatchSettings(document_len=DOCUMENT_LEN, batch_size=8, num_lengths=1, query_len=QUERY_LEN),
    )  # fmt: skip
    shards = read_manifest(run.index_version(3)).shards
    rows = np.concatenate([np.load(run.index_version(3) / shard.name / "embeddings.npy") for shard in shards])
    assert_by("document", rows, params, all_documents(corpus))


def test_the_embedder_embeds_queries_by_the_query_encoder(corpus, params):
    queries = some_queries(corpus)
    embedder = Embedder(CONFIG, jax.device_get(params["retriever"]))
    assert_by("query", np.asarray(embedder.embed_queries(*queries)), params, queries)


def test_the_trainer_searches_with_the_query_encoder(corpus, params):
    queries = some_queries(corpus)
    embedded = jax.jit(functools.partial(embed_queries, config=CONFIG))(params, queries)
    assert_by("query", np.asarray(embedded), params, queries)


def test_the_realm_step_scores_queries_with_documents(corpus, params):
    settings = tiny.realm(corpus.directory, retriever=CONFIG, num_candidates=3, document_len=DOCUMENT_LEN)
    examples = settings.build(seed=0).examples(0, 2, slice(None))
    model = settings.model(corpus)
    batch = settings.join(examples, np.array([[-1, 3, 4], [-1, 5, 6]]), corpus=corpus, special=model.special)
    null = Inputs(np.array([[model.special.cls, model.special.sep, model.special.sep]]), np.array([[0, 0, 1]]))
    expected = []
    for row in range(2):
        inputs = Inputs(batch.documents.ids[row], batch.documents.segment_ids[row])
        documents = [embed_by("document", params, null), embed_by("document", params, inputs)]
        query = embed_by(
            "query", params, Inputs(batch.query.ids[row : row + 1], batch.query.segment_ids[row : row + 1])
        )
        expected.append(np.concatenate(documents) @ np.asarray(query)[0])
    scores = jax.jit(functools.partial(retrieval_scores, rng=None, model=model))
    got = scores(params, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_ict_step_scores_sentences_with_blocks(corpus, params):
    settings = tiny.ict(corpus.directory, retriever=CONFIG)
    batch = settings.build(seed=0).examples(0, 4, slice(None))
    loss, _ = jax.jit(functools.partial(ict_loss, rng=None, config=CONFIG))(params, jax.tree.map(jnp.asarray, batch))

    def expected(query_side: str, document_side: str) -> float:
        queries, documents = embed_by(query_side, params, batch.query), embed_by(document_side, params, batch.document)
        return float(losses.inverse_cloze(queries, documents, jnp.asarray(batch.document_ids))[0].total)

    assert float(loss.total) == pytest.approx(expected("query", "document"), rel=1e-4)
    for wrong in (("query", "query"), ("document", "document"), ("document", "query")):
        assert abs(float(loss.total) - expected(*wrong)) > 0.01


def test_the_evaluation_ranks_documents_for_queries(corpus, params, tmp_path):
    run = RunDir(tmp_path / "run")
    save_snapshot(run, 3, jax.device_get(params["retriever"]))
    sentences = tiny.sentences_corpus(tmp_path / "x")
    result = evaluate(
        run_dir=str(run.path), corpus=str(corpus.directory), x_corpus=str(sentences.directory), retriever=CONFIG,
        query_len=QUERY_LEN, document_len=DOCUMENT_LEN, bm25=False,
    )  # fmt: skip
    asked = masked_sentences(sentences).queries
    inputs = query_inputs([query.pieces for query in asked], QUERY_LEN, SpecialIds.of(corpus.tokenizer))
    embeds = {(side, what): np.asarray(embed_by(side, params, rows)) for side in SIDES
              for what, rows in (("queries", inputs), ("documents", all_documents(corpus)))}  # fmt: skip
    gold = [next(iter(query.gold)) for query in asked]

    def mrr(query_side: str, document_side: str) -> float:
        ranked = np.argsort(
            -embeds[query_side, "queries"] @ embeds[document_side, "documents"].T, axis=1, kind="stable"
        )
        return float((1 / (1 + (ranked == np.array(gold)[:, None]).argmax(axis=1))).mean())

    found = result["rows"]["checkpoint"]["mrr"]
    assert found == pytest.approx(mrr("query", "document"), abs=1e-6)
    for wrong in (("query", "query"), ("document", "document"), ("document", "query")):
        assert abs(found - mrr(*wrong)) > 1e-4
