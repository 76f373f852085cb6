"""Vectorised inputs against one written row by row."""

import numpy as np
import pytest

from realm_jax.data.inputs import (
    NO_CANDIDATE,
    NULL_DOCUMENT,
    SpecialIds,
    document_inputs,
    joint_inputs,
    pair_inputs,
    query_inputs,
)
from tests import tiny

SPECIAL = SpecialIds.of(tiny.tokenizer())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def row(first, second, length):
    """[CLS] first [SEP] second [SEP] by hand; the second gives way, the first only when it alone is too long."""
    first = list(first)[: length - 3]
    second = list(second)[: length - 3 - len(first)]
    ids = [SPECIAL.cls, *first, SPECIAL.sep, *second, SPECIAL.sep]
    segments = [0] * (2 + len(first)) + [1] * (len(second) + 1)
    padding = [0] * (length - len(ids))
    return ids + padding, segments + padding


def test_special_ids():
    assert SPECIAL == (2, 3, 4)

    odd = tiny.tokenizer()
    odd.pad_id = 1
    with pytest.raises(ValueError, match="pads with id 1; expected 0"):
        SpecialIds.of(odd)


@pytest.mark.parametrize("length", [4, 8, 24, 200])
def test_documents(corpus, length):
    wanted = np.array([*range(tiny.NUM_DOCUMENTS), NULL_DOCUMENT, NO_CANDIDATE, 7, 7], np.int64)
    got = document_inputs(corpus, wanted, length, SPECIAL)
    assert got.ids.dtype == got.segment_ids.dtype == np.int32
    for number, document in enumerate(wanted):
        title, body = ([], []) if document < 0 else (corpus.titles[document], corpus.bodies[document])
        assert (got.ids[number].tolist(), got.segment_ids[number].tolist()) == row(title, body, length), document


def test_the_null_document_is_three_special_pieces(corpus):
    got = document_inputs(corpus, np.array([NULL_DOCUMENT]), 6, SPECIAL)
    assert got.ids.tolist() == [[2, 3, 3, 0, 0, 0]] and got.segment_ids.tolist() == [[0, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize(("query_len", "joint_len"), [(9, 10), (9, 32), (30, 31), (12, 120)])
def test_joint(corpus, query_len, joint_len):
    rng = np.random.default_rng(0)
    queries = [rng.integers(5, 40, size=n).astype(np.int32) for n in (1, 5, 7, 60)]
    query_ids = query_inputs(queries, query_len, SPECIAL).ids
    documents = np.array([[0, NULL_DOCUMENT, 7], [7, 5, 9], [NO_CANDIDATE, 1, 2], [7, 11, NULL_DOCUMENT]], np.int64)
    got = joint_inputs(query_ids, corpus, documents, joint_len, SPECIAL)
    assert got.ids.shape == (4, 3, joint_len)
    for x in range(4):
        for z in range(3):
            body = [] if documents[x, z] < 0 else corpus.bodies[documents[x, z]]
            piece = queries[x][: query_len - 2]
            expected = row(piece, body, joint_len)
            assert (got.ids[x, z].tolist(), got.segment_ids[x, z].tolist()) == expected, (x, z)
            # so a mask keeps its place, whatever the document
            assert got.ids[x, z, : len(piece) + 2].tolist() == query_ids[x, : len(piece) + 2].tolist()


def test_no_room_for_a_document(corpus):
    query_ids = np.full((1, 8), 5, np.int32)
    with pytest.raises(ValueError, match="joint_len=8 leaves no room for a document after query_len=8"):
        joint_inputs(query_ids, corpus, np.array([[0]]), 8, SPECIAL)


def test_queries_and_pairs():
    long, short = np.arange(5, 25, dtype=np.int32), np.array([9], np.int32)
    got = query_inputs([long, short, short[:0]], 6, SPECIAL)
    assert got.ids.tolist() == [[2, 5, 6, 7, 8, 3], [2, 9, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0]]
    assert not got.segment_ids.any()
    pairs = pair_inputs([short, long], [long, short], 10, SPECIAL)
    assert [pairs.ids.tolist(), pairs.segment_ids.tolist()] == [
        list(rows) for rows in zip(row(short, long, 10), row(long, short, 10), strict=True)
    ]


def test_unknown_documents_are_refused(corpus):
    with pytest.raises(ValueError, match="document ids below 40, got 40"):
        document_inputs(corpus, np.array([40]), 8, SPECIAL)
