"""Byte-level BPE, the tokenizer of BART and RoBERTa (Radford et al. 2019): vocab.json and merges.txt, and nothing to train.

Every byte has a character that stands for it, so no text has an unknown piece, and decoding gives back what was encoded, but
for spaces before punctuation. A space belongs to the word after it: a text in the midst of others is encoded with one in front.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsInt

import tokenizers

from realm_jax.run_dir import read_json
from realm_jax.text.tokenizer import Encoding, write_settings
from realm_jax.text.word_piece import encoding_of

BPE_VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_MERGES_HEADER = "#version: 0.2"
# Where English text as tokenizers of words cut it was joined by spaces: transformers' clean_up_tokenization_spaces.
_JOINED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
           (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


def without_word_spaces(text: str) -> str:
    """English text without the spaces before punctuation and "n't", "'s", …, as transformers cleans up what it decodes.

    >>> without_word_spaces("it 's here , is n't it ?")
    "it's here, isn't it?"
    """
    for apart, joined in _JOINED:
        text = text.replace(apart, joined)
    return text


def byte_symbols() -> list[str]:
    """The character that stands for each byte in vocab.json and merges.txt: itself, or one that can be seen.

    >>> symbols = byte_symbols()
    >>> symbols[ord("a")], symbols[ord(" ")], symbols[ord("\\n")]
    ('a', 'Ġ', 'Ċ')
    """
    seen = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]


class ByteLevelTokenizer:
    """Byte-level BPE over a given vocabulary. A literal "<mask>" in a text is ordinary pieces.

    Args:
      vocab: id of each piece.
      merges: pairs of pieces that become one, the first of them first.
      add_prefix_space: encode a text as if a space stood in front.
      clean_up: decode without the spaces before punctuation and "n't", "'s", …, as BartTokenizer does by default.
    """

    keeps_spelling = True

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        add_prefix_space: bool = False,
        clean_up: bool = True,
    ):
        self._vocab, self._merges = dict(vocab), [(one, other) for one, other in merges]
        self.add_prefix_space, self.clean_up = add_prefix_space, clean_up
        self.vocab_size = len(self._vocab)
        self._pieces = sorted(self._vocab, key=self._vocab.__getitem__)
        _check_vocabulary(self._vocab, self._pieces)
        self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id = (
            self._vocab[piece] for piece in SPECIAL_PIECES
        )
        check_merges(self._vocab, self._merges)
        model = tokenizers.models.BPE(self._vocab, self._merges)
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        self._bytes = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        content = json.dumps([self._pieces, self._merges, add_prefix_space], ensure_ascii=False)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def from_files(
        cls, directory: str | Path, add_prefix_space: bool = False, clean_up: bool = True
    ) -> "ByteLevelTokenizer":
        """Reads vocab.json and merges.txt.

        Raises:
          ValueError: when they hold something else.
        """
        vocab_file, merges_file = Path(directory) / BPE_VOCAB_FILE, Path(directory) / MERGES_FILE
        vocab = read_json(vocab_file)
        if not isinstance(vocab, dict) or not all(type(value) is int for value in vocab.values()):
            raise ValueError(
                f"{vocab_file}: expected a JSON object with the id of each piece, got something else; restore it"
            )
        try:
            lines = merges_file.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{merges_file}: expected UTF-8 with a pair of pieces a line, got {error}") from error
        merges = []
        for number, line in enumerate(lines, start=1):
            pair = line.rstrip("\r").split(" ")
            if not line.strip() or (number == 1 and line.startswith("#version")):
                continue
            if len(pair) != 2 or not all(pair):
                raise ValueError(
                    f"{merges_file}, line {number}: expected two pieces with a space between, got {line[:80]!r}"
                )
            merges.append((pair[0], pair[1]))
        try:
            return cls(vocab, merges, add_prefix_space, clean_up)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error

    def encode(self, text: str) -> Encoding:
        return encoding_of(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return [encoding_of(e) for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Readable text without special ids, and without those that no piece has; bytes that are no UTF-8 are shown as "\\ufffd"."""
        hidden = {self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id}
        kept = [int(i) for i in ids if 0 <= int(i) < self.vocab_size and int(i) not in hidden]
        symbols = "".join(self._pieces[i] for i in kept)
        text = bytes(self._bytes[symbol] for symbol in symbols).decode("utf-8", errors="replace")
        return without_word_spaces(text) if self.clean_up else text

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / BPE_VOCAB_FILE).write_text(json.dumps(self._vocab, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = [_MERGES_HEADER, *(" ".join(pair) for pair in self._merges)]
        (directory / MERGES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = {"add_prefix_space": self.add_prefix_space, "clean_up": self.clean_up}
        write_settings(directory, {"kind": "byte_level", **settings, "fingerprint": self.fingerprint})

    def __reduce__(self) -> tuple:
        return ByteLevelTokenizer, (self._vocab, self._merges, self.add_prefix_space, self.clean_up)


def check_merges(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
    """Refuses merges of pieces, or to pieces, that a vocabulary does not have: the library ends the process at some of them.

    Raises:
      ValueError: naming the first.
    """
    for one, other in merges:
        lacking = next((piece for piece in (one, other, one + other) if piece not in vocab), None)
        if lacking is not None:
            raise ValueError(
                f"the merges do not belong to the vocabulary ({one[:80]!r} and {other[:80]!r} need {lacking[:80]!r}, which it has "
                "not); take both from one folder"
            )


def _check_vocabulary(vocab: Mapping[str, int], pieces: Sequence[str]) -> None:
    what = f"the byte-level vocabulary ({len(vocab)} pieces)"
    lacking = [piece for piece in (*SPECIAL_PIECES, *byte_symbols()) if piece not in vocab]
    if lacking:
        raise ValueError(
            f"{what} has no {', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}; expected "
            f"{', '.join(SPECIAL_PIECES)} and a piece for each of the 256 bytes"
        )
    if [vocab[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(f"{what} has ids with gaps or twice; expected each from 0 to {len(pieces) - 1} once")
    symbols = set(byte_symbols())
    foreign = [piece for piece in pieces if piece not in SPECIAL_PIECES and not symbols.issuperset(piece)]
    if foreign:
        raise ValueError(
            f"{what} has {foreign[0]!r}, which stands for no bytes; expected the vocab.json of a byte-level BPE, such as BART's"
        )
