"""Gives a model what it lacks: a projection, a masked-LM head or a span scorer to be taught, or an encoder of documents beside
the questions'."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.convert.model import Model
from realm_jax.models import KnowledgeEncoder, Retriever, RetrieverConfig, SpanReader, SpanReaderConfig
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
    params = _laid_over(_initial(Retriever(config).init, seed), model.params["retriever"])
    return dataclasses.replace(model, retriever=config, params={**model.params, "retriever": params})


def with_masked_lm(model: Model, seed: int = 0) -> Model:
    """Adds a knowledge encoder that starts from the retriever's BERT: its vocabulary matrix is the token embedding, the layer
    before it is at random. A sentence encoder such as MiniLM has lost its own head, and must be taught to predict pieces again
    (task masked_lm) before REALM reads with it.

    Raises:
      ValueError: it has a knowledge encoder already, or no BERT to start from.
    """
    if model.knowledge_encoder is not None:
        raise ValueError("masked_lm=True adds a masked-LM head to a model without; the source has one")
    if model.retriever is None or not model.retriever.tied:
        raise ValueError("masked_lm=True needs a tied retriever's BERT to start from; the source has none")
    config, weights = model.retriever.encoder, model.params["retriever"]["shared_encoder"]["encoder"]
    initial = _initial(lambda rng, *inputs: KnowledgeEncoder(config).init(rng, *inputs, inputs[0][:, :1]), seed)
    params = {**model.params, "knowledge_encoder": _laid_over(initial, {"encoder": weights})}
    return dataclasses.replace(model, knowledge_encoder=config, params=params)


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
    params = _laid_over(_initial(SpanReader(config).init, seed), {"encoder": weights})
    return dataclasses.replace(model, span_reader=config, params={**model.params, "span_reader": params})


def with_document_encoder(model: Model, documents: Model | None = None) -> Model:
    """Unties the retriever of RealmForOpenQA or RAG, whose embedder embeds questions alone: fine-tuning moved it away from the one
    that made the documents' embeddings (REALM, arXiv:2002.08909, section 4.3: the document side stays as it was pre-trained; RAG,
    arXiv:2005.11401, section 2.4: so does the document encoder and the index). DPR and DRAGON have two from the beginning.

    Args:
      model: with a tied retriever.
      documents: whose retriever made the embeddings, on the documents' side; None puts the questions' encoder in its place,
        which embeds nothing that is in the index, but new documents and the null document, about right.

    Raises:
      ValueError: the other model has no retriever, one of another shape, or reads the pieces of another vocabulary.
    """
    config = model.retriever
    assert config is not None and config.tied, "what embeds questions alone is read with a tied retriever"
    shared = model.params["retriever"]["shared_encoder"]
    encoder = shared
    if documents is not None:
        expected = _expected_embedder(model)
        _check_same_retriever(config, documents, expected)
        own = documents.params["retriever"]
        encoder = own["shared_encoder" if "shared_encoder" in own else "document_encoder"]
        pieces = [one.tokenizer.fingerprint for one in (model, documents) if one.tokenizer is not None]
        if len(set(pieces)) > 1:
            raise ValueError(
                f"document_embedder has the vocabulary {pieces[1][:12]}, the source {pieces[0][:12]}; name the {expected}"
            )
    untied = dataclasses.replace(config, tied=False)
    params = {**model.params, "retriever": {"query_encoder": shared, "document_encoder": encoder}}
    return dataclasses.replace(model, retriever=untied, params=params)


# What no embedding depends on.
_ONLY_IN_TRAINING = ("dropout_rate", "attention_dropout_rate", "activation_dropout_rate", "initializer_range")


def _expected_embedder(model: Model) -> str:
    if model.architecture in ("BertModel", "Contriever"):
        return f"{model.architecture} that was trained beside the source, for the documents"
    kind = "RealmEmbedder" if model.retriever and model.retriever.projection_size else "DPRContextEncoder"
    return f"{kind} that the source was fine-tuned from"


def _check_same_retriever(config: RetrieverConfig, documents: Model, expected: str) -> None:
    if documents.retriever is None:
        raise ValueError(f"document_embedder is a {documents.architecture} without a retriever; name a {expected}")
    ours, theirs = (
        {**dataclasses.asdict(one), **dataclasses.asdict(one)["encoder"]} for one in (config, documents.retriever)
    )
    differing = [
        f"{name} {theirs[name]} (the source {ours[name]})"
        for name in ours
        if ours[name] != theirs[name] and name not in ("encoder", "tied", *_ONLY_IN_TRAINING)
    ]
    if differing:
        raise ValueError(f"document_embedder has {', '.join(differing)}; name the {expected}")


def _initial(init: Callable[..., Any], seed: int) -> dict[str, np.ndarray]:
    ids = jnp.ones((1, 4), jnp.int32)
    return flatten_params(jax.device_get(jax.jit(init)(jax.random.key(seed), ids, ids * 0, ids > 0)["params"]))


def _laid_over(initial: dict[str, np.ndarray], params: Mapping[str, Any]) -> dict[str, Any]:
    found = flatten_params(params)
    assert set(found) <= set(initial), "the added part changed other names"
    return nest_params({**initial, **found})
