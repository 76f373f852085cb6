"""Folders as Llama 2's and Llama 3's tokenizers are published, learnt from a few lines."""

import functools
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

LINES = (
    "The lower river was lowest in 1967 , and Zoë was born there .",
    "Background: the new bridge is wider than the old bridge\tof stone.",
    "Question: who was born in 1967?  Answer: Zoë",
    "def low(x):\n    return x  + 1",
) * 4
SPECIAL_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>")
PATTERN_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.cache
def sentencepiece_model(vocab_size: int = 340, lines: tuple[str, ...] = LINES, **changes: Any) -> bytes:
    """As Llama 2's was trained: nothing normalised, spaces kept, bytes for characters without a piece."""
    model = io.BytesIO()
    settings = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True,
                "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "unk_id": 0, "bos_id": 1, "eos_id": 2,
                "pad_id": -1, "character_coverage": 0.99}  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, minloglevel=2, num_threads=1,
        **{**settings, **changes},
    )  # fmt: skip
    return model.getvalue()


def pieces_of(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]


def llama2_json(model: bytes, legacy: bool = True, pairs: bool = False) -> dict[str, Any]:
    """tokenizer.json of a SentencePiece model.

    Args:
      model: of `sentencepiece_model`.
      legacy: the space in front is put there by a normalizer, as in the published files; newer ones have a Metaspace.
      pairs: the merges are pairs, as newer libraries write them.
    """
    vocab = {piece: number for number, piece in enumerate(pieces_of(model))}
    merges = []
    for piece, number in vocab.items():
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [
            (number, vocab[one], vocab[other], one, other) for one, other in cuts if one in vocab and other in vocab
        ]
    ordered = [(one, other) for *_, one, other in sorted(merges)]  # a learnt piece's rank is its id
    before: dict[str, Any] = {
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
    }  # fmt: skip
    if not legacy:
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        before = {"normalizer": None, "pre_tokenizer": metaspace}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [_added(piece, number, normalized=True) for piece, number in zip(("<unk>", "<s>", "</s>"), range(3), strict=True)],
        **before,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                  "merges": [list(pair) if pairs else " ".join(pair) for pair in ordered]},
    }  # fmt: skip


def llama3_json(lines: Sequence[str] = LINES, vocab_size: int = 320, **changes: Any) -> dict[str, Any]:
    """tokenizer.json over bytes, special pieces behind the learnt ones."""
    learnt = tokenizers.Tokenizer(tokenizers.models.BPE())
    cuts = tokenizers.pre_tokenizers
    learnt.pre_tokenizer = cuts.Sequence([
        cuts.Split(tokenizers.Regex(PATTERN_3), "isolated"), cuts.ByteLevel(add_prefix_space=False, use_regex=False)
    ])  # fmt: skip
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=cuts.ByteLevel.alphabet(), show_progress=False
    )
    learnt.train_from_iterator(lines, trainer)
    said = json.loads(learnt.to_str())
    said["model"] |= {"merges": [" ".join(pair) for pair in said["model"]["merges"]], **changes}
    first = len(said["model"]["vocab"])
    said["added_tokens"] = [_added(piece, number) for number, piece in enumerate(SPECIAL_3, first)]
    said["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return said


def _added(piece: str, number: int, normalized: bool = False, special: bool = True) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": number, "content": piece, **flags, "normalized": normalized, "special": special}


def write_llama2(place: Path, kinds: str = "json model", **settings: Any) -> Path:
    """Llama 2's folder; `kinds`: json, or newer (with a Metaspace), and model."""
    place.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model()
    if "model" in kinds:
        (place / "tokenizer.model").write_bytes(model)
    if "json" in kinds or "newer" in kinds:
        write_json(place / "tokenizer.json", llama2_json(model, legacy="json" in kinds, pairs="newer" in kinds))
    said = {"bos_token": {**_added("<s>", 1), "__type": "AddedToken"}, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None,
            "clean_up_tokenization_spaces": False, "tokenizer_class": "LlamaTokenizer", "legacy": True}  # fmt: skip
    del said["bos_token"]["id"]
    write_json(place / "tokenizer_config.json", said | settings)
    return place


def write_llama3(place: Path, tokenizer: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Llama 3's folder."""
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "tokenizer.json", llama3_json() if tokenizer is None else tokenizer)
    said = {"bos_token": SPECIAL_3[0], "eos_token": SPECIAL_3[1], "clean_up_tokenization_spaces": True, "model_input_names": ["input_ids", "attention_mask"],
            "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    write_json(place / "tokenizer_config.json", said | settings)
    return place


def write_json(place: Path, content: Any) -> None:
    place.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def splits(text: str) -> list[tuple[str, str]]:
    """A text cut in two before each of its spaces that stands between words."""
    places = [
        at
        for at, (before, here) in enumerate(itertools.pairwise(text), start=1)
        if here == " " and not before.isspace()
    ]
    return [(text[:at], text[at:]) for at in places]
