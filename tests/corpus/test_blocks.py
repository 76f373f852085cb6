import numpy as np
import pytest

from realm_jax.corpus.blocks import Block, TaggedArticle, cut_articles, piece_rows
from realm_jax.text.sentence_piece import train_sentencepiece
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

WORDS = [chr(ord("a") + i) for i in range(26)]


@pytest.fixture(scope="module")
def letters():
    """One piece a letter, a stop or a digit; "ab" is "a", "##b"."""
    return WordPieceTokenizer([*SPECIAL_PIECES, *WORDS, *("##" + w for w in WORDS), ".", "½"])


@pytest.fixture(scope="module")
def trained():
    return train_sentencepiece(["Zoë was born in Köln. Bob founded the bank of Łódź. It failed in 1931."] * 5, 36)


def sentences_of(text):
    """Each sentence ends with a full stop."""
    spans, start = [], 0
    for at, character in enumerate(text):
        if character == ".":
            start += len(text[start:]) - len(text[start:].lstrip())
            spans.append((start, at + 1))
            start = at + 1
    return spans


def article(text, spans=(), name="1", title="t"):
    return TaggedArticle(name, title, text, sentences_of(text), spans)


def texts(cut):
    return [block.text for block in cut.blocks]


def test_packs_whole_sentences_greedily(letters):
    text = "a b c. d e.\n\nf g h i. j.  k l m n."  # sentences of 4, 3, 5, 2 and 5 pieces
    cut = cut_articles([article(text)], letters, block_len=7, title_len=4)
    assert texts(cut) == ["a b c. d e.", "f g h i. j.", "k l m n."]
    assert cut.rows.body_lengths.tolist() == [7, 7, 5]
    assert cut.rows.sentence_ends.tolist() == [4, 7, 5, 7, 5]
    assert cut.rows.sentence_counts.tolist() == [2, 2, 1]
    assert [block.id for block in cut.blocks] == ["1#0", "1#1", "1#2"]
    assert cut.split_sentences == 0
    first = cut.blocks[0]
    assert [first.text[s:e] for s, e in first.sentence_spans] == ["a b c.", "d e."]
    assert first.sentence_spans.dtype == np.int32


def test_white_space_between_sentences_is_kept(letters):
    text = "  a b.\n\n \tc.   d.  "
    cut = cut_articles([article(text)], letters, block_len=20, title_len=4)
    assert texts(cut) == ["a b.\n\n \tc.   d."]
    assert [cut.blocks[0].text[s:e] for s, e in cut.blocks[0].sentence_spans] == ["a b.", "c.", "d."]


def test_articles_do_not_mix(letters):
    batch = [article("a. b.", name="x", title="q"), article("", name="y"), article("c.", name="z", title="r s t u v")]
    cut = cut_articles(batch, letters, block_len=20, title_len=3)
    assert [(b.id, b.source_id, b.title, b.text) for b in cut.blocks] == [
        ("x#0", "x", "q", "a. b."),
        ("z#0", "z", "r s t u v", "c."),
    ]
    assert letters.decode(cut.rows.titles) == "q r s t" and cut.rows.title_lengths.tolist() == [1, 3]


def test_long_sentence_is_cut_at_a_word_and_goes_on_with_the_next(letters):
    text = "ab cd ef gh ij. k."  # 11 pieces, then 2
    cut = cut_articles([article(text)], letters, block_len=5, title_len=4)
    assert texts(cut) == ["ab cd", "ef gh", "ij. k."]
    assert cut.rows.body_lengths.tolist() == [4, 4, 5]
    assert cut.split_sentences == 1
    assert [[b.text[s:e] for s, e in b.sentence_spans] for b in cut.blocks] == [["ab cd"], ["ef gh"], ["ij.", "k."]]


def test_long_word_is_cut_at_a_piece(letters):
    cut = cut_articles([article("abcdefghij.")], letters, block_len=4, title_len=4)
    assert texts(cut) == ["abcd", "efgh", "ij."]
    assert "".join(letters.decode(cut.rows.bodies).split()) == "abcdefghij."


def test_salient_spans_in_characters_and_pieces(letters):
    text = "ab cd. ef gh."
    cut = cut_articles([article(text, [(0, 2), (3, 5), (10, 12)])], letters, block_len=5, title_len=4)
    assert texts(cut) == ["ab cd.", "ef gh."]
    assert [[b.text[s:e] for s, e in b.salient_spans] for b in cut.blocks] == [["ab", "cd"], ["gh"]]
    assert cut.rows.salient_spans.tolist() == [[0, 2], [2, 4], [2, 4]]
    assert cut.rows.span_counts.tolist() == [2, 1]


