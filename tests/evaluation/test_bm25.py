"""BM25 against its formula."""

import logging

import numpy as np
import pytest

from realm_jax.evaluation.bm25 import Bm25Index

TEXTS = ["apple apple banana", "banana cherry", "cherry cherry cherry date", "elder"]


def lucene(words, text, texts, k1=1.5, b=0.75):
    documents = [t.split() for t in texts]
    mean = np.mean([len(d) for d in documents])
    own = text.split()
    score = 0.0
    for word in words:
        holding = sum(word in d for d in documents)
        if not holding:
            continue
        idf = np.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        count = own.count(word)
        score += idf * count / (count + k1 * (1 - b + b * len(own) / mean))
    return score


def test_scores_are_those_of_the_formula():
    result = Bm25Index(TEXTS).search(["banana cherry", "apple unheard"], num_results=4)
    for row, words in enumerate([["banana", "cherry"], ["apple", "unheard"]]):
        scores = np.array([lucene(words, text, TEXTS) for text in TEXTS])
        order = [i for i in np.argsort(-scores) if scores[i] > 0]
        assert result.ids[row].tolist() == order + [-1] * (4 - len(order))
        np.testing.assert_allclose(result.scores[row][: len(order)], scores[order], rtol=1e-5)
        assert np.isneginf(result.scores[row][len(order) :]).all()
    assert result.ids.dtype == np.int64 and result.scores.dtype == np.float32


def test_documents_of_equal_score_come_by_id():
    index = Bm25Index(["plum", "other", "plum", "plum"])
    assert index.search(["plum"], 2).ids.tolist() == [[0, 2]]
    assert index.search(["plum"], 10).ids.tolist() == [[0, 2, 3, *[-1] * 7]]


def test_queries_without_known_words_find_nothing():
    result = Bm25Index(TEXTS).search(["zebra", "", "the of"], 2)
    assert (result.ids == -1).all()
    assert Bm25Index(TEXTS).search([], 2).ids.shape == (0, 2)


def test_stopwords_are_a_choice():
    texts = ["the who", "the band"]
    assert Bm25Index(texts, stopwords=None).search(["the"], 2).ids.tolist() == [[0, 1]]
    assert Bm25Index(texts).search(["the"], 2).ids.tolist() == [[-1, -1]]


def test_nothing_to_index():
    with pytest.raises(ValueError, match="none of the 2 documents has a word"):
        Bm25Index(["", "the"])


def test_it_is_silent(caplog, capsys):
    caplog.set_level(logging.DEBUG)
    Bm25Index(TEXTS).search(["apple"], 1)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")
