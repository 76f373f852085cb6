"""A made-up corpus and an embedding function in numpy whose values are exact: shared by the tests of this folder."""

from pathlib import Path

import numpy as np

from realm_jax.corpus.blocks import PieceRows
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import CorpusWriter
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings, build_version
from realm_jax.retrieval.manifest import Manifest
from realm_jax.text.word_piece import WordPieceTokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
EMBED = 16
BATCHES = BatchSettings(document_len=48, batch_size=4, num_lengths=3, query_len=16)


def make_corpus(directory: Path, num_documents: int, seed: int = 0, longest: int = 60) -> Corpus:
    """A corpus of random pieces, titles of 0 to 4 pieces, bodies of 1 to `longest`."""
    rng = np.random.default_rng(seed)
    title_lengths = rng.integers(0, 5, size=num_documents)
    body_lengths = rng.integers(1, longest + 1, size=num_documents)
    rows = PieceRows(
        titles=rng.integers(5, len(VOCAB), size=title_lengths.sum()).astype(np.int32),
        title_lengths=title_lengths,
        bodies=rng.integers(5, len(VOCAB), size=body_lengths.sum()).astype(np.int32),
        body_lengths=body_lengths,
        sentence_ends=np.stack([(body_lengths + 1) // 2, body_lengths], axis=1).reshape(-1).astype(np.int32),
        sentence_counts=np.full(num_documents, 2),
        salient_spans=np.zeros((0, 2), np.int32),
        span_counts=np.zeros(num_documents, np.int64),
    )
    writer = CorpusWriter(directory, WordPieceTokenizer(VOCAB), block_len=longest)
    writer.add(rows, [str(number) for number in range(num_documents)])
    writer.finish(source="made")
    return Corpus.open(directory)


class CountingEmbed:
    """Sums integer vectors of pieces, positions and segments: exact in float32, and padding cannot change it."""

    def __init__(self, seed: int = 0, embed_dim: int = EMBED):
        self.table = np.random.default_rng(seed).integers(-4, 5, size=(len(VOCAB), 2, embed_dim))
        self.shapes: set[tuple[int, ...]] = set()
        self.calls = 0

    def __call__(self, ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        self.shapes.add(ids.shape)
        self.calls += 1
        weights = (ids != 0) * (1 + np.arange(ids.shape[1]) % 7)
        return np.einsum("bl,ble->be", weights, self.table[ids, segment_ids]).astype(np.float32)


def make_version(index_dir: Path, corpus: Corpus, version: int = 300, seed: int = 0, **settings: object) -> Manifest:
    """Publishes a version; by default in shards of at most 10 documents."""
    chosen = IndexSettings(**({"shard_bytes": 10 * 4 * EMBED, "recall_queries": 20} | settings))  # type: ignore[arg-type]
    return build_version(
        index_dir,
        version,
        CountingEmbed(seed),
        corpus,
        chosen,
        embed_dim=EMBED,
        snapshot_checksum=f"checksum {seed}",
        batches=BATCHES,
    )
