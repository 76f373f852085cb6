"""Masked sentences beside the rest of their document: what is taken out, what is left, and how lessons grow."""

import numpy as np
import pytest

from realm_jax.corpus.writer import make_corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.data.order import batch_positions
from realm_jax.data.own_document import Lesson, OwnDocumentExamples
from tests import tiny

TOKENIZER = tiny.tokenizer()
SPECIAL = SpecialIds.of(TOKENIZER)
WHOLE = Lesson(until_step=0, joint_len=128)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def source(corpus, *lessons, max_masks=4, seed=0):
    return OwnDocumentExamples(corpus, lessons=lessons or (WHOLE,), max_masks=max_masks, seed=seed)


def one_document(directory, *sentences, salient=(), title=""):
    return make_corpus(directory, [tiny.article(title, list(sentences), salient)], TOKENIZER, with_text=False)


def rows_of(batch):
    """(text of the sentences taken out, as they were; masked pieces; text of the rest) of every row."""
    for row in range(len(batch.joint.ids)):
        ids, segments = batch.joint.ids[row].copy(), batch.joint.segment_ids[row]
        used = batch.mask_weights[row] > 0
        where = batch.mask_positions[row][used]
        assert used.tolist() == sorted(used.tolist(), reverse=True) and set(batch.mask_weights[row]) <= {0.0, 1.0}
        assert not batch.mask_positions[row][~used].any() and not batch.mask_targets[row][~used].any()
        assert (ids[where] == SPECIAL.mask).all() and (ids == SPECIAL.mask).sum() == len(where)
        ids[where] = batch.mask_targets[row][used]
        (first_sep, last_sep) = np.flatnonzero(ids == SPECIAL.sep)
        assert ids[0] == SPECIAL.cls and (where < first_sep).all() and not ids[last_sep + 1 :].any()
        assert segments.tolist() == [int(first_sep < i <= last_sep) for i in range(len(ids))]
        yield (
            TOKENIZER.decode(ids[1:first_sep]),
            TOKENIZER.decode(batch.mask_targets[row][used]),
            TOKENIZER.decode(ids[first_sep + 1 : last_sep]),
        )


def sentences_of(corpus, document):
    ends = corpus.sentence_ends[document]
    return [TOKENIZER.decode(part) for part in np.split(np.asarray(corpus.bodies[document]), ends[:-1])]


def test_a_sentence_is_taken_out_and_the_rest_holds_its_answer(corpus):
    """Documents 1, 2, 4, 5 … of each three say the town twice; it is asked for there, and never the year, said once."""
    examples = source(corpus)
    for step in range(5):
        documents = examples.usable[examples.order(batch_positions(step, 16, slice(None)))]
        for document, (taken, answer, rest) in zip(
            documents, rows_of(examples.batch(step, 16, slice(None))), strict=True
        ):
            sentences = sentences_of(corpus, document)
            place = sentences.index(taken)
            assert rest == " ".join(sentences[:place] + sentences[place + 1 :])
            assert document % 3 and answer in tiny.TOWNS
            assert answer in taken.split() and answer in rest.split()


def test_documents_without_a_second_sentence_or_a_span_are_left_out(corpus, tmp_path):
    every_third = set(range(0, tiny.NUM_DOCUMENTS, 3))  # these repeat nothing, and 9 has one sentence
    assert set(range(tiny.NUM_DOCUMENTS)) - set(source(corpus).usable.tolist()) == every_third | {5}
    assert source(corpus).left_out == {
        "no salient span": 1,
        "fewer than 2 sentences": 1,
        "no salient span that another sentence repeats": len(every_third - {5, 9}),
    }
    single = one_document(tmp_path / "a", "ann was born in oslo .", salient=("oslo",))
    with pytest.raises(
        ValueError, match=r"two sentences and a salient span .*\(1: fewer than 2 sentences\).* longer blocks or"
    ):
        source(single)


def test_a_corpus_that_repeats_nothing_is_warned_of(tmp_path, caplog):
    guessing = one_document(tmp_path, "ann was born in oslo .", "bob lived in rome .", salient=("oslo", "rome"))
    assert source(guessing).usable.tolist() == [0]
    assert "no document repeats a salient span; the reader learns to guess" in caplog.text


def test_the_subject_is_no_question(tmp_path):
    """ann stands in the title and in both sentences, oslo in both sentences: only oslo is asked for."""
    named = ["ann was born in oslo .", "ann lived in oslo ."]
    corpus = one_document(tmp_path / "a", *named, salient=("ann", "oslo"), title="ann")
    answers = {answer for step in range(20) for _, answer, _ in rows_of(source(corpus).batch(step, 1, slice(None)))}
    assert answers == {"oslo"}
    untitled = one_document(tmp_path / "b", *named, salient=("ann", "oslo"))
    answers = {answer for step in range(20) for _, answer, _ in rows_of(source(untitled).batch(step, 1, slice(None)))}
    assert answers == {"ann", "oslo"}


