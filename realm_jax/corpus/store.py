"""The corpus on disk: ragged integer arrays, memory-mapped, random access by document id.

    CORPUS/corpus.json      what it is; written last, by rename: a directory without it is not a corpus
    CORPUS/tokenizer/       the tokenizer that made the pieces
    CORPUS/tokens/          NAME.values.npy and NAME.offsets.npy of every ragged array
    CORPUS/blocks/          the text of every document, a TFDS data set in ArrayRecord format (not needed to train)

Row i of every array, and record i of the data set, is document i. Pieces are raw: no special ids.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Integer

from realm_jax.corpus import dataset
from realm_jax.corpus.blocks import Block, PieceRows, piece_rows
from realm_jax.run_dir import read_json, write_json_atomically
from realm_jax.text.tokenizers import Tokenizer, load_tokenizer
from realm_jax.typed import check_fields, conforms

CORPUS_FILE = "corpus.json"
FORMAT_VERSION = 1
RAGGED_ARRAYS = ("titles", "bodies", "sentence_ends", "salient_spans", "source_ids")
DEFAULT_TITLE_LEN = 32


@dataclasses.dataclass(frozen=True)
class CorpusInfo:
    """What corpus.json says.

    Attributes:
      fingerprint: of the arrays and the tokenizer; an index of a corpus carries the same.
      tokenizer_fingerprint: of the tokenizer that made the pieces.
      num_documents: rows.
      num_sources: articles, files or records that the documents were cut from.
      num_pieces: of all bodies together.
      vocab_size: of the tokenizer.
      block_len: most pieces of a body; the title is not counted.
      title_len: most pieces of a title; longer titles are cut.
      source: where the text came from.
      licence: of the text, as far as it is known.
      dropped: records that did not become documents, by cause.
      counts: further figures of the build by name, such as documents without salient spans.
      settings: what the build was asked for; a second build of the same settings reuses the corpus.
      has_blocks: whether blocks/ holds the text.
      format_version: of the files.
    """

    fingerprint: str
    tokenizer_fingerprint: str
    num_documents: int
    num_sources: int
    num_pieces: int
    vocab_size: int
    block_len: int
    title_len: int
    source: str = ""
    licence: str = "unknown"
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_blocks: bool = False
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_fields(self)


class Ragged:
    """Rows of different lengths: flat values and int64 offsets, usually memory-mapped.

    Values may be pairs (salient spans): then a row is [n, 2].
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self._values = np.asarray(values)
        self._offsets = np.asarray(offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int | np.integer) -> Int32[np.ndarray, "length *pair"]:
        """One row as int32 (a copy: the files hold unsigned 16-bit values, which must not be subtracted from)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._values[self._offsets[row] : self._offsets[row + 1]].astype(np.int32)

    @property
    def num_values(self) -> int:
        """Values of all rows together."""
        return len(self._values)

    def lengths(self, ids: Integer[np.ndarray, "*rows"] | None = None) -> Int64[np.ndarray, "*rows"]:
        """Lengths of rows; of all rows without `ids`. A negative id has length 0."""
        if ids is None:
            return np.diff(self._offsets)
        return self._starts_and_lengths(ids)[1]

    def gather(
        self, ids: Integer[np.ndarray, "*rows"], max_len: int, pad: int = 0
    ) -> Int32[np.ndarray, "*rows max_len"] | Int32[np.ndarray, "*rows max_len 2"]:
        """Copies rows into one array, cut to `max_len` and padded; no Python loop over rows.

        Args:
          ids: rows, any shape. A negative id (no hit, the null document) gives an empty row.
          max_len: length of every row of the result.
          pad: value after a row's end.

        Raises:
          ValueError: an id beyond the last row.
        """
        starts, lengths = self._starts_and_lengths(ids)
        positions = np.arange(max_len)
        present = positions < np.minimum(lengths, max_len)[..., None]  # [*rows, max_len]
        result = np.full((*starts.shape, max_len, *self._values.shape[1:]), pad, np.int32)
        result[present] = self._values[(starts[..., None] + positions)[present]]
        return result

    def _starts_and_lengths(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(ids)
        if ids.size and ids.max() >= len(self):
            raise ValueError(f"expected document ids below {len(self)}, got {ids.max()}")
        safe = np.maximum(ids, 0).astype(np.int64)
        starts = self._offsets[safe] if len(self) else np.zeros(safe.shape, np.int64)
        ends = self._offsets[safe + 1] if len(self) else starts
        return starts, np.where(ids >= 0, ends - starts, 0)


class Corpus:
    """A finished corpus, opened for reading. Opening maps files and reads none: it costs no time and no memory."""

    def __init__(self, directory: Path, info: CorpusInfo):
        self.directory = directory
        self.info = info
        tokens = directory / "tokens"
        ragged = {name: _open_ragged(tokens, name, info.num_documents) for name in RAGGED_ARRAYS[:-1]}
        self.titles = ragged["titles"]
        self.bodies = ragged["bodies"]
        self.sentence_ends = ragged["sentence_ends"]
        self.salient_spans = ragged["salient_spans"]
        self._source_names = _open_ragged(tokens, "source_ids", info.num_sources)
        self._source_first = _open_array(tokens / "source_first.npy", info.num_sources + 1)
        self._source_hashes = _open_array(tokens / "source_hashes.npy", info.num_sources)
        self._source_order = _open_array(tokens / "source_order.npy", info.num_sources)
        self.gold_documents: np.ndarray | None = None
        if (tokens / "gold_documents.npy").exists():
            self.gold_documents = _open_array(tokens / "gold_documents.npy", info.num_documents)
        self._answers: Ragged | None = None
        if (tokens / "answers.offsets.npy").exists():
            self._answers = _open_ragged(tokens, "answers", info.num_documents)
        if self.bodies.num_values != info.num_pieces:
            raise ValueError(
                f"{directory}: {CORPUS_FILE} says {info.num_pieces} pieces, tokens/ holds {self.bodies.num_values}; "
                "build the corpus again"
            )

    @classmethod
    def open(cls, directory: str | Path) -> "Corpus":
        """Opens a corpus directory.

        Raises:
          ValueError: not a corpus, an unfinished build, or files that do not fit corpus.json.
        """
        directory = Path(directory)
        return cls(directory, read_info(directory))

    def __reduce__(self) -> tuple:
        return Corpus.open, (self.directory,)

    @property
    def num_documents(self) -> int:
        return self.info.num_documents

    @property
    def fingerprint(self) -> str:
        return self.info.fingerprint

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the pieces, loaded when first asked for."""
        tokenizer = load_tokenizer(self.directory / "tokenizer")
        if tokenizer.fingerprint != self.info.tokenizer_fingerprint:
            raise ValueError(
                f"{self.directory}/tokenizer is not the tokenizer of this corpus: expected fingerprint "
                f"{self.info.tokenizer_fingerprint[:12]}, got {tokenizer.fingerprint[:12]}; build the corpus again"
            )
        return tokenizer

    def source_id(self, document: int | np.integer) -> str:
        """The id of the article, file or record that a document was cut from."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        return self._source_name(int(np.searchsorted(self._source_first, document, side="right")) - 1)

    def documents_of(self, source_id: str) -> Int64[np.ndarray, "num_found"]:
        """The documents cut from a source, ascending; empty for an unknown id. By binary search, no table in memory."""
        wanted = _source_hash(source_id)
        first = int(np.searchsorted(self._source_hashes, wanted, side="left"))
        last = int(np.searchsorted(self._source_hashes, wanted, side="right"))
        runs = [
            np.arange(self._source_first[source], self._source_first[source + 1], dtype=np.int64)
            for source in sorted(self._source_order[first:last].tolist())
            if self._source_name(source) == source_id
        ]
        return np.concatenate(runs) if runs else np.zeros(0, np.int64)

    def block(self, document: int | np.integer) -> Block:
        """The text of a document with its sentences and salient spans in characters.

        Raises:
          ValueError: the corpus was made without text (`CorpusInfo.has_blocks`).
        """
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        return dataset.block_of(self._block_source[int(document)])

    @functools.cached_property
    def _block_source(self) -> Sequence[Mapping[str, Any]]:
        if not self.info.has_blocks:
            raise ValueError(f"{self.directory} was made without text; build it with the corpus job to read its blocks")
        source = dataset.open_blocks(self.directory / "blocks")
        if len(source) != self.num_documents:
            raise ValueError(
                f"{self.directory}/blocks holds {len(source)} records, the corpus {self.num_documents} documents; "
                "build the corpus again"
            )
        return source

    def answers(self, document: int | np.integer) -> tuple[str, ...]:
        """The reference answers of a row of a question set; empty where there are none."""
        if self._answers is None:
            return ()
        return tuple(json.loads(self._answers[document].astype(np.uint8).tobytes() or b"[]"))

    def _source_name(self, source: int) -> str:
        return self._source_names[source].astype(np.uint8).tobytes().decode()


def read_info(directory: str | Path) -> CorpusInfo:
    """Reads corpus.json.

    Raises:
      ValueError: not a corpus, an unfinished build, or a corpus.json of another kind.
    """
    directory = Path(directory)
    path = directory / CORPUS_FILE
    if not path.is_file():
        if (directory / "tokens").is_dir():
            raise ValueError(f"{directory} holds an unfinished corpus (no {CORPUS_FILE}); run the corpus job again")
        raise ValueError(f"no corpus at {directory} (expected a {CORPUS_FILE}); build one with the corpus job")
    content = read_json(path)
    names = {field.name for field in dataclasses.fields(CorpusInfo)}
    if not conforms(content, dict[str, Any]) or content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected format_version {FORMAT_VERSION}, got {found}; build the corpus again")
    try:
        return CorpusInfo(**{name: value for name, value in content.items() if name in names})
    except TypeError as error:
        raise ValueError(f"{path} lacks a field: {error}; build the corpus again") from error


class CorpusWriter:
    """Writes the arrays of a corpus, document after document; holds only the sources' hashes in memory.

    Args:
      directory: the corpus; files of an unfinished build there are replaced.
      tokenizer: saved with the corpus.
      block_len: most pieces of a body.
      title_len: most pieces of a title.

    Call `add` for every batch of documents in order, then `finish` once, in a `with` block: it closes the files of a
    build that fails.
    """

    def __init__(self, directory: str | Path, tokenizer: Tokenizer, block_len: int, title_len: int = DEFAULT_TITLE_LEN):
        self.directory = Path(directory)
        (self.directory / CORPUS_FILE).unlink(missing_ok=True)
        tokens = self.directory / "tokens"
        tokens.mkdir(parents=True, exist_ok=True)
        for stale in tokens.glob("*.npy"):
            stale.unlink()
        self._tokenizer = tokenizer
        self._block_len, self._title_len = block_len, title_len
        piece_type = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
        place_type = np.uint16 if block_len < 1 << 16 else np.int32
        self._ragged = {
            "titles": _RaggedWriter(tokens, "titles", piece_type),
            "bodies": _RaggedWriter(tokens, "bodies", piece_type),
            "sentence_ends": _RaggedWriter(tokens, "sentence_ends", place_type),
            "salient_spans": _RaggedWriter(tokens, "salient_spans", place_type, (2,)),
            "source_ids": _RaggedWriter(tokens, "source_ids", np.uint8),
        }
        self._source_first = _ArrayWriter(tokens / "source_first.npy", np.int64)
        self._gold: _ArrayWriter | None = None
        self._answers: _RaggedWriter | None = None
        self._source_hashes: list[np.ndarray] = []
        self._last_source: str | None = None
        self.num_documents = 0

    def add(
        self,
        rows: PieceRows,
        source_ids: Sequence[str],
        gold_documents: Sequence[int] | None = None,
        answers: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Appends documents.

        Args:
          rows: their pieces.
          source_ids: of each, documents of one source next to each other.
          gold_documents: for a stream of sentences or questions: the row of the knowledge corpus that each belongs
            to, -1 unknown. Given for all batches or for none.
          answers: for a question set: the reference answers of each. Given for all batches or for none.
        """
        count = len(source_ids)
        assert all(
            len(column) == count
            for column in (rows.title_lengths, rows.body_lengths, rows.sentence_counts, rows.span_counts)
        )
        self._ragged["titles"].append(rows.titles, rows.title_lengths)
        self._ragged["bodies"].append(rows.bodies, rows.body_lengths)
        self._ragged["sentence_ends"].append(rows.sentence_ends, rows.sentence_counts)
        self._ragged["salient_spans"].append(rows.salient_spans, rows.span_counts)
        self._add_sources(source_ids)
        if gold_documents is not None:
            if self._gold is None:
                self._gold = _ArrayWriter(self.directory / "tokens" / "gold_documents.npy", np.int64)
            self._gold.append(np.asarray(gold_documents, np.int64))
        if answers is not None:
            if self._answers is None:
                self._answers = _RaggedWriter(self.directory / "tokens", "answers", np.uint8)
            self._answers.append_bytes([json.dumps(list(a), ensure_ascii=False).encode() for a in answers])
        self.num_documents += count

    def _add_sources(self, source_ids: Sequence[str]) -> None:
        names, first = [], []
        for document, name in enumerate(source_ids, self.num_documents):
            if name != self._last_source:
                names.append(name)
                first.append(document)
                self._last_source = name
        self._ragged["source_ids"].append_bytes([name.encode() for name in names])
        self._source_first.append(np.asarray(first, np.int64))
        self._source_hashes.append(np.asarray([_source_hash(name) for name in names], np.uint64))

    def finish(
        self,
        source: str = "",
        licence: str = "unknown",
        dropped: Mapping[str, int] | None = None,
        counts: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
        has_blocks: bool = False,
    ) -> CorpusInfo:
        """Closes the arrays, saves the tokenizer, and makes the corpus exist by writing corpus.json."""
        tokens = self.directory / "tokens"
        self._source_first.append(np.asarray([self.num_documents], np.int64))
        num_sources = len(self._source_first) - 1
        hashes = np.concatenate([np.zeros(0, np.uint64), *self._source_hashes])
        order = np.argsort(hashes, kind="stable")
        for name, values in (("source_hashes", hashes[order]), ("source_order", order.astype(np.int64))):
            writer = _ArrayWriter(tokens / f"{name}.npy", values.dtype)
            writer.append(values)
            writer.close()
        digests = {"source_first": self._source_first.close()}
        if self._gold is not None:
            digests["gold_documents"] = self._gold.close()
        for ragged in (*self._ragged.values(), self._answers):
            if ragged is not None:
                digests |= ragged.close()
        self._tokenizer.save(self.directory / "tokenizer")
        info = CorpusInfo(
            fingerprint=content_fingerprint(digests, self._tokenizer.fingerprint),
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            num_documents=self.num_documents,
            num_sources=num_sources,
            num_pieces=self._ragged["bodies"].num_values,
            vocab_size=self._tokenizer.vocab_size,
            block_len=self._block_len,
            title_len=self._title_len,
            source=source,
            licence=licence,
            dropped=dict(sorted((dropped or {}).items())),
            counts=dict(sorted((counts or {}).items())),
            settings=dict(settings or {}),
            has_blocks=has_blocks,
        )
        write_json_atomically(self.directory / CORPUS_FILE, dataclasses.asdict(info))
        return info

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in (*self._ragged.values(), self._source_first, self._gold, self._answers):
            if writer is not None:
                writer.abandon()


