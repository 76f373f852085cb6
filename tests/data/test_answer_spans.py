"""Answers are found in documents by their pieces, wherever and however often they stand."""

import numpy as np
import pytest

from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.data.answer_spans import AnswerFinder, answer_pieces, answer_spans, occurrences
from realm_jax.data.questions import Question
from realm_jax.evaluation.answers import contains_answer
from realm_jax.models import span_bounds
from realm_jax.text.sentence_piece import train_sentencepiece
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_edges import WordEdges
from realm_jax.text.word_piece import WordPieceTokenizer
from tests import tiny

TEXTS = ["ann lived in rome . rome was nice .", "bob was born in 1904 .", "ann was in lima and rome", "kim worked ."]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    place = tmp_path_factory.mktemp("answers") / "corpus"
    blocks = [tiny.article(f"t{number}", [text]) for number, text in enumerate(TEXTS)]

    make_corpus(place, blocks, tiny.tokenizer())
    return Corpus.open(place)


def finder(corpus, **settings):
    return AnswerFinder(corpus, lambda document: document_text(corpus, document)[1], **settings)


def by_hand(rows, wanted):
    return sorted(
        (row, start, len(pieces))
        for row, ids in enumerate(rows)
        for pieces in wanted
        for start in range(len(ids) - len(pieces) + 1)
        if tuple(ids[start : start + len(pieces)]) == pieces
    )


def test_occurrences_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.integers(0, 3, (4, 12))
        wanted = [tuple(rng.integers(0, 3, rng.integers(1, 5)).tolist()) for _ in range(3)]
        wanted = list(dict.fromkeys(wanted))
        found = sorted(zip(*(part.tolist() for part in occurrences(rows, wanted)), strict=True))
        assert found == by_hand(rows.tolist(), wanted)
    assert len(occurrences(rows, [])[0]) == 0


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("rome",), [True, False, True, False]),
        (("1904", "lima"), [False, True, True, False]),
        (("was nice",), [True, False, False, False]),
        (("in rome",), [True, False, False, False]),
        (("  ", "unheard"), [False] * 4),
    ],
)
def test_which_documents_hold_an_answer(corpus, answers, expected):
    ids = np.arange(4)
    assert finder(corpus).has_answer(Question("?", answers), ids).tolist() == expected
    assert finder(corpus).has_answer(Question("?", answers), ids[::-1].copy()).tolist() == expected[::-1]


def test_no_document_holds_no_answer(corpus):
    assert finder(corpus).has_answer(Question("?", ("rome",)), np.array([-1, 0, -2])).tolist() == [False, True, False]
    assert finder(corpus).has_answer(Question("?", ("rome",)), np.array([-1])).tolist() == [False]


def test_a_document_is_read_once_for_a_question(corpus, monkeypatch):
    looked = []
    plain = AnswerFinder._look
    monkeypatch.setattr(
        AnswerFinder, "_look", lambda self, question, ids: looked.append(ids.tolist()) or plain(self, question, ids)
    )
    one, other, find = Question("?", ("rome",)), Question("?", ("lima",)), finder(corpus)
    assert find.has_answer(one, np.array([2, 0])).tolist() == [True, True]
    assert find.has_answer(one, np.array([0, 1, 2, 0])).tolist() == [True, False, True, True]
    assert find.has_answer(other, np.array([0])).tolist() == [False]
    assert looked == [[0, 2], [1], [0]]


def test_memory_is_bounded_and_the_oldest_question_is_forgotten_first(corpus):
    find = finder(corpus, max_remembered=5)
    questions = [Question("?", (answer,)) for answer in ("rome", "lima", "nice")]
    for question in questions:
        find.has_answer(question, np.array([0, 1]))
    assert list(find._known) == questions[1:] and find._num_known == 4


def test_regular_expressions_are_found_in_the_text(corpus):
    find, question = finder(corpus), Question("?", (r"19\d\d", "(broken"), is_regex=True)
    assert find.has_answer(question, np.arange(4)).tolist() == [False, True, False, False]
    assert find.pieces(question, [0, 1]) == answer_pieces(["1904"], corpus.tokenizer)
    assert find.pieces(question, [0, 2]) == ()


WORD_PIECES = ["ann", "##ual", "18", "##95", "##1", "in", "-", ".", "oslo", "mc", "##ann", "東", "京", "都"]


def test_an_answer_inside_a_word_is_none():
    """The official scorers compare words: the port of REALM takes "Ann" in "annual" for the answer."""
    tokenizer = WordPieceTokenizer([*SPECIAL_PIECES, *WORD_PIECES])
    edges = WordEdges(tokenizer)
    for answer, text, places in (
        ("ann", "in annual ann-oslo mcann ann .", [3, 8]),
        ("1895", "in 18951 1895.", [4]),
        ("東京", "東京都", [0]),  # a script without spaces
    ):
        ids = tokenizer.encode(text).ids[None]
        wanted = answer_pieces([answer], tokenizer)
        _, starts, _ = occurrences(ids, wanted, edges)
        assert starts.tolist() == places, (answer, text)
        assert contains_answer(text, [answer]) or answer == "東京"
        assert len(occurrences(ids, wanted)[0]) >= len(places)


def test_words_of_sentencepiece_end_where_they_do():
    text = "the town (1966) had 1966 people and 19 more in 66 houses of 31966 . 19662 " * 30
    tokenizer = train_sentencepiece([text], 34)
    edges, wanted = WordEdges(tokenizer), answer_pieces(["1966"], tokenizer)
    for where, there in (("in 1966 .", True), ("in (1966).", True), ("in 31966 .", False), ("in 19662 .", False)):
        ids = tokenizer.encode(where).ids[None]
        assert bool(len(occurrences(ids, wanted, edges)[0])) == there, where


def test_the_finder_looks_for_whole_words(tmp_path):
    tokenizer = WordPieceTokenizer([*SPECIAL_PIECES, *WORD_PIECES])
    corpus = make_corpus(
        tmp_path / "z", [tiny.article(f"t{i}", [t]) for i, t in enumerate(["annual .", "ann ."])], tokenizer
    )
    question = Question("?", ("ann",))
    assert AnswerFinder(corpus).has_answer(question, np.arange(2)).tolist() == [False, True]
    assert AnswerFinder(corpus, whole_words=False).has_answer(question, np.arange(2)).tolist() == [True, True]


def test_spans_are_numbered_as_the_reader_numbers_them():
    starts, ends = span_bounds(8, 3)
    joint = np.array([[9, 5, 6, 7, 5, 6, 7, 0], [5, 6, 1, 1, 1, 1, 6, 5]], np.int32)
    inside = np.array([[False] * 2 + [True] * 6, [True] * 8])
    found = answer_spans(joint, inside, [(5, 6), (7,), (5, 6, 7, 0)], 3)
    marked = [(row, int(starts[span]), int(ends[span])) for row, span in zip(*np.nonzero(found), strict=True)]
    # the first "5 6" begins outside of the document; four pieces are wider than three
    assert sorted(marked) == [(0, 3, 3), (0, 4, 5), (0, 6, 6), (1, 0, 1)]


def test_an_answer_after_a_bracket_is_found_too():
    """SentencePiece cuts "1966" after a space and after a bracket into other pieces."""
    text = "the town (1966) had 1966 people and 19 more in 66 houses . " * 30
    tokenizer = train_sentencepiece([text], 30)
    wanted = answer_pieces(["1966"], tokenizer)
    for where in ("was built 1966 .", "was built (1966) ."):
        ids = tokenizer.encode(where).ids[None]
        assert len(occurrences(ids, wanted)[0]) == 1, where
    assert len(wanted) == 2
