"""Which search results become candidates."""

import numpy as np
import pytest

from realm_jax.corpus.writer import make_corpus
from realm_jax.data.inputs import NO_CANDIDATE, NULL_DOCUMENT
from realm_jax.retrieval.candidates import contains, select_candidates
from realm_jax.retrieval.index import SearchResult
from tests import tiny


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    texts = [
        ["ann was born in oslo .", "bob lived in rome ."],  # 0
        ["often ann was born in oslo ."],  # 1: contains the sentence
        ["ann was born in rome ."],  # 2
        ["bob lived in rome ."],  # 3
        ["cem worked ."],  # 4
    ]
    blocks = [tiny.article(str(n), sentences) for n, sentences in enumerate(texts)]
    return make_corpus(tmp_path_factory.mktemp("z"), blocks, tiny.tokenizer(), with_text=False)


def select(corpus, ids, num_candidates=4, sources=None, texts=None, **kwargs):
    ids = np.asarray(ids, np.int64)
    scores = -np.arange(ids.size, dtype=np.float32).reshape(ids.shape)
    texts = texts or ["ann was born in oslo ."] * len(ids)
    return select_candidates(
        SearchResult(ids, scores),
        num_candidates,
        corpus=corpus,
        source_documents=np.asarray(sources if sources is not None else [-1] * len(ids), np.int64),
        sentences=[tiny.tokenizer().encode(text).ids for text in texts],
        **kwargs,
    ).tolist()


def test_the_null_document_then_the_best_that_do_not_give_x_away(corpus):
    # 0 is the source and 1 repeats the sentence; 2 differs in the masked word alone and stays
    assert select(corpus, [[1, 3, 0, 2, 4]], sources=[0]) == [[NULL_DOCUMENT, 3, 2, 4]]
    # the source goes although another part of it was found, and the containing document goes without a source
    assert select(corpus, [[0, 1, 4, 3, 2]]) == [[NULL_DOCUMENT, 4, 3, 2]]
    assert select(corpus, [[4, 3, 2, 1]], sources=[4], texts=["so ."]) == [[NULL_DOCUMENT, 3, 2, 1]]


def test_each_row_has_its_own_source_and_sentence(corpus):
    got = select(
        corpus, [[0, 3, 2, 4], [0, 3, 2, 4]], sources=[0, 2], texts=["bob lived in rome .", "ann was born in rome ."]
    )
    assert got == [[NULL_DOCUMENT, 2, 4, NO_CANDIDATE], [NULL_DOCUMENT, 0, 3, 4]]


def test_missing_hits_and_empty_slots(corpus):
    assert select(corpus, [[-1, 3, -1, -1, -1]]) == [[NULL_DOCUMENT, 3, NO_CANDIDATE, NO_CANDIDATE]]
    assert select(corpus, [[-1, -1]]) == [[NULL_DOCUMENT] + [NO_CANDIDATE] * 3]


def test_a_document_found_twice_is_one_candidate(corpus):
    assert select(corpus, [[3, 3, 2, 3, 4]]) == [[NULL_DOCUMENT, 3, 2, 4]]


def test_without_the_null_document(corpus):
    assert select(corpus, [[3, 2, 4]], num_candidates=2, null_document=False) == [[3, 2]]
    assert select(corpus, [[3]], num_candidates=2, null_document=False) == [[3, NO_CANDIDATE]]


def test_contains_by_brute_force():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(500):
        body = rng.integers(0, 3, size=rng.integers(0, 12)).astype(np.int32)
        sentence = rng.integers(0, 3, size=rng.integers(0, 4)).astype(np.int32)
        expected = bool(len(sentence)) and any(
            body[i : i + len(sentence)].tolist() == sentence.tolist() for i in range(len(body) - len(sentence) + 1)
        )
        assert contains(body, sentence) == expected
        found += expected
    assert 100 < found < 400
