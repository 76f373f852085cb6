"""FLOPs and bytes of a tiny model, worked by hand."""

import jax
import jax.numpy as jnp
import pytest

from realm_jax.data.inputs import SpecialIds
from realm_jax.models import RetrieverConfig, TransformerConfig
from realm_jax.plan import arithmetic
from realm_jax.plan.planned_run import MeshSizes
from realm_jax.plan.programs import abstract_state, without_data
from realm_jax.retrieval.build_version import IndexSettings
from realm_jax.retrieval.scann_index import ScannSettings
from realm_jax.tasks.ict import Ict
from realm_jax.tasks.passes import EncoderPass, Logits
from realm_jax.tasks.realm import Realm
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import MeshConfig, state_shardings
from tests import tiny

SPECIAL = SpecialIds(2, 3, 4)
ENCODER = TransformerConfig(vocab_size=10, hidden_size=4, num_layers=2, num_heads=2, intermediate_size=8, max_length=16)


def ict(**changes):
    encoder = TransformerConfig(**(vars(ENCODER) | changes))
    return Ict("nowhere", RetrieverConfig(encoder, projection_size=2), query_len=3, document_len=5).program(SPECIAL)


def test_flops_of_a_step():
    # a layer's matrices hold 4 · 4 · 4 + 2 · 4 · 8 = 128 numbers; attention takes 4 · length² · 4
    query, document = 2 * (2 * 3 * 128 + 4 * 9 * 4), 2 * (2 * 5 * 128 + 4 * 25 * 4)
    assert (query, document) == (1824, 3360)
    assert arithmetic.step_flops(ict(), 8) == (8 * 3 * (1824 + 3360), 0)
    assert arithmetic.step_flops(ict(remat=True), 8) == (8 * 3 * (1824 + 3360), 8 * (1824 + 3360))
    assert arithmetic.corpus_flops(ENCODER, 1000, 5) == 3_360_000


def test_flops_of_logits_are_counted_with_the_passes():
    retriever = RetrieverConfig(ENCODER, projection_size=2)
    settings = Realm("nowhere", retriever, ENCODER, num_candidates=3, query_len=3, document_len=5, joint_len=6)
    program = settings.program(SPECIAL)
    of = {length: 2.0 * (2 * length * 128 + 16 * length * length) for length in (3, 4, 5, 6)}
    # two documents and the null document, which is the query read once more with one piece more; ten masks
    assert program.logits.forward_flops == 2 * 3 * 10 * 4 * 10
    assert program.flops_per_example == 3 * (of[3] + 2 * of[5] + 2 * of[6] + of[4] + 2400)


def test_bytes_that_products_read_and_write():
    assert EncoderPass(ENCODER, 1, 3).layer_bytes == 4 * 2 * 128
    # of a piece 14 · 4 + 2 · 8 numbers of 4 bytes; of each pair of pieces a logit of two heads, written and read
    assert EncoderPass(ENCODER, 1, 3).forward_bytes == 2 * 3 * (72 * 4 + 2 * 2 * 3 * 4)
    half = TransformerConfig(**(vars(ENCODER) | {"dtype": "bfloat16"}))
    assert EncoderPass(half, 1, 3).forward_bytes == 2 * 3 * (144 + 48)


def test_a_decoder_attends_to_its_sources_too():
    one = EncoderPass(ENCODER, 5, 3, source_len=7)
    # per layer: query and out of 3 places, key and value of 7, 2 · 4 · 4 operations each; attention of 3 · 7 pairs
    of_source = 2 * (2 * 2 * (3 + 7) * 16 + 4 * 3 * 7 * 4)
    assert one.forward_flops == 5 * (1824 + of_source)
    assert one.layer_bytes == 4 * 2 * (128 + 64)
    # 6 · 4 numbers more of every place and every source's; logits of two heads over 3 · 10 pairs, written and read
    assert one.forward_bytes == 2 * (3 * 72 * 4 + 24 * 10 * 4 + 3 * 2 * 2 * 10 * 4)
    kept = 3 * ((6 * 4 + 8 + 3 * 4) * 4 + 2 * 10 * 4) + 7 * 2 * 4 * 4
    assert one.kept_bytes == 5 * 2 * kept


@pytest.mark.parametrize("remat", [False, True])
def test_bytes_of_a_step_on_one_device(remat):
    found = arithmetic.step_bytes(ict(remat=remat), 8, MeshSizes(2, 2, 1), 1, trained_bytes=100)
    assert found.weights == (6 if remat else 5) * 2 * 1024  # two passes over one encoder
    assert found.activations == (4 if remat else 3) * 2 * (2016 + 3680)  # two of eight examples
    assert found.optimizer == 800 and found.logits == 0
    halves = arithmetic.step_bytes(ict(remat=remat), 8, MeshSizes(2, 2, 1), 2, trained_bytes=100)
    assert halves == found._replace(weights=2 * found.weights)


