"""config.json of the Hugging Face classes, and the configurations here."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from realm_jax.models import RetrieverConfig, SpanReaderConfig, TransformerConfig
from realm_jax.models.transformer import ACTIVATIONS

Settings = Mapping[str, Any]

# Names for one activation: the tanh approximation of GELU.
_ACTIVATIONS = {**{name: name for name in ACTIVATIONS}, "gelu_pytorch_tanh": "gelu_new"}
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_MAX_LAYERS = 1000  # the names of all are made before the file is looked at
# What nothing here computes otherwise: the values that a model must have.
_FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def encoder_config(settings: Settings) -> TransformerConfig:
    """BERT's part of config.json.

    Raises:
      ValueError: a size that is not there, an activation or a kind of positions that is not here.
    """
    check_sizes(settings, _SIZES, "a BERT", ("num_hidden_layers",))
    check_fixed(settings, _FIXED)
    return TransformerConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        num_layers=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        intermediate_size=settings["intermediate_size"],
        max_length=settings.get("max_position_embeddings", 512),
        num_segments=settings.get("type_vocab_size", 2),
        activation=activation(settings, "hidden_act"),
        dropout_rate=number(settings, "hidden_dropout_prob", 0.1),
        attention_dropout_rate=number(settings, "attention_probs_dropout_prob", 0.1),
        layer_norm_eps=number(settings, "layer_norm_eps", 1e-12),
        initializer_range=number(settings, "initializer_range", 0.02),
    )


def check_sizes(settings: Settings, names: Sequence[str], kind: str, layers: Sequence[str]) -> None:
    """Refuses settings without the sizes that are named, or with absurdly many layers.

    Raises:
      ValueError: naming them.
    """
    lacking = [name for name in names if type(settings.get(name)) is not int or settings[name] < 1]
    if lacking:
        raise ValueError(f"config.json has no whole number above 0 for {', '.join(lacking)}; expected those of {kind}")
    for name in layers:
        if settings[name] > _MAX_LAYERS:
            raise ValueError(f"config.json has {name}={settings[name]}, expected at most {_MAX_LAYERS}")


def check_fixed(settings: Settings, fixed: Settings) -> None:
    """Refuses settings of which one value alone is computed here; what is not said has it.

    Raises:
      ValueError: naming setting and value.
    """
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            raise ValueError(f"config.json has {name}={settings[name]!r}; only {value!r} is computed here")


def activation(settings: Settings, name: str) -> str:
    """The activation that a setting names; GELU where it names none.

    Raises:
      ValueError: for one that is not here.
    """
    said = settings.get(name, "gelu")
    if not isinstance(said, str) or said not in _ACTIVATIONS:
        raise ValueError(f"config.json has {name}={said!r}, valid: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[said]


def number(settings: Settings, name: str, default: float, most: float = 1e6) -> float:
    """A setting that is a number.

    Raises:
      ValueError: for one that is none, or absurd.
    """
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
        raise ValueError(f"config.json has {name}={value!r}, expected a number such as {default}")
    return float(value)


def realm_retriever_config(settings: Settings, tied: bool = True) -> RetrieverConfig:
    """The embedder's part of a RealmConfig: it projects BERT's pooler output."""
    width = settings.get("retriever_proj_size", 128)
    return RetrieverConfig(encoder_config(settings), projection_size=width, tied=tied, pooling="pooler")


def span_reader_config(settings: Settings) -> SpanReaderConfig:
    """The reader's part of a RealmConfig."""
    return SpanReaderConfig(
        encoder_config(settings),
        span_hidden_size=settings.get("span_hidden_size", 256),
        max_span_width=settings.get("max_span_width", 10),
        span_layer_norm_eps=number(settings, "reader_layer_norm_eps", 1e-3),
    )


def encoder_settings(config: TransformerConfig, what: str) -> dict[str, Any]:
    """The inverse of `encoder_config`.

    Raises:
      ValueError: for an encoder that is no BERT.
    """
    bert = {"norm": "post", "positions": "learned", "convolution_width": 0}
    others = [f"{name}={getattr(config, name)!r}" for name, value in bert.items() if getattr(config, name) != value]
    if others:
        raise ValueError(
            f"the {what} has {', '.join(others)}, which no BERT has; train one with norm='post', positions='learned', "
            "convolution_width=0 to take it elsewhere"
        )
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.num_segments,
        "hidden_act": config.activation,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": 0,
    }


def retriever_settings(config: RetrieverConfig) -> dict[str, Any]:
    """The inverse of `realm_retriever_config`.

    Raises:
      ValueError: for a retriever that RealmEmbedder does not compute.
    """
    theirs = {"pooling": "pooler", "normalize": False, "score_scale": 1.0}
    others = [f"{name}={getattr(config, name)!r}" for name, value in theirs.items() if getattr(config, name) != value]
    if config.projection_size is None:
        others.append("projection_size=None")
    if others:
        raise ValueError(
            f"the retriever has {', '.join(others)}; RealmEmbedder projects BERT's pooler output and scales nothing: only "
            "RetrieverConfig(pooling='pooler', normalize=False, score_scale=1.0) with a projection can be written as one"
        )
    return {**encoder_settings(config.encoder, "retriever"), "retriever_proj_size": config.projection_size}


def check_contriever(config: RetrieverConfig) -> None:
    """Refuses a retriever that Contriever does not compute.

    Raises:
      ValueError: with what differs.
    """
    theirs = {"pooling": "mean", "normalize": False, "score_scale": 1.0}
    others = [f"{name}={getattr(config, name)!r}" for name, value in theirs.items() if getattr(config, name) != value]
    if others:
        raise ValueError(
            f"the retriever has {', '.join(others)}; Contriever's score is the inner product of means: only "
            "RetrieverConfig(pooling='mean', normalize=False, score_scale=1.0) can be written as one; write a BertModel"
        )


def span_reader_settings(config: SpanReaderConfig) -> dict[str, Any]:
    """The inverse of `span_reader_config`."""
    return {
        **encoder_settings(config.encoder, "span reader"),
        "span_hidden_size": config.span_hidden_size,
        "max_span_width": config.max_span_width,
        "reader_layer_norm_eps": config.span_layer_norm_eps,
    }


def same_encoder(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Settings of two learners in one config.json.

    Raises:
      ValueError: when they differ; the class has one config.json for both.
    """
    differing = [
        f"{name} ({one[name]} and {other[name]})" for name in one if name in other and one[name] != other[name]
    ]
    if differing:
        raise ValueError(f"retriever and span reader differ in {', '.join(differing)}; one config.json cannot say both")
    return {**one, **other}


def parse_settings(text: str, what: str) -> dict[str, Any]:
    """The object in a JSON file of settings.

    Raises:
      ValueError: when it holds something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise ValueError(f"{what} does not hold JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} holds a {type(content).__name__}, expected an object")
    return content
