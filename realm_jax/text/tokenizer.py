"""What a tokenizer is: piece ids with the character offsets that they came from, behind one protocol.

Special ids ([CLS], [SEP], [MASK], padding) are never produced from text: a literal "[MASK]" in a document is five
or so ordinary pieces. Whoever builds a model's input adds the special ids by hand.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, SupportsInt, runtime_checkable

import numpy as np
from jaxtyping import Int32

from realm_jax.storage import Place

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SETTINGS_FILE = "settings.json"


class Encoding(NamedTuple):
    """The pieces of a text, without special ids.

    `offsets` are characters (not bytes) into the text as given, [start, end). A SentencePiece piece that starts a
    word includes the white space before it. A piece can be empty where one character became several pieces ("½").
    """

    ids: Int32[np.ndarray, "num_pieces"]
    offsets: Int32[np.ndarray, "num_pieces 2"]


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer. `pad_id` is always 0."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def unk_id(self) -> int: ...

    @property
    def cls_id(self) -> int: ...

    @property
    def sep_id(self) -> int: ...

    @property
    def mask_id(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides the ids: two tokenizers of one fingerprint encode alike."""
        ...

    @property
    def keeps_spelling(self) -> bool:
        """Whether what is decoded is the text that was encoded: capitals, accents, white space."""
        ...

    def encode(self, text: str) -> Encoding: ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]: ...

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Readable text: padding, [CLS] and [SEP] left out, masks and unknown pieces shown as such."""
        ...

    def spelled(self, piece: int) -> tuple[bool, str]:
        """(whether it is written without a space after the piece before it, its characters)."""
        ...

    def save(self, directory: str | Path) -> None: ...


def special_ids(pieces: Sequence[str], what: str) -> list[int]:
    """Ids of `SPECIAL_PIECES`, in their order.

    Args:
      pieces: of a vocabulary, one for each id.
      what: names the vocabulary.

    Raises:
      ValueError: when it lacks one of them.
    """
    for piece in SPECIAL_PIECES:
        if piece not in pieces:
            raise ValueError(
                f"{what} ({len(pieces)} pieces) has no {piece}; expected all of {', '.join(SPECIAL_PIECES)}"
            )
    return [pieces.index(piece) for piece in SPECIAL_PIECES]


def write_settings(directory: Path, settings: dict) -> None:
    """Writes what loading needs to know of a saved tokenizer: its kind, its fingerprint, its settings."""
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def check_same_pieces(place: Place, theirs: str, ours: str) -> None:
    """Refuses parameters that were trained on other pieces than those of a corpus.

    Args:
      place: where the parameters lie.
      theirs: fingerprint of the tokenizer that they were trained with.
      ours: fingerprint of the corpus's.

    Raises:
      ValueError: with both fingerprints and the remedy.
    """
    if theirs != ours:
        raise ValueError(
            f"{place} was trained on the pieces of tokenizer {theirs[:12]}, the corpus has {ours[:12]}; build the corpus with "
            "that run's tokenizer directory, or train on this corpus"
        )