def test_bytes_kept_for_the_backward_pass():
    assert EncoderPass(ENCODER, 1, 3).kept_bytes == 2 * 3 * ((6 * 4 + 8) * 4 + 2 * 3 * 4)
    again = TransformerConfig(**(vars(ENCODER) | {"remat": True, "dtype": "bfloat16"}))
    assert EncoderPass(again, 7, 3).kept_bytes == 7 * 2 * 3 * 4 * 2
    products = TransformerConfig(**(vars(again) | {"remat_saves": "products"}))
    assert EncoderPass(products, 7, 3).kept_bytes == 7 * 2 * 3 * (6 * 4 + 8) * 2
    assert EncoderPass(ENCODER, 1, 3, trained=False).kept_bytes == 0


def test_what_is_made_again_where_products_are_kept():
    """Attention's pairs alone: 4 · length² · hidden · layers of each pass, and no weight is read once more."""
    kept = ict(remat=True, remat_saves="products")
    pairs = sum(4 * 2 * one.length**2 * 4 for one in kept.passes)
    assert arithmetic.step_flops(kept, 8) == (8 * 3 * (1824 + 3360), 8 * pairs)
    sizes = MeshSizes(2, 2, 1)
    assert arithmetic.step_bytes(kept, 8, sizes, 1, 100) == arithmetic.step_bytes(ict(), 8, sizes, 1, 100)


def test_a_language_model_s_logits_are_cut_by_their_vocabulary():
    found = {}
    for is_cut in (False, True):
        logits = Logits(3, 4, 10, trained=not is_cut, is_cut=is_cut)
        program = ict()._replace(passes=(), logits=logits)
        found[is_cut] = arithmetic.step_bytes(program, 8, MeshSizes(2, 1, 2), 1, 0).logits
    # four of eight examples, three rows each, written and read twice; the table in three products, or in two
    assert found == {False: 4 * (4 * 12 * 10 + 3 * 40), True: 4 * (4 * 12 * 5 + 2 * 20)}


def test_bytes_sent_to_other_devices():
    def sent(remat=False, accumulation=1, gradients=0, **sizes):
        sizes = MeshSizes(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))
        return arithmetic.expected_sent_bytes(ict(remat=remat), 8, sizes, accumulation, gradients)

    assert sent(gradients=100) == 0
    assert sent(data=4, gradients=100) == 150  # a ring of four sends 2 · 3/4 of the gradients
    # within two devices half of each parameter is gathered, forward and backward, for two passes; gradients are
    # scattered within the two, then summed over two
    assert sent(data=2, fsdp=2, gradients=100) == 100 + 100 + 2 * 2 * 512
    assert sent(fsdp=2, gradients=100, accumulation=3) == 100 + 3 * 2 * 2 * 512
    # hidden states of 8 × 3 and 8 × 5 pieces, 4 numbers each, summed over two devices twice a layer and direction
    assert sent(tensor=2) == 2 * 4 * (8 * 3 * 16 + 8 * 5 * 16)
    assert sent(tensor=2, remat=True) == 2 * 6 * (8 * 3 * 16 + 8 * 5 * 16)


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_bytes_on_a_device_are_those_of_the_shardings(data, fsdp, tensor):
    program = tiny.realm("nowhere").program(SPECIAL)
    state = abstract_state(without_data(program), OptimizerConfig(), 100)
    shardings = state_shardings(MeshConfig(data, fsdp, tensor).build(), state)
    for part, placed in ((state.params, shardings.params), (state.opt_state, shardings.opt_state)):
        leaves = zip(jax.tree.leaves(part), jax.tree.leaves(placed), strict=True)
        expected = sum(
            leaf.dtype.itemsize * jnp.zeros(sharding.shard_shape(leaf.shape)).size for leaf, sharding in leaves
        )
        assert arithmetic.device_bytes(part, MeshSizes(data, fsdp, tensor)) == expected
    whole = arithmetic.whole_bytes(state.params)
    assert arithmetic.device_bytes(state.params, MeshSizes(1, 1, 1)) == whole
    assert (arithmetic.device_bytes(state.params, MeshSizes(data, fsdp, tensor)) < whole) == (fsdp * tensor > 1)


def test_bytes_of_the_index():
    rows = 13_353_718 * 128 * 4
    # two dimensions a code of four bits: 32 bytes a document
    assert arithmetic.index_bytes(IndexSettings(), 13_353_718, 128) == (rows, 13_353_718 * 32)
    assert arithmetic.index_bytes(IndexSettings(scann=ScannSettings(100, 10, 3)), 1000, 128) == (512_000, 1000 * 22)
    assert arithmetic.index_bytes(IndexSettings(), 1000, 128) == (512_000, 0)  # one shard, searched by brute force
    assert arithmetic.index_bytes(IndexSettings(backend="exact"), 1000, 128) == (512_000, 0)
