"""config.json of BART, DPR and RAG, and the configurations here."""

import typing
from typing import Any

from realm_jax.convert.settings import (
    Settings,
    activation,
    check_fixed,
    check_sizes,
    encoder_config,
    encoder_settings,
    number,
)
from realm_jax.generation import GenerationConfig
from realm_jax.models import EncoderDecoderConfig, RetrieverConfig
from realm_jax.typed import conforms

_BART_SIZES = ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
               "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings")  # fmt: skip
# What the older settings of BART could say, and its class always does.
_BART_FIXED = {"tie_word_embeddings": True, "normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True,
               "static_position_embeddings": False, "add_bias_logits": False}  # fmt: skip
_BART_COMPUTES = {"position_offset": 2, "layer_norm_eps": 1e-5}
_DPR_COMPUTES = {"projection_size": None, "pooling": "cls", "normalize": False, "score_scale": 1.0}
# What the generator reads is put together with these; see data.rag.
_RAG_FIXED = {"title_sep": " / ", "doc_sep": " // "}
_RAG_PARTS = {"question_encoder": "dpr", "generator": "bart"}


def generator_config(settings: Settings, generation: Settings) -> EncoderDecoderConfig:
    """The configuration of a BART.

    Args:
      settings: config.json, or the generator's part of RAG's.
      generation: generation_config.json, which then says alone what generated texts are forced to begin and end with; empty
        where there is none.

    Raises:
      ValueError: a size that is not there, an id that is none, something that is not computed here.
    """
    check_sizes(settings, _BART_SIZES, "a BART", ("encoder_layers", "decoder_layers"))
    check_fixed(settings, _BART_FIXED)
    pad, bos, eos, start = (
        _token_id(settings, f"{name}_token_id", default)
        for name, default in (("pad", 1), ("bos", 0), ("eos", 2), ("decoder_start", 2))
    )
    forced = generation or settings
    forced_bos = forced.get("forced_bos_token_id")
    if forced_bos is None and not generation and settings.get("force_bos_token_to_be_generated") is True:
        forced_bos = bos  # how older settings say it
    forced_eos = forced.get("forced_eos_token_id", None if generation else 2)
    return EncoderDecoderConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["d_model"],
        num_encoder_layers=settings["encoder_layers"],
        num_decoder_layers=settings["decoder_layers"],
        num_encoder_heads=settings["encoder_attention_heads"],
        num_decoder_heads=settings["decoder_attention_heads"],
        encoder_intermediate_size=settings["encoder_ffn_dim"],
        decoder_intermediate_size=settings["decoder_ffn_dim"],
        max_length=settings["max_position_embeddings"],
        activation=activation(settings, "activation_function"),
        dropout_rate=number(settings, "dropout", 0.1),
        attention_dropout_rate=number(settings, "attention_dropout", 0.0),
        activation_dropout_rate=number(settings, "activation_dropout", 0.0),
        initializer_range=number(settings, "init_std", 0.02),
        scale_embedding=settings.get("scale_embedding") is True,
        pad_id=pad,
        bos_id=bos,
        eos_id=eos,
        decoder_start_id=start,
        forced_bos_id=None
        if forced_bos is None
        else _token_id({"forced_bos_token_id": forced_bos}, "forced_bos_token_id"),
        forced_eos_id=None
        if forced_eos is None
        else _token_id({"forced_eos_token_id": forced_eos}, "forced_eos_token_id"),
    )


def _token_id(settings: Settings, name: str, default: int = 0) -> int:
    value = settings.get(name, default)
    if type(value) is not int or value < 0:
        raise ValueError(f"config.json has {name}={value!r}, expected one token id")
    return value


