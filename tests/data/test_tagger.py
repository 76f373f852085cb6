"""What a tagger reads and learns from: words, first pieces, shapes, windows, and batches of (seed, step)."""

import numpy as np
import pytest

from realm_jax.data.conll import AnnotatedSentence, Name, joined
from realm_jax.data.tagger import NO_LABEL, Labels, TaggerExamples, piece_labels
from realm_jax.data.tagger_inputs import NO_PIECE, sentence_pieces, windows, word_spans
from realm_jax.text.sentence_piece import train_sentencepiece
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

PIECES = ["ann", "lee", "##d", "saw", "k", "##oln", "-", ".", "(", ")", "zoe", "na", "##to", "i", "##pod"]
TOKENIZER = WordPieceTokenizer([*SPECIAL_PIECES, *PIECES])
ID = {piece: i for i, piece in enumerate([*SPECIAL_PIECES, *PIECES])}


def annotated(words, *names):
    return joined(AnnotatedSentence(tuple(words), tuple(Name(*name) for name in names)))


def test_words_in_any_script():
    text = "Zoë-Ann’s 東京 अनुवाद, e\u0301t 😀"
    assert [text[a:b] for a, b in word_spans(text)] == [
        "Zoë", "-", "Ann", "’", "s", "東", "京", "अनुवाद", ",", "e\u0301t", "😀",
    ]  # fmt: skip
    assert word_spans("") == word_spans(" \n\u00a0") == []


def test_pieces_by_hand():
    (found,) = sentence_pieces(["Zoë leed NATO iPod (Köln)."], TOKENIZER)
    expected = ["zoe", "lee", "##d", "na", "##to", "i", "##pod", "(", "k", "##oln", ")", "."]
    assert found.ids.tolist() == [ID[piece] for piece in expected]
    assert found.shapes.tolist() == [1, 0, 0, 2, 2, 3, 3, 0, 1, 1, 0, 0]
    assert found.first_pieces.tolist() == [0, 1, 3, 5, 7, 8, 10, 11]
    assert found.words[5].tolist() == [20, 24]
    for num_shapes, expected in ((1, [0] * 12), (2, [1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0])):
        assert sentence_pieces(["Zoë leed NATO iPod (Köln)."], TOKENIZER, num_shapes)[0].shapes.tolist() == expected


def test_a_word_without_pieces_has_none():
    (found,) = sentence_pieces(["Ann \u200d\u200b lee"], TOKENIZER)
    assert found.ids.tolist() == [ID["ann"], ID["lee"]] and found.first_pieces.tolist() == [0, NO_PIECE, 1]
    empty = sentence_pieces(["", "\u200d"], TOKENIZER)
    assert [len(sentence.ids) for sentence in empty] == [0, 0] and empty[1].first_pieces.tolist() == [NO_PIECE]


def test_sentencepiece_pieces_begin_with_their_space():
    tokenizer = train_sentencepiece(["Ann saw Köln and Ann saw Rome in May"] * 3, 22)
    text = "Ann  saw Köln"
    (found,) = sentence_pieces([text], tokenizer)
    assert [text[a:b] for a, b in found.words.tolist()] == ["Ann", "saw", "Köln"]
    starts = tokenizer.encode(text).offsets
    for (start, _), piece in zip(found.words.tolist(), found.first_pieces.tolist(), strict=True):
        assert starts[piece, 0] <= start < starts[piece, 1]
    assert found.shapes[found.first_pieces].tolist() == [1, 0, 1]


def test_labels_of_first_pieces_by_hand():
    """Annotators' words are not ours: "Ann-Lee" is three of ours, all of one name."""
    text = annotated(["Ann-Lee", "Köln", "saw", "leed", "."], (0, 1, "PER"), (1, 2, "LOC"), (3, 4, "PER"))
    (pieces,) = sentence_pieces([text.text], TOKENIZER)
    assert pieces.ids.tolist() == [ID[p] for p in ["ann", "-", "lee", "k", "##oln", "saw", "lee", "##d", "."]]
    labels = Labels(("LOC", "PER"))
    assert piece_labels(text, pieces, labels).tolist() == [3, 4, 4, 1, NO_LABEL, 0, 3, NO_LABEL, 0]
    assert piece_labels(text, pieces, Labels()).tolist() == [1, 2, 2, 1, NO_LABEL, 0, 1, NO_LABEL, 0]
    with pytest.raises(ValueError, match="a name is of kind PER, the tagger's kinds are LOC"):
        piece_labels(text, pieces, Labels(("LOC",)))


