"""Precision and recall of the rule-based salient-span tagger on annotated names, and its speed.

    python benchmarks/salient_spans.py --statistics=WIKI_SLICE --wikigold=wikigold.conll.txt.gz \
        --panx=panx_en/dev.tsv.gz [--panx=panx_en/train.tsv.gz] [--errors=20]

The annotations hold names only (persons, places, organisations; in wikigold also others), no dates or quantities.
So only the tagger's spans of the kind "name" are counted; its dates and numbers count neither for nor against it.

  exact     a span is right if it covers the very tokens of an annotated name.
  overlap   a span is right if it shares a token with a name, and a name is found if it shares one with a span.

Tokens are joined to text without spaces before , . ; : ! ? ) ] % 's n't and after ( [; a span of characters covers
the tokens that it touches.  Each sentence of a file is tagged on its own.
"""

import argparse
import collections
import gzip
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from realm_jax.corpus.salient_spans import RuleTagger
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources import read_articles

NO_SPACE_BEFORE = frozenset([",", ".", ";", ":", "!", "?", ")", "]", "%", "'s", "’s", "n't"])
NO_SPACE_AFTER = frozenset(["(", "["])


class Sentence(NamedTuple):
    """A sentence with its annotated names."""

    text: str
    token_spans: list[tuple[int, int]]  # characters
    names: dict[tuple[int, int], str]  # tokens [first, last] -> type


def read_annotated(path: Path) -> Iterator[Sentence]:
    """Sentences of a file of token and tag a line (IOB1 or BIO), blank lines between."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
            rows = [line.split() for line in group if not blank]
            rows = [row for row in rows if len(row) >= 2 and row[0] != "-DOCSTART-"]
            if rows:
                yield to_sentence([row[0] for row in rows], [row[-1] for row in rows])


def to_sentence(tokens: list[str], tags: list[str]) -> Sentence:
    """Joins tokens to text and tags to names."""
    text, token_spans = "", []
    for token, previous in zip(tokens, ["(", *tokens], strict=False):
        if token not in NO_SPACE_BEFORE and previous not in NO_SPACE_AFTER:
            text += " "
        token_spans.append((len(text), len(text) + len(token)))
        text += token
    names: dict[tuple[int, int], str] = {}
    first = 0
    for place, (tag, following) in enumerate(zip(tags, [*tags[1:], "O"], strict=True)):
        kind = tag[2:]
        if tag != "O" and (place == 0 or tags[place - 1][2:] != kind or tag[0] == "B"):
            first = place
        if tag != "O" and (following[2:] != kind or following[0] == "B"):
            names[first, place] = kind
    return Sentence(text, token_spans, names)


def to_tokens(sentence: Sentence, start: int, end: int) -> tuple[int, int]:
    """The first and last token that a character span touches."""
    touched = [place for place, (first, last) in enumerate(sentence.token_spans) if first < end and start < last]
    return touched[0], touched[-1]


def overlaps(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two inclusive token spans share a token."""
    return one[0] <= other[1] and other[0] <= one[1]


