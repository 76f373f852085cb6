"""One REALM update against the Hugging Face classes on torch, in turn on the same cores.

    make .venv-parity/.installed
    python benchmarks/realm_step.py [--layers=4] [--hidden_size=256] [--batch=4] [--candidates=8] [--repeats=7]

Peers: RealmScorer + RealmKnowledgeAugEncoder + AdamW (transformers 4.39.3), which computes vocabulary logits at every position; and the
same models with logits at the masks alone. All have the same shapes and no dropout; ours is the train job's step: loss, metrics, clipping,
AdamW, donated state. Without a null document, which those classes do not have. Medians of --repeats in turn; ratios above 1: ours is faster.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch_peer import DEFAULT_PYTHON, TorchPeer

from realm_jax.data.inputs import Inputs, SpecialIds
from realm_jax.models import RetrieverConfig, TransformerConfig
from realm_jax.tasks.realm import RealmBatch, RealmModel, init_params, realm_loss
from realm_jax.tasks.task import Task
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.state import init_state, train_step


def random_batch(options: argparse.Namespace) -> RealmBatch:
    rng = np.random.default_rng(0)
    batch, candidates, joint_len = options.batch, options.candidates, options.query_len + options.document_len

    def inputs(*shape: int, second_from: int | None = None) -> Inputs:
        segments = np.zeros(shape, np.int32)
        segments[..., shape[-1] if second_from is None else second_from :] = 1
        return Inputs(rng.integers(5, options.vocab_size, shape).astype(np.int32), segments)

    positions = [np.sort(rng.permutation(options.query_len)[: options.masks]) for _ in range(batch)]
    return RealmBatch(
        query=inputs(batch, options.query_len),
        documents=inputs(batch, candidates, options.document_len),
        joint=inputs(batch, candidates, joint_len, second_from=options.query_len),
        mask_positions=np.stack(positions).astype(np.int32),
        mask_targets=rng.integers(5, options.vocab_size, (batch, options.masks)).astype(np.int32),
        mask_weights=np.ones((batch, options.masks), np.float32),
        candidate_mask=np.ones((batch, candidates), bool),
        is_gold=np.zeros((batch, candidates), bool),
    )


class Ours:
    """The train job's step on one batch."""

    def __init__(self, options: argparse.Namespace):
        encoder = TransformerConfig(
            vocab_size=options.vocab_size, hidden_size=options.hidden_size, num_layers=options.layers,
            num_heads=options.heads, intermediate_size=4 * options.hidden_size, activation="gelu_new", dtype=options.dtype,
            unroll_layers=options.layers,
        )  # fmt: skip
        model = RealmModel(RetrieverConfig(encoder, projection_size=128), encoder, False, SpecialIds(2, 3, 4))
        task = Task(
            "realm", lambda rng: init_params(rng, model=model),
            lambda params, batch, rng: realm_loss(params, batch, rng, model=model, marginal="per_token"),
            examples=lambda *_: None, batch=lambda _: None, tokens_per_example=1, flops_per_example=1.0, can_accumulate=True,
        )  # fmt: skip
        config = OptimizerConfig(learning_rate=1e-5)
        learners = ("retriever", "knowledge_encoder")
        optimizer = config.build(1000, learners)
        schedules = {name: config.schedule(1000, name) for name in learners}

        def step(state: Any, batch: RealmBatch, rng: jax.Array) -> Any:
            return train_step(
                state,
                batch,
                rng,
                task=task,
                optimizer=optimizer,
                schedules=schedules,
                accumulation_steps=1,
                dropout=False,
            )

        self._step, self._rng = jax.jit(step, donate_argnums=0), jax.random.key(0)
        self._state = jax.jit(lambda rng: init_state(rng, task, optimizer))(self._rng)
        self._batch = jax.tree.map(jnp.asarray, random_batch(options))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))

    def step(self) -> float:
        begin = time.perf_counter()
        self._state, figures = self._step(self._state, self._batch, self._rng)
        jax.block_until_ready((self._state, figures))
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "layers": 4, "hidden_size": 256, "heads": 4, "vocab_size": 8192, "batch": 4, "candidates": 8, "query_len": 64,
        "document_len": 288, "masks": 5, "repeats": 7, "threads": 2,
    }  # fmt: skip
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of ours; the peers have float32"
    )
    parser.add_argument("--python", default=DEFAULT_PYTHON, help="of the environment with torch and transformers")
    options = parser.parse_args()
    peer = TorchPeer(options.python)
    made = peer.ask(
        "make",
        sizes={
            "vocab_size": options.vocab_size, "hidden_size": options.hidden_size, "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads, "intermediate_size": 4 * options.hidden_size,
            "num_candidates": options.candidates, "retriever_proj_size": 128,
        },
        batch=options.batch, query_len=options.query_len, document_len=options.document_len, masks=options.masks,
        threads=options.threads,
    )  # fmt: skip
    ours = Ours(options)
    taken: dict[str, list[float]] = {"ours": [], "masks": [], "all": []}
    for round_number in range(options.repeats + 1):  # the first one warms up and compiles
        for name, run in (
            ("ours", ours.step),
            ("masks", lambda: peer.ask("step", at="masks")["secs"]),
            ("all", lambda: peer.ask("step", at="all")["secs"]),
        ):
            secs = run()
            if round_number:
                taken[name].append(secs)
    peer.close()
    print(
        f"REALM step: {options.layers} layers of {options.hidden_size}, vocabulary {options.vocab_size}, batch {options.batch}, "
        f"{options.candidates} candidates, query {options.query_len}, document {options.document_len}, {options.masks} masks; "
        f"ours {options.dtype}, {ours.parameters / 1e6:.1f} M parameters (peer {made['parameters'] / 1e6:.1f} M, torch {made['torch']})"
    )
    print(f"{'':34}{'median s':>10}{'min':>8}{'max':>8}{'peer / ours':>13}")
    mine = statistics.median(taken["ours"])
    for name, label in (
        ("ours", "realm_jax"),
        ("masks", "torch, logits at the masks"),
        ("all", "RealmKnowledgeAugEncoder as it is"),
    ):
        median = statistics.median(taken[name])
        ratio = "" if name == "ours" else f"{median / mine:13.2f}"
        print(f"{label:34}{median:10.3f}{min(taken[name]):8.3f}{max(taken[name]):8.3f}{ratio}")


if __name__ == "__main__":
    main()
