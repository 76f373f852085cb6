"""Tokenizers as Hugging Face lays them out: a vocabulary, with tokenizer_config.json beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realm_jax.convert.model import OfGenerator
from realm_jax.convert.settings import parse_settings
from realm_jax.run_dir import write_json_atomically
from realm_jax.text.byte_level import BPE_VOCAB_FILE, MERGES_FILE, ByteLevelTokenizer
from realm_jax.text.llama_tokenizer import LlamaTokenizer
from realm_jax.text.tokenizer import SETTINGS_FILE
from realm_jax.text.word_piece import VOCAB_FILE, WordPieceTokenizer

TOKENIZER_CONFIG_FILE, SPECIAL_FILE = "tokenizer_config.json", "special_tokens_map.json"
QUESTION_FOLDER, GENERATOR_FOLDER = "question_encoder_tokenizer", "generator_tokenizer"  # of a RAG
_BERT_SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
_BART_SPECIAL = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>",
                 "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip


def read_tokenizer(path: Path) -> WordPieceTokenizer | None:
    """The WordPiece tokenizer of a folder's vocab.txt, upper or lower case as tokenizer_config.json says; None without one.

    Raises:
      ValueError: for settings that BERT's tokenizer here does not have.
    """
    if not (path / VOCAB_FILE).is_file():
        return None
    said = _read_if_there(path / TOKENIZER_CONFIG_FILE)
    lower_case = bool(said.get("do_lower_case", True))
    fixed = {"tokenize_chinese_chars": (True,), "strip_accents": (None, lower_case), "do_basic_tokenize": (True,)}
    for name, values in fixed.items():
        if said.get(name, values[0]) not in values:
            raise ValueError(
                f"{path / TOKENIZER_CONFIG_FILE} has {name}={json.dumps(said[name])}, expected {json.dumps(values[-1])}: "
                "this WordPiece cuts texts otherwise"
            )
    return WordPieceTokenizer.from_vocab_file(path / VOCAB_FILE, lower_case)


def write_tokenizer(path: Path, tokenizer: WordPieceTokenizer, max_length: int, tokenizer_class: str) -> None:
    """Writes vocab.txt and tokenizer_config.json, beside the weights or in a folder of their own."""
    tokenizer.save(path)
    (path / SETTINGS_FILE).unlink()
    said = {"do_lower_case": tokenizer.lower_case, "model_max_length": max_length, "tokenizer_class": tokenizer_class}
    write_json_atomically(path / TOKENIZER_CONFIG_FILE, {**said, **_BERT_SPECIAL})


def read_generator_tokenizer(path: Path) -> ByteLevelTokenizer | WordPieceTokenizer | None:
    """The byte-level BPE of a folder's vocab.json and merges.txt, or else a WordPiece tokenizer; None without either.

    Raises:
      ValueError: for special pieces other than BART's.
    """
    if not ((path / BPE_VOCAB_FILE).is_file() and (path / MERGES_FILE).is_file()):
        return read_tokenizer(path)
    said = _read_if_there(path / TOKENIZER_CONFIG_FILE)
    for place, settings in ((SPECIAL_FILE, _read_if_there(path / SPECIAL_FILE)), (TOKENIZER_CONFIG_FILE, said)):
        for name, piece in _BART_SPECIAL.items():
            found = settings.get(name, piece)
            found = found.get("content") if isinstance(found, Mapping) else found
            if found != piece:
                raise ValueError(
                    f"{path / place} has {name}={json.dumps(found)}, expected {json.dumps(piece)}, as BART's tokenizer"
                )
    return ByteLevelTokenizer.from_files(
        path, said.get("add_prefix_space") is True, said.get("clean_up_tokenization_spaces") is not False
    )


def write_generator_tokenizer(path: Path, tokenizer: OfGenerator, max_length: int) -> None:
    """Writes a generator's tokenizer, beside the weights or in a folder of its own."""
    if isinstance(tokenizer, WordPieceTokenizer):
        write_tokenizer(path, tokenizer, max_length, "BertTokenizer")
        return
    if isinstance(tokenizer, LlamaTokenizer):
        tokenizer.save_files(path)
        return
    tokenizer.save(path)
    (path / SETTINGS_FILE).unlink()
    said = {
        "add_prefix_space": tokenizer.add_prefix_space,
        "clean_up_tokenization_spaces": tokenizer.clean_up,
        "model_max_length": max_length,
        "tokenizer_class": "BartTokenizer",
    }
    write_json_atomically(path / TOKENIZER_CONFIG_FILE, {**said, **_BART_SPECIAL})


def _read_if_there(path: Path) -> dict[str, Any]:
    return parse_settings(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}
