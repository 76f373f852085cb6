"""Names of BART's tensors, as the Hugging Face classes spell them, and their places in the parameters here."""

from realm_jax.convert.bert_names import linear, norm
from realm_jax.convert.layout import Layout, Slot
from realm_jax.models import EncoderDecoderConfig, TransformerConfig

OUTPUT_BIAS = "final_logits_bias"

_FEED_FORWARD = (("fc1", "feed_forward/wi"), ("fc2", "feed_forward/wo"))
_PROJECTIONS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))


def generator(config: EncoderDecoderConfig, name: str, path: str, lm_head: str | None = None) -> Layout:
    """Both halves and the table of tokens, which encoder, decoder and output share.

    Args:
      config: of the generator.
      name: in front of the names, ends with a dot or is empty.
      path: of the EncoderDecoder.
      lm_head: name of the output's repetition of the table, where the class has an output.
    """
    table = f"{name}shared.weight"
    slots = [Slot(table, f"{path}/token_embedding/embedding", (config.vocab_size, config.hidden_size))]
    for half, own in (("encoder", config.encoder), ("decoder", config.decoder)):
        slots += _half(own, config.position_offset, f"{name}{half}.", f"{path}/{half}", half == "decoder")
    repeated = [
        f"{name}encoder.embed_tokens.weight",
        f"{name}decoder.embed_tokens.weight",
        *([lm_head] if lm_head else []),
    ]
    return Layout(tuple(slots), dict.fromkeys(repeated, table))


def output_bias(config: EncoderDecoderConfig, name: str, path: str) -> Layout:
    """The bias of the output; in the file a matrix of one row."""
    return Layout((Slot(f"{name}{OUTPUT_BIAS}", f"{path}/output_bias", (1, config.vocab_size), one_row=True),))


def _half(config: TransformerConfig, position_offset: int, name: str, path: str, reads_sources: bool) -> list[Slot]:
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = config.max_length + position_offset
    slots = [Slot(f"{name}embed_positions.weight", f"{path}/embedding/position_embedding/embedding", (rows, hidden))]
    slots += norm(f"{name}layernorm_embedding", f"{path}/embedding/norm", hidden)
    attentions = [("self_attn", "attention")] + [("encoder_attn", "cross_attention")] * reads_sources
    for layer in range(config.num_layers):
        place, own = f"{name}layers.{layer}.", f"{path}/layers/"
        for theirs, ours in attentions:
            for projection, part in _PROJECTIONS:
                slots += linear(f"{place}{theirs}.{projection}", f"{own}{ours}/{part}", hidden, hidden, layer)
            slots += norm(f"{place}{theirs}_layer_norm", f"{own}{ours}_norm", hidden, layer)
        for (theirs, ours), sizes in zip(_FEED_FORWARD, ((hidden, inner), (inner, hidden)), strict=True):
            slots += linear(place + theirs, own + ours, *sizes, layer)
        slots += norm(f"{place}final_layer_norm", f"{own}output_norm", hidden, layer)
    return slots
