"""CoNLL files in each of their tag schemes, malformed ones, and the text that they are joined to."""

import gzip
import logging

import pytest

from realm_jax.data.conll import AnnotatedSentence, Name, decode_tags, joined, read_conll

WORDS = ["Ann", "Lee", "Rex", "saw", "York"]
NAMES = [Name(0, 2, "PER"), Name(2, 3, "PER"), Name(4, 5, "LOC")]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "tags",
    [
        ["I-PER", "I-PER", "B-PER", "O", "I-LOC"],  # IOB1
        ["B-PER", "I-PER", "B-PER", "O", "B-LOC"],  # IOB2
        ["B-PER", "E-PER", "S-PER", "O", "S-LOC"],  # BIOES
        ["B-PER", "L-PER", "U-PER", "O", "U-LOC"],  # BILOU
        ["B-PER", "E-PER", "I-PER", "O", "I-LOC"],  # a model's: E ends a name whatever follows
    ],
)
def test_every_scheme_gives_the_same_names(tags, tmp_path):
    assert decode_tags(tags) == NAMES
    path = write(tmp_path / "a.conll", [f"{word} {tag}" for word, tag in zip(WORDS, tags, strict=True)])
    assert read_conll(path).sentences == [AnnotatedSentence(tuple(WORDS), tuple(NAMES))]


def test_kinds_that_change_part_names():
    assert decode_tags(["I-PER", "I-LOC", "I-LOC", "O"]) == [Name(0, 1, "PER"), Name(1, 3, "LOC")]
    assert decode_tags(["B-A", "M-A", "E-A", "B-A"]) == [Name(0, 3, "A"), Name(3, 4, "A")]
    assert decode_tags([]) == []


def test_columns_comments_documents_and_gzip(tmp_path):
    lines = [
        "-DOCSTART- -X- -X- O",
        "",
        "# id 123 of something",
        "U.N.\tNNP\tI-NP\tI-ORG",
        "# SYM O O",  # a word that is a number sign
        "",
        "",
        "\u00a0Zoë\tB-PER\r",  # only tabs and spaces part columns
        "-DOCSTART- O",
        "so O",
    ]
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = read_conll(path)
    assert found.dropped == {} and found.path == path
    assert found.sentences == [
        AnnotatedSentence(("U.N.", "#"), (Name(0, 1, "ORG"),)),
        AnnotatedSentence(("\u00a0Zoë",), (Name(0, 1, "PER"),)),
        AnnotatedSentence(("so",), ()),
    ]


def test_malformed_lines_cost_their_sentence_and_are_named(tmp_path, caplog):
    path = tmp_path / "a.conll"
    path.write_bytes(b"a O\nb\n\nc O\n\nd X-PER\ne PER\n\nf O\ng\xff O\nh O\n\ni O\n\nj B-\n")
    with caplog.at_level(logging.WARNING):
        found = read_conll(path, max_dropped_share=0.8)
    assert [sentence.words for sentence in found.sentences] == [("c",), ("i",)]
    assert found.dropped == {"line without a tag": 1, "unknown tag": 2, "line that is damaged or not UTF-8": 1}
    assert "left out 4 of 6 sentences" in caplog.text
    assert "1 with line without a tag (first: line 2: 'b')" in caplog.text
    assert "2 with unknown tag (first: line 6: 'd X-PER')" in caplog.text and "first: line 10" in caplog.text
    with pytest.raises(ValueError, match=r"a.conll: expected sentences .* got 4 malformed of 6: .*line 6: 'd X-PER'"):
        read_conll(path)


def test_a_file_cut_short_loses_its_last_sentence(tmp_path):
    whole = gzip.compress(("".join(f"word{i} O\n\n" for i in range(5000))).encode())
    (tmp_path / "a.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"got 1 malformed of 1: .*damaged"):
        read_conll(tmp_path / "a.gz", max_dropped_share=0.0)


def test_what_is_no_such_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at nowhere"):
        read_conll("nowhere")
    with pytest.raises(ValueError, match="got 0 malformed of 0; repair"):
        read_conll(write(tmp_path / "empty", [""]))


def test_joined_text_and_offsets():
    words = ("Zoë", "Ng", "(", "Köln", ")", "'s", "😀", "Rex", ".")
    text = joined(AnnotatedSentence(words, (Name(0, 2, "PER"), Name(3, 4, "LOC"), Name(7, 8, "MISC"))))
    assert text.text == "Zoë Ng (Köln)'s 😀 Rex."
    assert [text.text[start:end] for start, end in text.word_spans] == list(words)
    assert [text.text[start:end] for start, end in text.name_spans()] == ["Zoë Ng", "Köln", "Rex"]


@pytest.mark.needs_data
def test_shared_files_are_read_whole(shared_data):
    """The counts of the data's own README."""
    sizes = {
        "wikigold/wikigold.conll.txt.gz": (1002, 22868, {"LOC", "MISC", "ORG", "PER"}),
        "panx_en/train.tsv.gz": (20000, 160394, {"LOC", "ORG", "PER"}),
        "panx_en/dev.tsv.gz": (5004, 39701, {"LOC", "ORG", "PER"}),
    }
    for name, expected in sizes.items():
        found = read_conll(shared_data / "ner" / name)
        kinds = {mark.kind for sentence in found.sentences for mark in sentence.names}
        assert found.dropped == {}
        assert (len(found.sentences), sum(len(s.words) for s in found.sentences), kinds) == expected
