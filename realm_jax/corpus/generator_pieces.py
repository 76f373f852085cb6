"""A corpus's documents in the pieces of a second tokenizer: a generator's, which is rarely the retriever's.

    CORPUS/pieces/FINGERPRINT/tokenizer/     the tokenizer
    CORPUS/pieces/FINGERPRINT/               titles and bodies: NAME.values.npy and NAME.offsets.npy
    CORPUS/pieces/FINGERPRINT/pieces.json    written last, by rename: without it there are none

Row i is document i. A body is encoded as it stands behind other text, with a space before it; a title as the first of all.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from realm_jax.corpus.array_files import RaggedWriter
from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.ragged import Ragged, open_ragged
from realm_jax.corpus.store import Corpus
from realm_jax.run_dir import read_json, write_json_atomically
from realm_jax.text.generator_tokenizer import GeneratorTokenizer
from realm_jax.text.tokenizer import Encoding, Tokenizer

logger = logging.getLogger(__name__)

PIECES_FILE = "pieces.json"
_AT_ONCE = 1000


class DocumentPieces(NamedTuple):
    """Titles and bodies of all documents, as ids of one tokenizer."""

    titles: Ragged
    bodies: Ragged


def open_pieces(corpus: Corpus, tokenizer: Tokenizer | GeneratorTokenizer) -> DocumentPieces:
    """The documents in a tokenizer's pieces: the corpus's own, where it is the same, else those that were added to it.

    Raises:
      ValueError: there are none, or not of all documents.
    """
    if tokenizer.fingerprint == corpus.info.tokenizer_fingerprint:
        return DocumentPieces(corpus.titles, corpus.bodies)
    place = _place(corpus, tokenizer)
    if not (place / PIECES_FILE).exists():
        raise ValueError(
            f"{corpus.directory} has no documents in the pieces of tokenizer {tokenizer.fingerprint[:12]}; give the corpus job "
            "the generator's tokenizer, beside what it was built with: --gin.corpus.generator_tokenizer=DIRECTORY"
        )
    said = read_json(place / PIECES_FILE)
    expected = {"tokenizer": tokenizer.fingerprint, "corpus": corpus.fingerprint}
    if {name: said.get(name) for name in expected} != expected:
        raise ValueError(
            f"{place} is of another corpus or tokenizer; remove it and give the corpus job the tokenizer again"
        )
    num_rows = corpus.num_documents
    return DocumentPieces(open_ragged(place, "titles", num_rows), open_ragged(place, "bodies", num_rows))


def add_pieces(corpus: Corpus, tokenizer: Tokenizer | GeneratorTokenizer) -> None:
    """Encodes all documents once more, with a progress bar; what is there already is not done again.

    Raises:
      ValueError: the corpus was made without text.
    """
    place = _place(corpus, tokenizer)
    if tokenizer.fingerprint == corpus.info.tokenizer_fingerprint or (place / PIECES_FILE).exists():
        return
    if not corpus.info.has_blocks:
        raise ValueError(
            f"{corpus.directory} was made without text, which a second tokenizer must read; build it with the corpus job"
        )
    shutil.rmtree(place, ignore_errors=True)  # of a job that was killed
    place.mkdir(parents=True)
    tokenizer.save(place / "tokenizer")
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    writers = {name: RaggedWriter(place, name, dtype) for name in ("titles", "bodies")}
    for titles, bodies in _batches(corpus):
        for name, texts in (("titles", titles), ("bodies", [f" {body}" for body in bodies])):
            _append(writers[name], tokenizer.encode_batch(texts))
    sums = {name: value for writer in writers.values() for name, value in writer.close().items()}
    said = {"tokenizer": tokenizer.fingerprint, "corpus": corpus.fingerprint, "sha256": sums}
    write_json_atomically(place / PIECES_FILE, said)
    logger.info(
        "%d documents in the pieces of tokenizer %s: %s", corpus.num_documents, tokenizer.fingerprint[:12], place
    )


def _place(corpus: Corpus, tokenizer: Tokenizer | GeneratorTokenizer) -> Path:
    return corpus.directory / "pieces" / tokenizer.fingerprint[:16]


def _batches(corpus: Corpus) -> Iterator[tuple[list[str], list[str]]]:
    with tqdm(total=corpus.num_documents, desc="second tokenizer", unit=" documents", mininterval=1.0) as bar:
        for first in range(0, corpus.num_documents, _AT_ONCE):
            documents = range(first, min(first + _AT_ONCE, corpus.num_documents))
            titles, bodies = zip(*(document_text(corpus, document) for document in documents), strict=True)
            yield list(titles), list(bodies)
            bar.update(len(documents))


def _append(writer: RaggedWriter, encodings: list[Encoding]) -> None:
    lengths = np.asarray([len(encoding.ids) for encoding in encodings], np.int64)
    writer.append(np.concatenate([encoding.ids for encoding in encodings]), lengths)
