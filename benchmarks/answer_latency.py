"""How long one question takes to answer, and where the time goes, against 150 ms on two cores.

    python benchmarks/answer_latency.py [--documents=60000] [--block_len=128] [--dtype=float32] [--questions=30] [--backend=scann]
    python benchmarks/answer_latency.py --corpus=runs/minilm/corpus --block_len=288 --dtype=bfloat16

Models of MiniLM's size with random weights (6 layers of 384, 12 heads; documents by mean pooling, at unit length), a corpus
of random pieces, five of its blocks read. The time of a question does not depend on what the weights have learned. All blocks
are full, so that no shorter document makes it faster, or with `--corpus` as long as those of that corpus directory: blocks end
with a sentence, and articles with what is left.

The peer reads the same five documents as a plain jitted forward pass does, in one batch padded to `joint_len`. Prints a
line for each stage, the whole with its spread, and the ratio.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from realm_jax.answering.answerer import Answerer
from realm_jax.answering.documents import Text, aligned_offsets, trimmed
from realm_jax.corpus.blocks import PieceRows
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import CorpusWriter
from realm_jax.data.inputs import Inputs, SpecialIds, joint_inputs, query_inputs
from realm_jax.models import RetrieverConfig, SpanReader, SpanReaderConfig, TransformerConfig
from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.scann_index import ScannIndex, build_shard
from realm_jax.tasks.open_qa import init_params
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

TARGET_MS = 150.0
VOCAB_SIZE, QUESTION_WORDS, QUERY_LEN, NUM_READ, EMBED = 30522, 12, 64, 5, 384
STAGES = ("tokenise", "embed", "search", "gather", "read", "choose")


class RandomDocuments:
    """Documents of random words; their text is what their pieces spell."""

    def __init__(self, corpus: Corpus):
        self._corpus, self.tokenizer = corpus, corpus.tokenizer

    def text(self, document: int) -> Text:
        return Text("", self.tokenizer.decode(self._corpus.bodies[document]))

    def joint(self, query_ids: np.ndarray, document_ids: np.ndarray, joint_len: int, special: SpecialIds) -> Inputs:
        return joint_inputs(query_ids, self._corpus, document_ids, joint_len, special)

    def characters(self, document: int, first: int, last: int) -> tuple[int, int]:
        text = self.text(document).text
        offsets = aligned_offsets(np.asarray(self._corpus.bodies[document]), self.tokenizer.encode(text))
        return trimmed(text, offsets, first, last)


def make_corpus(folder: Path, lengths: np.ndarray, block_len: int) -> Corpus:
    """Blocks of so many random words, a piece each."""
    words = [f"w{number:05d}" for number in range(VOCAB_SIZE - len(SPECIAL_PIECES))]
    rng = np.random.default_rng(0)
    num_documents = len(lengths)
    none = np.zeros(num_documents, np.int64)
    with CorpusWriter(folder, WordPieceTokenizer([*SPECIAL_PIECES, *words]), block_len) as writer:
        bodies = rng.integers(len(SPECIAL_PIECES), VOCAB_SIZE, lengths.sum()).astype(np.int32)
        ends = lengths.astype(np.int32)
        rows = PieceRows(np.zeros(0, np.int32), none, bodies, lengths, ends, none + 1, np.zeros((0, 2), np.int32), none)
        writer.add(rows, [str(number) for number in range(num_documents)])
        writer.finish(source="made")
    return Corpus.open(folder)


def block_lengths(options: argparse.Namespace) -> np.ndarray:
    """Pieces of each block."""
    if options.corpus is None:
        return np.full(options.documents, options.block_len, np.int64)
    bodies = Corpus.open(options.corpus).bodies
    lengths = np.array([len(bodies[document]) for document in range(min(options.documents, len(bodies)))], np.int64)
    return np.clip(np.resize(lengths, options.documents), 1, options.block_len)


def make_index(backend: str, num_documents: int) -> Index:
    """Over random unit vectors."""
    embeds = np.random.default_rng(1).standard_normal((num_documents, EMBED)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    if backend == "exact":
        return ExactIndex(embeds)
    return ScannIndex([build_shard(embeds)], rows=EmbeddingRows([embeds]))


class Stopwatch:
    """Milliseconds since the stage before, by stage, and processor milliseconds of all."""

    def __init__(self) -> None:
        self.ms = dict[str, float]()
        self.begin_cpu, self.cpu_ms = time.process_time(), 0.0
        self.at = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.ms[stage], self.at = (now - self.at) * 1e3, now
        self.cpu_ms = (time.process_time() - self.begin_cpu) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--block_len", type=int, default=128)
    parser.add_argument("--corpus", help="a corpus directory: blocks are as long as its, up to block_len")
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--backend", choices=("scann", "exact"), default="scann")
    options = parser.parse_args()
    joint_len = options.block_len + QUERY_LEN

    encoder = TransformerConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=EMBED,
        num_layers=6,
        num_heads=12,
        intermediate_size=1536,
        dtype=options.dtype,
    )
    retriever = RetrieverConfig(encoder, projection_size=None, tied=False, pooling="mean", normalize=True)
    reader = SpanReaderConfig(encoder)
    params = jax.device_get(init_params(jax.random.key(0), retriever=retriever, reader=reader))
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), block_lengths(options), options.block_len)
        answerer = Answerer(
            RandomDocuments(corpus), make_index(options.backend, options.documents), retriever, reader, params,
            query_len=QUERY_LEN, joint_len=joint_len, document_len=options.block_len + 3, num_read=NUM_READ,
        )  # fmt: skip
        rng = np.random.default_rng(2)
        questions = [
            corpus.tokenizer.decode(rng.integers(len(SPECIAL_PIECES), VOCAB_SIZE, QUESTION_WORDS)) + " ?"
            for _ in range(options.questions)
        ]
        for question in questions:  # compiles for all lengths
            answerer.answer([question])
        taken = [ask(answerer, question) for question in questions]
        plain = peer(reader, params["span_reader"], corpus, questions, joint_len)
        mean_len = corpus.info.num_pieces / corpus.num_documents
    report(options, mean_len, taken, plain)


def ask(answerer: Answerer, question: str) -> Stopwatch:
    watch = Stopwatch()
    answerer.answer([question], on_stage=watch)
    return watch


def peer(reader: SpanReaderConfig, params: dict, corpus: Corpus, questions: list[str], joint_len: int) -> list[float]:
    """Milliseconds of reading five documents as one padded batch, a question each."""
    read = jax.jit(lambda params, ids, segments: SpanReader(reader).apply({"params": params}, ids, segments, ids != 0))
    placed, special = jax.device_put(params), SpecialIds.of(corpus.tokenizer)
    taken = []
    for number, question in enumerate([questions[0], *questions]):
        query = query_inputs([corpus.tokenizer.encode(question).ids], QUERY_LEN, special)
        found = np.arange(NUM_READ)[None] + NUM_READ * number
        joint = joint_inputs(query.ids, corpus, found, joint_len, special)
        begin = time.perf_counter()
        np.asarray(read(placed, joint.ids[0], joint.segment_ids[0]))
        taken.append((time.perf_counter() - begin) * 1e3)
    return taken[1:]  # the first one compiles


def report(options: argparse.Namespace, mean_len: float, taken: list[Stopwatch], plain: list[float]) -> None:
    whole = [sum(watch.ms.values()) for watch in taken]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(
        f"{options.documents} blocks of {mean_len:.0f} pieces, {options.backend} index, {NUM_READ} read, {options.dtype}, "
        f"{len(whole)} questions; {jax.default_backend()}, {cores} cores, load {load:.1f}"
    )
    print(f"{'':10}{'median ms':>12}{'of all':>9}")
    for stage in STAGES:
        median = statistics.median(watch.ms[stage] for watch in taken)
        print(f"{stage:10}{median:12.1f}{median / statistics.median(whole):9.1%}")
    print(f"{'whole':10}{statistics.median(whole):12.1f}   from {min(whole):.1f} to {max(whole):.1f}")
    cpu = statistics.median(watch.cpu_ms for watch in taken)
    print(f"{'on cores':10}{cpu / cores:12.1f}   processor time / cores: the whole at best, whoever else works here")
    reading = statistics.median(watch.ms["read"] for watch in taken)
    print(f"{'peer':10}{statistics.median(plain):12.1f}   the same documents read as one padded batch")
    print(
        f"peer / read: {statistics.median(plain) / reading:.2f}   whole / target: {statistics.median(whole) / TARGET_MS:.2f}"
    )


if __name__ == "__main__":
    main()