def test_several_sentences_with_different_answers(tmp_path):
    sentences = ["ann was in oslo .", "bob was in rome .", "oslo .", "rome .", "oslo and rome ."]
    corpus = one_document(tmp_path, *sentences, salient=("oslo", "rome"))
    examples, counts = source(corpus, Lesson(until_step=0, joint_len=64, max_sentences=3)), set()
    for step in range(40):
        ((taken, answers, rest),) = rows_of(examples.batch(step, 1, slice(None)))
        answers = answers.split()
        counts.add(len(answers))
        assert len(set(answers)) == len(answers) and set(answers) <= {"oslo", "rome"}
        number_taken = taken.count(".")
        assert number_taken == len(answers) == len(sentences) - rest.count(".")
        assert sorted([*taken.split(), *rest.split()]) == sorted(" ".join(sentences).split())
        assert all(answer in rest.split() for answer in answers)  # five sentences, two of them taken at most
    assert counts == {1, 2}  # three are allowed, but there are only two answers


def test_masks_fit_their_slots(tmp_path):
    corpus = one_document(
        tmp_path, "ann was in oslo .", "bob was in rome .", "oslo .", "rome .", salient=("oslo", "rome")
    )
    examples = source(corpus, Lesson(until_step=0, joint_len=64, max_sentences=2), max_masks=1)
    assert all(examples.batch(step, 1, slice(None)).mask_weights.tolist() == [[1.0]] for step in range(20))


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_is_laid_around_the_answer(tmp_path, window):
    """Both sentences have 60 pieces around oslo; 6 are kept on either side of the mask, `window` of the answer."""
    long = "often " * 30 + "oslo " + "so " * 28 + "."
    corpus = one_document(tmp_path, long, long, salient=("oslo",))
    examples = source(corpus, Lesson(until_step=0, joint_len=32, window=window))
    places, lengths = set(), set()
    for step in range(60):
        ((taken, answer, rest),) = rows_of(examples.batch(step, 1, slice(None)))
        assert answer == "oslo" and taken.split() == ["often"] * 6 + ["oslo"] + ["so"] * 6
        assert rest.split().count("oslo") == 1
        places.add(rest.split().index("oslo"))
        lengths.add(len(rest.split()))
    assert places == set(range(1, window + 2)) and max(lengths) == 2 * window + 2 and min(lengths) == 2


def test_without_a_recurrence_the_window_is_the_beginning(tmp_path):
    corpus = one_document(tmp_path, "ann was in oslo .", "often " * 20 + ".", salient=("oslo",))
    ((taken, answer, rest),) = rows_of(
        source(corpus, Lesson(until_step=0, joint_len=32, window=2)).batch(0, 1, slice(None))
    )
    assert (taken, answer, rest) == ("ann was in oslo .", "oslo", "often " * 4 + "often")


def test_a_sentence_longer_than_the_row_is_cut_around_its_mask(tmp_path):
    """oslo is piece 30 of its sentence: a row of 16, of which 13 are pieces, would end before it."""
    corpus = one_document(tmp_path, "often " * 30 + "oslo .", "so ann was in rome .", salient=("oslo",))
    for lesson in (Lesson(until_step=0, joint_len=16), Lesson(until_step=0, joint_len=16, window=60)):
        far = source(corpus, lesson).batch(0, 1, slice(None))
        assert far.mask_weights.tolist() == [[1.0, 0.0, 0.0, 0.0]]
        assert far.mask_positions[0, 0] == 12  # of the last 13 pieces the last but one, after [CLS]
        assert list(rows_of(far)) == [("often " * 11 + "oslo .", "oslo", "")]
    middle = one_document(tmp_path / "m", "often " * 30 + "oslo " + "so " * 30 + ".", "in rome .", salient=("oslo",))
    batch = source(middle, Lesson(until_step=0, joint_len=16)).batch(0, 1, slice(None))
    assert list(rows_of(batch)) == [("often " * 6 + "oslo " + ("so " * 6).strip(), "oslo", "")]
    near = source(corpus, Lesson(until_step=0, joint_len=16, window=4)).batch(0, 1, slice(None))
    assert near.mask_weights.sum() == 1 and near.joint.ids[0, near.mask_positions[0, 0]] == SPECIAL.mask
    assert near.mask_positions[0, 0] == 7  # six pieces before it, after [CLS]
    long_rest = source(corpus, Lesson(until_step=0, joint_len=64)).batch(0, 1, slice(None))
    assert long_rest.mask_positions[0, 0] == 31 and TOKENIZER.decode(long_rest.mask_targets[0, :1]) == "oslo"


