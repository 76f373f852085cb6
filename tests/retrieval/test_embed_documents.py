"""The documents' embeddings, in memory and in an index: each as if it were embedded alone."""

import functools

import jax
import numpy as np
import pytest

from realm_jax.data.inputs import SpecialIds, document_inputs
from realm_jax.models import Retriever
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.embed_documents import embed_in_batches
from realm_jax.retrieval.embedder import Embedder, embed_params
from realm_jax.retrieval.length_batches import LengthBatch
from realm_jax.run_dir import RunDir
from tests import tiny
from tests.retrieval.made_index import CountingEmbed, make_corpus

CONFIG = tiny.retriever(encoder=tiny.encoder(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def params():
    ids = np.ones((1, 4), np.int32)
    variables = jax.jit(Retriever(CONFIG).init)(jax.random.key(0), ids, ids * 0, ids > 0)
    return jax.tree.map(np.asarray, variables["params"])


@pytest.fixture(scope="module")
def alone(corpus, params):
    embed = jax.jit(functools.partial(Retriever(CONFIG).apply, method="embed_documents"))
    special, rows = SpecialIds.of(corpus.tokenizer), []
    for document in range(corpus.num_documents):
        one = document_inputs(corpus, np.array([document]), 60, special)
        rows.append(embed({"params": params}, one.ids, one.segment_ids, one.ids != 0)[0])
    return np.stack(rows)


@pytest.mark.parametrize(("batch_size", "num_lengths"), [(3, 1), (16, 4)])
def test_every_document_is_embedded_as_if_alone(corpus, params, alone, batch_size, num_lengths):
    batches = BatchSettings(document_len=60, batch_size=batch_size, num_lengths=num_lengths, query_len=16)
    embeddings = Embedder(CONFIG, params).embed_corpus(corpus, batches)
    assert embeddings.shape == (tiny.NUM_DOCUMENTS, 16) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, alone, rtol=1e-4, atol=1e-5)


def test_an_index_holds_the_same_embeddings(corpus, params, tmp_path):
    """What is evaluated is what is served, to the last bit where one shard holds all documents."""
    run, batches = RunDir(tmp_path), BatchSettings(document_len=60, batch_size=5, query_len=16)
    embed_params(run, 7, CONFIG, params, "0" * 64, corpus, settings=IndexSettings(backend="exact"), batches=batches)
    (file,) = run.index_version(7).glob("*/embeddings.npy")
    np.testing.assert_array_equal(np.load(file), Embedder(CONFIG, params).embed_corpus(corpus, batches))


def test_two_batches_are_under_way_and_padding_rows_are_left_out(tmp_path):
    """The second batch is started before the first result is read; documents keep the places they were given."""
    corpus, events = make_corpus(tmp_path, 12), []
    counting = CountingEmbed()

    class Late:
        def __init__(self, number, rows):
            self.number, self.rows = number, rows

        def __array__(self, dtype=None, copy=None):
            events.append(f"read {self.number}")
            return self.rows

    def embed(ids, segment_ids):
        events.append(f"start {counting.calls}")
        return Late(counting.calls, counting(ids, segment_ids))

    documents = np.array([11, 4, 7, 2, 9])
    batches = [LengthBatch(48, 2, np.array(places)) for places in ([3, 0], [4, 2], [1])]
    special = SpecialIds.of(corpus.tokenizer)
    found = list(embed_in_batches(corpus, documents, iter(batches), embed, special))
    assert events == ["start 0", "start 1", "read 0", "start 2", "read 1", "read 2"]
    assert [part.rows.tolist() for part in found] == [[3, 0], [4, 2], [1]]
    for part in found:
        alone = document_inputs(corpus, documents[part.rows], 48, special)
        np.testing.assert_array_equal(part.embeddings, CountingEmbed()(*alone))


def test_what_the_retriever_cannot_read_is_refused(corpus, params):
    embedder = Embedder(CONFIG, params)
    with pytest.raises(
        ValueError, match=r"BatchSettings.document_len must be at most the encoder's max_length 64, got 96"
    ):
        embedder.embed_corpus(corpus, BatchSettings(document_len=96, query_len=16))
