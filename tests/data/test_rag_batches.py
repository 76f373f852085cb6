"""What the generator reads and writes: put together by hand, cut in order, drawn as a pure function."""

import json

import numpy as np
import pytest

from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.corpus.ragged import Ragged
from realm_jax.data.question_splits import training_questions
from realm_jax.data.rag import RagQuestions, SourceFormat, sources, targets
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from tests import tiny

FORM = SourceFormat(
    bos=50, eos=51, pad=52, after_title=np.array([60], np.int32), after_document=np.array([61, 62], np.int32)
)


def ragged(*rows):
    values = np.concatenate([np.asarray(row, np.uint16) for row in rows])
    return Ragged(values, np.cumsum([0, *map(len, rows)]))


PIECES = DocumentPieces(titles=ragged([1, 2], [], [3]), bodies=ragged([10, 11, 12], [20, 21], []))
QUESTIONS = [np.array([30, 31], np.int32), np.array([40], np.int32)]


def test_a_source_is_title_body_and_question():
    got = sources(PIECES, np.array([[0, 1, 2], [-1, 0, -2]]), QUESTIONS, 14, FORM)
    assert got.dtype == np.int32 and got.shape == (2, 3, 14)
    for row, expected in zip(got.reshape(-1, 14).tolist(), [
        [50, 1, 2, 60, 10, 11, 12, 61, 62, 30, 31, 51],
        [50, 20, 21, 61, 62, 30, 31, 51],  # a document without a title begins with its text
        [50, 3, 60, 61, 62, 30, 31, 51],
        [50, 40, 51],  # no document
        [50, 1, 2, 60, 10, 11, 12, 61, 62, 40, 51],
        [50, 40, 51],
    ], strict=True):  # fmt: skip
        assert row == expected + [52] * (14 - len(expected))


@pytest.mark.parametrize(
    ("source_len", "expected"),
    [
        (11, [50, 1, 2, 60, 10, 11, 61, 62, 30, 31, 51]),  # the body's end goes first
        (9, [50, 1, 2, 60, 61, 62, 30, 31, 51]),
        (8, [50, 1, 60, 61, 62, 30, 31, 51]),  # then the title's
        (7, [50, 61, 62, 30, 31, 51, 52]),
        (6, [50, 61, 62, 30, 51, 52]),  # and only then the question's
    ],
)
def test_what_does_not_fit_is_cut_in_this_order(source_len, expected):
    assert sources(PIECES, np.array([[0]]), QUESTIONS[:1], source_len, FORM).reshape(-1).tolist() == expected


def test_targets_end_and_decoder_inputs_begin_as_in_generation():
    generator = tiny.encoder_decoder(pad_id=1, bos_id=0, eos_id=2, decoder_start_id=2)
    pieces = [np.array(ids, np.int32) for ids in ([7, 8], [7, 8, 9, 10, 11, 12], [])]
    got = targets(pieces, 5, generator)
    assert got.ids.tolist() == [[7, 8, 2, 1, 1], [7, 8, 9, 10, 2], [1] * 5]
    assert got.inputs.tolist() == [[2, 7, 8, 1, 1], [2, 7, 8, 9, 10], [1] * 5]
    assert got.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [False] * 5]
    forced = targets(pieces, 5, tiny.encoder_decoder(forced_bos_id=0))
    assert forced.ids.tolist() == [[0, 7, 8, 2, 1], [0, 7, 8, 9, 2], [1] * 5]
    assert forced.inputs.tolist() == [[2, 0, 7, 8, 1], [2, 0, 7, 8, 9], [1] * 5]


def test_questions_are_drawn_as_a_pure_function_and_every_answer_in_turn(tmp_path):
    corpus = tiny.corpus(tmp_path / "z")
    rows = [{"question": f"{name} lived in", "answer": ["oslo", "rome and bern", "lima"]} for name in tiny.NAMES[:3]]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = as_generator_tokenizer(corpus.tokenizer)
    questions = RagQuestions(training_questions(str(tmp_path / "q.jsonl")), corpus, tokenizer, query_len=8, seed=3)
    seen = set()
    for step in range(12):
        whole = questions.batch(step, 4, slice(None))
        parts = [questions.batch(step, 4, rows) for rows in (slice(0, 1), slice(1, 4))]
        np.testing.assert_array_equal(whole.query.ids, np.concatenate([part.query.ids for part in parts]))
        assert whole.questions == parts[0].questions + parts[1].questions
        for one, other in zip(whole.target_pieces, parts[0].target_pieces + parts[1].target_pieces, strict=True):
            np.testing.assert_array_equal(one, other)
        for question, pieces, target in zip(whole.questions, whole.pieces, whole.target_pieces, strict=True):
            assert corpus.tokenizer.decode(pieces) == question.text
            seen.add((question.text, corpus.tokenizer.decode(target)))
    assert len(seen) == 9  # every answer of every question
