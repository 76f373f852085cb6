"""What a step and a refresh cost, by the shapes of their arrays: FLOPs, bytes of memory, bytes between devices.

The compiler's own count is of no use here: it takes the body of a scan once, whatever its length.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from realm_jax.models import TransformerConfig, forward_flops
from realm_jax.plan.planned_run import MeshSizes
from realm_jax.retrieval.build_version import IndexSettings
from realm_jax.retrieval.device_rows import STORED
from realm_jax.retrieval.scann_index import ScannSettings
from realm_jax.tasks.task import EncoderPass, Program
from realm_jax.training.sharding import spec_of

FLOAT32 = 4


class StepFlops(NamedTuple):
    """FLOPs of one step of all devices."""

    model: float  # forward and backward: what mfu counts
    recomputed: float  # forward once more, where activations are made again in the backward pass


class StepBytes(NamedTuple):
    """Bytes that one device reads and writes in its memory in one step."""

    weights: float
    optimizer: float
    activations: float
    logits: float


def step_flops(program: Program, batch_size: int) -> StepFlops:
    """Of the global batch."""
    again = sum(_flops_made_again(one) for one in program.passes if one.trained)
    return StepFlops(batch_size * program.flops_per_example, batch_size * again)


def _flops_made_again(one: EncoderPass) -> float:
    """In the backward pass of an example's rows: all of them, or those of attention's pairs alone."""
    config = one.encoder
    if not config.remat:
        return 0.0
    if config.makes_products_again:
        return one.forward_flops
    pairs = one.length * (one.length + one.source_len)
    return 4.0 * one.rows * config.num_layers * pairs * config.hidden_size


def step_bytes(
    program: Program, batch_size: int, sizes: MeshSizes, accumulation_steps: int, trained_bytes: int
) -> StepBytes:
    """The least that a step moves: every matrix product reads its two arrays and writes one, all else is fused into them.

    Args:
      program: of the task.
      batch_size: of the global batch.
      sizes: of the mesh.
      accumulation_steps: micro-batches, each of which reads the weights anew.
      trained_bytes: of the parameters with moments that lie on one device.
    """
    weights = activations = 0.0
    for one in program.passes:
        # forward, again, two products backward; the gradient is read and written once a pass
        products = 3 + int(one.encoder.makes_products_again) if one.trained else 1
        weights += (products + 2 * one.trained) * layer_bytes(one) / sizes.tensor
        rows = batch_size * one.rows / sizes.num_devices
        activations += products * rows * pass_bytes(one)
    logits = program.logits
    rows = batch_size * logits.rows / sizes.rows
    return StepBytes(
        weights=accumulation_steps * weights,
        optimizer=8 * trained_bytes,  # reads parameter, gradient (twice: its norm), two moments; writes three
        activations=activations,
        # written and read forward, written and read backward, and the table in three products
        logits=FLOAT32 * (4 * rows * logits.vocab_size + 3 * logits.hidden_size * logits.vocab_size),
    )


def layer_bytes(one: EncoderPass) -> float:
    """Of the matrices of all layers, in float32."""
    config, attentions = one.encoder, 2 if one.source_len else 1
    hidden, wide = config.hidden_size, config.intermediate_size
    return FLOAT32 * config.num_layers * (4.0 * attentions * hidden * hidden + 2.0 * hidden * wide)


def pass_bytes(one: EncoderPass) -> float:
    """What the matrix products of a forward pass over one row read and write of activations, all layers."""
    config, length, source_len = one.encoder, one.length, one.source_len
    hidden, wide, size = config.hidden_size, config.intermediate_size, jnp.dtype(config.dtype).itemsize
    # query, key, value, out: 8 hidden; attention's two products: 4 hidden; feed-forward: 2 hidden, 2 wide
    of_tokens = length * (14.0 * hidden + 2 * wide) * size
    if source_len:  # query, out and attention's own: 6 hidden; of the source key, value and attention's: 6 hidden
        of_tokens += 6.0 * (length + source_len) * hidden * size
    of_pairs = length * 2 * config.num_heads * (length + source_len) * FLOAT32  # logits, in float32
    return config.num_layers * (of_tokens + of_pairs)


def kept_bytes(passes: Iterable[EncoderPass]) -> float:
    """What an example's passes keep for the backward pass, at least: each layer's input, or what its products give."""
    total = 0.0
    for one in (one for one in passes if one.trained):
        config, size = one.encoder, jnp.dtype(one.encoder.dtype).itemsize
        of_token = config.hidden_size * size
        of_source = 0
        if not config.remat or config.remat_saves == "products":
            of_token = (6 * config.hidden_size + config.intermediate_size) * size
            if one.source_len:
                of_token += 3 * config.hidden_size * size
                of_source = 2 * config.hidden_size * size  # keys and values
        if not config.remat:
            of_token += config.num_heads * (one.length + one.source_len) * FLOAT32
        total += one.rows * config.num_layers * (one.length * of_token + one.source_len * of_source)
    return total


def device_bytes(tree: Any, sizes: MeshSizes) -> int:
    """Of the part of parameters, or of anything with their paths, that lies on one device."""
    axes = sizes._asdict()
    total = 0
    for path, leaf in jax.tree.leaves_with_path(tree):
        size, spec = leaf.size, spec_of(path)
        for side, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and side % axes[axis] == 0 and len(leaf.shape) >= len(spec):
                size //= axes[axis]
        total += size * leaf.dtype.itemsize
    return total


def whole_bytes(tree: Any) -> int:
    """Of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def expected_sent_bytes(
    program: Program, batch_size: int, sizes: MeshSizes, accumulation_steps: int, gradient_bytes: int
) -> float:
    """What one device sends in a step, by rings: sums of gradients, parameters gathered over fsdp, sums over tensor.

    Args:
      program: of the task.
      batch_size: of the global batch.
      sizes: of the mesh.
      accumulation_steps: micro-batches, each of which gathers anew.
      gradient_bytes: of the trained parameters that lie on one device.
    """
    # summed within fsdp and scattered, then summed over data
    sent = (sizes.fsdp - 1) * gradient_bytes + 2 * (sizes.data - 1) / sizes.data * gradient_bytes
    for one in program.passes:
        gathered = (sizes.fsdp - 1) / sizes.fsdp * layer_bytes(one) / sizes.tensor
        sent += (1 + one.trained) * accumulation_steps * gathered  # forward, and again backward
        config = one.encoder
        hidden = batch_size * one.rows / sizes.rows * one.length * config.hidden_size
        sums = (
            (4 + 2 * config.makes_products_again) if one.trained else 2
        ) * config.num_layers  # two a layer, forward, again, backward
        sent += sums * 2 * (sizes.tensor - 1) / sizes.tensor * hidden * jnp.dtype(config.dtype).itemsize
    return sent


