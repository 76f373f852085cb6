"""How the files of a language model's tokenizer cut texts: tokenizer.json by Hugging Face's library, tokenizer.model by SentencePiece's.

Either has two ways of cutting. Where a text begins, Llama 2's puts a space in front of it; a text that goes on after another one must be
cut without.
"""

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers

from realm_jax.text.byte_level import byte_symbols, check_merges
from realm_jax.text.sentence_piece import SPACE_MARK
from realm_jax.text.tokenizer import Encoding
from realm_jax.text.word_piece import encoding_of

BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# SmolLM's vocabulary lacks such: control characters, and what begins no character that is written, or none at all.
_RARE_BYTES = ({*range(0x20), 0x7F} - set(b"\t\n\r")) | {0xC0, 0xC1, *range(0xF1, 0x100)}
_MOST_PIECES = 1 << 24
_LONGEST_PATTERN = 2000
# Appended to a SentencePiece model, this is merged into it: normalizer_spec.add_dummy_prefix = false (sentencepiece_model.proto).
_NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


class AddedPiece(NamedTuple):
    """A piece beside those that were learnt. A special one is never cut from a text."""

    piece: str
    id: int
    special: bool
    flags: Mapping[str, bool]  # single_word, lstrip, rstrip, normalized


def json_object(content: bytes, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: when it holds something else.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise ValueError(f"{what} does not hold JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} holds a {type(found).__name__}, expected an object; fetch it again")
    return found


def added_piece(said: Any, number: Any, what: str) -> AddedPiece:
    """What a file says of an added piece.

    Raises:
      ValueError: when it says nothing of the kind.
    """
    piece = said.get("content") if isinstance(said, dict) else None
    if not isinstance(piece, str) or not piece or type(number) is not int or not 0 <= number < _MOST_PIECES:
        raise ValueError(f"{what} has an added token that has no content or no id: {str(said)[:80]}; fetch it again")
    flags = {name: said.get(name) is True for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedPiece(piece, number, said.get("special") is True, flags)


class JsonPieces:
    """The pieces of a tokenizer.json: BPE over bytes (Llama 3), or over characters with a mark for spaces and bytes for the rest (Llama 2).

    The pipeline is put together anew from what the file says: special pieces are left out of it, so that no text gives one.
    A byte of control characters that a vocabulary over bytes has no piece for is left out of texts, as by Hugging Face's library.
    """

    def __init__(self, content: bytes, special: Collection[str], what: str):
        """Args:
          content: of the file.
          special: pieces that are special beside those that the file says are.
          what: names the file.

        Raises:
          ValueError: damaged; a model or a way of cutting other than these.
        """
        said = json_object(content, what)
        model = said.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            kind = model.get("type") if isinstance(model, dict) else model
            raise ValueError(f"{what} has a model of the kind {str(kind)[:80]!r}; only BPE, as Llama's, is cut here")
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):
                raise ValueError(f"{what} has {name}={str(model[name])[:80]!r}, which Llama's BPE has not")
        vocab, merges = _vocab(model.get("vocab"), what), _merges(model.get("merges"), what)
        listed = said.get("added_tokens") or []
        if not isinstance(listed, list):
            raise ValueError(f"{what} has added_tokens that are no list; fetch it again")
        added = [added_piece(one, one.get("id") if isinstance(one, dict) else None, what) for one in listed]
        self.ids = vocab | {one.piece: one.id for one in added}
        _check_ids(self.ids, what)
        self.special = {one.piece for one in added if one.special} | set(special)
        normalizer, pre_tokenizer = _components(said, "normalizer", what), _components(said, "pre_tokenizer", what)
        over_bytes = bool(pre_tokenizer) and pre_tokenizer[-1].get("type") == "ByteLevel"
        begin, go_on = (
            (_over_bytes(normalizer, pre_tokenizer, what),) * 2
            if over_bytes
            else _over_characters(normalizer, pre_tokenizer, what)
        )
        symbols = [symbol for byte, symbol in enumerate(byte_symbols()) if byte not in _RARE_BYTES]
        needed = symbols if over_bytes else BYTE_PIECES
        lacking = [piece for piece in needed if piece not in vocab]
        if lacking or not (over_bytes or model.get("byte_fallback") is True):
            said_of = f"no {', '.join(lacking[:5])}" if lacking else "byte_fallback=False"
            raise ValueError(f"{what} has {said_of}: not every text could be written in its pieces; expected all bytes")
        plain = [one for one in added if one.piece not in self.special]
        cut = {piece: number for piece, number in self.ids.items() if piece not in self.special}
        ignore_merges = model.get("ignore_merges") is True
        try:
            check_merges(cut, merges)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
        of_model = tokenizers.models.BPE(cut, merges, byte_fallback=not over_bytes, ignore_merges=ignore_merges)
        decoder = decoders.ByteLevel() if over_bytes else _character_decoder(strip=begin != go_on)
        self._begin = _pipeline(of_model, begin, decoder, plain)
        self._go_on = self._begin if begin == go_on else _pipeline(of_model, go_on, decoder, plain)
        self.content = [sorted(cut.items()), merges, ignore_merges, plain, begin, go_on]

    def encode_batch(self, texts: Sequence[str], begin: bool) -> list[Encoding]:
        """`begin`: as texts that begin, else as ones that go on after others."""
        pipeline = self._begin if begin else self._go_on
        return [encoding_of(found) for found in pipeline.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._begin.decode(list(ids), skip_special_tokens=False))


class ModelPieces:
    """The pieces of a tokenizer.model, as SentencePiece cuts them; its control symbols are never cut from a text."""

    def __init__(self, content: bytes, added: Sequence[AddedPiece], special: Collection[str], what: str):
        """Args:
          content: of the file.
          added: pieces that the model does not have, by the files beside it.
          special: pieces that must be special, as these say.
          what: names the file.

        Raises:
          ValueError: damaged; not every byte has a piece; a special piece that texts could hold, an added one that they should.
        """
        if not content:  # SentencePiece would say more than once that it has not been loaded
            raise ValueError(f"{what} is empty, expected a SentencePiece model; fetch it again")
        try:
            self._begin = sentencepiece.SentencePieceProcessor(model_proto=content)
            self._go_on = sentencepiece.SentencePieceProcessor(model_proto=content + _NO_PREFIX)
        except Exception as error:  # the library raises several kinds
            raise ValueError(f"{what} is no SentencePiece model, or damaged ({error}); fetch it again") from error
        if self._go_on.normalize(" a") != f"{SPACE_MARK}a":  # it takes away the spaces in front, and puts one there
            self._go_on = self._begin
        own = [self._begin.id_to_piece(number) for number in range(self._begin.get_piece_size())]
        self.ids = {piece: number for number, piece in enumerate(own)}
        if any(piece not in self.ids or not self._begin.is_byte(self.ids[piece]) for piece in BYTE_PIECES):
            raise ValueError(
                f"{what} has not a piece for each byte, so that not every text could be written; expected a model that was "
                "trained with byte_fallback, as Llama's"
            )
        controls = {
            piece
            for piece, number in self.ids.items()
            if self._begin.is_control(number) or self._begin.is_unknown(number)
        }
        beyond = [one for one in added if self.ids.get(one.piece) != one.id]
        for one in beyond:
            if one.id < len(own) or not one.special:
                raise ValueError(
                    f"{what} cuts no {one.piece[:80]!r}, which the files beside it add as {one.id}; save the tokenizer with a "
                    "tokenizer.json (transformers' LlamaTokenizerFast), which says how it is cut from a text"
                )
        self.ids |= {one.piece: one.id for one in beyond}
        _check_ids(self.ids, what)
        self.special = controls | {one.piece for one in beyond}
        loose = sorted(piece for piece in special if piece in self.ids and piece not in self.special)
        if loose:
            raise ValueError(
                f"{what} has {loose[0][:80]!r} as an ordinary piece, which a text can hold; expected a control symbol"
            )
        self._size = len(own)
        self.defaults = {
            name: own[number]
            for name, number in (("bos", self._begin.bos_id()), ("eos", self._begin.eos_id()), ("unk", self._begin.unk_id()),
                                 ("pad", self._begin.pad_id()))
            if 0 <= number < len(own)
        }  # fmt: skip
        self.content = [content.hex()]

    def encode_batch(self, texts: Sequence[str], begin: bool) -> list[Encoding]:
        """See `JsonPieces.encode_batch`."""
        processor = self._begin if begin else self._go_on
        found = processor.encode(list(texts), return_type="offset_mapping", num_threads=1) if texts else []
        return [
            Encoding(np.asarray(one["ids"], np.int32), np.asarray(one["offsets"], np.int32).reshape(-1, 2))
            for one in found
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._begin.decode([number for number in ids if number < self._size]))


def _vocab(said: Any, what: str) -> dict[str, int]:
    if not isinstance(said, dict) or not said:
        raise ValueError(f"{what} has no vocabulary: expected an object with the id of each piece; fetch it again")
    for piece, number in said.items():
        if type(number) is not int or not 0 <= number < _MOST_PIECES:
            raise ValueError(f"{what} has the id {str(number)[:80]} for {piece[:80]!r}; fetch it again")
    return said


def _check_ids(ids: Mapping[str, int], what: str) -> None:
    if len(set(ids.values())) != len(ids):
        first = next(
            (one, other)
            for (one, number), (other, next_number) in itertools.pairwise(sorted(ids.items(), key=lambda item: item[1]))
            if number == next_number
        )
        raise ValueError(f"{what} has one id for {first[0][:80]!r} and {first[1][:80]!r}; expected each id once")


def _merges(said: Any, what: str) -> list[tuple[str, str]]:
    """Pairs; older files join each by a space."""
    if not isinstance(said, list):
        raise ValueError(f"{what} has no list of merges; fetch it again")
    pairs = [
        tuple(one.split(" ")) if isinstance(one, str) else tuple(one) if isinstance(one, list) else () for one in said
    ]
    for pair, one in zip(pairs, said, strict=True):
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise ValueError(f"{what} has the merge {str(one)[:80]!r}, expected two pieces; fetch it again")
    return [(pair[0], pair[1]) for pair in pairs]


def _components(said: Mapping[str, Any], name: str, what: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, one after the other."""
    value = said.get(name)
    if isinstance(value, dict) and value.get("type") == "Sequence":
        value = value.get("normalizers" if name == "normalizer" else "pretokenizers")
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"{what} has a {name} that is none: {str(value)[:80]}; fetch it again")
    return listed


# What a pipeline does before the BPE: names and settings, which are compared and hashed.
_Steps = tuple[tuple[str, ...], ...]


def _refused(component: Mapping[str, Any], what: str) -> ValueError:
    return ValueError(
        f"{what} prepares texts by {str(dict(component))[:200]}; only what Llama's tokenizers do is done here: Prepend, Replace, "
        "Metaspace, or Split, Digits, ByteLevel"
    )


def _over_bytes(normalizer: list[dict[str, Any]], pre_tokenizer: list[dict[str, Any]], what: str) -> _Steps:
    if normalizer:
        raise _refused(normalizer[0], what)
    steps: list[tuple[str, ...]] = []
    for component in pre_tokenizer[:-1]:
        kind, pattern = component.get("type"), component.get("pattern")
        cut = (component.get("behavior"), component.get("invert", False))
        if kind == "Digits":
            steps.append(("digits", str(component.get("individual_digits") is True)))
        elif kind == "Split" and isinstance(pattern, dict) and cut in (("Isolated", False), ("Removed", True)):
            regex = pattern.get("Regex")
            if not isinstance(regex, str) or not 0 < len(regex) <= _LONGEST_PATTERN or "\x00" in regex:
                raise _refused(component, what)
            steps.append(("split", regex, str(cut[0]).lower()))
        else:
            raise _refused(component, what)
    last = pre_tokenizer[-1]
    use_regex, prefix = last.get("use_regex", True), last.get("add_prefix_space", True)
    return (*steps, ("bytes", str(use_regex is True), str(prefix is True)))


def _over_characters(
    normalizer: list[dict[str, Any]], pre_tokenizer: list[dict[str, Any]], what: str
) -> tuple[_Steps, _Steps]:
    """Where texts begin, and where they go on."""
    if not normalizer and len(pre_tokenizer) == 1 and pre_tokenizer[0].get("type") == "Metaspace":
        said = pre_tokenizer[0]
        scheme = said.get("prepend_scheme", "always" if said.get("add_prefix_space", True) is True else "never")
        if said.get("replacement") != SPACE_MARK or scheme not in ("always", "first", "never"):
            raise _refused(said, what)
        split = str(said.get("split", True) is True)
        return (("metaspace", scheme, split),), (("metaspace", "never", split),)
    steps: list[tuple[str, ...]] = []
    for component in [*normalizer, *pre_tokenizer]:
        if component in normalizer and component.get("type") == "Prepend" and component.get("prepend") == SPACE_MARK:
            steps.append(("prepend",))
        elif (
            component in normalizer
            and component.get("type") == "Replace"
            and component.get("pattern") == {"String": " "}
            and component.get("content") == SPACE_MARK
        ):
            steps.append(("mark",))
        else:
            raise _refused(component, what)
    if tuple(steps) not in ((("prepend",), ("mark",)), (("mark",),)):
        raise ValueError(
            f"{what} says of no mark for spaces, or of several; expected Prepend and Replace, or Metaspace"
        )
    return tuple(steps), (("mark",),)


def _pipeline(model: Any, steps: _Steps, decoder: Any, added: Sequence[AddedPiece]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(model)
    before: list[Any] = []
    cuts: list[Any] = []
    for kind, *settings in steps:
        if kind == "prepend":
            before.append(normalizers.Prepend(SPACE_MARK))
        elif kind == "mark":
            before.append(normalizers.Replace(" ", SPACE_MARK))
        elif kind == "metaspace":
            cuts.append(pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme=settings[0], split=settings[1] == "True"))
        elif kind == "digits":
            cuts.append(pre_tokenizers.Digits(settings[0] == "True"))
        elif kind == "split":
            try:
                regex = tokenizers.Regex(settings[0])
            except Exception as error:  # the library raises nothing more special
                raise ValueError(f"the tokenizer splits texts by {settings[0][:80]!r}, no pattern ({error})") from error
            cuts.append(pre_tokenizers.Split(regex, settings[1], invert=settings[1] == "removed"))
        else:
            cuts.append(
                pre_tokenizers.ByteLevel(add_prefix_space=settings[1] == "True", use_regex=settings[0] == "True")
            )
    if before:
        made.normalizer = normalizers.Sequence(before)
    if cuts:
        made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    made.decoder = decoder
    made.add_tokens([tokenizers.AddedToken(one.piece, **one.flags, special=False) for one in added])
    return made


def _character_decoder(strip: bool) -> Any:
    """Marks to spaces, bytes to characters; without the space that a text begins with."""
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