def test_further_sentences_are_taken_out_only_if_they_fit_in_the_row(tmp_path):
    """13 pieces are left for the sentences taken out: those of 5 and 8 go together, none goes with the one of 12."""
    five, eight, twelve = "ann was in oslo .", "so so so ann was in rome .", "so " * 8 + "was in bern ."
    corpus = one_document(tmp_path, five, eight, twelve, "oslo rome bern .", salient=("oslo", "rome", "bern"))
    examples, taken = source(corpus, Lesson(until_step=0, joint_len=16, max_sentences=3)), set()
    for step in range(60):
        batch = examples.batch(step, 1, slice(None))
        ((text, answers, _),) = rows_of(batch)
        taken.add(text)
        assert set(answers.split()) <= set(text.split()) and batch.mask_weights.sum() == text.count(".")
    assert taken & {f"{five} {eight}", f"{eight} {five}"} and all(len(text.split()) <= 13 for text in taken)
    assert twelve in taken and not any(twelve in text for text in taken - {twelve})


def test_a_span_is_masked_whole_or_not_at_all(tmp_path):
    """Of a span of five pieces no four are masked; a document that has no other span is left out."""
    sentences = ["ann was in oslo and rome .", "ann was in oslo and bern ."]
    block = tiny.article("", sentences)
    spans = [(0, 15), (27, 42), (47, 51)]  # "ann was in oslo" twice, "bern"
    assert [block.text[start:end] for start, end in spans] == ["ann was in oslo", "ann was in oslo", "bern"]
    with_bern = block._replace(salient_spans=np.array(spans, np.int32))
    without = block._replace(salient_spans=np.array(spans[:2], np.int32), source_id="b")
    corpus = make_corpus(tmp_path, [with_bern, without], TOKENIZER, with_text=False)
    examples = source(corpus, max_masks=3)
    assert examples.usable.tolist() == [0]
    assert examples.left_out == {"no salient span of at most 3 pieces within a sentence": 1}
    assert {answer for step in range(8) for _, answer, _ in rows_of(examples.batch(step, 2, slice(None)))} == {"bern"}
    whole = source(corpus, max_masks=4)
    answers = {answer for step in range(8) for _, answer, _ in rows_of(whole.batch(step, 2, slice(None)))}
    assert whole.usable.tolist() == [0, 1] and answers == {"ann was in oslo"}  # repeated, so asked for


@pytest.mark.parametrize("lesson", [WHOLE, Lesson(0, 32, window=3), Lesson(0, 64, max_sentences=3)])
def test_a_batch_is_a_function_of_seed_step_and_row(corpus, lesson):
    whole = source(corpus, lesson).batch(9, 8, slice(None))
    used = source(corpus, lesson)
    used.batch(2, 8, slice(None))  # what was drawn before does not matter
    for rows in (slice(0, 8), slice(0, 3), slice(3, 8), slice(5, 6)):  # nor how rows lie on hosts
        part = used.batch(9, 8, rows)
        for name in ("mask_positions", "mask_targets", "mask_weights"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)
        np.testing.assert_array_equal(part.joint.ids, whole.joint.ids[rows])
    np.testing.assert_array_equal(used.batch(19, 4, slice(None)).joint.ids, whole.joint.ids[4:])  # 2 × 4 as 1 × 8
    assert not np.array_equal(source(corpus, lesson, seed=1).batch(9, 8, slice(None)).joint.ids, whole.joint.ids)


def test_lessons_follow_each_other_and_the_last_goes_on(corpus):
    lessons = (Lesson(2, 32, window=2), Lesson(4, 32, window=6), Lesson(5, 64, max_sentences=2))
    examples = source(corpus, *lessons)
    assert [examples.lesson(step) for step in (0, 1, 2, 3, 4, 5, 99)] == [lessons[i] for i in (0, 0, 1, 1, 2, 2, 2)]
    shapes = {
        tuple(leaf.shape for leaf in (*batch.joint, *batch[1:]))
        for batch in (examples.batch(step, 8, slice(None)) for step in range(8))
    }
    assert {shape[0] for shape in shapes} == {(8, 32), (8, 64)} and len(shapes) == 2  # a program each


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint_len": 15}, "joint_len must be at least 16"),
        ({"joint_len": 32, "max_sentences": 0}, "at least 1"),
        ({"joint_len": 32, "window": 0}, "window at least 1"),
        ({"joint_len": 32, "window": 4, "max_sentences": 2}, r"Lesson\.window goes with max_sentences=1"),
    ],
)
def test_lessons_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Lesson(until_step=0, **settings)
