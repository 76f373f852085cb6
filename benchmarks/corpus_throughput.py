"""How fast the corpus job is, source to store in one process, against the bare tokenizer on the same text.

    python benchmarks/corpus_throughput.py TEXT... [--tokenizer=DIR] [--vocab_size=16000] [--repeats=3] [--clock=wall]

Prints one table: the tokenizer alone (ids only, and ids with the offsets that the job needs, as the tokenizer's own
library gives them), the job, its parts, and the job's ratio to the bare tokenizer. Learning (tokenizer training, word
counts) costs the same for a corpus of any size; it is measured apart. Every line is the best of the repeats, which
take turns. On a machine with other work, `--clock=cpu` counts processor time instead.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from realm_jax.corpus.blocks import TaggedArticle, cut_articles
from realm_jax.corpus.build import Build, Training
from realm_jax.corpus.cutting import in_batches
from realm_jax.corpus.dataset import serialize
from realm_jax.corpus.salient_spans import RuleTagger
from realm_jax.corpus.sample import sample_texts
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources import Article, read_articles
from realm_jax.text.tokenizers import SentencePieceTokenizer, Tokenizer, load_tokenizer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BARE_IDS, BARE_OFFSETS, JOB = "bare tokenizer, ids", "bare tokenizer, ids and offsets", "corpus job"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", help="files or folders that the corpus job can read")
    parser.add_argument("--tokenizer", help="a tokenizer directory or vocab.txt; default: train one")
    parser.add_argument("--vocab_size", type=int, default=16000)
    parser.add_argument("--sample_chars", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]

    articles = _read(arguments.text)
    megabytes = sum(len(article.text.encode()) for article in articles) / 1e6
    start = clock()
    sample = sample_texts((article.text for article in articles), arguments.sample_chars, seed=0).texts
    tagger = RuleTagger.fit(sample)
    counted = clock()
    tokenizer = (
        load_tokenizer(arguments.tokenizer) if arguments.tokenizer else Training(arguments.vocab_size).learn(sample)
    )
    learned = clock()

    best: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for name, work in _works(arguments.text, articles, tokenizer, tagger).items():
            start_work = clock()
            work()
            best[name] = min(best.get(name, float("inf")), clock() - start_work)

    print(f"{megabytes:.1f} MB of text, {len(articles)} articles, {type(tokenizer).__name__} of {tokenizer.vocab_size}")
    print(f"word counts {counted - start:.1f} s, tokenizer {learned - counted:.1f} s, once a corpus\n")
    print(f"| {arguments.clock} time, best of {arguments.repeats} | MB/s | ms/MB |\n|---|---:|---:|")
    for name, secs in best.items():
        print(f"| {name} | {megabytes / secs:.1f} | {1000 * secs / megabytes:.0f} |")
    print(f"| **job / {BARE_OFFSETS}** | **{best[BARE_OFFSETS] / best[JOB]:.2f}** | |")
    print(f"| **job / {BARE_IDS}** | **{best[BARE_IDS] / best[JOB]:.2f}** | |")


def _read(sources: list[str]) -> list[Article]:
    return [article for source in sources for article in read_articles(source)]


def _works(
    sources: list[str], articles: list[Article], tokenizer: Tokenizer, tagger: RuleTagger
) -> dict[str, Callable[[], object]]:
    texts = [article.text for article in articles]

    def bare(return_type: str) -> object:
        if isinstance(tokenizer, SentencePieceTokenizer):
            return [tokenizer._processor.encode(text, return_type=return_type) for text in texts]
        return tokenizer.encode_batch(texts)  # WordPiece always has offsets

    sentences = [sentence_spans(text) for text in texts]
    spans = [tagger.spans(text, s) for text, s in zip(texts, sentences, strict=True)]
    tagged = [TaggedArticle(a.id, a.title, a.text, s, t) for a, s, t in zip(articles, sentences, spans, strict=True)]
    batches, done = [], 0
    for batch in in_batches(articles):
        batches.append(tagged[done : done + len(batch)])
        done += len(batch)
    blocks = [block for batch in batches for block in cut_articles(batch, tokenizer, 288, 32).blocks]
    return {
        BARE_IDS: lambda: bare("numpy"),
        BARE_OFFSETS: lambda: bare("offset_mapping"),
        JOB: lambda: _job(sources, tokenizer, tagger),
        "- reading": lambda: _read(sources),
        "- sentences": lambda: [sentence_spans(text) for text in texts],
        "- salient spans": lambda: [tagger.spans(text, s) for text, s in zip(texts, sentences, strict=True)],
        "- tokens and blocks": lambda: [cut_articles(batch, tokenizer, 288, 32) for batch in batches],
        "- records": lambda: [serialize(block) for block in blocks],
    }


def _job(sources: list[str], tokenizer: Tokenizer, tagger: RuleTagger) -> None:
    with tempfile.TemporaryDirectory() as directory:
        build = Build(Path(directory) / "corpus", tokenizer, tagger, block_len=288, min_pieces=4)
        build.write((article for source in sources for article in read_articles(source)), Counter(), source="benchmark")


if __name__ == "__main__":
    main()
