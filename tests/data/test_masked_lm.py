"""Masked sentences: positions, targets, windows, purity."""

import numpy as np
import pytest

from realm_jax.corpus.writer import make_corpus
from realm_jax.data.inputs import SpecialIds, joint_inputs
from realm_jax.data.masked_lm import MaskedSentences, masked_batch
from realm_jax.data.masking import MaskingConfig
from realm_jax.data.order import example_rng
from tests import tiny

TOKENIZER = tiny.tokenizer()
SPECIAL = SpecialIds.of(TOKENIZER)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def source(corpus, query_len=16, seed=0, is_knowledge_corpus=True, **masking):
    return MaskedSentences(
        corpus,
        query_len=query_len,
        masking=MaskingConfig(**masking),
        seed=seed,
        is_knowledge_corpus=is_knowledge_corpus,
    )


def assert_same(one, other):
    assert one._fields == other._fields
    for name, left, right in zip(one._fields, one, other, strict=True):
        if name == "sentences":
            assert [s.tolist() for s in left] == [s.tolist() for s in right]
        else:
            np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("kind", ["salient", "random_span", "uniform"])
def test_a_batch_is_a_function_of_seed_step_and_row(corpus, kind):
    whole = source(corpus, kind=kind).batch(9, 8, slice(None))
    again = source(corpus, kind=kind)
    again.batch(2, 8, slice(None))  # what was drawn before does not matter
    assert_same(again.batch(9, 8, slice(None)), whole)
    for rows in (slice(0, 3), slice(3, 8), slice(5, 6)):  # nor how rows lie on hosts
        part = source(corpus, kind=kind).batch(9, 8, rows)
        np.testing.assert_array_equal(part.query.ids, whole.query.ids[rows])
        np.testing.assert_array_equal(part.mask_targets, whole.mask_targets[rows])
        np.testing.assert_array_equal(part.source_documents, whole.source_documents[rows])
    # the same examples in one batch of 8 as in two of 4
    np.testing.assert_array_equal(source(corpus, kind=kind).batch(19, 4, slice(None)).query.ids, whole.query.ids[4:])
    assert not np.array_equal(source(corpus, kind=kind, seed=1).batch(9, 8, slice(None)).query.ids, whole.query.ids)


@pytest.mark.parametrize("kind", ["salient", "random_span", "uniform"])
def test_masks_stand_where_they_say_and_hide_what_they_say(corpus, kind):
    examples, seen = source(corpus, kind=kind), 0
    for step in range(6):
        batch = examples.batch(step, 16, slice(None))
        joint = joint_inputs(batch.query.ids, corpus, np.tile(np.arange(3), (16, 1)), 32, SPECIAL)
        for row in range(16):
            used = batch.mask_weights[row] > 0
            where, sentence = batch.mask_positions[row][used], batch.sentences[row]
            assert used.any() and used.tolist() == sorted(used.tolist(), reverse=True)
            restored = batch.query.ids[row].copy()
            assert (restored[where] == SPECIAL.mask).all() and (restored == SPECIAL.mask).sum() == len(where)
            assert (joint.ids[row][:, where] == SPECIAL.mask).all()
            restored[where] = batch.mask_targets[row][used]
            assert restored[1 : 1 + len(sentence)].tolist() == sentence.tolist()
            assert not batch.mask_targets[row][~used].any() and not batch.mask_positions[row][~used].any()
            # x is a sentence (or a window of one) of the document it claims to be of
            body = TOKENIZER.decode(corpus.bodies[batch.source_documents[row]])
            assert TOKENIZER.decode(sentence) in body
            if kind == "salient":
                assert TOKENIZER.decode(batch.mask_targets[row][used]) in tiny.TOWNS + tiny.YEARS
                seen += 1
            assert batch.query.ids[row, 0] == SPECIAL.cls and not batch.query.segment_ids[row].any()
    assert seen == (96 if kind == "salient" else 0)


def test_windows_of_long_sentences_hold_the_mask(corpus):
    """Document 7's first sentence has 77 pieces, its town and year in the middle; the window has 10."""
    examples = source(corpus, query_len=12)
    for draw in range(30):
        batch = examples.mask(np.array([7]), [example_rng(0, draw)])
        assert batch.mask_weights.sum() == 1 and len(batch.sentences[0]) <= 10
        assert batch.query.ids[0, batch.mask_positions[0, 0]] == SPECIAL.mask
    # of a random span the window lies anywhere
    anywhere = source(corpus, query_len=12, kind="random_span")
    windows = {
        tuple(s) for s in (anywhere.mask(np.array([7]), [example_rng(0, d)]).sentences[0].tolist() for d in range(60))
    }
    assert len(windows) > 8 and max(map(len, windows)) == 10


def test_salient_draws_only_documents_that_have_a_span(corpus):
    assert 9 not in source(corpus).usable and len(source(corpus).usable) == tiny.NUM_DOCUMENTS - 1
    assert source(corpus).left_out == {"no salient span": 1}
    assert len(source(corpus, kind="uniform").usable) == tiny.NUM_DOCUMENTS
    assert source(corpus, kind="uniform").left_out == {}
    drawn = np.concatenate([source(corpus).batch(step, 13, slice(None)).source_documents for step in range(3)])
    assert sorted(drawn.tolist()) == [d for d in range(tiny.NUM_DOCUMENTS) if d != 9]  # one epoch


def test_a_corpus_without_spans(tmp_path):
    plain = make_corpus(tmp_path, [tiny.article("ann", ["ann was born ."])], TOKENIZER, with_text=False)
    with pytest.raises(
        ValueError, match=r"has anything to mask \(1: no salient span\); give the corpus job another tagger"
    ):
        source(plain)


