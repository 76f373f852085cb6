"""The sentence splitter: where it cuts, where it must not, and that nothing is lost."""

import gzip
import json

import pytest

from realm_jax.corpus.sentences import sentence_spans


def sentences(text):
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    "parts",
    [
        ["One ends.", "Two ends!", "Three?"],
        ["Dr. J. R. Hahn of St. Louis met Mrs. Lee at 3.5 km.", "Then it rained."],
        ["He was born c. 1990, cf. p. 5, in No. 7.", "It cost 3.50."],
        ["She said no.", "The rest agreed."],
        ["He worked for the U.S. Army.", "In 1990 he left the U.S.", "The end."],
        ["Acme Inc. sold Widget Co. Ltd. to Bolt.", "It paid."],
        ["They sold it to Acme Inc.", "The price was low."],
        ['"Stop!" he said.', '"Why?"', "(Nobody knew.)", "Well… we waited.", "Wait...", "Then they came."],
        ["Use e.g. this or i.e. that, etc. and so on."],
        ["He won in 2012.", "2013 was worse."],
        ["It froze at 18 °C.", "Scarification helps."],
        ["Vitamin C.", "The next one."],
        ["Él llegó.", "Ángel no."],
        ["彼は来た。", "彼女は来た。"],
        ["In Jan. 1990 Gen. Smith and Lt. Col. Jones saw Mt. Fuji."],
        ["Ends with an initial, J. Smith"],
        ["Yahoo! is a company."],
        ["It belongs to him (see fig. 3).", "Next."],
    ],
)
def test_cuts_where_a_reader_would(parts):
    assert sentences(" ".join(parts)) == parts


def test_line_breaks_end_sentences():
    text = "Early life\nHe was born in\n\n  Rome.  He left. \r\n* An item\n"
    assert sentences(text) == ["Early life", "He was born in", "Rome.", "He left.", "* An item"]


def test_offsets_are_characters():
    text = "  Äh 😀 ja.  Zwei. "
    assert sentence_spans(text) == [(2, 10), (12, 17)]


def test_tokenised_text_with_spaces_before_stops():
    assert sentences("He said `` no '' . She left .") == ["He said `` no '' .", "She left ."]
    assert sentences("He said `` no . '' She left .") == ["He said `` no . ''", "She left ."]


@pytest.mark.parametrize(
    "text", ["", " \n\t ", ".", "...", ". . .", "!?\n", '"', "A.", "a.b.c", "\u2028", "?" * 5000, ". " * 5000]
)
def test_odd_text_keeps_every_visible_character(text):
    check_cover(text)


@pytest.mark.parametrize("stops", ["." * 300_000, "?.)" * 100_000, "。." * 100_000, "a..." * 75_000])
def test_a_run_of_stops_is_looked_at_once(stops):
    """It took minutes when every stop of a run was tried as its first."""
    check_cover(f"{stops}x")


def check_cover(text):
    end = 0
    for a, b in sentence_spans(text):
        assert end <= a < b
        assert not text[end:a].strip()
        assert not text[a].isspace()
        assert not text[b - 1].isspace()
        end = b
    assert not text[end:].strip()


@pytest.mark.needs_data
def test_real_articles_are_covered_and_not_torn(shared_data):
    with gzip.open(shared_data / "wiki_slice" / "part-00-of-08.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(1500), lines, strict=False)]
    for text in texts:
        check_cover(text)
    lengths = [end - start for text in texts for start, end in sentence_spans(text)]
    # Sentences of an encyclopedia have about a hundred characters; few are fragments.
    assert 80 < sum(lengths) / len(lengths) < 130
    assert sum(length < 4 for length in lengths) < 0.01 * len(lengths)
