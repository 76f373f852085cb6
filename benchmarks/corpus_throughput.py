"""How fast the corpus job is, source to store, against the bare tokenizer on the same text.

    python benchmarks/corpus_throughput.py TEXT... [--tokenizer=DIR] [--vocab_size=16000] [--repeats=3] [--workers=N]

Prints one table, processor time (of all processes) beside wall time: the tokenizer alone, on one core (ids only, and
ids with the offsets that blocks need, as the tokenizer's own library gives them), the job in one process and with
workers, and its parts; then the job's ratios to the bare tokenizer. Learning (tokenizer training, word counts) costs
the same for a corpus of any size and is measured apart. Every figure is the best of the repeats, which take turns. On a
machine with other work only the processor time means something. Workers start after 8 million characters: give more.
"""

import argparse
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from realm_jax.corpus.blocks import TaggedArticle, cut_articles
from realm_jax.corpus.build import Build, Training
from realm_jax.corpus.cutting import available_cores, in_batches
from realm_jax.corpus.dataset import serialize
from realm_jax.corpus.salient_spans import RuleTagger
from realm_jax.corpus.sample import sample_texts
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources import Article, read_sources
from realm_jax.text.loading import load_tokenizer
from realm_jax.text.sentence_piece import SentencePieceTokenizer
from realm_jax.text.tokenizer import Tokenizer

BARE_IDS, BARE_OFFSETS = "bare tokenizer, ids", "bare tokenizer, ids and offsets"
JOB = "corpus job, one process"


class Seconds(NamedTuple):
    cpu: float  # of this process and of those that it has waited for
    wall: float

    @classmethod
    def now(cls) -> "Seconds":
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter())

    def since(self, start: "Seconds") -> "Seconds":
        return Seconds(self.cpu - start.cpu, self.wall - start.wall)

    def best(self, other: "Seconds") -> "Seconds":
        return Seconds(min(self.cpu, other.cpu), min(self.wall, other.wall))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", help="files or folders that the corpus job can read")
    parser.add_argument("--tokenizer", help="a tokenizer directory or vocab.txt; default: train one")
    parser.add_argument("--vocab_size", type=int, default=16000)
    parser.add_argument("--sample_chars", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=available_cores(), help="default: the machine's cores")
    arguments = parser.parse_args()

    articles = list(read_sources(arguments.text))
    megabytes = sum(len(article.text.encode()) for article in articles) / 1e6
    start = Seconds.now()
    sample = sample_texts((article.text for article in articles), arguments.sample_chars, seed=0).texts
    tagger = RuleTagger.fit(sample)
    counted = Seconds.now()
    tokenizer = (
        load_tokenizer(arguments.tokenizer) if arguments.tokenizer else Training(arguments.vocab_size).learn(sample)
    )
    learned = Seconds.now()

    best: dict[str, Seconds] = {}
    for _ in range(arguments.repeats):
        for name, work in _works(arguments.text, articles, tokenizer, tagger, arguments.workers).items():
            start_work = Seconds.now()
            work()
            spent = Seconds.now().since(start_work)
            best[name] = spent.best(best.get(name, spent))

    print(f"{megabytes:.1f} MB of text, {len(articles)} articles, {type(tokenizer).__name__} of {tokenizer.vocab_size}")
    print(
        f"once a corpus: word counts {counted.since(start).cpu:.1f} s, tokenizer {learned.since(counted).cpu:.1f} s "
        "of processor time\n"
    )
    print(f"| best of {arguments.repeats} | MB/s of processor time | MB/s of wall time |\n|---|---:|---:|")
    for name, spent in best.items():
        print(f"| {name} | {megabytes / spent.cpu:.1f} | {megabytes / spent.wall:.1f} |")
    for job in (name for name in best if name.startswith("corpus job")):
        for bare in (BARE_OFFSETS, BARE_IDS):
            print(f"| **{job} / {bare}** | **{best[bare].cpu / best[job].cpu:.2f}** ", end="")
            print(f"| **{best[bare].wall / best[job].wall:.2f}** |")


def _works(
    sources: list[str], articles: list[Article], tokenizer: Tokenizer, tagger: RuleTagger, num_workers: int
) -> dict[str, Callable[[], object]]:
    texts = [article.text for article in articles]

    def bare(return_type: Literal["numpy", "offset_mapping"]) -> object:
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
        JOB: lambda: _job(sources, tokenizer, tagger, 0),
        f"corpus job, {num_workers} workers": lambda: _job(sources, tokenizer, tagger, num_workers),
        "- reading": lambda: list(read_sources(sources)),
        "- sentences": lambda: [sentence_spans(text) for text in texts],
        "- salient spans": lambda: [tagger.spans(text, s) for text, s in zip(texts, sentences, strict=True)],
        "- tokens and blocks": lambda: [cut_articles(batch, tokenizer, 288, 32) for batch in batches],
        "- records": lambda: [serialize(block) for block in blocks],
    }


def _job(sources: list[str], tokenizer: Tokenizer, tagger: RuleTagger, num_workers: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        build = Build(Path(directory), tokenizer, tagger, block_len=288, min_pieces=4, num_workers=num_workers)
        build.write(build.cut(read_sources(sources)), Counter(), source="benchmark")


if __name__ == "__main__":
    main()
