"""Training steps as abstract values: enough to trace, lower and compile them, without a corpus or a parameter."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.data.ict import IctBatch
from realm_jax.data.inputs import Inputs, SpecialIds
from realm_jax.data.open_qa import OpenQaBatch
from realm_jax.data.own_document import OwnDocumentBatch
from realm_jax.data.tagger import TaggerBatch
from realm_jax.models import (
    KnowledgeEncoder,
    Retriever,
    RetrieverConfig,
    SpanReaderConfig,
    TransformerConfig,
    span_bounds,
)
from realm_jax.models.token_tagger import TokenTaggerConfig
from realm_jax.tasks import open_qa
from realm_jax.tasks.ict import ict_loss
from realm_jax.tasks.masked_lm import masked_lm_loss
from realm_jax.tasks.realm import RealmBatch, RealmModel, init_params, realm_loss
from realm_jax.tasks.tagger import init_tagger, tagger_loss
from realm_jax.tasks.task import Task
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import BATCH, state_shardings
from realm_jax.training.state import init_state, train_step

SPECIAL = SpecialIds(101, 102, 103)


def bert_base(**changes: Any) -> TransformerConfig:
    """As on an accelerator: bfloat16, activations recomputed."""
    return TransformerConfig(**({"dtype": "bfloat16", "remat": True} | changes))


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def inputs(*shape: int) -> Inputs:
    return Inputs(ints(*shape), ints(*shape))  # type: ignore[arg-type]


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
    documents = num_candidates - int(null_document)
    return RealmBatch(
        query=inputs(batch, query_len),
        documents=inputs(batch, documents, document_len),
        joint=inputs(batch, documents, joint_len),
        mask_positions=ints(batch, masks),
        mask_targets=ints(batch, masks),
        mask_weights=jax.ShapeDtypeStruct((batch, masks), jnp.float32),
        candidate_mask=jax.ShapeDtypeStruct((batch, num_candidates), jnp.bool_),
        is_gold=jax.ShapeDtypeStruct((batch, num_candidates), jnp.bool_),
    )  # type: ignore[arg-type]


def ict_batch(batch: int, query_len: int = 64, document_len: int = 288) -> IctBatch:
    return IctBatch(inputs(batch, query_len), inputs(batch, document_len), ints(batch))  # type: ignore[arg-type]


def bare_task(name: str, init: Any, loss: Any) -> Task:
    return Task(
        name=name,
        init=init,
        loss=loss,
        examples=None,  # type: ignore[arg-type]
        batch=None,  # type: ignore[arg-type]
        tokens_per_example=1,
        flops_per_example=1.0,
        can_accumulate=True,
    )


def realm_task(
    retriever: RetrieverConfig,
    reader: TransformerConfig,
    marginal: Literal["per_token", "per_span"] = "per_token",
    null_document: bool = True,
) -> Task:
    model = RealmModel(retriever, reader, null_document, SPECIAL)
    return bare_task(
        "realm",
        functools.partial(init_params, model=model),
        functools.partial(realm_loss, model=model, marginal=marginal),
    )


def masked_lm_task(reader: TransformerConfig) -> Task:
    def init(rng: jax.Array) -> Any:
        ids = jnp.ones((1, 8), jnp.int32)
        return {"knowledge_encoder": KnowledgeEncoder(reader).init(rng, ids, ids * 0, ids > 0, ids[:, :1])["params"]}

    return bare_task("masked_lm", init, functools.partial(masked_lm_loss, reader=reader))


def masked_lm_batch(batch: int, joint_len: int = 384, masks: int = 10) -> OwnDocumentBatch:
    weights = jax.ShapeDtypeStruct((batch, masks), jnp.float32)
    return OwnDocumentBatch(inputs(batch, joint_len), ints(batch, masks), ints(batch, masks), weights)  # type: ignore[arg-type]


def ict_task(retriever: RetrieverConfig) -> Task:
    def init(rng: jax.Array) -> Any:
        ids = jnp.ones((1, 8), jnp.int32)
        return {"retriever": Retriever(retriever).init(rng, ids, ids * 0, ids > 0)["params"]}

    return bare_task("ict", init, functools.partial(ict_loss, config=retriever))


def tagger_task(config: TokenTaggerConfig) -> Task:
    init, loss = functools.partial(init_tagger, config=config), functools.partial(tagger_loss, config=config)
    return bare_task("tagger", init, loss)


def tagger_batch(batch: int, length: int) -> TaggerBatch:
    return TaggerBatch(inputs(batch, length), ints(batch, length))  # type: ignore[arg-type]


def open_qa_task(retriever: RetrieverConfig, reader: SpanReaderConfig, train_documents: bool) -> Task:
    init = functools.partial(open_qa.init_params, retriever=retriever, reader=reader)
    loss = functools.partial(
        open_qa.open_qa_loss,
        retriever=retriever,
        reader=reader,
        sep_id=SPECIAL.sep,
        train_documents=train_documents,
        contrastive_weight=1.0,
    )
    frozen = () if train_documents else ("retriever/document_encoder",)
    return bare_task("open_qa", init, loss)._replace(frozen=frozen)


def open_qa_batch(
    batch: int, retriever: RetrieverConfig, reader: SpanReaderConfig, train_documents: bool, contrasted: int
) -> OpenQaBatch:
    num_retrieved, num_read, joint_len, document_len = 20, 3, 32, 24

    def flags(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), jnp.bool_)

    return OpenQaBatch(
        query=inputs(batch, 16),
        retrieved_embeds=jax.ShapeDtypeStruct((batch, num_retrieved, retriever.embed_dim), jnp.float32),
        retrieved_mask=flags(num_retrieved),
        has_answer=flags(num_retrieved),
        joint=inputs(batch, num_read, joint_len),
        is_answer=flags(num_read, len(span_bounds(joint_len, reader.max_span_width)[0])),
        documents=inputs(batch, num_read * train_documents + contrasted, document_len),
        is_positive=flags(contrasted),
        contrasted_mask=flags(contrasted),
        contrasted_ids=ints(batch, contrasted),
    )  # type: ignore[arg-type]


def jitted_step(task: Task, mesh: Mesh, batch: Any, accumulation_steps: int = 1) -> tuple[Any, tuple[Any, Any, Any]]:
    """The loop's jitted step and the abstract values to lower it with."""
    config = OptimizerConfig()
    learners = tuple(jax.eval_shape(task.init, jax.random.key(0)))
    optimizer = config.build(200_000, learners, task.frozen)
    state = jax.eval_shape(functools.partial(init_state, task=task, optimizer=optimizer), jax.random.key(0))
    shardings = state_shardings(mesh, state)
    step = jax.jit(
        functools.partial(
            train_step,
            task=task,
            optimizer=optimizer,
            schedules={name: config.schedule(200_000, name) for name in learners},
            accumulation_steps=accumulation_steps,
            dropout=True,
        ),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )

    def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return step, (
        jax.tree.map(placed, state, shardings),
        jax.tree.map(lambda leaf: placed(leaf, NamedSharding(mesh, BATCH)), batch),
        jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, P())),
    )


def mesh_of(devices: Any, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """As `MeshConfig.build`, for devices that are not there: `jax.make_mesh` refuses a chip's two cores by themselves."""
    return Mesh(np.asarray(devices).reshape(-1, fsdp, tensor), ("data", "fsdp", "tensor"))
