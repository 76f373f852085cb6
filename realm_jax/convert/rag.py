"""DPR's encoders, BART, and RAG, which is a question encoder of the one kind and a generator of the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from realm_jax.convert import bart_names, bert_names
from realm_jax.convert.folder import Folder
from realm_jax.convert.generator_settings import (
    dpr_config,
    dpr_settings,
    generator_config,
    generator_settings,
    rag_parts,
    rag_settings,
)
from realm_jax.convert.layout import Layout, fill
from realm_jax.convert.model import Model
from realm_jax.models import EncoderDecoderConfig, RetrieverConfig

DPR_CLASSES = ("DPRQuestionEncoder", "DPRContextEncoder")
BART_CLASSES = ("BartModel", "BartForConditionalGeneration")
RAG_CLASSES = ("RagModel", "RagSequenceForGeneration", "RagTokenForGeneration")
CLASSES = (*DPR_CLASSES, *BART_CLASSES, *RAG_CLASSES)
_QUESTION, _GENERATOR = "question_encoder.", "generator."


def read(folder: Folder, architecture: str) -> Model:
    """The model of one of these classes: a tied retriever of DPR, a generator of BART, both of RAG.

    Raises:
      ValueError: settings that are not computed here; tensors that do not fit them, all named.
    """
    if architecture in DPR_CLASSES:
        retriever, generator = dpr_config(folder.settings), None
    elif architecture in BART_CLASSES:
        retriever, generator = None, generator_config(folder.settings, folder.generation)
    else:
        question_encoder, of_generator = rag_parts(folder.settings)
        retriever, generator = dpr_config(question_encoder), generator_config(of_generator, {})
    names = folder.tensors
    layout = layout_of(architecture, retriever, generator, _prefix(architecture, names), has_bias=_has_bias(names))
    filled = fill(layout, names, f"{folder.path} as {architecture}")
    params = filled.params
    if generator is not None and "output_bias" not in params["generator"]:
        params["generator"]["output_bias"] = np.zeros(generator.vocab_size, np.float32)
    return Model(params, retriever=retriever, generator=generator, unused=filled.unused, generation=folder.generation)


def _prefix(architecture: str, names: Mapping[str, np.ndarray]) -> str:
    """What stands before all names: a class's base model may be saved with and without the class."""
    prefix = {**dict.fromkeys(BART_CLASSES, "model."), **dict.fromkeys(RAG_CLASSES, "rag.")}.get(architecture, "")
    return prefix if any(name.startswith(prefix) for name in names) else ""


def _has_bias(names: Mapping[str, np.ndarray]) -> bool:
    return any(name.endswith(bart_names.OUTPUT_BIAS) for name in names)


def layout_of(
    architecture: str,
    retriever: RetrieverConfig | None,
    generator: EncoderDecoderConfig | None,
    prefix: str,
    encoder: str = "shared_encoder",
    has_bias: bool = True,
) -> Layout:
    """The layout of one of these classes.

    Args:
      architecture: the class.
      retriever, generator: the configurations of its learners.
      prefix: before the names of BART or RAG.
      encoder: the part of the retriever that is there.
      has_bias: whether the output's bias is there; it is no weight, and older files leave it out.

    Raises:
      ValueError: the learners are not those of the class.
    """
    lacking = [
        name
        for name, config, without in (("retriever", retriever, BART_CLASSES), ("generator", generator, DPR_CLASSES))
        if config is None and architecture not in without
    ]
    if lacking:
        raise ValueError(f"{architecture} holds a {' and a '.join(lacking)}, which this model has not")
    if architecture in DPR_CLASSES:
        assert retriever is not None
        return _dpr(retriever, "question_encoder." if architecture == "DPRQuestionEncoder" else "ctx_encoder.", encoder)
    assert generator is not None
    if architecture in BART_CLASSES:
        return _bart(generator, prefix, "", has_bias)
    assert retriever is not None
    question = _dpr(retriever, f"{prefix}{_QUESTION}question_encoder.", encoder)
    return question + _bart(generator, f"{prefix}{_GENERATOR}model.", f"{prefix}{_GENERATOR}", has_bias)


def _dpr(config: RetrieverConfig, name: str, encoder: str) -> Layout:
    """BERT; older files hold its pooler, which the class does not have."""
    bert = f"{name}bert_model."
    pooler = bert_names.unused(bert_names.pooler(config.encoder, bert, ""))
    return bert_names.body(config.encoder, bert, f"retriever/{encoder}/encoder") + pooler


def _bart(config: EncoderDecoderConfig, name: str, output: str, has_bias: bool) -> Layout:
    layout = bart_names.generator(config, name, "generator", f"{output}lm_head.weight")
    return layout + bart_names.output_bias(config, output, "generator") if has_bias else layout


def outgoing(architecture: str, model: Model, encoder: str) -> tuple[Layout, dict[str, Any]]:
    """Layout and settings of a folder of one of these classes; `encoder` is the part of the retriever that goes out.

    Raises:
      ValueError: a model that the class does not compute.
    """
    prefix = {**dict.fromkeys(BART_CLASSES[1:], "model."), **dict.fromkeys(RAG_CLASSES[1:], "rag.")}.get(
        architecture, ""
    )
    has_bias = architecture != "BartModel"
    layout = layout_of(architecture, model.retriever, model.generator, prefix, encoder, has_bias)
    if not has_bias and np.any(model.params["generator"]["output_bias"]):
        raise ValueError("the generator has an output bias, and BartModel none; write a BartForConditionalGeneration")
    retriever, generator = model.retriever, model.generator
    if architecture in DPR_CLASSES:
        assert retriever is not None
        return layout, dpr_settings(retriever)
    assert generator is not None
    if architecture in BART_CLASSES:
        return layout, generator_settings(generator)
    assert retriever is not None
    earlier = model.settings if model.settings.get("model_type", "rag") == "rag" else {}
    return layout, rag_settings(retriever, generator, earlier)
