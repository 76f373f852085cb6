"""The tokenizers of Llama's folders: tokenizer.json or tokenizer.model, with tokenizer_config.json beside them.

Ids are those of transformers' LlamaTokenizer, LlamaTokenizerFast and PreTrainedTokenizerFast, but that special pieces are never cut from a
text, and for texts that begin with white space: these go on after other text. Llama 2's tokenizer puts a space in front of what begins, and
"text" and " text" are then the same pieces: those that "text" has inside of "a text".
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsInt

from realm_jax.text.byte_level import without_word_spaces
from realm_jax.text.llama_pieces import AddedPiece, JsonPieces, ModelPieces, added_piece, json_object
from realm_jax.text.tokenizer import Encoding, write_settings

JSON_FILE, MODEL_FILE, CONFIG_FILE, SPECIAL_FILE, ADDED_FILE = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
FILES = (JSON_FILE, MODEL_FILE, CONFIG_FILE, SPECIAL_FILE, ADDED_FILE)
_USUAL = {"bos": ("<s>", "<|begin_of_text|>"), "eos": ("</s>", "<|end_of_text|>"), "unk": ("<unk>",), "pad": ()}
_SPELLING = "Zo\u00eb  \ufb01nds\u00a0\uff21\n\tB\u00bd"


def is_llama_tokenizer(directory: Path) -> bool:
    """Whether a folder holds the files of one."""
    return (directory / JSON_FILE).is_file() or (directory / MODEL_FILE).is_file()


class LlamaTokenizer:
    """A language model's tokenizer, made of the files that it was published as; they are saved as they were.

    tokenizer.json decides where both are there, as in transformers. A model that was trained without padding names no pad piece: rows are
    then padded with <unk>, or else with the piece that ends texts. Attention reads no padding and no loss counts it, so that its id means
    nothing; it must only have a row in the model's table of embeddings.

    Attributes:
      unk_id: of <unk>, where there is one; all text has other pieces.
    """

    def __init__(self, files: Mapping[str, bytes], what: str = "the tokenizer"):
        """Args:
          files: contents by name: `JSON_FILE` or `MODEL_FILE`, and what else of `FILES` there is.
          what: names the folder.

        Raises:
          ValueError: damaged files; a tokenizer of another kind; no piece that begins or ends texts.
        """
        self._files = dict(files)
        said = {name: json_object(files[name], f"{what}/{name}") for name in FILES[2:] if name in files}
        named = {name: _named(said, name, what) for name in _USUAL}
        special = {piece for piece in named.values() if piece is not None}
        pieces: JsonPieces | ModelPieces
        if JSON_FILE in files:
            pieces = JsonPieces(files[JSON_FILE], special, f"{what}/{JSON_FILE}")
        elif MODEL_FILE in files:
            pieces = ModelPieces(files[MODEL_FILE], _added(said, what), special, f"{what}/{MODEL_FILE}")
            named = {name: piece or pieces.defaults.get(name) for name, piece in named.items()}
        else:
            raise ValueError(f"{what} has neither {JSON_FILE} nor {MODEL_FILE}; fetch the folder again")
        self._pieces = pieces
        self.vocab_size = max(pieces.ids.values()) + 1
        found = {name: _id_of(pieces, name, piece, what) for name, piece in named.items()}
        bos, eos = found["bos"], found["eos"]
        if bos is None or eos is None:
            raise ValueError(
                f"{what} names no {'bos' if bos is None else 'eos'}_token, and has none of the usual pieces; expected those that a "
                f"text begins and ends with: name them in {CONFIG_FILE}"
            )
        self.bos_id, self.eos_id, self.unk_id = bos, eos, found["unk"]
        others = (found["pad"], found["unk"], eos)
        self.pad_id: int = next(number for number in others if number is not None)
        self._hidden = {pieces.ids[piece] for piece in pieces.special if piece in pieces.ids}
        self._hidden |= {number for number in found.values() if number is not None}
        self._clean_up = said.get(CONFIG_FILE, {}).get("clean_up_tokenization_spaces") is True
        self.keeps_spelling = (
            self.decode(self.encode(_SPELLING).ids) == _SPELLING
        )  # a SentencePiece model may normalise
        content = json.dumps([pieces.content, self.bos_id, self.eos_id, self.pad_id])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def from_folder(cls, directory: str | Path) -> "LlamaTokenizer":
        """Reads the files of a folder.

        Raises:
          ValueError: see `LlamaTokenizer`.
        """
        place = Path(directory)
        files = {name: (place / name).read_bytes() for name in FILES if (place / name).is_file()}
        return cls(files, str(directory))

    def encode(self, text: str) -> Encoding:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Pieces with offsets; a text that begins with white space is cut as one that goes on."""
        goes_on = [text[:1].isspace() for text in texts]
        cut = {
            one: iter(
                self._pieces.encode_batch(
                    [text for text, other in zip(texts, goes_on, strict=True) if other == one], not one
                )
            )
            for one in (False, True)
        }
        return [next(cut[one]) for one in goes_on]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Readable text without special ids, and without those that no piece has; Llama 2's without the space in front of its first
        word. Bytes that are no UTF-8 are shown as "\\ufffd". Spaces before punctuation are taken away where tokenizer_config.json says so."""
        kept = [int(i) for i in ids if 0 <= int(i) < self.vocab_size and int(i) not in self._hidden]
        text = self._pieces.decode(kept)
        return without_word_spaces(text) if self._clean_up else text

    def save_files(self, directory: str | Path) -> None:
        """The files as they were, for transformers."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (directory / name).write_bytes(content)

    def save(self, directory: str | Path) -> None:
        self.save_files(directory)
        write_settings(Path(directory), {"kind": "llama", "fingerprint": self.fingerprint})

    def __reduce__(self) -> tuple:
        return LlamaTokenizer, (self._files,)


def _named(said: Mapping[str, Mapping[str, Any]], name: str, what: str) -> str | None:
    """The piece that a setting such as bos_token names; newer files have it as an object."""
    for place in (CONFIG_FILE, SPECIAL_FILE):
        value = said.get(place, {}).get(f"{name}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise ValueError(f"{what}/{place} has {name}_token={str(value)[:80]}, expected a piece; correct it")
        return value
    return None


def _id_of(pieces: JsonPieces | ModelPieces, name: str, piece: str | None, what: str) -> int | None:
    if piece is not None and piece not in pieces.ids:
        raise ValueError(
            f"{what} names the {name}_token {piece[:80]!r}, which is no piece of it; take all files from one folder, or correct "
            f"{CONFIG_FILE}"
        )
    usual = (one for one in _USUAL[name] if one in pieces.ids and one in pieces.special)
    chosen = piece if piece is not None else next(usual, None)
    return None if chosen is None else pieces.ids[chosen]


def _added(said: Mapping[str, Mapping[str, Any]], what: str) -> list[AddedPiece]:
    """What the files beside a tokenizer.model add; the older of them does not say what is special, and all of it is."""
    listed = said.get(CONFIG_FILE, {}).get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise ValueError(f"{what}/{CONFIG_FILE} has an added_tokens_decoder that is no object; fetch it again")
    found = [
        added_piece(one, int(number) if number.isdecimal() and len(number) < 10 else None, f"{what}/{CONFIG_FILE}")
        for number, one in listed.items()
    ]
    known = {one.piece for one in found}
    older = said.get(ADDED_FILE, {})
    return found + [
        added_piece({"content": piece, "special": True}, number, f"{what}/{ADDED_FILE}")
        for piece, number in older.items()
        if piece not in known
    ]