def generator_settings(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The inverse of `generator_config`.

    Raises:
      ValueError: for a generator that is no BART.
    """
    others = [
        f"{name}={getattr(config, name)!r}" for name, value in _BART_COMPUTES.items() if getattr(config, name) != value
    ]
    if others:
        raise ValueError(
            f"the generator has {', '.join(others)}, and BART {_listed(_BART_COMPUTES)}; train one with these to take it elsewhere"
        )
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "num_hidden_layers": config.num_encoder_layers,
        "encoder_attention_heads": config.num_encoder_heads,
        "decoder_attention_heads": config.num_decoder_heads,
        "encoder_ffn_dim": config.encoder_intermediate_size,
        "decoder_ffn_dim": config.decoder_intermediate_size,
        "max_position_embeddings": config.max_length,
        "activation_function": config.activation,
        "dropout": config.dropout_rate,
        "attention_dropout": config.attention_dropout_rate,
        "activation_dropout": config.activation_dropout_rate,
        "init_std": config.initializer_range,
        "scale_embedding": config.scale_embedding,
        "is_encoder_decoder": True,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.decoder_start_id,
        "forced_bos_token_id": config.forced_bos_id,
        "forced_eos_token_id": config.forced_eos_id,
        "model_type": "bart",
    }


def dpr_config(settings: Settings) -> RetrieverConfig:
    """The configuration of a DPR encoder, as a tied retriever: BERT's hidden state at [CLS].

    Raises:
      ValueError: it has a projection, which is not computed here, or is no BERT.
    """
    check_fixed(settings, {"projection_dim": 0})
    return RetrieverConfig(encoder_config(settings), projection_size=None)


def dpr_settings(config: RetrieverConfig) -> dict[str, Any]:
    """The inverse of `dpr_config`.

    Raises:
      ValueError: for a retriever that is none of DPR's.
    """
    others = [
        f"{name}={getattr(config, name)!r}" for name, value in _DPR_COMPUTES.items() if getattr(config, name) != value
    ]
    if others:
        raise ValueError(
            f"the retriever has {', '.join(others)}; DPR's encoders have {_listed(_DPR_COMPUTES)}, train one with these"
        )
    return {**encoder_settings(config.encoder, "retriever"), "projection_dim": 0, "model_type": "dpr"}


def rag_parts(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a RagConfig: question encoder and generator.

    Raises:
      ValueError: they are not there, or of another kind.
    """
    check_fixed(settings, _RAG_FIXED)
    parts = []
    for name, kind in _RAG_PARTS.items():
        part = settings.get(name)
        if not isinstance(part, dict) or part.get("model_type") != kind:
            found = part.get("model_type") if isinstance(part, dict) else part
            raise ValueError(f"config.json has a {name} of the kind {found!r}; only {kind!r} is computed here")
        parts.append(part)
    return parts[0], parts[1]


def rag_settings(config: RetrieverConfig, generator: EncoderDecoderConfig, earlier: Settings) -> dict[str, Any]:
    """A RagConfig; what the earlier one says beside sizes and ids is kept."""
    parts = {"question_encoder": dpr_settings(config), "generator": generator_settings(generator)}
    said = {name: {**earlier.get(name, {}), **part} for name, part in parts.items()}
    ids = {name: value for name, value in parts["generator"].items() if name.endswith("_token_id")}
    return {
        **_RAG_FIXED,
        "retrieval_vector_size": config.embed_dim,
        "vocab_size": generator.vocab_size,
        "is_encoder_decoder": True,
        **ids,
        **earlier,
        **said,
    }


def rag_task(architecture: str, settings: Settings, generator: EncoderDecoderConfig) -> dict[str, Any]:
    """Fields of the task `Rag` that a RagConfig says: how many documents, how long each with the question, which marginal.

    Raises:
      ValueError: for numbers that are none.
    """
    numbers = {name: settings.get(name, default) for name, default in (("n_docs", 5), ("max_combined_length", 300))}
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"config.json has {name}={value!r}, expected a whole number above 0")
    marginal = {"RagSequenceForGeneration": "sequence", "RagTokenForGeneration": "token"}.get(architecture)
    return {
        **({} if marginal is None else {"marginal": marginal}),
        "num_documents": numbers["n_docs"],
        "source_len": min(numbers["max_combined_length"], generator.max_length),
    }


_GENERATION_DEFAULTS = {"num_beams": 1, "max_length": 20, "min_length": 0, "length_penalty": 1.0, "early_stopping": False,
                        "no_repeat_ngram_size": 0, "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
                        "bad_words_ids": None}  # fmt: skip
_GENERATION_FIXED = {"num_beam_groups": 1, "diversity_penalty": 0.0, "repetition_penalty": 1.0, "typical_p": 1.0,
                     "encoder_no_repeat_ngram_size": 0}  # fmt: skip


def rag_generation(
    architecture: str, settings: Settings, generation: Settings, generator: EncoderDecoderConfig
) -> GenerationConfig:
    """How a RAG generates by itself: what transformers' `generate` takes from the files.

    RAG-Token: what generation_config.json says, alone where it is there; else RagConfig, and its generator's part where RagConfig has
    the default. RAG-Sequence: RagConfig's number of beams, and all else as its generator's part says, whatever the others do.

    Args:
      architecture: the class.
      settings: config.json.
      generation: generation_config.json; empty where there is none.
      generator: whose two first tokens may be forbidden to be the same.

    Raises:
      ValueError: for values that are none, and for a rule that is not computed here.
    """

    def said(name: str, default: Any) -> Any:
        if architecture == "RagSequenceForGeneration":
            return (settings if name == "num_beams" else settings["generator"]).get(name, default)
        if generation:
            return generation.get(name, default)
        own = settings.get(name, default)
        return settings["generator"].get(name, default) if own == default else own

    for name, value in _GENERATION_FIXED.items():
        if said(name, value) not in (value, None):
            raise ValueError(f"the settings say {name}={said(name, value)!r}; only {value!r} is computed here")
    values = {name: said(name, default) for name, default in _GENERATION_DEFAULTS.items()}
    forbidden = values.pop("bad_words_ids")
    if forbidden not in (None, [], [[generator.bos_id] * 2]):
        raise ValueError(
            f"the settings say bad_words_ids={forbidden!r}; only two bos in a row, {[[generator.bos_id] * 2]}, are ruled out here"
        )
    values["sample"] = values.pop("do_sample")
    if values["sample"] is True and values["num_beams"] != 1:
        raise ValueError(
            f"the settings say do_sample=True with num_beams={values['num_beams']!r}; beams are not drawn here"
        )
    if not values["sample"]:  # what drawing would need says nothing of a search
        values |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    kinds = typing.get_type_hints(GenerationConfig)
    for name, value in values.items():
        if not conforms(value, kinds[name]):
            raise ValueError(f"the settings say {name}={value!r}, which is none")
        if kinds[name] is float:
            values[name] = _float(name, value)
    values["max_length"] = min(values["max_length"], generator.max_length)
    return GenerationConfig(**values, bos_after_bos=not forbidden)


def _float(name: str, value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"the settings say a {name} that no float holds") from None


def _listed(values: Settings) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
