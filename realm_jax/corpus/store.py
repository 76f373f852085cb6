"""The corpus on disk, opened for reading: ragged integer arrays, memory-mapped, random access by document id.

    CORPUS/corpus.json      what it is; written last, by rename: a directory without it is not a corpus
    CORPUS/tokenizer/       the tokenizer that made the pieces
    CORPUS/tokens/          NAME.values.npy and NAME.offsets.npy of every ragged array
    CORPUS/blocks/          the text of every document, a TFDS data set in ArrayRecord format (not needed to train)

Row i of every array, and record i of the data set, is document i. Pieces are raw: no special ids.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from realm_jax.corpus import dataset
from realm_jax.corpus.blocks import Block
from realm_jax.corpus.info import CORPUS_FILE, CorpusInfo, read_info
from realm_jax.corpus.ragged import Ragged, open_array, open_ragged
from realm_jax.storage import fetch
from realm_jax.text.loading import load_tokenizer
from realm_jax.text.tokenizer import Tokenizer


class Corpus:
    """A finished corpus, opened for reading. Opening maps files and reads none: it costs no time and no memory."""

    def __init__(self, directory: Path, info: CorpusInfo):
        self.directory = directory
        self.info = info
        tokens = directory / "tokens"
        self.titles = open_ragged(tokens, "titles", info.num_documents)
        self.bodies = open_ragged(tokens, "bodies", info.num_documents)
        self.sentence_ends = open_ragged(tokens, "sentence_ends", info.num_documents)
        self.salient_spans = open_ragged(tokens, "salient_spans", info.num_documents)
        self._source_names = open_ragged(tokens, "source_ids", info.num_sources)
        self._source_first = open_array(tokens / "source_first.npy", info.num_sources + 1)
        self._source_hashes = open_array(tokens / "source_hashes.npy", info.num_sources)
        self._source_order = open_array(tokens / "source_order.npy", info.num_sources)
        self.gold_documents: np.ndarray | None = None
        if (tokens / "gold_documents.npy").exists():
            self.gold_documents = open_array(tokens / "gold_documents.npy", info.num_documents)
        self._answers: Ragged | None = None
        if (tokens / "answers.offsets.npy").exists():
            self._answers = open_ragged(tokens, "answers", info.num_documents)
        if self.bodies.num_values != info.num_pieces:
            raise ValueError(
                f"{directory}: {CORPUS_FILE} says {info.num_pieces} pieces, tokens/ holds {self.bodies.num_values}; "
                "build the corpus again"
            )

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "Corpus":
        """Opens a corpus directory; one on an object store is downloaded first, where the cache has it not yet.

        Raises:
          ValueError: not a corpus, an unfinished build, or files that do not fit corpus.json.
        """
        info = read_info(directory)
        return cls(fetch(directory), info)

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
        source = int(np.searchsorted(self._source_first, document, side="right")) - 1
        if not 0 <= source < self.info.num_sources:
            raise ValueError(f"{self.directory}/tokens/source_first.npy is damaged; build the corpus again")
        return self._source_name(source)

    def documents_of(self, source_id: str) -> Int64[np.ndarray, "num_found"]:
        """The documents cut from a source, ascending; empty for an unknown id. By binary search, no table in memory."""
        wanted = source_hash(source_id)
        first = int(np.searchsorted(self._source_hashes, wanted, side="left"))
        last = int(np.searchsorted(self._source_hashes, wanted, side="right"))
        runs = [
            self._documents_from(source)
            for source in sorted(self._source_order[first:last].tolist())
            if self._source_name(source) == source_id
        ]
        return np.concatenate(runs) if runs else np.zeros(0, np.int64)

    def _documents_from(self, source: int) -> Int64[np.ndarray, "num_found"]:
        start, stop = (int(first) for first in self._source_first[source : source + 2])
        if not 0 <= start <= stop <= self.num_documents:
            raise ValueError(f"{self.directory}/tokens/source_first.npy is damaged; build the corpus again")
        return np.arange(start, stop, dtype=np.int64)

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


def source_hash(source_id: str) -> np.uint64:
    """What source ids are sorted by in the files, to be found by binary search."""
    return np.uint64(int.from_bytes(blake2b(source_id.encode(), digest_size=8).digest(), "little"))