def content_fingerprint(digests: Mapping[str, str], tokenizer_fingerprint: str) -> str:
    """One fingerprint of a corpus: of its arrays by name and of the tokenizer that gives them meaning."""
    content = json.dumps([FORMAT_VERSION, tokenizer_fingerprint, sorted(digests.items())])
    return hashlib.sha256(content.encode()).hexdigest()


def make_corpus(
    directory: str | Path,
    blocks: Iterable[Block],
    tokenizer: Tokenizer,
    block_len: int = 288,
    gold_documents: Sequence[int] | None = None,
    answers: Sequence[Sequence[str]] | None = None,
    with_text: bool = True,
) -> Corpus:
    """Writes a small corpus of given blocks and opens it: for tests, notebooks and made-up data.

    Bodies longer than `block_len` pieces are refused; the corpus job cuts articles into blocks.
    """
    blocks = list(blocks)
    rows = piece_rows(blocks, tokenizer, DEFAULT_TITLE_LEN)
    if blocks and rows.body_lengths.max() > block_len:
        raise ValueError(f"expected blocks of at most {block_len} pieces, got one of {rows.body_lengths.max()}")
    with CorpusWriter(directory, tokenizer, block_len) as writer:
        writer.add(rows, [block.source_id for block in blocks], gold_documents, answers)
        if with_text:
            dataset.write_blocks(Path(directory) / "blocks", blocks)
        writer.finish(source="made", has_blocks=with_text)
    return Corpus.open(directory)


