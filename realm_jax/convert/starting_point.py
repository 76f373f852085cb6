"""Makes a starting point of a model: a projection or a span scorer that it lacks, at random, on top of what it has."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.convert.hugging_face import Model
from realm_jax.models import Retriever, SpanReader, SpanReaderConfig
from realm_jax.training.snapshots import flatten_params, nest_params


def with_projection(model: Model, projection_size: int, seed: int = 0) -> Model:
    """Adds REALM's projection and LayerNorm to a retriever without: how ORQA and REALM start from BERT.

    Raises:
      ValueError: there is no retriever, or it projects already.
    """
    config = model.retriever
    if config is None or config.projection_size is not None:
        has = "no retriever" if config is None else f"a retriever that projects to {config.projection_size}"
        raise ValueError(
            f"projection_size={projection_size} adds a projection to a retriever without; the source has {has}"
        )
    config = dataclasses.replace(config, projection_size=projection_size)
    params = _laid_over(_initial(Retriever(config), seed), model.params["retriever"])
    return dataclasses.replace(model, retriever=config, params={**model.params, "retriever": params})


def with_span_reader(model: Model, seed: int = 0) -> Model:
    """Adds a span reader that starts from BERT: its encoder is the knowledge encoder's, or else the retriever's.

    Raises:
      ValueError: it has a span reader already.
    """
    if model.span_reader is not None:
        raise ValueError("span_reader=True adds a span reader to a model without; the source has one")
    if model.knowledge_encoder is not None:
        encoder, weights = model.knowledge_encoder, model.params["knowledge_encoder"]["encoder"]
    elif model.retriever is not None and model.retriever.tied:
        encoder, weights = model.retriever.encoder, model.params["retriever"]["shared_encoder"]["encoder"]
    else:
        raise ValueError("span_reader=True needs a BERT to start from; the source has none")
    config = SpanReaderConfig(encoder)
    params = _laid_over(_initial(SpanReader(config), seed), {"encoder": weights})
    return dataclasses.replace(model, span_reader=config, params={**model.params, "span_reader": params})


def _initial(module: Retriever | SpanReader, seed: int) -> dict[str, np.ndarray]:
    ids = jnp.ones((1, 4), jnp.int32)
    return flatten_params(jax.device_get(jax.jit(module.init)(jax.random.key(seed), ids, ids * 0, ids > 0)["params"]))


def _laid_over(initial: dict[str, np.ndarray], params: Mapping[str, Any]) -> dict[str, Any]:
    found = flatten_params(params)
    assert set(found) <= set(initial), "the added part changed other names"
    return nest_params({**initial, **found})
