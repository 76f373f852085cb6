"""How fast answers are generated, against the Hugging Face classes on torch, in turn on the same cores with the same weights.

    make .venv-parity/.installed
    python benchmarks/generation.py [--batch=2] [--documents=5] [--source_len=128] [--max_length=20] [--repeats=5] [--layers=6]

BART of base size, random weights. Plain: BartForConditionalGeneration.generate, one source a question. RAG-Token:
RagTokenForGeneration.generate. RAG-Sequence thorough: RagSequenceForGeneration.generate, which reads sources again for every
hypothesis; fast, which the class does not have: every document's beam by generate, then the sum of equal hypotheses. Every
hypothesis goes to max_length, so both do the same steps. Both generate once before it counts; medians of --repeats in turn, with
the least and the most; ratios above 1: ours is faster. "same" counts the answers whose ids are equal.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch_peer import DEFAULT_PYTHON, TorchPeer

from realm_jax.convert import load_hugging_face
from realm_jax.generation import GenerationConfig, generator

PEER = Path(__file__).parent / "peers" / "torch_rag.py"
WHAT = ("bart", "token", "thorough", "fast")


def inputs(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Sources of three quarters to all of source_len, and retrieval scores."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.documents, options.source_len)
    lengths = rng.integers(options.source_len * 3 // 4, options.source_len + 1, shape[:2])
    mask = np.arange(options.source_len) < lengths[..., None]
    ids = np.where(mask, rng.integers(3, options.vocab_size, shape), 1)
    scores = rng.normal(size=shape[:2])
    return {"ids": ids.astype(np.int32), "mask": mask, "scores": scores.astype(np.float32)}


def programs(options: argparse.Namespace, folder: str, given: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Ours, by name; each gives hypotheses."""
    model = load_hugging_face(folder)
    assert model.generator is not None
    config = dataclasses.replace(model.generator, unroll_layers=options.layers if options.unroll else 1)
    params = jax.tree.map(jnp.asarray, model.params["generator"])
    length = options.max_length
    settings = GenerationConfig(num_beams=options.beams, max_length=length, min_length=length)
    ids, mask, scores = (jnp.asarray(given[name]) for name in ("ids", "mask", "scores"))

    def rag(program: Any, decoding: Any) -> Callable[[], Any]:
        own = dataclasses.replace(settings, decoding=decoding)
        return lambda: program(params, ids, mask, scores, config=config, generation=own).hypotheses

    return {
        "bart": lambda: generator.generate(params, ids[:, 0], mask[:, 0], config=config, generation=settings),
        "token": rag(generator.rag_token, "thorough"),
        "thorough": rag(generator.rag_sequence, "thorough"),
        "fast": rag(generator.rag_sequence, "fast"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("batch", 2), ("documents", 5), ("source_len", 128), ("max_length", 20), ("beams", 4), ("layers", 6),
        ("hidden_size", 768), ("vocab_size", 50265), ("repeats", 5), ("threads", 2), ("unroll", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--what", nargs="+", default=WHAT, choices=WHAT)
    parser.add_argument("--python", default=DEFAULT_PYTHON, help="of the environment with torch and transformers")
    options = parser.parse_args()
    given, hidden, layers = inputs(options), options.hidden_size, options.layers
    sizes = {
        "vocab_size": options.vocab_size, "d_model": hidden, "encoder_layers": layers, "decoder_layers": layers,
        "encoder_attention_heads": hidden // 64, "decoder_attention_heads": hidden // 64,
        "encoder_ffn_dim": 4 * hidden, "decoder_ffn_dim": 4 * hidden,
    }  # fmt: skip
    settings = {"num_beams": options.beams, "max_length": options.max_length, "min_length": options.max_length}
    peer = TorchPeer(options.python, PEER)
    with tempfile.TemporaryDirectory() as folder:
        made = peer.ask(
            "make", folder=folder, sizes=sizes, settings=settings, threads=options.threads,
            **{name: array.tolist() for name, array in given.items()},
        )  # fmt: skip
        ours = programs(options, folder, given)
    print(
        f"{made['parameters'] / 1e6:.0f} million parameters, {options.batch} questions, {options.documents} documents of "
        f"{options.source_len} tokens, {options.beams} beams, {options.max_length - 1} tokens generated; "
        f"{jax.devices()[0].device_kind}, torch {made['torch']}, medians of {options.repeats}"
    )
    print(f"{'':14}{'ours s':>9}{'least–most':>16}{'answers/s':>11}{'tokens/s':>10}{'torch s':>9}{'least–most':>16}{'torch / ours':>14}{'same':>7}")  # fmt: skip
    for what in options.what:
        taken: list[tuple[float, float]] = []
        same = 0
        for repeat in range(options.repeats + 1):
            begin = time.perf_counter()
            found = jax.block_until_ready(ours[what]())
            mine = time.perf_counter() - begin
            theirs = peer.ask("run", what=what)
            same = int((np.asarray(found.ids)[:, 0] == np.array(theirs["ids"])).all(axis=-1).sum())
            if repeat:
                taken.append((mine, theirs["secs"]))
        own, other = (sorted(times) for times in zip(*taken, strict=True))
        middle, theirs_middle = statistics.median(own), statistics.median(other)
        ratio = statistics.median(slow / fast for fast, slow in taken)
        answers = options.batch / middle
        print(
            f"{what:14}{middle:9.2f}{f'{own[0]:.2f}–{own[-1]:.2f}':>16}{answers:11.2f}"
            f"{answers * (options.max_length - 1):10.1f}{theirs_middle:9.2f}{f'{other[0]:.2f}–{other[-1]:.2f}':>16}"
            f"{ratio:14.2f}{f'{same}/{options.batch}':>7}",
            flush=True,
        )
    peer.close()


if __name__ == "__main__":
    main()
