"""Tokenizers behind one protocol: piece ids with the character offsets that they came from.

Special ids ([CLS], [SEP], [MASK], padding) are never produced from text: a literal "[MASK]" in a document is five
or so ordinary pieces. Whoever builds a model's input adds the special ids by hand.
"""

import functools
import hashlib
import io
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, SupportsInt, runtime_checkable

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int32, Int64

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ModelType = Literal["unigram", "bpe"]
SETTINGS_FILE = "settings.json"
SENTENCEPIECE_FILE = "sentencepiece.model"
VOCAB_FILE = "vocab.txt"
# SentencePiece's result depends on the number of training threads, so it is a constant and not the machine's.
_TRAINING_THREADS = 4
# A piece such as "1862." would make a span of the year one of year and stop: these are always pieces of their own.
_OWN_PIECES = tuple(".,;:!?()[]{}\"“”„«»'‘’/–—…")
# SentencePiece leaves out training lines above 4192 bytes without a word: cut them ourselves.
_TRAINING_LINE_CHARS = 1000


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

    def encode(self, text: str) -> Encoding: ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]: ...

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Readable text: padding, [CLS] and [SEP] left out, masks and unknown pieces shown as such."""
        ...

    def save(self, directory: str | Path) -> None: ...


class VocabularyTooLargeError(ValueError):
    """The training text cannot give so many pieces; `maximum` says how many it can."""

    def __init__(self, vocab_size: int, maximum: int):
        super().__init__(
            f"the training text gives at most {maximum} pieces, got vocab_size={vocab_size}; "
            f"set vocab_size to {maximum} or less, or train on more text"
        )
        self.maximum = maximum


class SentencePieceTokenizer:
    """A SentencePiece unigram model whose five special pieces are control symbols.

    Args:
      model: the serialized model, as `train_sentencepiece` makes it.
    """

    def __init__(self, model: bytes):
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the library raises several kinds
            raise ValueError(f"not a SentencePiece model ({len(model)} bytes): {error}") from error
        processor = self._processor
        self.vocab_size = int(processor.get_piece_size())
        self._pieces = [processor.id_to_piece(i) for i in range(self.vocab_size)]
        ids = [_index_of(self._pieces, piece, "the SentencePiece model") for piece in SPECIAL_PIECES]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        if self.pad_id != 0:
            raise ValueError(f"expected [PAD] to be piece 0 of the SentencePiece model, got {self.pad_id}")
        for piece, piece_id in zip(SPECIAL_PIECES, ids, strict=True):
            if not (processor.is_control(piece_id) or processor.is_unknown(piece_id)):
                raise ValueError(
                    f"expected {piece} to be a control symbol of the SentencePiece model, got an ordinary piece; "
                    "train it with control_symbols, so that a literal [MASK] in text stays text"
                )
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def encode(self, text: str) -> Encoding:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        lines = [line for text in texts for line in text.split("\n")]  # a line break always ends a piece
        line_lens = np.fromiter(map(len, lines), np.int64, len(lines))
        # One thread: the corpus job has a process for each core.
        line_ids = self._processor.encode(lines, return_type="numpy", num_threads=1) if lines else []
        counts = np.fromiter(map(len, line_ids), np.int64, len(lines))
        ids = np.concatenate([np.zeros(0, np.int32), *line_ids])
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        offsets = self._offsets(lines, line_lens, ids, bounds)
        num_lines = np.fromiter((text.count("\n") + 1 for text in texts), np.int64, len(texts))
        line_ends = np.cumsum(num_lines)
        starts = np.cumsum(line_lens + 1) - (line_lens + 1)  # of lines, in all texts joined by one character
        starts -= np.repeat(starts[line_ends - num_lines], num_lines)  # of lines, in their own text
        offsets += np.repeat(starts, counts).astype(np.int32)[:, None]
        edges = bounds[np.concatenate([np.zeros(1, np.int64), line_ends])].tolist()
        return [Encoding(ids[a:b], offsets[a:b]) for a, b in itertools.pairwise(edges)]

    def _offsets(
        self, lines: Sequence[str], line_lens: np.ndarray, ids: np.ndarray, bounds: np.ndarray
    ) -> Int32[np.ndarray, "num_pieces 2"]:
        """Offsets of pieces in their line.

        SentencePiece's own offsets take four times as long as the ids. Where normalization keeps one character one
        character, the lengths of the pieces tell them; the rest of the lines is given to SentencePiece.
        """
        widths, exact = self._known_widths(lines, line_lens, ids, bounds)
        ends = np.cumsum(widths)
        before = np.concatenate([np.zeros(1, np.int64), ends])[bounds[:-1]]  # [num_lines]
        ends -= np.repeat(before, np.diff(bounds)) + 1  # without the space that SentencePiece puts in front
        offsets = np.stack([np.maximum(ends - widths, 0), ends], axis=1).astype(np.int32)
        for i in np.flatnonzero(~exact & (np.diff(bounds) > 0)).tolist():
            pairs = self._processor.encode(lines[i], return_type="offset_mapping")["offsets"]
            offsets[bounds[i] : bounds[i + 1]] = pairs
        return offsets

    def _known_widths(
        self, lines: Sequence[str], line_lens: np.ndarray, ids: np.ndarray, bounds: np.ndarray
    ) -> tuple[Int64[np.ndarray, "num_pieces"], Bool[np.ndarray, "num_lines"]]:
        """Characters of each piece with the space before it, and of which lines they are certain."""
        counts = np.diff(bounds)
        line_of = np.repeat(np.arange(len(lines)), counts)
        unknown = ids == self.unk_id
        num_unknown = np.bincount(line_of[unknown], minlength=len(lines))
        widths = np.where(unknown, 0, self._widths[ids])
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])[bounds]  # [num_lines + 1]
        # What the known pieces leave of a line. One more, for the space that SentencePiece puts in front.
        rest = line_lens + 1 - np.diff(before)
        # One unknown piece is what is left; several have a character each if so many are left.
        exact = np.where(num_unknown == 1, (rest > 0) & (rest <= line_lens + 1), rest == num_unknown)
        # An equal sum says that no character got lost. In ASCII none can be added, elsewhere some could.
        for i, (line, has_unknown) in enumerate(zip(lines, (num_unknown > 0).tolist(), strict=True)):
            if has_unknown:  # there is no sum to compare: spaces that get lost must be looked for
                exact[i] &= "  " not in f" {line} " and self._is_one_to_one(line)
            elif not line.isascii():
                exact[i] &= self._is_one_to_one(line)
        widths[unknown] = np.where(num_unknown == 1, rest, 1)[line_of[unknown]]
        return widths, exact

    @functools.cached_property
    def _widths(self) -> Int64[np.ndarray, "vocab"]:
        """Characters of each piece; absurd where they are not known, so that no line with such a piece adds up."""
        widths = np.asarray([len(piece) for piece in self._pieces], np.int64)
        no_width = -(1 << 40)
        widths[[self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id]] = no_width
        # A model of other habits, such as white space at the ends of pieces, is left to SentencePiece altogether.
        probe = self._processor.encode("to be (or) not to be", return_type="offset_mapping")
        ends = np.cumsum(widths[np.asarray(probe["ids"], np.int64)]) - 1
        if ends.tolist() != [end for _, end in probe["offsets"]]:
            widths[:] = no_width
        return widths

    @functools.cached_property
    def _is_one_to_one(self) -> Callable[[str], bool]:
        """Whether all characters of a text are known to be normalized one to one, whatever stands beside them."""
        normalize = self._processor.normalize
        kept = [
            chr(code)
            for code in range(0xA1, 0x2200)
            if unicodedata.category(chr(code))[0] in "LNPS"
            and not 0x1100 <= code < 0x1200  # Hangul letters, which NFKC joins to syllables
            and len(normalize(f"a{chr(code)}a")) == len(normalize("aba"))
        ]
        pattern = re.compile(f"[ -~{re.escape(''.join(kept))}]*")
        return lambda text: pattern.fullmatch(text) is not None

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        shown = {self.mask_id: " [MASK]", self.unk_id: "[UNK]", self.pad_id: "", self.cls_id: "", self.sep_id: ""}
        text = "".join(shown.get(int(i), self._pieces[int(i)]) for i in ids)
        return text.replace("\u2581", " ").strip()

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SENTENCEPIECE_FILE).write_bytes(self._model)
        _write_settings(directory, {"kind": "sentencepiece", "fingerprint": self.fingerprint})

    def __reduce__(self) -> tuple:
        return SentencePieceTokenizer, (self._model,)


class WordPieceTokenizer:
    """BERT's WordPiece over a given vocabulary.

    Built from parts and not with `BertWordPieceTokenizer`, which turns a literal "[MASK]" in text into the mask id.

    Args:
      vocab: the pieces, one for each id.
      lower_case: also strip accents, as BERT's uncased models do.
    """

    def __init__(self, vocab: Sequence[str], lower_case: bool = True):
        self._vocab = list(vocab)
        self.lower_case = lower_case
        self.vocab_size = len(self._vocab)
        ids = [_index_of(self._vocab, piece, "the WordPiece vocabulary") for piece in SPECIAL_PIECES]
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
        return _encoding_of(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return [_encoding_of(e) for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        hidden = {self.pad_id, self.cls_id, self.sep_id}
        return " ".join(self._vocab[int(i)] for i in ids if int(i) not in hidden).replace(" ##", "")

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / VOCAB_FILE).write_text("\n".join(self._vocab) + "\n", encoding="utf-8")
        settings = {"kind": "wordpiece", "lower_case": self.lower_case, "fingerprint": self.fingerprint}
        _write_settings(directory, settings)

    def __reduce__(self) -> tuple:
        return WordPieceTokenizer, (self._vocab, self.lower_case)


def load_tokenizer(path: str | Path) -> SentencePieceTokenizer | WordPieceTokenizer:
    """Loads what `save` wrote; also a bare vocab.txt (lower-casing), a .model file, or a directory that holds either.

    Raises:
      ValueError: nothing there is a tokenizer, or the files do not match the fingerprint saved with them.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".txt":
            return WordPieceTokenizer.from_vocab_file(path)
        return SentencePieceTokenizer(path.read_bytes())
    settings: dict = {}
    if (path / SETTINGS_FILE).is_file():
        settings = json.loads((path / SETTINGS_FILE).read_text(encoding="utf-8"))
    tokenizer: SentencePieceTokenizer | WordPieceTokenizer
    if settings.get("kind", "sentencepiece") == "sentencepiece" and (path / SENTENCEPIECE_FILE).is_file():
        tokenizer = SentencePieceTokenizer((path / SENTENCEPIECE_FILE).read_bytes())
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


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    character_coverage: float = 0.9995,
    model_type: ModelType = "unigram",
) -> SentencePieceTokenizer:
    """Trains a SentencePiece model in memory: lower-casing, NFKC, ids 0..4 = [PAD] [UNK] [CLS] [SEP] [MASK].

    Punctuation is never part of a longer piece, as in BERT's tokenizer, so that a name or a year is whole pieces.

    The same texts in the same order give the same model, byte for byte, on any machine.

    Raises:
      VocabularyTooLargeError: the texts cannot give `vocab_size` pieces.
      ValueError: there is no text, or `vocab_size` does not even hold its characters.
    """
    lines = list(_training_lines(texts))
    found = set().union(*lines)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece="[PAD]",
            unk_piece="[UNK]",
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
            user_defined_symbols=[c for c in _OWN_PIECES if c in found],
            normalization_rule_name="nmt_nfkc_cf",
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        too_large = re.search(r"too high.*?value <= (\d+)", str(error), re.DOTALL)
        if too_large:
            raise VocabularyTooLargeError(vocab_size, int(too_large.group(1))) from error
        too_small = re.search(r"smaller than required_chars.*?(\d+) vs (\d+)", str(error), re.DOTALL)
        if too_small:
            raise ValueError(
                f"expected a vocab_size of at least {too_small.group(2)} (the text's characters), got {vocab_size}"
            ) from error
        if "sentences_.empty()" in str(error):
            raise ValueError("expected text to train a tokenizer on, got none") from error
        raise ValueError(f"training a tokenizer of {vocab_size} pieces failed: {error}") from error
    return SentencePieceTokenizer(model.getvalue())


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.replace("\0", " ").split("\n"):
            for start in range(0, len(line), _TRAINING_LINE_CHARS):
                piece = line[start : start + _TRAINING_LINE_CHARS].strip()
                if piece:
                    yield piece


def _encoding_of(encoding: "tokenizers.Encoding") -> Encoding:
    ids = np.asarray(encoding.ids, np.int32)
    return Encoding(ids, np.asarray(encoding.offsets, np.int32).reshape(len(ids), 2))


def _index_of(pieces: list[str], piece: str, what: str) -> int:
    try:
        return pieces.index(piece)
    except ValueError:
        raise ValueError(
            f"{what} ({len(pieces)} pieces) has no {piece}; expected all of {', '.join(SPECIAL_PIECES)}"
        ) from None


def _write_settings(directory: Path, settings: dict) -> None:
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
