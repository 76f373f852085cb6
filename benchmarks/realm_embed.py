"""Embedding documents against RealmEmbedder on torch, in turn on the same cores: all of one length, and real blocks.

    make .venv-parity/.installed
    python benchmarks/realm_embed.py [--corpus=RUN/corpus] [--layers=4] [--hidden_size=256] [--documents=256] [--repeats=5]

Of real blocks (--corpus; without one, lengths drawn as blocks of Wikipedia have them) ours are embedded in batches of like length, as
the embed job does; the peer pads all to --document_len, as its users do. Medians; ratios above 1: ours is faster.
"""

import argparse
import statistics
import time

import jax
import numpy as np
from embed_throughput import document_lengths
from torch_peer import DEFAULT_PYTHON, TorchPeer

from realm_jax.models import Retriever, RetrieverConfig, TransformerConfig
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.length_batches import choose_lengths, length_batches


def embed(embedder: Embedder, lengths: np.ndarray, document_len: int, batch_size: int, num_lengths: int) -> float:
    """Seconds of embedding documents of these lengths, two batches under way, as in the job."""
    counts = np.bincount(lengths, minlength=document_len + 1)
    begin, pending = time.perf_counter(), None
    for batch in length_batches(lengths, choose_lengths(counts, num_lengths), batch_size):
        own = np.zeros(batch.num_rows, np.int64)
        own[: len(batch.documents)] = lengths[batch.documents]
        ids = np.where(np.arange(batch.length) < own[:, None], 7, 0).astype(np.int32)
        ids[:, 0] = 2
        started = embedder.embed_documents(ids, np.zeros_like(ids))
        if pending is not None:
            np.asarray(pending)
        pending = started
    np.asarray(pending)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "layers": 4, "hidden_size": 256, "heads": 4, "vocab_size": 8192, "document_len": 288, "documents": 256, "batch_size": 32,
        "num_lengths": 8, "repeats": 5, "threads": 2,
    }  # fmt: skip
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--corpus", help="directory of a corpus whose documents' lengths are taken")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of ours; the peer has float32"
    )
    parser.add_argument("--python", default=DEFAULT_PYTHON, help="of the environment with torch and transformers")
    options = parser.parse_args()
    options.lengths = "blocks"
    real = document_lengths(options, np.random.default_rng(0)).astype(np.int64)
    encoder = TransformerConfig(
        vocab_size=options.vocab_size, hidden_size=options.hidden_size, num_layers=options.layers,
        num_heads=options.heads, intermediate_size=4 * options.hidden_size, activation="gelu_new", dtype=options.dtype,
        unroll_layers=options.layers,  # as run files for CPUs have it
    )  # fmt: skip
    config = RetrieverConfig(encoder, projection_size=128)
    ids = np.ones((1, 8), np.int32)
    embedder = Embedder(config, jax.jit(Retriever(config).init)(jax.random.key(0), ids, ids, ids > 0)["params"])
    peer = TorchPeer(options.python)
    made = peer.ask(
        "make",
        sizes={
            "vocab_size": options.vocab_size, "hidden_size": options.hidden_size, "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads, "intermediate_size": 4 * options.hidden_size, "num_candidates": 1,
            "retriever_proj_size": 128,
        },
        batch=1, query_len=16, document_len=16, masks=1, threads=options.threads,
    )  # fmt: skip
    print(
        f"{options.documents} documents, {options.layers} layers of {options.hidden_size}, ours {options.dtype}, torch {made['torch']}; "
        f"real blocks: {real.mean():.0f} pieces of {options.document_len} on average"
    )
    print(f"{'documents a second':24}{'realm_jax':>12}{'RealmEmbedder':>15}{'ours / peer':>13}{'  from':>8}{'to':>7}")
    full = np.full(options.documents, options.document_len, np.int64)
    for label, lengths in (("all of one length", full), ("real blocks", real)):
        rates = []
        for round_number in range(options.repeats + 1):  # the first one warms up and compiles
            mine = embed(embedder, lengths, options.document_len, options.batch_size, options.num_lengths)
            theirs = peer.ask(
                "embed", lengths=lengths.tolist(), padded_to=options.document_len, at_once=options.batch_size
            )["secs"]
            if round_number:
                rates.append((options.documents / mine, options.documents / theirs))
        ours, others = (statistics.median(rate) for rate in zip(*rates, strict=True))
        ratios = [mine / theirs for mine, theirs in rates]
        print(f"{label:24}{ours:12.1f}{others:15.1f}{ours / others:13.2f}{min(ratios):8.2f}{max(ratios):7.2f}")
    peer.close()


if __name__ == "__main__":
    main()