def measure(tagger: RuleTagger, sentences: list[Sentence], num_errors: int, seed: int) -> list[str]:
    """Rows of the table: all names, then recall by type."""
    counts: collections.Counter[str] = collections.Counter()
    by_type: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong, missed = [], []
    for sentence in sentences:
        tagged = tagger.tagged_spans(sentence.text, [(0, len(sentence.text))])
        counts["other"] += sum(span.kind != "name" for span in tagged)
        predicted = {to_tokens(sentence, span.start, span.end) for span in tagged if span.kind == "name"}
        counts["predicted"] += len(predicted)
        counts["names"] += len(sentence.names)
        counts["exact"] += len(predicted & sentence.names.keys())
        counts["predicted_overlap"] += sum(any(overlaps(span, name) for name in sentence.names) for span in predicted)
        for name, kind in sentence.names.items():
            by_type[kind]["names"] += 1
            by_type[kind]["exact"] += name in predicted
            by_type[kind]["overlap"] += any(overlaps(span, name) for span in predicted)
            if name not in predicted:
                missed.append(f"missed {kind} {words(sentence, name)!r}")
        wrong += [f"wrong {words(sentence, span)!r}" for span in predicted - sentence.names.keys()]
    rows = []
    overlap_found = sum(count["overlap"] for count in by_type.values())
    for rule, right, found in (
        ("exact", counts["exact"], counts["exact"]),
        ("overlap", counts["predicted_overlap"], overlap_found),
    ):
        precision, recall = right / max(1, counts["predicted"]), found / max(1, counts["names"])
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        rows.append(f"{rule} | {counts['names']} | {precision:.3f} | {recall:.3f} | {f1:.3f}")
    for kind, count in sorted(by_type.items()):
        exact, overlap = count["exact"] / count["names"], count["overlap"] / count["names"]
        rows.append(f"recall of {kind}, exact / overlap | {count['names']} | | {exact:.3f} / {overlap:.3f} |")
    rows.append(f"dates and numbers, not counted | {counts['other']} | | |")
    generator = random.Random(seed)
    for errors in (wrong, missed):
        for line in generator.sample(errors, min(num_errors, len(errors))):
            print("  ", line)
    return rows


def words(sentence: Sentence, tokens: tuple[int, int]) -> str:
    """The text of a span of tokens."""
    return sentence.text[sentence.token_spans[tokens[0]][0] : sentence.token_spans[tokens[1]][1]]


def measure_speed(tagger: RuleTagger, texts: list[str]) -> tuple[float, float, float]:
    """MB of UTF-8 a second of processor time: the fitting, the sentence splitter, the tagger; best of three."""
    num_bytes = sum(len(text.encode()) for text in texts)
    best = [float("inf")] * 3
    for _ in range(3):
        times = [time.process_time()]
        RuleTagger.fit(texts)
        times.append(time.process_time())
        split = [sentence_spans(text) for text in texts]
        times.append(time.process_time())
        for text, sentences in zip(texts, split, strict=True):
            tagger.spans(text, sentences)
        times.append(time.process_time())
        best = [min(old, after - before) for old, before, after in zip(best, times, times[1:], strict=False)]
    fit, splitting, tagging = (num_bytes / 1e6 / seconds for seconds in best)
    return fit, splitting, tagging


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statistics", required=True, help="unannotated text for word counts, in any format")
    parser.add_argument("--wikigold", type=Path, action="append", default=[])
    parser.add_argument("--panx", type=Path, action="append", default=[])
    parser.add_argument("--lower_share", type=float, default=None, help="instead of the tagger's default")
    parser.add_argument("--errors", type=int, default=0, help="print so many errors of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = [article.text for article in read_articles(args.statistics)]
    tagger = RuleTagger.fit(texts)
    if args.lower_share is not None:
        tagger = RuleTagger(tagger.words, args.lower_share)
    parts: list[tuple[str, list[Sentence]]] = []
    for path in args.wikigold:
        sentences = list(read_annotated(path))
        half = len(sentences) // 2
        parts += [("wikigold, first half", sentences[:half]), ("wikigold, second half", sentences[half:])]
    parts += [(f"PAN-X {path.name.split('.')[0]}", list(read_annotated(path))) for path in args.panx]
    table = ["data | counted | names | precision | recall | F1", "--- | --- | --- | --- | --- | ---"]
    for name, sentences in parts:
        table += [f"{name} | {row}" for row in measure(tagger, sentences, args.errors, args.seed)]
    print("\n".join(f"| {row} |" for row in table))
    sample = list(itertools.islice(texts, 2000))
    fit, splitting, tagging = measure_speed(tagger, sample)
    print(f"one core: statistics {fit:.1f} MB/s, sentences {splitting:.1f} MB/s, tagger {tagging:.1f} MB/s")


if __name__ == "__main__":
    main()
