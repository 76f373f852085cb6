"""Loads a tokenizer of either kind from what was saved, or from a bare vocabulary or model file."""

from pathlib import Path

from realm_jax.run_dir import read_json
from realm_jax.storage import fetch
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
    settings: dict = {}
    if (path / SETTINGS_FILE).is_file():
        settings = read_json(path / SETTINGS_FILE)
        if not isinstance(settings, dict) or not isinstance(settings.get("fingerprint", ""), str):
            raise ValueError(f"{path / SETTINGS_FILE} holds no settings of a tokenizer; build the corpus again")
    tokenizer: SentencePieceTokenizer | WordPieceTokenizer
    if settings.get("kind", "sentencepiece") == "sentencepiece" and (path / SENTENCEPIECE_FILE).is_file():
        tokenizer = _load_sentencepiece(path / SENTENCEPIECE_FILE)
    elif settings.get("kind", "wordpiece") == "wordpiece" and (path / VOCAB_FILE).is_file():
        tokenizer = WordPieceTokenizer.from_vocab_file(path / VOCAB_FILE, settings.get("lower_case", True))
    else:
        raise ValueError(
            f"no tokenizer at {path}: expected a directory with {SENTENCEPIECE_FILE} or {VOCAB_FILE}, "
            "a vocab.txt, or a SentencePiece model file"
        )
    if settings.get("fingerprint", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise ValueError(
            f"the tokenizer in {path} is not the one that was saved there: expected fingerprint "
            f"{settings['fingerprint'][:12]}, got {tokenizer.fingerprint[:12]}; "
            "restore its files or build the corpus again"
        )
    return tokenizer


def _load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
