"""Embeddings of documents in blocks, by range and by document."""

import numpy as np
import pytest

from realm_jax.retrieval.embedding_rows import EmbeddingRows

ALL = np.arange(21, dtype=np.float32).reshape(7, 3)


def rows(first_document=0):
    return EmbeddingRows([ALL[:2], ALL[2:6], ALL[6:]], first_document)


def test_a_range_across_blocks():
    np.testing.assert_array_equal(rows().read(1, 4), ALL[1:5])
    np.testing.assert_array_equal(rows().read(5, 99), ALL[5:])
    assert rows().read(7, 2).shape == (0, 3)


def test_documents_in_any_order_and_shape():
    ids = np.array([[6, 0, -1], [2, 2, 5]])
    found = rows().take(ids)
    expected = ALL[np.maximum(ids, 0)] * (ids >= 0)[..., None]
    np.testing.assert_array_equal(found, expected)


def test_documents_of_a_share_of_the_corpus():
    np.testing.assert_array_equal(rows(100).take(np.array([101, 106])), ALL[[1, 6]])
    with pytest.raises(ValueError, match="expected documents 100 to 106, got 99"):
        rows(100).take(np.array([103, 99]))
    with pytest.raises(ValueError, match="expected documents 100 to 106, got 107"):
        rows(100).take(np.array([107]))
