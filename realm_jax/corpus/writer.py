"""Writes a corpus: its arrays document after document, its tokenizer, and last of all corpus.json.

What it writes is described in `realm_jax.corpus.store`, which reads it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realm_jax.corpus import dataset
from realm_jax.corpus.array_files import ArrayWriter, RaggedWriter
from realm_jax.corpus.blocks import Block, PieceRows, piece_rows
from realm_jax.corpus.info import CORPUS_FILE, FORMAT_VERSION, CorpusInfo
from realm_jax.corpus.store import Corpus, source_hash
from realm_jax.run_dir import write_json_atomically
from realm_jax.text.tokenizer import Tokenizer

DEFAULT_TITLE_LEN = 32


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
            "titles": RaggedWriter(tokens, "titles", piece_type),
            "bodies": RaggedWriter(tokens, "bodies", piece_type),
            "sentence_ends": RaggedWriter(tokens, "sentence_ends", place_type),
            "salient_spans": RaggedWriter(tokens, "salient_spans", place_type, (2,)),
            "source_ids": RaggedWriter(tokens, "source_ids", np.uint8),
        }
        self._source_first = ArrayWriter(tokens / "source_first.npy", np.int64)
        self._gold: ArrayWriter | None = None
        self._answers: RaggedWriter | None = None
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
                self._gold = ArrayWriter(self.directory / "tokens" / "gold_documents.npy", np.int64)
            self._gold.append(np.asarray(gold_documents, np.int64))
        if answers is not None:
            if self._answers is None:
                self._answers = RaggedWriter(self.directory / "tokens", "answers", np.uint8)
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
        self._source_hashes.append(np.asarray([source_hash(name) for name in names], np.uint64))

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
            writer = ArrayWriter(tokens / f"{name}.npy", values.dtype)
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