class _ArrayWriter:
    """Appends to one .npy file and hashes what it writes; the header gets its length at the end.

    numpy leaves room in the header for the first dimension to grow to 21 digits.
    """

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...] = ()):
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._file = path.open("wb")
        self._length = 0
        self._hash = hashlib.sha256(repr((self._dtype.str, row_shape)).encode())
        self._write_header()
        self._header_len = self._file.tell()

    def __len__(self) -> int:
        return self._length

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self._dtype)
        self._file.write(data.data)
        self._hash.update(data.data)
        self._length += len(data)

    def close(self) -> str:
        """Finishes the file; the sha256 of its values."""
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._header_len
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


class _RaggedWriter:
    """Appends rows to NAME.values.npy and NAME.offsets.npy."""

    def __init__(self, directory: Path, name: str, dtype: Any, row_shape: tuple[int, ...] = ()):
        self._name = name
        self._values = _ArrayWriter(directory / f"{name}.values.npy", dtype, row_shape)
        self._offsets = _ArrayWriter(directory / f"{name}.offsets.npy", np.int64)
        self._offsets.append(np.zeros(1, np.int64))

    @property
    def num_values(self) -> int:
        return len(self._values)

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self._offsets.append(len(self._values) + np.cumsum(lengths, dtype=np.int64))
        self._values.append(values)

    def append_bytes(self, rows: Sequence[bytes]) -> None:
        self.append(np.frombuffer(b"".join(rows), np.uint8), np.asarray([len(row) for row in rows], np.int64))

    def close(self) -> dict[str, str]:
        return {f"{self._name}.values": self._values.close(), f"{self._name}.offsets": self._offsets.close()}

    def abandon(self) -> None:
        self._values.abandon()
        self._offsets.abandon()


def _open_array(path: Path, length: int | None = None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; build the corpus again") from error
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); build the corpus again") from error
    if length is not None and len(array) != length:
        raise ValueError(f"{path}: expected {length} rows, got {len(array)}; build the corpus again")
    return array.view(np.ndarray)


def _open_ragged(directory: Path, name: str, num_rows: int) -> Ragged:
    offsets = _open_array(directory / f"{name}.offsets.npy", num_rows + 1)
    values = _open_array(directory / f"{name}.values.npy", int(offsets[-1]))
    return Ragged(values, offsets)


def _source_hash(source_id: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(source_id.encode(), digest_size=8).digest(), "little"))