def test_spans_are_widened_to_pieces_and_merged():
    tokenizer = WordPieceTokenizer([*SPECIAL_PIECES, "ab", "##cd", "ef", "."])
    cut = cut_articles([article("abcd ef.", [(1, 3), (3, 4), (5, 6)])], tokenizer, block_len=9, title_len=4)
    # "bc" touches both pieces of "abcd", "d" the second again: together one span of two pieces; "e" is all of "ef"
    assert cut.rows.salient_spans.tolist() == [[0, 2], [2, 3]]
    assert cut.blocks[0].salient_spans.tolist() == [[1, 3], [3, 4], [5, 6]]


def test_spans_cut_by_a_block_are_lost_and_counted(letters):
    cut = cut_articles([article("ab cd ef gh.", [(0, 2), (3, 8)])], letters, block_len=4, title_len=4)
    assert texts(cut) == ["ab cd", "ef", "gh."]
    assert cut.rows.span_counts.tolist() == [1, 0, 0] and cut.lost_spans == 1


@pytest.mark.parametrize("spans", [[(0, 99)], [(-1, 2)], [(2, 2)], [(3, 5), (0, 2)], [(0, 4), (2, 5)]])
def test_bad_spans_are_refused(letters, spans):
    with pytest.raises(ValueError, match="sorted, disjoint, non-empty spans inside a text of 6 characters"):
        cut_articles([article("ab cd.", spans)], letters, block_len=4, title_len=4)


def test_nothing_to_cut(letters):
    for batch in ([], [article("")], [TaggedArticle("1", "", "\u200d", [(0, 1)], [(0, 1)])]):
        cut = cut_articles(batch, letters, block_len=4, title_len=4)
        assert cut.blocks == [] and len(cut.rows.bodies) == 0 and len(cut.rows.body_lengths) == 0


def test_pieces_equal_those_of_the_block_alone(trained):
    text = "Zoë was born in Köln.  Bob founded\nthe bank ½ of Łódź. 🎉 It failed in 1931. Zoë was born. " * 3
    batch = [article(text, [(0, 3)], name) for name in "xyz"]
    cut = cut_articles(batch, trained, block_len=30, title_len=8)
    assert len(cut.blocks) > 3
    alone = piece_rows(cut.blocks, trained, 8)
    for field, want, got in zip(alone._fields, alone, cut.rows, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=field)


def test_block_len_holds_and_nothing_is_lost(trained):
    rng = np.random.default_rng(0)
    words = ["Zoë", "was", "born", "in", "1931", "Łódź", "x" * 60, "½", "日本"]
    text = ""
    for _ in range(60):
        text += " ".join(rng.choice(words, rng.integers(1, 30))) + "." + rng.choice([" ", "\n\n", "  "])
    cut = cut_articles([article(text)], trained, block_len=40, title_len=8)
    assert cut.rows.body_lengths.max() <= 40 and cut.split_sentences > 0
    joined = "".join("".join(block.text.split()) for block in cut.blocks)
    assert joined == "".join(text.split())
    ends = np.cumsum(cut.rows.sentence_counts) - 1
    np.testing.assert_array_equal(cut.rows.sentence_ends[ends], cut.rows.body_lengths)


def test_select_rows(letters):
    cut = cut_articles([article("a b. c d. e f.", [(0, 1), (10, 11)])], letters, block_len=3, title_len=4)
    kept = cut.rows.select(np.array([True, False, True]))
    assert letters.decode(kept.bodies) == "a b . e f ."
    assert kept.salient_spans.tolist() == [[0, 1], [0, 1]] and kept.span_counts.tolist() == [1, 1]


def test_piece_rows_of_given_blocks(letters):
    block = Block("1#0", "1", "q r", "a b. c.", np.array([[0, 4], [5, 7]], np.int32), np.array([[2, 3]], np.int32))
    rows = piece_rows([block], letters, title_len=1)
    assert rows.titles.tolist() == [letters.encode("q").ids[0]]
    assert rows.sentence_ends.tolist() == [3, 5] and rows.salient_spans.tolist() == [[1, 2]]
