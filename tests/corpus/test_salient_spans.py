"""The salient-span taggers: what is worth masking, what is not, and which words at sentence starts are names."""

import gzip
import importlib.util
import json
import pickle
import sys
import time

import pytest

from realm_jax.corpus.build import make_tagger
from realm_jax.corpus.salient_spans import RuleTagger, SpacyTagger, WordCount
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.data.conll import joined, read_conll
from realm_jax.evaluation.tagging import score_rules

WORDS = {
    "town": WordCount(50, 5),
    "battle": WordCount(40, 30),
    "born": WordCount(100, 0),
    "members": WordCount(100, 2),
    "league": WordCount(10, 60),
    "hastings": WordCount(0, 9),
    "may": WordCount(90, 40),
}


def tagged(text, tagger=None):
    tagger = tagger or RuleTagger(WORDS)
    return [(text[span.start : span.end], span.kind) for span in tagger.tagged_spans(text, sentence_spans(text))]


def of_kind(text, kind):
    return [span for span, found in tagged(text) if found == kind]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "he saw the University of South Carolina and Ludwig van der Rohe .",
            ["University of South Carolina", "Ludwig van der Rohe"],
        ),
        ("it met J. R. R. Tolkien, George W. Bush and Dr. Ann Lee.", ["J. R. R. Tolkien", "George W. Bush", "Ann Lee"]),
        ("in the U.S. Army, in St. Louis, at AT&T", ["U.S. Army", "St. Louis", "AT&T"]),
        ("it was Peter O'Neill's and Jean-Luc Picard’s", ["Peter O'Neill", "Jean-Luc Picard"]),
        ("beyond Hadrian's Wall in Conques d'Aran", ["Hadrian's Wall", "Conques d'Aran"]),
        (
            "the 65th Air Division flew a Boeing 747 in Malmö, Sweden",
            ["65th Air Division", "Boeing 747", "Malmö", "Sweden"],
        ),
        ("of Henry VIII and the Duchy of the Upper Rhine", ["Henry VIII", "Duchy of the Upper Rhine"]),
        ("for Major John Smith of Major League Baseball", ["John Smith of Major League Baseball"]),
        ("she is a Fellow of the Royal Society", ["Royal Society"]),
        ("then I said it, as an iPhone and a McDonald would", ["McDonald"]),
        ("на север от Москвы", ["Москвы"]),
        ("\u00c5se", ["\u00c5se"]),
    ],
)
def test_names(text, names):
    assert of_kind(text, "name") == names


@pytest.mark.parametrize(
    ("text", "kind", "spans"),
    [
        ("born September 28, 1990 or 28 September 1990.", "date", ["September 28, 1990", "28 September 1990"]),
        (
            "on 3rd of May, on 1–5 June 2001, on May 3 and in May 1990",
            "date",
            ["3rd of May", "1–5 June 2001", "May 3", "May 1990"],
        ),
        ("in 1990, the 1990s, 1990–95, 44 BC, 2001-09-11", "date", ["1990", "1990s", "1990–95", "44 BC", "2001-09-11"]),
        (
            "in the 19th century, the 2nd century BC, 15th–17th centuries",
            "date",
            ["19th century", "2nd century BC", "15th–17th centuries"],
        ),
        ("not 1990.5 nor 1990,000 nor 12345 nor 1990 people", "date", []),
        (
            "5 km, 3.5 million, 12%, $12.5 million, €30",
            "number",
            ["5 km", "3.5 million", "12%", "$12.5 million", "€30"],
        ),
        (
            "1,234,567 of 20 square miles at 18 °C, 25 years",
            "number",
            ["1,234,567", "20 square miles", "18 °C", "25 years"],
        ),
        ("the 5 of 7 at 3 kmh, 3.14159, H2O, x86, 1,2,3", "number", []),
    ],
)
def test_dates_and_numbers(text, kind, spans):
    assert of_kind(text, kind) == spans


def test_dates_and_numbers_at_sentence_starts():
    assert tagged("On 14 November 1920 it fell. In 44 BC he fell. In 20 km it fell. On 3rd of July.") == [
        ("14 November 1920", "date"),
        ("44 BC", "date"),
        ("20 km", "number"),
        ("3rd of July", "date"),
    ]
    assert tagged("it cost US$18 million") == [("US", "name"), ("$18 million", "number")]


def test_months_that_are_names():
    assert tagged("it was Theresa May in May.") == [("Theresa May", "name"), ("May", "date")]
    assert tagged("In May 1990 it rained. In May, too. May we?") == [("May 1990", "date"), ("May", "date")]


def test_sentence_starts_are_decided_by_the_counts():
    assert tagged("Town halls. Hastings fell. Zyx won.") == [("Hastings", "name"), ("Zyx", "name")]
    assert tagged("Battle was near. Battle of Hastings.") == [("Battle of Hastings", "name")]
    assert tagged("Born Ann Lee. Members of Parliament. The Hague. NASA won.") == [
        ("Ann Lee", "name"),
        ("Parliament", "name"),
        ("Hague", "name"),
        ("NASA", "name"),
    ]
    assert tagged('he said "Town halls" and: "Hastings"') == [("Hastings", "name")]
    assert tagged("it is the Town") == [("Town", "name")]  # a capital within a sentence is meant


def test_lower_share_moves_the_border():
    half = {"rose": WordCount(50, 50)}
    assert tagged("Rose fell.", RuleTagger(half, lower_share=0.5)) == []
    assert tagged("Rose fell.", RuleTagger(half, lower_share=0.6)) == [("Rose", "name")]
    with pytest.raises(ValueError, match=r"expected lower_share between 0 and 1, got 2"):
        RuleTagger(lower_share=2.0)