def corpus_flops(encoder: TransformerConfig, num_documents: int, mean_document_len: int) -> float:
    """Of embedding every document once."""
    return num_documents * forward_flops(encoder, mean_document_len)


class IndexBytes(NamedTuple):
    """What one version of the index takes of memory."""

    rows: int  # embeddings
    codes: int  # ScaNN's hash codes, of 4 bits


def index_bytes(settings: IndexSettings, num_documents: int, embed_dim: int) -> IndexBytes:
    """Of all documents, in float32 with ScaNN's codes where shards have a tree."""
    rows = num_documents * embed_dim * FLOAT32
    if settings.backend != "scann":
        return IndexBytes(rows, 0)
    num_shards = -(-num_documents // max(1, settings.shard_bytes // (FLOAT32 * embed_dim)))
    scann = settings.scann or ScannSettings.for_documents(-(-num_documents // num_shards))
    blocks = -(-embed_dim // scann.dims_per_block)
    return IndexBytes(rows, num_documents * -(-blocks // 2) if scann.num_leaves else 0)


def device_index_bytes(settings: IndexSettings, num_documents: int, embed_dim: int, always: bool = False) -> int:
    """Of the exact index on the devices that hold it, one version; 0 for an index that hosts search, unless `always`."""
    if settings.backend != "exact" and not always:
        return 0
    dtype = settings.exact.dtype
    scale = FLOAT32 if dtype == "int8" else 0  # of a row
    return num_documents * (embed_dim * STORED[dtype].itemsize + scale)


def resident_bytes(num_documents: int, document_len: int) -> int:
    """Of documents' pieces on the devices, two bytes each; titles and bodies together are about as long as a document's input."""
    return num_documents * (2 * document_len + 2 * 4)  # and the lengths of both
