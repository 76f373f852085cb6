"""Names of BERT's tensors, as the Hugging Face classes spell them, and their places in the parameters here."""

from realm_jax.convert.layout import Layout, Slot
from realm_jax.models import RetrieverConfig, SpanReaderConfig, TransformerConfig

_LAYER = (  # name in the file, path in the parameters; linear layers and norms
    ("attention.self.query", "attention/query"),
    ("attention.self.key", "attention/key"),
    ("attention.self.value", "attention/value"),
    ("attention.output.dense", "attention/out"),
    ("intermediate.dense", "feed_forward/wi"),
    ("output.dense", "feed_forward/wo"),
)
_LAYER_NORMS = (("attention.output.LayerNorm", "attention_norm"), ("output.LayerNorm", "output_norm"))


def linear(name: str, path: str, inputs: int, outputs: int, layer: int | None = None) -> list[Slot]:
    """A linear layer: torch's weight is [out, in]."""
    return [
        Slot(f"{name}.weight", f"{path}/kernel", (outputs, inputs), layer, transposed=True),
        Slot(f"{name}.bias", f"{path}/bias", (outputs,), layer),
    ]


def norm(name: str, path: str, size: int, layer: int | None = None) -> list[Slot]:
    """A LayerNorm."""
    return [
        Slot(f"{name}.weight", f"{path}/scale", (size,), layer),
        Slot(f"{name}.bias", f"{path}/bias", (size,), layer),
    ]


def body(config: TransformerConfig, name: str, path: str) -> Layout:
    """BERT without pooler and heads; `name` ends with a dot or is empty, `path` is that of the Transformer."""
    hidden = config.hidden_size
    tables = (("word", "token", config.vocab_size), ("position", "position", config.max_length),
              ("token_type", "segment", config.num_segments))  # fmt: skip
    slots = [
        Slot(f"{name}embeddings.{theirs}_embeddings.weight", f"{path}/{ours}_embedding/embedding", (rows, hidden))
        for theirs, ours, rows in tables
    ]
    slots += norm(f"{name}embeddings.LayerNorm", f"{path}/norm", hidden)
    sizes = {
        "feed_forward/wi": (hidden, config.intermediate_size),
        "feed_forward/wo": (config.intermediate_size, hidden),
    }
    for layer in range(config.num_layers):
        place = f"{name}encoder.layer.{layer}."
        for theirs, ours in _LAYER:
            slots += linear(place + theirs, f"{path}/layers/{ours}", *sizes.get(ours, (hidden, hidden)), layer)
        for theirs, ours in _LAYER_NORMS:
            slots += norm(place + theirs, f"{path}/layers/{ours}", hidden, layer)
    return Layout(tuple(slots))


def unused(slots: list[Slot]) -> Layout:
    """What a class has and nothing here computes with."""
    return Layout(unused={slot.name: slot.shape for slot in slots})


def pooler(config: TransformerConfig, name: str, path: str) -> list[Slot]:
    """BERT's pooler: tanh of a linear layer on [CLS]."""
    return linear(f"{name}pooler.dense", path, config.hidden_size, config.hidden_size)


def prediction_head(config: TransformerConfig, name: str, body_name: str, path: str) -> Layout:
    """The masked-LM head, whose vocabulary matrix is the token embedding; `name` such as "cls.predictions."."""
    slots = (
        linear(f"{name}transform.dense", f"{path}/transform", config.hidden_size, config.hidden_size)
        + norm(f"{name}transform.LayerNorm", f"{path}/transform_norm", config.hidden_size)
        + [Slot(f"{name}bias", f"{path}/output_bias", (config.vocab_size,))]
    )
    copies = {
        f"{name}decoder.weight": f"{body_name}embeddings.word_embeddings.weight",
        f"{name}decoder.bias": f"{name}bias",
    }
    return Layout(tuple(slots), copies)


def unused_prediction_head(config: TransformerConfig, name: str) -> Layout:
    """The masked-LM head of a class that never calls it; there its vocabulary matrix is tied to nothing."""
    head = prediction_head(config, name, "", "")
    shapes = {slot.name: slot.shape for slot in head.slots}
    shapes[f"{name}decoder.weight"] = (config.vocab_size, config.hidden_size)
    return Layout((), {f"{name}decoder.bias": f"{name}bias"}, shapes)


def embedder(config: RetrieverConfig, name: str, path: str) -> Layout:
    """RealmEmbedder: BERT with its pooler, projection and LayerNorm; `path` is that of a TextEncoder."""
    encoder, width = config.encoder, config.embed_dim
    slots = (
        pooler(encoder, f"{name}realm.", f"{path}/pooler")
        + linear(f"{name}cls.dense", f"{path}/projection", encoder.hidden_size, width)
        + norm(f"{name}cls.LayerNorm", f"{path}/projection_norm", width)
    )
    whole = body(encoder, f"{name}realm.", f"{path}/encoder") + Layout(tuple(slots))
    return whole + unused_prediction_head(encoder, f"{name}cls.predictions.")


def reader(config: SpanReaderConfig, name: str, path: str) -> Layout:
    """RealmReader: BERT and the span scorer; its pooler and masked-LM head are never called."""
    encoder, width = config.encoder, config.span_hidden_size
    slots = (
        linear(f"{name}qa_outputs.dense_intermediate", f"{path}/span_hidden", encoder.hidden_size, 2 * width)
        + norm(f"{name}qa_outputs.layer_normalization", f"{path}/span_norm", width)
        + linear(f"{name}qa_outputs.dense_output", f"{path}/span_output", width, 1)
    )
    whole = body(encoder, f"{name}realm.", f"{path}/encoder") + Layout(tuple(slots))
    return (
        whole
        + unused(pooler(encoder, f"{name}realm.", ""))
        + unused_prediction_head(encoder, f"{name}cls.predictions.")
    )


def knowledge_encoder(config: TransformerConfig, name: str, path: str) -> Layout:
    """RealmKnowledgeAugEncoder: BERT and its masked-LM head; its pooler is never called."""
    return (
        body(config, f"{name}realm.", f"{path}/encoder")
        + prediction_head(config, f"{name}cls.predictions.", f"{name}realm.", path)
        + unused(pooler(config, f"{name}realm.", ""))
    )
