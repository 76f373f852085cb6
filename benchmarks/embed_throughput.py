"""How many documents a second the embed job embeds: all padded to document_len, and in batches of like length.

    python benchmarks/embed_throughput.py --lengths uniform
    python benchmarks/embed_throughput.py --corpus RUN/corpus --hidden_size 768 --num_layers 12

Documents are made up; their lengths are those of a corpus (--corpus), or drawn from a distribution (--lengths).
Both ways run in turn in one process, --repeats times, on programs compiled before; the median counts. Printed is one
table and the ratio of the two. The retriever is random: its values cost the same.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.models import Retriever, RetrieverConfig, TransformerConfig
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.length_batches import choose_lengths, input_lengths, length_batches


def document_lengths(arguments: argparse.Namespace, rng: np.random.Generator) -> np.ndarray:
    """Lengths of the documents' inputs, special pieces included: [documents]."""
    count, longest = arguments.documents, arguments.document_len
    if arguments.corpus:
        corpus = Corpus.open(arguments.corpus)
        rows = rng.choice(corpus.num_documents, count, replace=corpus.num_documents < count)
        return input_lengths(corpus, rows.astype(np.int64), longest)
    if arguments.lengths == "full":
        return np.full(count, longest)
    if arguments.lengths == "uniform":
        return rng.integers(longest // 8, longest + 1, size=count)
    # blocks packed from sentences: most nearly full, an article's last one of any length (Wikipedia has 2.2 an article)
    full = rng.random(count) < 0.55
    return np.where(
        full, rng.integers(longest * 5 // 6, longest + 1, size=count), rng.integers(16, longest, size=count)
    )


def throughput(
    embed: Callable[[np.ndarray, np.ndarray], jax.Array],
    lengths: np.ndarray,
    static_lengths: tuple[int, ...],
    batch_size: int,
    vocab_size: int,
    rng: np.random.Generator,
) -> tuple[float, int]:
    """Documents a second and padded pieces; two batches under way, as in the job."""
    pieces = rng.integers(5, vocab_size, size=static_lengths[-1]).astype(np.int32)
    padded, pending = 0, None
    started = time.perf_counter()
    for batch in length_batches(lengths, static_lengths, batch_size):
        own = np.zeros(batch.num_rows, np.int64)
        own[: len(batch.documents)] = lengths[batch.documents]
        ids = np.where(np.arange(batch.length) < own[:, None], pieces[: batch.length], 0).astype(np.int32)
        ids[:, 0] = 2  # a padding row has [CLS] alone
        output = embed(ids, np.zeros_like(ids))
        padded += ids.size
        if pending is not None:
            np.asarray(pending)
        pending = output
    np.asarray(pending)
    return len(lengths) / (time.perf_counter() - started), padded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1024)
    parser.add_argument("--document_len", type=int, default=288)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_lengths", type=int, default=4)
    parser.add_argument("--lengths", choices=["blocks", "uniform", "full"], default="blocks")
    parser.add_argument("--corpus", help="a corpus directory whose lengths are drawn from, instead of --lengths")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    lengths = document_lengths(arguments, rng)
    encoder = TransformerConfig(
        vocab_size=8192,
        hidden_size=arguments.hidden_size,
        num_layers=arguments.num_layers,
        num_heads=max(1, arguments.hidden_size // 64),
        intermediate_size=4 * arguments.hidden_size,
        max_length=max(512, arguments.document_len),
        dtype=arguments.dtype,
    )
    config = RetrieverConfig(encoder)
    ids = jnp.ones((1, 8), jnp.int32)
    params = jax.jit(Retriever(config).init)(jax.random.key(0), ids, ids * 0, ids > 0)["params"]
    embedder = Embedder(config, params)
    batch_size = -(-arguments.batch_size // embedder.num_devices) * embedder.num_devices
    counts = np.bincount(lengths, minlength=arguments.document_len + 1)
    ways = {"fixed": (arguments.document_len,), "by length": choose_lengths(counts, arguments.num_lengths)}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    padded: dict[str, int] = {}
    for repeat in range(arguments.repeats + 1):  # the first one compiles
        for way, static_lengths in ways.items():
            rate, padded[way] = throughput(
                embedder.embed_documents, lengths, static_lengths, batch_size, encoder.vocab_size, rng
            )
            if repeat:
                rates[way].append(rate)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(
        {
            key: value
            for key, value in dataclasses.asdict(encoder).items()
            if key in ("hidden_size", "num_layers", "dtype")
        }
    )
    print(f"{len(lengths)} documents, mean length {lengths.mean():.0f} of {arguments.document_len}")
    print(f"{'batches':<12}{'lengths':<24}{'padded pieces':>14}{'documents/s':>14}{'min':>9}{'max':>9}")
    for way, static_lengths in ways.items():
        print(
            f"{way:<12}{' '.join(map(str, static_lengths)):<24}{padded[way]:>14}"
            f"{statistics.median(rates[way]):>14.1f}{min(rates[way]):>9.1f}{max(rates[way]):>9.1f}"
        )
    ratio = statistics.median(rates["by length"]) / statistics.median(rates["fixed"])
    print(f"by length / fixed: {ratio:.2f}")


if __name__ == "__main__":
    main()
