"""Documents that come and go: what is found, against a search over the documents that are there."""

import shutil

import numpy as np
import pytest

from realm_jax.answering.collection import Collection, CorpusChanged, NotUsable, UnknownDocument
from realm_jax.answering.documents import Text
from realm_jax.answering.live import AddedDocument, LiveDocuments, LiveIndex
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.data.question_formats.question import one_line
from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.exact import ExactIndex, brute_force
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.scann_index import ScannIndex, ScannSettings, build_shard
from tests.answering import made_world

QUESTION = "Where was Ada Brook born?"


@pytest.fixture
def make_collection(answerer, corpus, index):
    return lambda **limits: Collection(answerer, corpus, index, **limits)


def answer_of(collection, question=QUESTION):
    answer = collection.answer(question)
    return answer.text, collection.name_of(answer.document.document)


@pytest.mark.parametrize("num_removed", [0, 1, 3, 9, 40])
@pytest.mark.parametrize("num_added", [0, 1, 5])
def test_a_live_index_finds_what_an_index_of_its_documents_finds(num_removed, num_added):
    rng = np.random.default_rng(num_removed + 100 * num_added)
    base, new, queries = (rng.standard_normal((rows, 6)).astype(np.float32) for rows in (40, num_added, 7))
    removed = frozenset(rng.choice(40, num_removed, replace=False).tolist())
    numbers = 40 + 2 * np.arange(num_added)  # some were added and removed between them
    added = [AddedDocument(int(n), Text("", ""), np.zeros(0, np.int32), e) for n, e in zip(numbers, new, strict=True)]
    live = LiveIndex(ExactIndex(base, chunk=16), removed, added)
    assert isinstance(live, Index) and (live.num_documents, live.embed_dim) == (40 - num_removed + num_added, 6)
    ids = np.array([*(n for n in range(40) if n not in removed), *numbers], np.int64)
    every = np.concatenate([base[ids[ids < 40]], new])
    for num_results in (1, 5, 60):
        found = live.search(queries, num_results)
        assert found.ids.shape == (7, num_results)
        if len(ids):
            expected = brute_force(queries, every, num_results)
            np.testing.assert_array_equal(found.ids, np.where(expected.ids >= 0, ids[expected.ids], -1))
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
        else:
            assert (found.ids == -1).all() and (found.scores == -np.inf).all()
    asked = np.array([[0, 39, -1], [*numbers[:1], 1, -1][-3:] if num_added else [1, 1, -1]])
    embeds = live.embeddings(asked)
    for place in np.ndindex(asked.shape):
        document = asked[place]
        expected = np.zeros(6) if document < 0 else base[document] if document < 40 else new[(document - 40) // 2]
        np.testing.assert_array_equal(embeds[place], expected)
    with pytest.raises(ValueError, match="queries must be"):
        live.search(queries[:, :5], 3)


def clustered(num_rows, seed):
    """Rows around thirty centres, the same for every seed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(100).standard_normal((30, 16))
    return (centres[rng.integers(30, size=num_rows)] + 0.4 * rng.standard_normal((num_rows, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def approximate():
    """Two ScaNN shards of 1000 documents, of whose leaves a query visits a tenth; and their embeddings."""
    rows, settings = clustered(2000, 0), ScannSettings(num_leaves=20, leaves_to_search=2)
    shards = [build_shard(rows[first : first + 1000], first, settings) for first in (0, 1000)]
    return ScannIndex(shards, rows=EmbeddingRows([rows], 0)), rows


def recall(found, expected):
    """The share of each query's expected documents that were found."""
    return np.mean([len(set(f) & set(e) - {-1}) / len(set(e) - {-1}) for f, e in zip(found, expected, strict=True)])


@pytest.mark.parametrize("num_near", [0, 1, 3, 60])
@pytest.mark.parametrize("num_added", [0, 5])
def test_a_live_index_over_scann_finds_as_much_as_scann_does(approximate, num_near, num_added):
    """Removed are the documents nearest to each query: what would have been found first."""
    base, rows = approximate
    queries, new = clustered(20, 1), clustered(num_added, 2)
    exact = brute_force(queries, rows, 100)
    base_recall = recall(base.search(queries, 10).ids, exact.ids[:, :10])
    assert 0.7 < base_recall < 0.95  # it is approximate
    removed = frozenset(exact.ids[:, :num_near].ravel().tolist())
    added = [AddedDocument(2000 + n, Text("", ""), np.zeros(0, np.int32), embed) for n, embed in enumerate(new)]
    live = LiveIndex(base, removed, added)
    there = np.array([number for number in range(2000 + num_added) if number not in removed])
    every = np.concatenate([rows, new])[there]
    assert live.num_documents == len(there)
    for num_results, least in ((1, base_recall), (10, base_recall), (100, 0.9)):
        found = live.search(queries, num_results)
        assert recall(found.ids, there[brute_force(queries, every, num_results).ids]) >= least
        assert (found.ids >= 0).all() and not removed & set(found.ids.ravel().tolist())
        assert all(len(set(ids)) == num_results for ids in found.ids.tolist())
        scores = np.einsum("be,bke->bk", queries, live.embeddings(found.ids))
        np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-4)
        assert (np.diff(found.scores, axis=1) <= 0).all()


