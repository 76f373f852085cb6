"""Loads a tokenizer of any kind from what was saved, or from a bare vocabulary or model file."""

from pathlib import Path
from typing import Any

from realm_jax.run_dir import read_json
from realm_jax.storage import fetch
from realm_jax.text.byte_level import BPE_VOCAB_FILE, MERGES_FILE, ByteLevelTokenizer
from realm_jax.text.generator_tokenizer import GeneratorTokenizer, as_generator_tokenizer
from realm_jax.text.llama_tokenizer import LlamaTokenizer, is_llama_tokenizer
from realm_jax.text.sentence_piece import SENTENCEPIECE_FILE, SentencePieceTokenizer
from realm_jax.text.tokenizer import SETTINGS_FILE
from realm_jax.text.word_piece import VOCAB_FILE, WordPieceTokenizer


def load_tokenizer(path: str | Path) -> SentencePieceTokenizer | WordPieceTokenizer:
    """Loads what `save` wrote; also a bare vocab.txt (lower-casing), a .model file, or a directory that holds either.

    Raises:
      ValueError: nothing there is a tokenizer, or the files do not match the fingerprint saved with them.
    """
    path = fetch(path)
    if path.is_file():
        if path.suffix == ".txt":
            return WordPieceTokenizer.from_vocab_file(path)
        return _load_sentencepiece(path)
    settings = _read_settings(path)
    kind = settings.get("kind")
    tokenizer: SentencePieceTokenizer | WordPieceTokenizer
    if kind in (None, "sentencepiece") and (path / SENTENCEPIECE_FILE).is_file():
        tokenizer = _load_sentencepiece(path / SENTENCEPIECE_FILE)
    elif kind in (None, "wordpiece") and (path / VOCAB_FILE).is_file():
        tokenizer = WordPieceTokenizer.from_vocab_file(path / VOCAB_FILE, settings.get("lower_case", True))
    elif _is_byte_level(path, settings):
        raise ValueError(
            f"{path} is a generator's byte-level BPE, without [CLS], [SEP] and [MASK]; a corpus and its retriever need a "
            f"SentencePiece or WordPiece tokenizer ({SENTENCEPIECE_FILE} or {VOCAB_FILE})"
        )
    elif is_llama_tokenizer(path):
        raise ValueError(
            f"{path} is a language model's tokenizer, without [CLS], [SEP] and [MASK]; a corpus and its retriever need a "
            f"SentencePiece or WordPiece tokenizer ({SENTENCEPIECE_FILE} or {VOCAB_FILE})"
        )
    else:
        raise ValueError(
            f"no tokenizer at {path}: expected a directory with {SENTENCEPIECE_FILE} or {VOCAB_FILE}, "
            "a vocab.txt, or a SentencePiece model file"
        )
    _check_fingerprint(path, settings, tokenizer.fingerprint)
    return tokenizer


def load_generator_tokenizer(path: str | Path) -> GeneratorTokenizer:
    """Loads a generator's: byte-level BPE, as `save` wrote it or as a bare vocab.json with merges.txt beside it; a language model's
    tokenizer.json or tokenizer.model; or one of `load_tokenizer`'s, whose texts then begin with [CLS] and end with [SEP].

    Raises:
      ValueError: as `load_tokenizer`.
    """
    return as_generator_tokenizer(load_any_tokenizer(path))


def load_any_tokenizer(
    path: str | Path,
) -> SentencePieceTokenizer | WordPieceTokenizer | ByteLevelTokenizer | LlamaTokenizer:
    """Loads a corpus's or a generator's, each as it is.

    Raises:
      ValueError: as `load_tokenizer`.
    """
    path = fetch(path)
    settings = _read_settings(path)
    tokenizer: ByteLevelTokenizer | LlamaTokenizer
    if _is_byte_level(path, settings):
        tokenizer = ByteLevelTokenizer.from_files(
            path, settings.get("add_prefix_space", False), settings.get("clean_up", True)
        )
    elif _is_llama(path, settings):
        tokenizer = LlamaTokenizer.from_folder(path)
    else:
        return load_tokenizer(path)
    _check_fingerprint(path, settings, tokenizer.fingerprint)
    return tokenizer


def _read_settings(path: Path) -> dict[str, Any]:
    if not (path / SETTINGS_FILE).is_file():
        return {}
    settings = read_json(path / SETTINGS_FILE)
    if not isinstance(settings, dict) or not isinstance(settings.get("fingerprint", ""), str):
        raise ValueError(f"{path / SETTINGS_FILE} holds no settings of a tokenizer; build the corpus again")
    return settings


def _is_byte_level(path: Path, settings: dict[str, Any]) -> bool:
    """By its settings, or BART's two files; a language model's folder may have these beside its tokenizer.json, without a mask."""
    has_files = (path / BPE_VOCAB_FILE).is_file() and (path / MERGES_FILE).is_file()
    if has_files and "kind" not in settings and is_llama_tokenizer(path):
        return b'"<mask>"' in (path / BPE_VOCAB_FILE).read_bytes()
    return settings.get("kind", "byte_level") == "byte_level" and has_files


def _is_llama(path: Path, settings: dict[str, Any]) -> bool:
    """By its settings, or where no other kind's files lie beside: BERT's folders have a tokenizer.json, too."""
    others = (VOCAB_FILE, SENTENCEPIECE_FILE)
    bare = "kind" not in settings and not any((path / name).is_file() for name in others)
    return (settings.get("kind") == "llama" or bare) and is_llama_tokenizer(path)


def _check_fingerprint(path: Path, settings: dict[str, Any], found: str) -> None:
    if settings.get("fingerprint", found) != found:
        raise ValueError(
            f"the tokenizer in {path} is not the one that was saved there: expected fingerprint "
            f"{settings['fingerprint'][:12]}, got {found[:12]}; "
            "restore its files or build the corpus again"
        )


def _load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