def test_labels_there_and_back():
    labels = Labels(("PER", "LOC"))
    names = [Name(0, 2, "PER"), Name(2, 3, "PER"), Name(4, 6, "LOC")]
    assert labels.decode(labels.encode(6, names).tolist()) == names
    assert labels.decode([2, 2, 4, 0]) == [Name(0, 2, "PER"), Name(2, 3, "LOC")]  # I after O begins a name


@pytest.mark.parametrize("num_pieces", [0, 1, 5, 6, 7, 11, 12, 40])
@pytest.mark.parametrize("size", [2, 5, 6])
def test_windows_keep_every_piece_once(num_pieces, size):
    found = windows(num_pieces, size)
    assert [piece for window in found for piece in range(window.keep_start, window.keep_end)] == list(range(num_pieces))
    for window in found:
        assert 0 <= window.start <= window.keep_start <= window.keep_end <= window.end <= max(num_pieces, 0)
        assert window.end - window.start == min(size, num_pieces)
        for keep, edge, whole in ((window.keep_start, window.start, 0), (window.keep_end, window.end, num_pieces)):
            assert edge == whole or abs(keep - edge) >= size // 4  # context on both sides


def examples(texts=None, **changes):
    texts = texts or [annotated(["Ann", "saw", "Köln"] + ["."] * i, (0, 1, "PER"), (2, 3, "LOC")) for i in range(9)]
    settings = {"lengths": (7, 10), "num_shapes": 4, "seed": 3} | changes
    return TaggerExamples(texts, TOKENIZER, Labels(), **settings)


def test_a_batch_by_hand():
    batch = examples([annotated(["Ann", "saw", "Köln"], (0, 1, "PER"), (2, 3, "LOC"))]).batch(0, 2, slice(None))
    row = [ID["[CLS]"], ID["ann"], ID["saw"], ID["k"], ID["##oln"], ID["[SEP]"], 0]
    assert batch.inputs.ids.tolist() == [row, row]
    assert batch.inputs.segment_ids[0].tolist() == [0, 1, 0, 1, 1, 0, 0]
    assert batch.labels[0].tolist() == [NO_LABEL, 1, 0, 1, NO_LABEL, NO_LABEL, NO_LABEL]


def test_batches_are_functions_of_seed_and_step():
    one, two, other = examples(), examples(), examples(seed=4)
    lengths = set()
    for step in (9, 0, 4, 1, 2, 3):
        whole = one.batch(step, 6, slice(None))
        halves = [two.batch(step, 6, rows) for rows in (slice(0, 2), slice(2, 6))]
        np.testing.assert_array_equal(whole.inputs.ids, np.concatenate([half.inputs.ids for half in halves]))
        np.testing.assert_array_equal(whole.labels, np.concatenate([half.labels for half in halves]))
        lengths.add(whole.labels.shape[1])
    assert lengths == {7, 10}
    assert any(
        one.batch(step, 6, slice(None)).labels.tolist() != other.batch(step, 6, slice(None)).labels.tolist()
        for step in range(4)
    )


def test_long_sentences_are_learned_in_windows_each_word_once():
    text = annotated(["Ann", "."] * 20, *((i, i + 1, "PER") for i in range(0, 40, 2)))
    made = examples([text])
    assert made.num_examples == len(windows(40, 8)) == 9
    assert sum(int((row.labels == 1).sum()) for bucket in made.rows for row in bucket) == 20
    assert sum(int((row.labels == 0).sum()) for bucket in made.rows for row in bucket) == 20


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="none of the 1 sentences has a word that the tokenizer knows"):
        examples([annotated(["\u200d"])])
