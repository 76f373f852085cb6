"""What a step and a refresh cost, by the shapes of their arrays: FLOPs, bytes of memory, bytes between devices.

The compiler's own count is of no use here: it takes the body of a scan once, whatever its length.
"""

from typing import Any, NamedTuple

import jax

from realm_jax.models import TransformerConfig, forward_flops
from realm_jax.plan.planned_run import MeshSizes
from realm_jax.retrieval.build_version import IndexSettings
from realm_jax.retrieval.device_rows import STORED
from realm_jax.retrieval.scann_index import ScannSettings
from realm_jax.tasks.passes import FLOAT32, EncoderPass, LanguageModelPass
from realm_jax.tasks.task import Program
from realm_jax.training.sharding import parts_along, spec_of


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
    again = sum(one.recomputed_flops for one in program.passes)
    return StepFlops(batch_size * program.flops_per_example, batch_size * again)


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
    weights = accumulation_steps * sum(one.moved_weight_bytes for one in program.passes) / sizes.tensor
    activations = batch_size * sum(one.moved_activation_bytes for one in program.passes) / sizes.num_devices
    logits = program.logits
    rows, vocab = batch_size * logits.rows / sizes.rows, logits.vocab_size / (sizes.tensor if logits.is_cut else 1)
    return StepBytes(
        weights=weights,
        optimizer=8 * trained_bytes,  # reads parameter, gradient (twice: its norm), two moments; writes three
        activations=activations,
        # written and read forward, written and read backward, and the table in each product
        logits=FLOAT32 * (4 * rows * vocab + logits.products * logits.hidden_size * vocab),
    )


def kept_bytes(program: Program) -> float:
    """What an example's passes keep for the backward pass, at least."""
    return sum(one.kept_bytes for one in program.passes)


def working_bytes(program: Program) -> float:
    """Beside what is kept: an example's logits or, when they are gone, one layer of one pass; at least, but for what is held of a
    language model's attention, see `held_attention_bytes`."""
    return max(program.logits.working_bytes, *(one.working_bytes + held_attention_bytes(one) for one in program.passes))


HELD_ATTENTION_ARRAYS = 3.75
"""Arrays of the size of attention's weights, in float32, that the one layer made again holds beside the one of `working_bytes`.

Its backward pass has the logits of all pairs, their weights, and the gradients of both; which of them live at once the compiler decides. So
this is measured, at the one language model that was compiled: 7B on v5p:2x2x1, 16 rows a chip, needs 73.3 GiB, by the shapes with one such
array 43.5 GiB, and an array is 8 GiB.
"""


def held_attention_bytes(one: EncoderPass | LanguageModelPass) -> float:
    """Of an example, what a compiler holds of a language model's attention beside the weights of one layer; 0 for other models, whose
    rows are short, and where nothing is made again, as each layer's weights are kept.

    >>> from realm_jax.models import LanguageModelConfig
    >>> of_7b = LanguageModelPass(LanguageModelConfig(remat=True), rows=1, length=2048)
    >>> held_attention_bytes(of_7b) / 2**30  # 32 heads * 2048 * 2048 * 4 bytes = half a GiB
    1.875
    """
    if not isinstance(one, LanguageModelPass) or not one.working_bytes:
        return 0.0
    return HELD_ATTENTION_ARRAYS * FLOAT32 * one.rows * one.model.num_heads * one.length**2


def device_bytes(tree: Any, sizes: MeshSizes) -> int:
    """Of the part of parameters, or of anything with their paths, that lies on one device."""
    axes = sizes._asdict()
    total = 0
    for path, leaf in jax.tree.leaves_with_path(tree):
        size, spec = leaf.size, spec_of(path)
        for side, axis in zip(leaf.shape, spec, strict=False):
            parts = parts_along(axis, axes)
            if side % parts == 0 and len(leaf.shape) >= len(spec):
                size //= parts
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
        gathered = (sizes.fsdp - 1) / sizes.fsdp * one.layer_bytes / sizes.tensor
        sent += one.gathers * accumulation_steps * gathered
        sent += 2 * (sizes.tensor - 1) / sizes.tensor * batch_size / sizes.rows * one.summed_bytes
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
