"""How fast RA-DIT answers from parallel prompts, against LlamaForCausalLM on torch, in turn on the same cores with the same weights.

    make .venv-parity/.installed
    python benchmarks/parallel_prompts.py [--batch=4] [--documents=10] [--source_len=200] [--max_tokens=16] [--repeats=3] [--layers=4]

A small Llama, random weights, so almost every document has an answer of its own. Written answers: greedy after each document, every
distinct one read again after every document, p(y|x) = Σ p_R p_LM. Loop: generate and a forward pass for one prompt at a time, as a
script has it. Batched: all documents of a question at once, and logits of answers alone. Options: log p of each of --choices texts of
1 to --option_len tokens after every document, in a loop over pairs, or a pass for each option over all documents. Ours answers all
questions in one call. Every answer goes to --max_tokens, so both do the same steps. Both answer once before it counts; medians of
--repeats in turn, with the least and the most; ratios above 1: ours is faster. "same" counts the answers whose ids are equal, and the
questions with the same likeliest option; of others a line says how far apart torch finds the two.
"""

import argparse
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

from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.answering.prompted import NOTHING, padded_prompts
from realm_jax.convert.llama import save_llama
from realm_jax.generation import GenerationConfig
from realm_jax.generation.generator import rag_sequence
from realm_jax.models import LanguageModel, LanguageModelConfig

PEER = Path(__file__).parent / "peers" / "torch_llama.py"
WHAT = ("loop", "batched", "options", "options_batched")


def inputs(options: argparse.Namespace) -> dict[str, Any]:
    """Prompts of three quarters to all of source_len: a document's background, then the question, the last quarter; retrieval scores;
    and the options of each question."""
    rng = np.random.default_rng(0)
    prompts, choices = [], []
    for _ in range(options.batch):
        question = rng.integers(3, options.vocab_size, options.source_len // 4)
        lengths = rng.integers(options.source_len // 2, options.source_len - len(question), options.documents)
        prompts.append(
            [
                np.concatenate([[1], rng.integers(3, options.vocab_size, length), question]).tolist()
                for length in lengths
            ]
        )
        lengths = rng.integers(1, options.option_len + 1, options.choices)
        choices.append([rng.integers(3, options.vocab_size, length).tolist() for length in lengths])
    scores = rng.normal(size=(options.batch, options.documents)).astype(np.float32)
    return {"prompts": prompts, "scores": scores.tolist(), "options": choices}


def programs(
    config: LanguageModelConfig, params: Any, given: dict[str, Any], max_tokens: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Ours: one that writes the answers, and one that gives log p of the options."""
    scores = jnp.asarray(given["scores"], jnp.float32)
    length = max_tokens + 1
    settings = GenerationConfig(num_beams=1, max_length=length, min_length=length)
    judge = LikelihoodJudge(config, params)
    log_priors = np.asarray(jax.nn.log_softmax(scores, axis=-1))

    def write() -> list[list[int]]:
        prompts = [[np.asarray(prompt, np.int32) for prompt in row] for row in given["prompts"]]
        padded = padded_prompts(prompts, config.max_length - max_tokens)
        ids, mask = np.where(padded == NOTHING, config.pad_id, padded), padded != NOTHING
        found = rag_sequence(judge.params, ids, mask, scores, config=config, generation=settings)
        return np.asarray(found.hypotheses.ids)[:, 0].tolist()

    def choose() -> list[list[float]]:
        rows = [
            Continuation(np.asarray(prompt, np.int32), np.asarray(option, np.int32))
            for prompts, options in zip(given["prompts"], given["options"], strict=True)
            for option in options
            for prompt in prompts
        ]
        log_probs = judge.judge(rows).log_probs.reshape(len(log_priors), -1, log_priors.shape[1])
        return np.logaddexp.reduce(log_probs + log_priors[:, None], axis=-1).tolist()

    return write, choose


def apart(peer: TorchPeer, mine: list[Any], theirs: list[Any], written: bool) -> dict[int, float]:
    """By question, of those whose answers differ, how much likelier torch finds its own."""
    found = {}
    for question, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        if written and own != other:
            pair = (peer.ask("score", question=question, answer=answer)["log_prob"] for answer in (other, own))
            found[question] = next(pair) - next(pair)
        elif not written and np.argmax(own) != np.argmax(other):
            found[question] = max(other) - other[int(np.argmax(own))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("batch", 4), ("documents", 10), ("source_len", 200), ("max_tokens", 16), ("choices", 4), ("option_len", 8),
        ("layers", 4), ("hidden_size", 256), ("vocab_size", 8192), ("repeats", 3), ("threads", 2), ("unroll", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--what", nargs="+", default=WHAT, choices=WHAT)
    parser.add_argument("--python", default=DEFAULT_PYTHON, help="of the environment with torch and transformers")
    options = parser.parse_args()
    given, hidden = inputs(options), options.hidden_size
    config = LanguageModelConfig(
        vocab_size=options.vocab_size, hidden_size=hidden, num_layers=options.layers, num_heads=hidden // 64,
        num_kv_heads=hidden // 64, intermediate_size=hidden * 8 // 3, max_length=options.source_len + options.max_tokens + options.option_len,
        initializer_range=0.1,  # with less all tokens are about as likely, and two libraries disagree
        unroll_layers=options.layers if options.unroll else 1,
    )  # fmt: skip
    ids = jnp.ones((1, 8), jnp.int32)
    params = jax.jit(LanguageModel(config).init)(jax.random.key(0), ids, ids)["params"]
    peer = TorchPeer(options.python, PEER)
    with tempfile.TemporaryDirectory() as folder:
        save_llama(Path(folder), config, params)
        made = peer.ask("load", folder=folder, max_new_tokens=options.max_tokens, threads=options.threads, **given)
    write, choose = programs(config, params, given, options.max_tokens)
    print(
        f"{made['parameters'] / 1e6:.0f} million parameters, {options.batch} questions, {options.documents} documents each, prompts of up to "
        f"{options.source_len} tokens, {options.max_tokens} tokens generated, {options.choices} options of up to {options.option_len}; "
        f"{jax.devices()[0].device_kind}, torch {made['torch']}, medians of {options.repeats}"
    )
    print(f"{'':16}{'ours s':>9}{'least–most':>16}{'questions/s':>13}{'torch s':>9}{'least–most':>16}{'torch / ours':>14}{'same':>7}")  # fmt: skip
    for what in options.what:
        written = not what.startswith("options")
        program = write if written else choose
        taken: list[tuple[float, float]] = []
        different: dict[int, float] = {}
        for repeat in range(options.repeats + 1):
            begin = time.perf_counter()
            found = program()
            mine = time.perf_counter() - begin
            theirs = peer.ask("run", what=what)
            different = apart(peer, found, theirs["answers"], written)
            if repeat:
                taken.append((mine, theirs["secs"]))
        own, other = (sorted(times) for times in zip(*taken, strict=True))
        middle = statistics.median(own)
        ratio = statistics.median(slow / fast for fast, slow in taken)
        print(
            f"{what:16}{middle:9.2f}{f'{own[0]:.2f}–{own[-1]:.2f}':>16}{options.batch / middle:13.2f}"
            f"{statistics.median(other):9.2f}{f'{other[0]:.2f}–{other[-1]:.2f}':>16}{ratio:14.2f}"
            f"{f'{options.batch - len(different)}/{options.batch}':>7}",
            flush=True,
        )
        for question, gap in different.items():
            print(f"  question {question + 1}: another answer, which torch finds {gap:.1e} nats less likely")
    peer.close()


if __name__ == "__main__":
    main()
