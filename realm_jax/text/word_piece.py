"""BERT's WordPiece tokenizers: a vocabulary and nothing to train."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsInt

import numpy as np
import tokenizers

from realm_jax.text.tokenizer import Encoding, special_ids, write_settings

VOCAB_FILE = "vocab.txt"


class WordPieceTokenizer:
    """BERT's WordPiece over a given vocabulary.

    Built from parts and not with `BertWordPieceTokenizer`, which turns a literal "[MASK]" in text into the mask id.

    Args:
      vocab: the pieces, one for each id.
      lower_case: also strip accents, as BERT's uncased models do.
    """

    keeps_spelling = False

    def __init__(self, vocab: Sequence[str], lower_case: bool = True):
        self._vocab = list(vocab)
        self.lower_case = lower_case
        self.vocab_size = len(self._vocab)
        ids = special_ids(self._vocab, "the WordPiece vocabulary")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        if self.pad_id != 0:
            raise ValueError(
                f"expected [PAD] on the first line of the WordPiece vocabulary, got line {self.pad_id + 1}"
            )
        table = {piece: i for i, piece in enumerate(self._vocab)}
        if len(table) != len(self._vocab):
            raise ValueError(
                f"the WordPiece vocabulary has {len(self._vocab) - len(table)} repeated lines; remove them"
            )
        self._tokenizer = tokenizers.Tokenizer(
            tokenizers.models.WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100)
        )
        self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower_case)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        content = json.dumps([self._vocab, lower_case], ensure_ascii=False)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def from_vocab_file(cls, path: str | Path, lower_case: bool = True) -> "WordPieceTokenizer":
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected a UTF-8 vocab.txt with one piece a line, got {error}") from error
        while lines and not lines[-1].strip():
            lines.pop()
        return cls([line.rstrip("\r") for line in lines], lower_case)

    def encode(self, text: str) -> Encoding:
        return encoding_of(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return [encoding_of(e) for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        hidden = {self.pad_id, self.cls_id, self.sep_id}
        return " ".join(self._vocab[int(i)] for i in ids if int(i) not in hidden).replace(" ##", "")

    def spelled(self, piece: int) -> tuple[bool, str]:
        text = self._vocab[piece]
        return (True, text[2:]) if text.startswith("##") and len(text) > 2 else (False, text)

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / VOCAB_FILE).write_text("\n".join(self._vocab) + "\n", encoding="utf-8")
        settings = {"kind": "wordpiece", "lower_case": self.lower_case, "fingerprint": self.fingerprint}
        write_settings(directory, settings)

    def __reduce__(self) -> tuple:
        return WordPieceTokenizer, (self._vocab, self.lower_case)


def encoding_of(encoding: "tokenizers.Encoding") -> Encoding:
    """What the library found in a text."""
    ids = np.asarray(encoding.ids, np.int32)
    return Encoding(ids, np.asarray(encoding.offsets, np.int32).reshape(len(ids), 2))
