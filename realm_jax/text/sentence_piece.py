"""SentencePiece tokenizers: trained in memory, with offsets from the lengths of the pieces."""

import functools
import hashlib
import io
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, SupportsInt

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int32, Int64

from realm_jax.text.tokenizer import SPECIAL_PIECES, Encoding, special_ids, write_settings

ModelType = Literal["unigram", "bpe"]
SENTENCEPIECE_FILE = "sentencepiece.model"
SPACE_MARK = "\u2581"  # begins a piece that a space, or the beginning of a line, goes before
_DAMAGED = "the file is damaged or no model: restore it, name another, or build the corpus again"
# SentencePiece's result depends on the number of training threads, so it is a constant and not the machine's.
_TRAINING_THREADS = 4
# A piece such as "1862." would make a span of the year one of year and stop: these are always pieces of their own.
_OWN_PIECES = tuple(".,;:!?()[]{}\"“”„«»'‘’/–—…")
# SentencePiece leaves out training lines above 4192 bytes without a word: cut them ourselves.
_TRAINING_LINE_CHARS = 1000


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

    keeps_spelling = False  # the models trained here know no capitals; those of others may normalise as they like

    def __init__(self, model: bytes):
        self._model = model
        if not model:  # SentencePiece would say more than once that it has not been loaded
            raise ValueError(f"expected a SentencePiece model, got nothing (0 bytes); {_DAMAGED}")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the library raises several kinds
            raise ValueError(f"not a SentencePiece model ({len(model)} bytes: {error}); {_DAMAGED}") from error
        processor = self._processor
        self.vocab_size = int(processor.get_piece_size())
        self._pieces = [processor.id_to_piece(i) for i in range(self.vocab_size)]
        ids = special_ids(self._pieces, "the SentencePiece model")
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

    def spelled(self, piece: int) -> tuple[bool, str]:
        text = self._pieces[piece]
        return not text.startswith(SPACE_MARK), text.removeprefix(SPACE_MARK)

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SENTENCEPIECE_FILE).write_bytes(self._model)
        write_settings(directory, {"kind": "sentencepiece", "fingerprint": self.fingerprint})

    def __reduce__(self) -> tuple:
        return SentencePieceTokenizer, (self._model,)


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
