"""How fast the encoder runs and trains, against the same encoder with the library's attention and dense layers.

    python benchmarks/encoder_throughput.py [--length=320] [--batch=16] [--hidden_size=384] [--num_layers=6]

The peer is our encoder with `jax.nn.dot_product_attention` and flax's own products in the places of `models.attention.attend` and
`models.products.dense_product`. Both run in turn in one process, --repeats times, on programs compiled before; the median
counts. One line for forward and one for the gradient of each dtype, and the ratio of the two.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from realm_jax.models import Transformer, TransformerConfig, forward_flops
from realm_jax.models import transformer as module


def librarys_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, dropout: None) -> jax.Array:
    assert dropout is None
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])


def programs(config: TransformerConfig, ids: jax.Array, params: Any) -> dict[str, Callable[[Any], Any]]:
    """Compiled: the hidden states, and the gradient of a loss of them."""

    def encode(params: Any) -> Any:
        return Transformer(config).apply({"params": params}, ids, ids * 0, ids > 0)

    def loss(params: Any) -> jax.Array:
        return (encode(params).astype(jnp.float32) ** 2).mean()

    return {
        "forward": jax.jit(encode).lower(params).compile(),
        "gradient": jax.jit(jax.grad(loss)).lower(params).compile(),
    }


def seconds(program: Callable[[Any], Any], params: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(program(params))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("length", 320), ("batch", 16), ("hidden_size", 384), ("num_layers", 6), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    ids = jax.random.randint(jax.random.key(0), (options.batch, options.length), 5, 8192)
    print(
        f"{options.batch} × {options.length} pieces, {options.num_layers} layers of {options.hidden_size}; "
        f"{jax.devices()[0].device_kind}, medians of {options.repeats}"
    )
    print(f"{'':22}{'ours ms':>9}{'GFLOP/s':>9}{'peer ms':>9}{'peer / ours':>13}")
    for dtype in ("float32", "bfloat16"):
        config = TransformerConfig(
            vocab_size=8192,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            num_heads=options.hidden_size // 32,
            intermediate_size=4 * options.hidden_size,
            dtype=dtype,
        )
        params = jax.jit(Transformer(config).init)(jax.random.key(1), ids[:1], ids[:1] * 0, ids[:1] > 0)["params"]
        ours = programs(config, ids, params)
        with (
            mock.patch.object(module, "attend", librarys_attention),
            mock.patch.object(module, "dense_dot_general", None),
        ):
            peer = programs(config, ids, params)
        for name in ours:
            taken = [(seconds(ours[name], params), seconds(peer[name], params)) for _ in range(options.repeats + 1)][1:]
            mine, theirs = (statistics.median(times) for times in zip(*taken, strict=True))
            flops = options.batch * forward_flops(config, options.length) * (1 if name == "forward" else 3)
            print(
                f"{name + ', ' + dtype:22}{mine * 1e3:9.0f}{flops / mine / 1e9:9.0f}{theirs * 1e3:9.0f}{theirs / mine:13.2f}"
            )


if __name__ == "__main__":
    main()
