"""Training steps as abstract values: enough to trace, lower and compile them, without a corpus or a parameter."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from realm_jax.data.ict import IctBatch
from realm_jax.data.inputs import Inputs, SpecialIds
from realm_jax.data.masking import MaskingConfig
from realm_jax.data.open_qa import OpenQaBatch
from realm_jax.data.own_document import Lesson, OwnDocumentBatch
from realm_jax.data.tagger import TaggerBatch
from realm_jax.models import RetrieverConfig, SpanReaderConfig, TransformerConfig
from realm_jax.models.token_tagger import TokenTaggerConfig
from realm_jax.plan.planned_run import MeshSizes
from realm_jax.plan.programs import mesh_over, train_program, without_data
from realm_jax.tasks.ict import Ict
from realm_jax.tasks.masked_lm import MaskedLm
from realm_jax.tasks.open_qa import OpenQa
from realm_jax.tasks.realm import Realm, RealmBatch
from realm_jax.tasks.tagger import init_tagger, tagger_loss
from realm_jax.tasks.task import Program, Task, input_shapes
from realm_jax.training.optimizer import OptimizerConfig

SPECIAL = SpecialIds(101, 102, 103)
NOWHERE = "nowhere"  # the corpus of tasks that open none


def bert_base(**changes: Any) -> TransformerConfig:
    """As on an accelerator: bfloat16, activations recomputed."""
    return TransformerConfig(**({"dtype": "bfloat16", "remat": True} | changes))


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def inputs(*shape: int) -> Inputs:
    return input_shapes(*shape)


def realm_batch(
    batch: int,
    num_candidates: int = 8,
    query_len: int = 96,
    document_len: int = 288,
    joint_len: int = 384,
    masks: int = 10,
    null_document: bool = True,
) -> RealmBatch:
    """Abstract arrays of a batch; the null document, if there is one, takes one of the candidates."""
    settings = Realm(
        NOWHERE,
        RetrieverConfig(bert_base()),
        bert_base(),
        num_candidates=num_candidates,
        null_document=null_document,
        masking=MaskingConfig(max_masks=masks),
        query_len=query_len,
        document_len=document_len,
        joint_len=joint_len,
    )
    return settings.program(SPECIAL).batch_shapes(batch)


def ict_batch(batch: int, query_len: int = 64, document_len: int = 288) -> IctBatch:
    settings = Ict(NOWHERE, RetrieverConfig(bert_base()), query_len=query_len, document_len=document_len)
    return settings.program(SPECIAL).batch_shapes(batch)


def realm_task(
    retriever: RetrieverConfig,
    reader: TransformerConfig,
    marginal: Literal["per_token", "per_span"] = "per_token",
    null_document: bool = True,
) -> Task:
    return without_data(
        Realm(NOWHERE, retriever, reader, marginal=marginal, null_document=null_document).program(SPECIAL)
    )


def masked_lm_task(reader: TransformerConfig) -> Task:
    return without_data(MaskedLm(NOWHERE, reader).program(SPECIAL))


def masked_lm_batch(batch: int, joint_len: int = 384, masks: int = 10) -> OwnDocumentBatch:
    settings = MaskedLm(NOWHERE, bert_base(), lessons=(Lesson(0, joint_len),), max_masks=masks)
    return settings.program(SPECIAL).batch_shapes(batch)


def ict_task(retriever: RetrieverConfig) -> Task:
    return without_data(Ict(NOWHERE, retriever).program(SPECIAL))


def tagger_task(config: TokenTaggerConfig) -> Task:
    """A tagger of any number of labels."""
    return without_data(
        Program(
            name="tagger",
            init=functools.partial(init_tagger, config=config),
            loss=functools.partial(tagger_loss, config=config),
            batch_shapes=functools.partial(tagger_batch, length=24),
            passes=(),
            tokens_per_example=24,
            can_accumulate=True,
        )
    )


def tagger_batch(batch: int, length: int) -> TaggerBatch:
    return TaggerBatch(inputs(batch, length), ints(batch, length))  # type: ignore[arg-type]


def open_qa_program_of(
    retriever: RetrieverConfig, reader: SpanReaderConfig, train_documents: bool, contrasted: int
) -> Program:
    settings = OpenQa(
        NOWHERE,
        NOWHERE,
        retriever,
        reader,
        num_retrieved=20,
        num_read=3,
        query_len=16,
        joint_len=32,
        document_len=24,
        train_documents=train_documents,
        num_hard_negatives=max(contrasted - 1, 0),
    )
    return settings.program(SPECIAL)


def open_qa_task(retriever: RetrieverConfig, reader: SpanReaderConfig, train_documents: bool) -> Task:
    return without_data(open_qa_program_of(retriever, reader, train_documents, 0))


def open_qa_batch(
    batch: int, retriever: RetrieverConfig, reader: SpanReaderConfig, train_documents: bool, contrasted: int
) -> OpenQaBatch:
    return open_qa_program_of(retriever, reader, train_documents, contrasted).batch_shapes(batch)


def jitted_step(task: Task, mesh: Mesh, batch: Any, accumulation_steps: int = 1) -> tuple[Any, tuple[Any, Any, Any]]:
    """The loop's jitted step and the abstract values to lower it with."""
    jitted, values, _ = train_program(task, batch, mesh, OptimizerConfig(), 200_000, accumulation_steps)
    state, rows, key = values
    return jitted, (state, rows, key)


def mesh_of(devices: Any, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """As `MeshConfig.build`, for devices that are not there."""
    return mesh_over(devices, MeshSizes(len(devices) // (fsdp * tensor), fsdp, tensor))