def spanned(directory, *documents):
    """A corpus of (sentences, their salient spans in words, counted from the document's start)."""
    blocks = []
    for sentences, spans in documents:
        block = tiny.article("", sentences)
        starts = np.cumsum([0, *(len(word) + 1 for word in block.text.split(" "))])
        characters = np.array([(starts[start], starts[end] - 1) for start, end in spans], np.int32)
        blocks.append(block._replace(salient_spans=characters.reshape(-1, 2)))
    return make_corpus(directory, blocks, TOKENIZER, with_text=False)


def test_a_document_with_nothing_but_spans_too_long_or_across_sentences_is_left_out(tmp_path):
    long = "ann was born in oslo and lived in rome ."
    corpus = spanned(
        tmp_path,
        ([long], [(0, 9)]),  # nine pieces
        ([long], [(0, 5)]),
        ([long, "bob was in bern ."], [(8, 12)]),  # ends in the next sentence
        ([long, "bob was in bern ."], [(8, 12), (13, 14)]),
        ([long], []),
    )
    examples = source(corpus, max_masks=5)
    assert examples.usable.tolist() == [1, 3]
    cause = "no salient span of at most 5 pieces within a sentence"
    assert examples.left_out == {"no salient span": 1, cause: 2}
    seen = set()
    for step in range(12):
        batch = examples.batch(step, 4, slice(None))
        for row, document in enumerate(batch.source_documents.tolist()):
            used = batch.mask_weights[row] > 0
            seen.add((document, TOKENIZER.decode(batch.mask_targets[row][used])))
    assert seen == {(1, "ann was born in oslo"), (3, "bern")}
    assert source(corpus, max_masks=9).usable.tolist() == [0, 1, 3]
    assert source(corpus, max_masks=9, query_len=8).usable.tolist() == [1, 3]  # six pieces of a sentence are seen
    with pytest.raises(ValueError, match="document 0 has no salient span to mask"):
        examples.mask(np.array([0]), [example_rng(0, 0)])
    with pytest.raises(ValueError, match=r"anything to mask \(1: no salient span; 4: no salient span of at most 0"):
        source(corpus, query_len=2)


def test_a_window_holds_the_whole_span(tmp_path):
    """The span is longer than half of the window that is cut around its first piece."""
    sentence = "often " * 20 + "ann was born in oslo and lived " + "so " * 20 + "."
    corpus = spanned(tmp_path, ([sentence], [(20, 27)]))
    for query_len in (9, 11, 12, 20):
        batch = source(corpus, query_len=query_len, max_masks=8).batch(0, 1, slice(None))
        assert TOKENIZER.decode(batch.mask_targets[0, :7]) == "ann was born in oslo and lived"
        assert batch.mask_weights[0].tolist() == [1.0] * 7 + [0.0] and len(batch.sentences[0]) == query_len - 2


@pytest.mark.parametrize("kind", ["random_span", "uniform"])
def test_a_sentence_without_pieces_is_not_drawn(tmp_path, kind):
    """The tokenizer drops the characters of the second sentence."""
    corpus = make_corpus(tmp_path, [tiny.article("", ["ann was .", "\u200b", "bob was ."])], TOKENIZER, with_text=False)
    assert corpus.sentence_ends[0].tolist() == [3, 3, 6]
    batch = source(corpus, kind=kind).batch(0, 24, slice(None))
    assert (batch.mask_weights.sum(axis=1) > 0).all()
    assert {TOKENIZER.decode(sentence) for sentence in batch.sentences} == {"ann was .", "bob was ."}


def test_gold_and_source_documents(corpus, tmp_path):
    batch = source(corpus).batch(0, 8, slice(None))
    assert (batch.gold_documents == -1).all() and (batch.source_documents >= 0).all()
    news = tiny.sentences_corpus(tmp_path)
    batch = source(news, is_knowledge_corpus=False).batch(0, 8, slice(None))
    assert (batch.source_documents == -1).all()
    for row in range(8):  # gold documents follow the order of examples
        assert TOKENIZER.decode(news.bodies[batch.gold_documents[row]]) == TOKENIZER.decode(batch.sentences[row])


def test_the_text_of_a_mask_is_no_mask(tmp_path):
    literal = tiny.article("", ["ann was [MASK] in rome ."], ("rome",))
    corpus = make_corpus(tmp_path, [literal], TOKENIZER, with_text=False)
    batch = source(corpus).batch(0, 1, slice(None))
    assert (batch.query.ids == SPECIAL.mask).sum() == 1
    assert TOKENIZER.decode(batch.query.ids[0][1:]).startswith("ann was [ mask ] in")
    assert TOKENIZER.decode(batch.mask_targets[0, :1]) == "rome"


def test_masks_beyond_the_input_and_beyond_the_slots_are_left_out():
    pieces = np.arange(5, 25, dtype=np.int32)
    where = np.array([1, 2, 3, 9, 10, 11], np.int32)
    minus = np.array([-1])
    batch = masked_batch(
        [pieces], [where], source_documents=minus, gold_documents=minus, query_len=12, max_masks=8, special=SPECIAL
    )
    assert batch.mask_positions.tolist() == [[2, 3, 4, 10, 0, 0, 0, 0]]
    assert batch.mask_targets.tolist() == [[6, 7, 8, 14, 0, 0, 0, 0]]
    assert batch.mask_weights.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    few = masked_batch(
        [pieces], [where], source_documents=minus, gold_documents=minus, query_len=12, max_masks=2, special=SPECIAL
    )
    assert few.mask_positions.tolist() == [[2, 3]] and (few.query.ids == SPECIAL.mask).sum() == 2
