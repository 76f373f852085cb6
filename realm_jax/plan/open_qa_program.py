"""What of open-domain QA is compiled, from its settings alone."""

import functools
from typing import Any

import jax.numpy as jnp

from realm_jax.data.inputs import SpecialIds
from realm_jax.data.open_qa import OpenQaBatch
from realm_jax.models import span_bounds
from realm_jax.tasks.open_qa import OpenQa, init_params, open_qa_loss
from realm_jax.tasks.task import EncoderPass, Program, array_shape, input_shapes


def open_qa_program(settings: OpenQa, special: SpecialIds) -> Program:
    """The pure functions of `settings.build`, and the shapes of `DocumentJoiner`'s batches."""
    retriever, reader = settings.retriever, settings.reader
    num_contrasted = 1 + settings.num_hard_negatives if settings.num_hard_negatives else 0
    num_encoded = settings.num_read * settings.train_documents + num_contrasted
    num_spans = len(span_bounds(settings.joint_len, reader.max_span_width)[0])

    def batch_shapes(batch_size: int) -> OpenQaBatch:
        def flags(*shape: int) -> Any:
            return array_shape(jnp.bool_, batch_size, *shape)

        return OpenQaBatch(
            query=input_shapes(batch_size, settings.query_len),
            retrieved_embeds=array_shape(jnp.float32, batch_size, settings.num_retrieved, retriever.embed_dim),
            retrieved_mask=flags(settings.num_retrieved),
            has_answer=flags(settings.num_retrieved),
            joint=input_shapes(batch_size, settings.num_read, settings.joint_len),
            is_answer=flags(settings.num_read, num_spans),
            documents=input_shapes(batch_size, num_encoded, settings.document_len),
            is_positive=flags(num_contrasted),
            contrasted_mask=flags(num_contrasted),
            contrasted_ids=array_shape(jnp.int32, batch_size, num_contrasted),
        )

    passes = [EncoderPass(retriever.encoder, 1, settings.query_len)]
    if num_encoded:
        passes.append(EncoderPass(retriever.encoder, num_encoded, settings.document_len))
    passes.append(EncoderPass(reader.encoder, settings.num_read, settings.joint_len))
    return Program(
        name="open_qa",
        init=functools.partial(init_params, retriever=retriever, reader=reader),
        loss=functools.partial(
            open_qa_loss,
            retriever=retriever,
            reader=reader,
            sep_id=special.sep,
            train_documents=settings.train_documents,
            contrastive_weight=settings.contrastive_weight,
        ),
        batch_shapes=batch_shapes,
        passes=tuple(passes),
        tokens_per_example=settings.query_len
        + settings.num_read * settings.joint_len
        + num_encoded * settings.document_len,
        can_accumulate=settings.num_hard_negatives == 0,
        frozen=() if settings.train_documents else ("retriever/document_encoder",),
        retriever=retriever,
        query_len=settings.query_len,
        document_len=settings.document_len,
    )
