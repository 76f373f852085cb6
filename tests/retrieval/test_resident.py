"""What a compiled step does with documents on the devices, against the host's own way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.data.inputs import NO_CANDIDATE, SpecialIds, document_inputs, joint_inputs, query_inputs
from realm_jax.retrieval.candidates import contains
from realm_jax.retrieval.resident import (
    Pieces,
    choose_candidates,
    gather_documents,
    occurs_in,
    pair_rows,
    place_documents,
)
from realm_jax.training.sharding import MeshConfig
from tests import tiny


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.mark.parametrize("devices", [1, 8])
def test_documents_are_found_by_id_wherever_they_lie(corpus, devices):
    mesh = MeshConfig(fsdp=2 if devices == 8 else 1).build(jax.devices()[:devices])
    documents = place_documents(corpus, mesh, max_title_len=2)
    own = documents.bodies.ids.addressable_shards[0].data
    assert own.shape[0] == -(-corpus.num_documents // devices) and own.dtype == jnp.uint16
    ids = np.array([[0, 39, -1], [17, NO_CANDIDATE, 17], [5, 7, 9]], np.int32)
    found = jax.jit(lambda documents, ids: gather_documents(documents, ids, mesh))(documents, ids)
    width = int(corpus.bodies.lengths().max())
    np.testing.assert_array_equal(found.bodies.ids, corpus.bodies.gather(ids, width))
    np.testing.assert_array_equal(found.bodies.lengths, corpus.bodies.lengths(ids))
    np.testing.assert_array_equal(found.titles.lengths, np.minimum(corpus.titles.lengths(ids), 2))
    np.testing.assert_array_equal(found.titles.ids, corpus.titles.gather(ids, 2)[..., : found.titles.ids.shape[-1]])


@pytest.mark.parametrize("length", [8, 12, 24, 200])
def test_inputs_are_laid_out_as_the_host_lays_them_out(corpus, length):
    """Of every document, cut or not, with and without a title; and joined with queries of different lengths."""
    special = SpecialIds.of(corpus.tokenizer)
    ids = np.concatenate([np.arange(corpus.num_documents), [-1, NO_CANDIDATE]])
    mesh = MeshConfig().build(jax.devices()[:1])
    found = gather_documents(place_documents(corpus, mesh, length - 3), jnp.asarray(ids[None], jnp.int32), mesh)
    titles, bodies = jax.tree.map(lambda leaf: leaf[0], found)
    expected = document_inputs(corpus, ids, length, special)
    got = pair_rows(titles, bodies, length, special)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.segment_ids, expected.segment_ids)

    query = query_inputs([np.arange(10, 10 + count, dtype=np.int32) for count in (1, 3, 5)], 7, special)
    expected = joint_inputs(query.ids, corpus, np.tile(ids, (3, 1)), length, special)
    lengths = (query.ids != 0).sum(axis=1) - 2
    queries = Pieces(np.repeat(query.ids[:, None, 1:], len(ids), axis=1), np.repeat(lengths[:, None], len(ids), axis=1))
    every = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), bodies)
    got = pair_rows(Pieces(*map(jnp.asarray, queries)), every, length, special)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.segment_ids, expected.segment_ids)


def test_a_sentence_is_found_as_the_host_finds_it():
    """Random pieces of a small alphabet: sentences at the beginning, at the end, beyond it, empty, and longer than the body."""
    rng = np.random.default_rng(0)
    batch, found, width, longest = 40, 6, 12, 7
    bodies = rng.integers(1, 3, (batch, found, width)).astype(np.int32)
    body_lens = rng.integers(0, width + 1, (batch, found)).astype(np.int32)
    bodies[np.arange(width) >= body_lens[..., None]] = 0
    sentences = rng.integers(1, 3, (batch, longest)).astype(np.int32)
    sentence_lens = rng.integers(0, longest + 1, batch).astype(np.int32)
    got = np.asarray(
        occurs_in(Pieces(jnp.asarray(sentences), sentence_lens), Pieces(jnp.asarray(bodies), jnp.asarray(body_lens)))
    )
    expected = np.array(
        [
            [contains(bodies[b, k, : body_lens[b, k]], sentences[b, : sentence_lens[b]]) for k in range(found)]
            for b in range(batch)
        ]
    )
    np.testing.assert_array_equal(got, expected)
    assert 20 < expected.sum() < expected.size - 20


def test_what_is_allowed_is_taken_in_order():
    found = jnp.array([[4, 9, 2, 7], [5, 3, -1, -1]], jnp.int32)
    allowed = jnp.array([[False, True, False, True], [True, False, False, False]])
    ids, columns = choose_candidates(found, allowed, 3)
    assert ids.tolist() == [[9, 7, NO_CANDIDATE], [5, NO_CANDIDATE, NO_CANDIDATE]]
    assert columns[0, :2].tolist() == [1, 3]
