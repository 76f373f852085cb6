"""A byte-level BPE with a few merges: 'low' with and without a space before it, and 'er'."""

from realm_jax.text.byte_level import ByteLevelTokenizer, byte_symbols

MERGES = [("Ġ", "l"), ("l", "o"), ("lo", "w"), ("o", "w"), ("Ġl", "ow"), ("e", "r")]


def vocabulary() -> dict[str, int]:
    """In BART's order: <mask> is the last."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *byte_symbols(), *(one + other for one, other in MERGES), "<mask>"]
    return {piece: number for number, piece in enumerate(pieces)}


def byte_level_tokenizer() -> ByteLevelTokenizer:
    return ByteLevelTokenizer(vocabulary(), MERGES)
