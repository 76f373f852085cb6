"""Articles in, finished rows out: the part of the corpus job that may run in several processes."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from realm_jax.corpus import dataset
from realm_jax.corpus.blocks import PieceRows, TaggedArticle, cut_articles
from realm_jax.corpus.salient_spans import BatchTagger, SalientSpanTagger
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources import Article
from realm_jax.text.tokenizer import Tokenizer

# Large enough that numpy's cost per call vanishes, small enough to stay in a processor's cache.
BATCH_CHARS = 1 << 18
_BATCH_ARTICLES = 4096
BATCHES_BEFORE_WORKERS = 32


class CutBatch(NamedTuple):
    """The documents of a batch of articles.

    Attributes:
      records: serialized for the block data set.
      hashes: of their texts, to find exact duplicates.
      texts: the same texts, only if asked for.
      rows: their pieces.
      articles: the article of the batch that each was cut from.
      characters: of the texts of all articles.
      too_short: articles left out for want of pieces.
      split_sentences, lost_spans, unknown_pieces: see the corpus's counts.
    """

    records: list[bytes]
    hashes: list[int]
    texts: list[str]
    rows: PieceRows
    articles: Int64[np.ndarray, "num_documents"]
    characters: int
    too_short: int
    split_sentences: int
    lost_spans: int
    unknown_pieces: int


CutBatches = Generator[tuple[list[Article], CutBatch], None, None]
"""Batches of articles with the documents that they were cut into."""


class Cutter:
    """Cuts a batch of articles into documents; holds what each process needs.

    Args:
      tokenizer: gives the pieces.
      tagger: finds salient spans in articles that do not bring their own; None finds none.
      block_len, title_len: most pieces of a body and of a title.
      min_pieces: articles of fewer pieces are left out.
      keep_texts: also return the texts of the documents.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tagger: SalientSpanTagger | None,
        block_len: int,
        title_len: int,
        min_pieces: int = 1,
        keep_texts: bool = False,
    ):
        self.tokenizer, self.tagger = tokenizer, tagger
        self.block_len, self.title_len, self.min_pieces = block_len, title_len, min_pieces
        self.keep_texts = keep_texts

    def __call__(self, articles: Sequence[Article]) -> CutBatch:
        cut = cut_articles(self._tag(articles), self.tokenizer, self.block_len, self.title_len)
        pieces = np.bincount(cut.articles, weights=cut.rows.body_lengths, minlength=len(articles))
        keep = pieces[cut.articles] >= self.min_pieces
        blocks = cut.blocks if keep.all() else [cut.blocks[i] for i in np.flatnonzero(keep).tolist()]
        rows = cut.rows.select(keep)
        return CutBatch(
            records=[dataset.serialize(block) for block in blocks],
            hashes=[_hash(block.text) for block in blocks],
            texts=[block.text for block in blocks] if self.keep_texts else [],
            rows=rows,
            articles=cut.articles[keep],
            characters=sum(len(article.text) for article in articles),
            too_short=int(np.count_nonzero(pieces < self.min_pieces)),
            split_sentences=cut.split_sentences,
            lost_spans=cut.lost_spans,
            unknown_pieces=int(np.count_nonzero(rows.bodies == self.tokenizer.unk_id)),
        )

    def _tag(self, articles: Sequence[Article]) -> list[TaggedArticle]:
        sentences = [sentence_spans(article.text) for article in articles]
        spans: list[Sequence[tuple[int, int]]] = [article.salient_spans or () for article in articles]
        untagged = [i for i, article in enumerate(articles) if article.salient_spans is None]
        if isinstance(self.tagger, BatchTagger):
            found = self.tagger.batch_spans([articles[i].text for i in untagged], [sentences[i] for i in untagged])
            for i, of_article in zip(untagged, found, strict=True):
                spans[i] = of_article
        elif self.tagger is not None:
            for i in untagged:
                spans[i] = self.tagger.spans(articles[i].text, sentences[i])
        return [
            TaggedArticle(article.id, article.title, article.text, *found)
            for article, *found in zip(articles, sentences, spans, strict=True)
        ]


def in_batches(articles: Iterable[Article], max_chars: int | None = None) -> Iterator[list[Article]]:
    """Groups a stream of articles into batches of about `max_chars` characters (`BATCH_CHARS`), its order kept."""
    max_chars = BATCH_CHARS if max_chars is None else max_chars
    batch: list[Article] = []
    num_chars = 0
    for article in articles:
        batch.append(article)
        num_chars += len(article.text)
        if num_chars >= max_chars or len(batch) >= _BATCH_ARTICLES:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cut_in_order(cutter: Cutter, batches: Iterable[list[Article]], num_workers: int) -> CutBatches:
    """Cuts batches, in this process or in `num_workers` others, and yields them in their order.

    The first batches are cut here in any case: starting a worker takes seconds, which a small corpus does not need.
    At most two batches a worker are under way: memory does not grow with the source.

    Raises:
      ChildProcessError: a worker died.
    """
    stream = iter(batches)
    for batch in itertools.islice(stream, BATCHES_BEFORE_WORKERS if num_workers else None):
        yield batch, cutter(batch)
    if (further := next(stream, None)) is not None:
        yield from _cut_in_workers(cutter, itertools.chain([further], stream), num_workers)


def _cut_in_workers(
    cutter: Cutter, batches: Iterable[list[Article]], num_workers: int
) -> Iterator[tuple[list[Article], CutBatch]]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of jax and of the tokenizer
    # Not multiprocessing.Pool, which waits for ever for the answer of a worker that was killed.
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (cutter,))
    under_way: deque[tuple[list[Article], Future[CutBatch]]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, executor.submit(_cut_in_worker, batch)))
            if len(under_way) >= 2 * num_workers:
                first, result = under_way.popleft()
                yield first, result.result()
        for first, result in under_way:
            yield first, result.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process of the corpus job died: out of memory, or started by a script without "
            'if __name__ == "__main__"; set a smaller num_workers (0: no further process)'
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_worker_cutter: Cutter | None = None


def _start_worker(cutter: Cutter) -> None:
    global _worker_cutter
    _worker_cutter = cutter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed and could not say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _cut_in_worker(batch: list[Article]) -> CutBatch:
    assert _worker_cutter is not None
    return _worker_cutter(batch)


def _hash(text: str) -> int:
    # 64 bits: among the 13 million blocks of Wikipedia one false duplicate in 200 000 builds.
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