def test_more_asked_of_scann_than_remains(approximate):
    base, rows = approximate
    queries, new = clustered(3, 1), clustered(2, 2)
    removed = frozenset(range(5, 2000))
    added = [AddedDocument(2000 + n, Text("", ""), np.zeros(0, np.int32), embed) for n, embed in enumerate(new)]
    there = np.array([0, 1, 2, 3, 4, 2000, 2001])
    found = LiveIndex(base, removed, added).search(queries, 12)
    expected = brute_force(queries, np.concatenate([rows, new])[there], 7)
    np.testing.assert_array_equal(found.ids, np.pad(there[expected.ids], ((0, 0), (0, 5)), constant_values=-1))
    np.testing.assert_allclose(found.scores[:, :7], expected.scores, rtol=1e-4, atol=1e-4)
    assert (found.scores[:, 7:] == -np.inf).all()
    nothing = LiveIndex(base, frozenset(range(2000)), []).search(queries, 4)
    assert (nothing.ids == -1).all() and (nothing.scores == -np.inf).all()


def test_an_added_document_is_laid_out_as_one_of_the_corpus(corpus, answerer):
    """Document 2 of the corpus, once more as an added one."""
    body, text = np.asarray(corpus.bodies[2]), answerer.documents.text(2)
    live = LiveDocuments(answerer.documents, [AddedDocument(9, text, body, np.zeros(32, np.float32))])
    special = SpecialIds.of(corpus.tokenizer)
    query = query_inputs([corpus.tokenizer.encode(q).ids for q in ("ada brook", "where is the river ?")], 24, special)
    for joint_len in (28, 64):  # the shorter one cuts the document
        own = live.joint(query.ids, np.array([[2, -1], [0, 2]]), joint_len, special)
        added = live.joint(query.ids, np.array([[9, -1], [0, 9]]), joint_len, special)
        np.testing.assert_array_equal(own.ids, added.ids)
        np.testing.assert_array_equal(own.segment_ids, added.segment_ids)
    assert live.text(9) == live.text(2) == text
    assert live.characters(9, 1, 3) == live.characters(2, 1, 3)


def test_documents_are_added_removed_and_restored(make_collection):
    collection = make_collection()
    assert answer_of(collection) == ("Oslo", "0") and collection.num_documents == 7
    made = collection.add(" Ada\nBrook ", "Ada Brook, born in Nice.")
    assert made == ("added-1", "Ada Brook", (7,)) and collection.added == (made,)
    assert answer_of(collection) == ("Nice", "added-1") and collection.num_documents == 8
    collection.remove("0")
    assert collection.removed == (0,)
    found = collection.answer(QUESTION).documents
    assert found[0].document == 7 and 0 not in [document.document for document in found]
    collection.remove("added-1")
    assert answer_of(collection)[0] != "Oslo" and (collection.added, collection.num_documents) == ((), 6)
    collection.restore("0")
    assert answer_of(collection) == ("Oslo", "0") and collection.removed == ()
    assert collection.add("", "graz").name == "added-2"


