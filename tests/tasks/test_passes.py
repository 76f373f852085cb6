"""What a language model's pass takes: worked by hand for a tiny one, and against the compiler and jax.vjp for a larger."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from realm_jax.models import LanguageModel, LanguageModelConfig, LoraConfig
from realm_jax.tasks.passes import LanguageModelPass, Logits

TINY = LanguageModelConfig(
    vocab_size=10, hidden_size=4, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=8, max_length=16
)
LORA = LoraConfig(rank=1, products=("query", "wo"))
LARGER = LanguageModelConfig(
    vocab_size=8, hidden_size=64, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=160, unroll_layers=4
)


def reading(rows=1, length=3, trained=True, **changes):
    return LanguageModelPass(dataclasses.replace(TINY, **changes), rows, length, trained)


# a layer's matrices: 4 · 4 twice, 4 · 2 twice, 4 · 8 three times
NUMBERS = 2 * 16 + 2 * 8 + 3 * 32
MATRICES, ATTENTION = 2 * 2 * 3 * NUMBERS, 2 * 4 * 9 * 4  # FLOPs of two layers, three positions
ADAPTER = (4 + 4) + (8 + 4)  # numbers of two adapters of rank 1


def test_flops_of_a_trained_model_and_of_one_that_only_reads():
    assert reading().forward_flops == MATRICES + ATTENTION == 2016
    assert reading(rows=5).flops == 5 * 3 * 2016
    assert reading(rows=5, trained=False).flops == 5 * 2016
    assert reading(remat=True).recomputed_flops == 2016
    assert reading(remat=True, remat_saves="products").recomputed_flops == ATTENTION
    assert reading().recomputed_flops == reading(trained=False, remat=True).recomputed_flops == 0


def test_a_frozen_base_has_two_products_of_three():
    """Forward, and backward for what it read; attention and the adapter have all three."""
    of_adapter = 2 * 2 * 3 * ADAPTER
    one = reading(rows=5, lora=LORA)
    assert one.forward_flops == 5 * (MATRICES + ATTENTION + of_adapter)
    assert one.flops == 5 * (2 * MATRICES + 3 * ATTENTION + 3 * of_adapter)
    assert reading(rows=5, lora=LORA, trained=False).flops == one.forward_flops
    assert reading(lora=LORA, remat=True).recomputed_flops == MATRICES + ATTENTION + of_adapter


def test_bytes_of_weights():
    base, adapter = 4 * 2 * NUMBERS, 4 * 2 * ADAPTER
    assert reading().layer_bytes == base and reading(lora=LORA).layer_bytes == base + adapter
    # forward, two products backward, and the gradient written and read
    assert reading().moved_weight_bytes == 5 * base
    assert reading(remat=True).moved_weight_bytes == 6 * base
    assert reading(trained=False).moved_weight_bytes == base
    assert reading(lora=LORA).moved_weight_bytes == 2 * base + 5 * adapter
    assert reading(lora=LORA, remat=True).moved_weight_bytes == 3 * base + 6 * adapter
    assert reading(lora=LORA, trained=False).moved_weight_bytes == base + adapter


def test_bytes_of_activations():
    # what the seven products read and make of a position: 8, 6, 6, 8, 12, 12, 12 numbers; queries, keys, values and what
    # is found: 4, 2, 2, 4; logits of two heads over three positions, written and read
    matrices, attention = 64, 12 * 4 + 2 * 2 * 3 * 4
    assert reading(rows=5).moved_activation_bytes == 3 * 5 * 3 * 2 * (matrices * 4 + attention)
    assert reading(remat=True).moved_activation_bytes == 4 * 3 * 2 * (matrices * 4 + attention)
    half = reading(dtype="bfloat16", trained=False)
    assert half.moved_activation_bytes == 3 * 2 * (matrices * 2 + 12 * 2 + 48)
    # x is read and x A written, which is read and y written; of the base the product for the gradient of W is not there
    adapter = (8 + 2) + (12 + 2)
    found = reading(lora=LORA).moved_activation_bytes
    assert found == 3 * 2 * (2 * matrices * 4 + 3 * adapter * 4 + 3 * attention)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, products=("query", "wo"))], ids=["full", "lora"])
def test_bytes_kept_are_those_that_jax_keeps(lora):
    def kept(config):
        """Of each position of each layer, for the backward pass."""
        ids = jnp.ones((1, 256), jnp.int32)
        variables = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids, ids)
        part = "params" if lora is None else "lora"

        def residuals(trained, rest):
            model = LanguageModel(config)
            return jax.vjp(lambda t: model.apply({**rest, part: t}, ids, ids, method="hidden_states"), trained)[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, variables[part], variables))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.shape[0] == 4 and 256 in leaf.shape)

    for saves in ("nothing", "products"):
        config = dataclasses.replace(LARGER, lora=lora, remat=True, remat_saves=saves)
        assert LanguageModelPass(config, 1, 256).kept_bytes == kept(config)
    config = dataclasses.replace(LARGER, lora=lora)  # more than the products alone, of which it is a part
    assert 0.5 * kept(config) < LanguageModelPass(config, 1, 256).kept_bytes < kept(config)
    assert LanguageModelPass(config, 1, 256, trained=False).kept_bytes == 0


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, products=("query", "wo"))], ids=["full", "lora"])
def test_flops_are_those_of_the_compiled_gradient(lora):
    config = dataclasses.replace(LARGER, lora=lora)
    ids, part = jnp.ones((1, 256), jnp.int32), "params" if lora is None else "lora"
    variables = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids, ids)

    def loss(trained, rest):
        return LanguageModel(config).apply({**rest, part: trained}, ids, ids, method="hidden_states").sum()

    compiled = jax.jit(jax.grad(loss)).lower(variables[part], variables).compile()
    assert LanguageModelPass(config, 1, 256).flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.07)


def test_bytes_of_the_layer_that_is_made_again():
    # queries 4, keys 2, values 2, output 4, gate 8, inner 8 numbers, and weights of two heads over three positions
    products, pairs = 28 * 4, 2 * 3 * 4
    assert reading(rows=5, remat=True).working_bytes == 5 * 3 * (products + pairs)
    assert reading(remat=True, lora=LORA).working_bytes == 3 * (products + 2 * 4 + pairs)
    assert reading(remat=True, remat_saves="products").working_bytes == 3 * pairs
    assert reading().working_bytes == reading(remat=True, trained=False).working_bytes == 0
    assert Logits(3, 4, 10, is_cut=True).working_bytes == 120 and Logits(3, 4, 10).working_bytes == 0


def test_what_layers_cut_over_devices_exchange():
    hidden = 3 * 4 * 4  # bytes of three positions
    assert reading(rows=5).summed_bytes == 5 * 2 * 4 * hidden  # two sums a layer, forward and backward
    assert reading(remat=True).summed_bytes == 2 * 6 * hidden
    assert reading(trained=False).summed_bytes == 2 * 2 * hidden
    assert (reading().gathers, reading(trained=False).gathers) == (2, 1)


def test_logits_of_a_frozen_table_have_one_product_less():
    assert Logits(3, 4, 10).flops == 3 * 240 and Logits(3, 4, 10, trained=False).flops == 2 * 240