def test_without_statistics_function_words_are_known():
    assert tagged("The man saw it. He left. However, Ann stayed.", RuleTagger()) == [("Ann", "name")]


def test_fit_counts_lower_case_and_inner_capitals():
    tagger = RuleTagger.fit(["A town, the Town of Ann's. Town halls, town-hall.", "Il faut."])
    assert tagger.words["town"] == WordCount(2, 1)  # "Town halls" begins a sentence and tells nothing
    assert tagger.words["the"] == WordCount(1, 0)
    few = RuleTagger.fit(iter(["one two", "three four", pytest.fail]), max_chars=12)
    assert set(few.words) == {"one", "two", "three", "four"}


def test_save_and_load(tmp_path):
    tagger = RuleTagger.fit(["a town in Émilie, the Town; ärger"], lower_share=0.3)
    tagger.save(tmp_path / "words.json")
    loaded = RuleTagger.load(tmp_path / "words.json")
    assert loaded.words == tagger.words
    assert loaded.lower_share == 0.3
    text = "Town halls, Émilie. Ärger."
    assert tagged(text, loaded) == tagged(text, tagger) == [("Émilie", "name")]
    for broken in ("{", "[]", '{"words": {"a": 1}, "lower_share": 0.1}', '{"words": {}}'):
        (tmp_path / "words.json").write_text(broken)
        with pytest.raises(ValueError, match=r"words\.json: expected word counts written by RuleTagger\.save"):
            RuleTagger.load(tmp_path / "words.json")


def check_spans(text, sentences, spans):
    end = 0
    for start, stop in spans:
        assert end <= start < stop
        assert any(first <= start and stop <= last for first, last in sentences)
        assert not text[start].isspace()
        assert not text[stop - 1].isspace()
        end = stop


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "A.",
        "$",
        "$ $ 1",
        "1" * 20_000,
        "A" * 20_000,
        "A." * 10_000,
        "A of the " * 5_000,
        "1," * 10_000,
        "May " * 5_000,
        "Ab'c-" * 5_000,
        "1st " * 5_000,
        "\ud800A \x00B",
        "ǅ Ⅷ ₀ ① ٣ A",
    ],
)
def test_odd_text_is_tagged_quickly(text):
    sentences = [(0, len(text))] if text else []
    start = time.process_time()
    spans = RuleTagger(WORDS).spans(text, sentences)
    assert time.process_time() - start < 2
    check_spans(text, sentences, spans)


def test_spans_stay_within_the_given_sentences():
    text = "New York City Hall 28 September 1990"
    assert RuleTagger().spans(text, [(0, 8), (9, 18), (19, 31)]) == [(0, 8), (9, 18), (19, 31)]
    assert RuleTagger().spans(text, []) == []


@pytest.mark.needs_data
def test_real_articles(shared_data):
    with gzip.open(shared_data / "wiki_slice" / "part-00-of-08.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(800), lines, strict=False)]
    tagger = RuleTagger.fit(texts)
    num_sentences = num_spans = num_with_spans = 0
    for text in texts:
        sentences = sentence_spans(text)
        spans = tagger.spans(text, sentences)
        check_spans(text, sentences, spans)
        num_sentences += len(sentences)
        num_spans += len(spans)
        num_with_spans += len({next(i for i, (_, last) in enumerate(sentences) if last >= end) for _, end in spans})
    assert 1.5 < num_spans / num_sentences < 5
    assert num_with_spans > 0.7 * num_sentences


@pytest.mark.needs_data
def test_names_of_wikigold_are_found(shared_data):
    """The figures of docs/results/salient_spans.md, a little lower: the statistics come from one shard here."""
    with gzip.open(shared_data / "wiki_slice" / "part-00-of-08.jsonl.gz", "rt", encoding="utf-8") as lines:
        tagger = RuleTagger.fit((json.loads(line)["text"] for line in lines), max_chars=3_000_000)
    file = read_conll(shared_data / "ner" / "wikigold" / "wikigold.conll.txt.gz")
    assert len(file.sentences) == 1002
    assert score_rules(tagger, [joined(sentence) for sentence in file.sentences[501:]]).exact.f1 > 0.82


def test_spacy_missing_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(
        ValueError, match=r"spaCy, which is not installed: pip install 'realm_jax\[spacy\]'.*or set tagger=\"rules\""
    ):
        make_tagger("spacy:en_core_web_sm", ())


@pytest.mark.skipif(importlib.util.find_spec("spacy") is None, reason="spaCy is not installed")
def test_spacy_pipeline(tmp_path):
    import spacy

    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "GPE", "pattern": "New York"}, {"label": "ORG", "pattern": "Acme Corp"}]
    )
    text = "He left New York. Acme Corp stayed in New York."
    sentences = sentence_spans(text)
    assert SpacyTagger(pipeline).spans(text, sentences) == [(8, 16), (18, 27), (38, 46)]
    assert SpacyTagger(pipeline, labels=("ORG",)).spans(text, sentences) == [(18, 27)]
    assert SpacyTagger(pipeline).spans(text, [(0, 12), (18, 47)]) == [(18, 27), (38, 46)]
    pipeline.to_disk(tmp_path / "pipeline")
    loaded = make_tagger(f"spacy:{tmp_path / 'pipeline'}", ())
    assert pickle.loads(pickle.dumps(loaded)).spans(text, sentences) == [(8, 16), (18, 27), (38, 46)]  # as to workers
    long = text + " " * 1_000_000 + "New York is far."  # more than spaCy takes at once
    assert SpacyTagger(pipeline).spans(long, sentence_spans(long))[-1] == (1_000_000 + 47, 1_000_000 + 55)
    with pytest.raises(ValueError, match="expected an installed spaCy pipeline, got 'no_such_pipeline'"):
        SpacyTagger("no_such_pipeline")