def test_who_is_reading_keeps_the_documents_that_were_there(make_collection):
    collection = make_collection()
    before = collection._state.answerer
    collection.add("Ada Brook", "Ada Brook, born in Nice.")
    collection.remove("0")
    assert before.answer([QUESTION])[0].text == "Oslo"


def test_a_long_text_is_cut_into_blocks_as_a_corpus_is(make_collection, corpus):
    collection = make_collection()
    sentences = [f"Ada Brook wrote letter {number} to the opera ." for number in range(9)]
    made = collection.add("Letters", "\n".join([*sentences, "Then Ada Brook found the lost festival in Lima ."]))
    assert len(made.documents) == 5  # of at most 24 pieces: two sentences of 9 or 10 each
    documents = collection._state.answerer.documents
    texts = [documents.text(number).text for number in made.documents]
    assert texts[0] == "\n".join(sentences[:2]) and texts[-1].endswith("festival in Lima .")
    assert all(len(corpus.tokenizer.encode(text).ids) <= corpus.info.block_len for text in texts)
    assert collection.answer("where is the lost festival of Ada Brook").text == "Lima"
    collection.remove("added-1")
    assert collection.num_documents == 7


def test_limits(make_collection):
    collection = make_collection(max_added=3, max_removed=2, max_question_chars=30, max_document_chars=200)
    with pytest.raises(NotUsable, match="the question may have 30 characters, got 31; shorten it"):
        collection.answer("a" * 31)
    with pytest.raises(NotUsable, match="the title may have 30 characters, got 31"):
        collection.add("a" * 31, "b")
    with pytest.raises(NotUsable, match="the document may have 200 characters, got 201"):
        collection.add("", "b" * 201)
    with pytest.raises(NotUsable, match="3 blocks may be added in all, 3 more; the document has 4: remove an added"):
        collection.add("", "ada. " * 37)
    collection.add("", "ada. " * 24)
    with pytest.raises(NotUsable, match="3 blocks may be added in all, 1 more; the document has 2"):
        collection.add("", "ada. " * 13)
    collection.add("", "ada")
    for name in ("1", "2"):
        collection.remove(name)
    with pytest.raises(NotUsable, match="2 documents of the corpus may be removed; restore one"):
        collection.remove("3")
    collection.remove("added-1")
    assert collection.num_documents == 6


def test_what_cannot_be_used(make_collection):
    collection = make_collection()
    for question in ("", " \n", "\x00"):
        with pytest.raises(NotUsable, match="the question is empty; ask something"):
            collection.answer(question)
    with pytest.raises(NotUsable, match="the question is no Unicode text: it holds half a surrogate pair"):
        collection.answer("\ud800")
    with pytest.raises(NotUsable, match="the document has no character that the tokenizer of this corpus knows"):
        collection.add("", "\u0301\u0301")
    for name in ("7", "-1", "", "٣", "1e3", "added-1", "9" * 30, "x" * 10_000):
        with pytest.raises(
            UnknownDocument, match=r"there is no document '.{0,40}'; those of the corpus are 0 to 6, added ones: none"
        ):
            collection.remove(name)
    with pytest.raises(UnknownDocument, match="document 4 was not removed"):
        collection.restore("4")


def test_one_line():
    assert one_line("\tWho\r\nwrote\u3000it\x07?\ufeff ") == "Who wrote it?"


def test_a_corpus_that_is_gone_or_another(answerer, corpus, index, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    collection = Collection(answerer, Corpus.open(tmp_path / "corpus"), index)
    assert collection.answer(QUESTION).text == "Oslo"
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(
        CorpusChanged, match=r"the corpus at .*corpus is gone \(no corpus at .*\); start the page again"
    ):
        collection.answer(QUESTION)
    made_world.make_corpus(tmp_path / "corpus", made_world.blocks()[:3], made_world.tokenizer())
    with pytest.raises(CorpusChanged, match="was built anew; embed it and start the page again"):
        collection.answer(QUESTION)
