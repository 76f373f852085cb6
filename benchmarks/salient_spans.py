"""Precision and recall of the rule-based salient-span tagger on annotated names, beside trained ones, and their speed.

    python benchmarks/salient_spans.py --statistics=WIKI_SLICE --wikigold=wikigold.conll.txt.gz \
        --panx=panx_en/dev.tsv.gz [--panx=panx_en/train.tsv.gz] [--model=RUN/tagger] [--errors=20]

The annotations hold names only (persons, places, organisations; in wikigold also others), no dates or quantities.
So only names are counted; a tagger's dates and numbers count neither for nor against it.

  exact     a span is right if it covers the very tokens of an annotated name.
  overlap   a span is right if it shares a token with a name, and a name is found if it shares one with a span.

Tokens are joined to text without spaces before , . ; : ! ? ) ] % 's n't and after ( [; a span of characters covers
the tokens that it touches.  Each sentence of a file is tagged on its own.
"""

import argparse
import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

from realm_jax.corpus.ner_tagger import NerTagger
from realm_jax.corpus.salient_spans import RuleTagger
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources import read_articles
from realm_jax.data.conll import AnnotatedText, joined, read_conll
from realm_jax.evaluation.names import NameScores
from realm_jax.evaluation.tagging import score_model, score_rules

MODEL_TEXTS = 100  # for its speed: a small model is two hundred times slower than the rules


def read_annotated(path: Path) -> list[AnnotatedText]:
    """The sentences of a CoNLL file as text."""
    return [joined(sentence) for sentence in read_conll(path).sentences]


def rows(scores: NameScores) -> list[str]:
    """Rows of the table: all names, then recall by type."""
    table = [
        f"{counted} | {scores.names} | {precision:.3f} | {recall:.3f} | {f1:.3f}"
        for counted, (precision, recall, f1) in (("exact", scores.exact), ("overlap", scores.overlap))
    ]
    for kind, (names, exact, overlap) in scores.by_kind.items():
        table.append(f"recall of {kind}, exact / overlap | {names} | | {exact:.3f} / {overlap:.3f} |")
    return table


def errors(texts: Sequence[AnnotatedText], scores: NameScores, count: int, seed: int) -> list[str]:
    """A random sample of the spans that are no names, and of the names that were not found whole."""
    generator, lines = random.Random(seed), []
    for what, found in (("wrong", scores.wrong), ("missed", scores.missed)):
        shown = [
            f"{what} {text.text[text.word_spans[first][0] : text.word_spans[last - 1][1]]!r}"
            for text, spans in zip(texts, found, strict=True)
            for first, last in spans
        ]
        lines += generator.sample(shown, min(count, len(shown)))
    return lines


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


def measure_model_speed(model: NerTagger, texts: list[str]) -> float:
    """MB of UTF-8 a second of processor time, compiled before; best of three."""
    split = [sentence_spans(text) for text in texts]
    model.batch_spans(texts, split)
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        model.batch_spans(texts, split)
        best = min(best, time.process_time() - begin)
    return sum(len(text.encode()) for text in texts) / 1e6 / best


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statistics", required=True, help="unannotated text for word counts, in any format")
    parser.add_argument("--wikigold", type=Path, action="append", default=[])
    parser.add_argument("--panx", type=Path, action="append", default=[])
    parser.add_argument("--model", action="append", default=[], help="a trained tagger's directory, RUN/tagger")
    parser.add_argument("--lower_share", type=float, default=None, help="instead of the tagger's default")
    parser.add_argument("--errors", type=int, default=0, help="print so many errors of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = [article.text for article in read_articles(args.statistics)]
    tagger = RuleTagger.fit(texts)
    if args.lower_share is not None:
        tagger = RuleTagger(tagger.words, args.lower_share)
    models = {name: NerTagger.load(name) for name in args.model}
    parts: list[tuple[str, list[AnnotatedText]]] = []
    for path in args.wikigold:
        sentences = read_annotated(path)
        half = len(sentences) // 2
        parts += [("wikigold, first half", sentences[:half]), ("wikigold, second half", sentences[half:])]
    parts += [(f"PAN-X {path.name.split('.')[0]}", read_annotated(path)) for path in args.panx]
    table = ["tagger | data | counted | names | precision | recall | F1", "--- | --- | --- | --- | --- | --- | ---"]
    for name, sentences in parts:
        found = {"rules": score_rules(tagger, sentences)}
        found |= {place: score_model(model, sentences) for place, model in models.items()}
        for place, scores in found.items():
            table += [f"{place} | {name} | {row}" for row in rows(scores)]
            for line in errors(sentences, scores, args.errors, args.seed):
                print("  ", place, line)
    print("\n".join(f"| {row} |" for row in table))
    sample = list(itertools.islice(texts, 2000))
    fit, splitting, tagging = measure_speed(tagger, sample)
    print(f"one core: statistics {fit:.1f} MB/s, sentences {splitting:.1f} MB/s, rules {tagging:.1f} MB/s")
    for place, model in models.items():
        print(f"processor time: {place} {measure_model_speed(model, sample[:MODEL_TEXTS]):.3f} MB/s")


if __name__ == "__main__":
    main()
