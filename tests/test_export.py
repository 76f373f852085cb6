"""Every jitted program lowers for TPU and GPU on a machine that has neither."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import export

from realm_jax.data.inputs import Inputs
from realm_jax.evaluation.masked_spans import predict_spans
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.embedder import embed_inputs
from realm_jax.tasks.realm import RealmModel, embed_queries, init_params
from realm_jax.training.sharding import MeshConfig
from tests import abstract_steps, tiny

ENCODER = tiny.encoder(dtype="bfloat16", remat=True)
RETRIEVER = RetrieverConfig(encoder=ENCODER, projection_size=16)
PLATFORMS = ["tpu", "cuda"]


def lowered(program, *values, **kwargs):
    exported = export.export(program, platforms=PLATFORMS)(*values, **kwargs)
    assert list(exported.platforms) == PLATFORMS and exported.mlir_module_serialized
    return exported


def params():
    model = RealmModel(RETRIEVER, ENCODER, True, abstract_steps.SPECIAL)
    return jax.eval_shape(functools.partial(init_params, model=model), jax.random.key(0)), model


def batch():
    return abstract_steps.realm_batch(8, 4, query_len=16, document_len=24, joint_len=32, masks=3)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_realm_step(accumulation_steps):
    task = abstract_steps.realm_task(RETRIEVER, ENCODER)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    step, values = abstract_steps.jitted_step(task, mesh, batch(), accumulation_steps)
    assert lowered(step, *values).nr_devices == 8


def test_ict_step():
    step, values = abstract_steps.jitted_step(
        abstract_steps.ict_task(RETRIEVER), MeshConfig().build(), abstract_steps.ict_batch(8, 12, 24)
    )
    assert lowered(step, *values).nr_devices == 8


def test_embeddings_of_queries_and_documents():
    whole, _ = params()
    query = abstract_steps.inputs(8, 16)
    queries = jax.jit(functools.partial(embed_queries, config=RETRIEVER))
    assert lowered(queries, whole, query).out_avals[0].shape == (8, 16)
    for method in ("embed_documents", "embed_queries"):
        out = lowered(embed_inputs, whole["retriever"], *query, config=RETRIEVER, method=method).out_avals[0]
        assert out.shape == (8, 16) and out.dtype == jnp.float32
    assert isinstance(query, Inputs)


@pytest.mark.parametrize("null_document", [True, False])
def test_span_prediction(null_document):
    whole, model = params()
    program = jax.jit(functools.partial(predict_spans, model=model._replace(null_document=null_document)))
    values = batch()
    if not null_document:
        values = values._replace(
            candidate_mask=jax.ShapeDtypeStruct((8, 3), jnp.bool_), is_gold=jax.ShapeDtypeStruct((8, 3), jnp.bool_)
        )
    assert lowered(program, whole, values).out_avals[0].shape == (8, 3)
