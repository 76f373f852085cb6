"""The corpus of RealmForOpenQA's documents: a record a document, in the order of the embeddings.

The corpus job is no way to it: it leaves out texts that were there before and cuts those longer than a block, and then
the rows of the embeddings and the documents no longer count alike.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from realm_jax.convert.block_records import block_texts
from realm_jax.corpus import dataset
from realm_jax.corpus.blocks import Block, piece_rows
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.source_text import listed
from realm_jax.corpus.sources.article import clean_text
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import DEFAULT_TITLE_LEN, CorpusWriter
from realm_jax.text.word_piece import WordPieceTokenizer

_AT_ONCE = 1024
_SHOWN_CHARS = 40


def write_block_corpus(directory: Path, records: Path, tokenizer: WordPieceTokenizer) -> Corpus:
    """Writes a corpus in which document i is record i, whole, its id the record's number; without titles and salient spans.

    Args:
      directory: of the corpus; an unfinished build there is replaced.
      records: JSON lines, see `block_texts`.
      tokenizer: of the models that read it.

    Raises:
      ValueError: a line that is no record.
    """
    # most pieces of a record: the records are read twice, since the writer must know it first
    longest = max(
        (len(encoding.ids) for texts in _batches(records) for encoding in tokenizer.encode_batch(texts)), default=0
    )
    no_spans = np.zeros((0, 2), np.int32)
    with (
        CorpusWriter(directory, tokenizer, max(longest, 1)) as writer,
        dataset.BlockWriter(directory / "blocks") as block_writer,
        tqdm(desc=directory.name, unit=" documents", disable=None) as bar,
    ):
        for texts in _batches(records):
            blocks = []
            for number, text in enumerate(texts, writer.num_documents):
                sentences = np.asarray(sentence_spans(text), np.int32).reshape(-1, 2)
                blocks.append(Block(f"{number}#0", str(number), "", text, sentences, no_spans))
            writer.add(piece_rows(blocks, tokenizer, DEFAULT_TITLE_LEN), [block.source_id for block in blocks])
            block_writer.add(map(dataset.serialize, blocks))
            bar.update(len(blocks))
        block_writer.finish()
        writer.finish(source=str(records), has_blocks=True)
    return Corpus.open(directory)


def check_block_corpus(
    corpus: Corpus, records: Path, num_rows: int, tokenizer: WordPieceTokenizer, other: str = "leave out corpus"
) -> None:
    """Refuses a corpus in which some document is not the record of its row, before anything is indexed.

    Args:
      corpus: of the documents.
      records: JSON lines, see `block_texts`.
      num_rows: of the embeddings.
      tokenizer: of the models that shall read the corpus.
      other: what to do to get a corpus that fits.

    Raises:
      ValueError: other pieces, another number of documents (and why, as far as the corpus tells), or another text.
    """
    remedy = f"{other}, and one of a record a document is made"
    if corpus.info.tokenizer_fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"{corpus.directory} has the pieces of tokenizer {corpus.info.tokenizer_fingerprint[:12]}, the converted model reads "
            f"those of {tokenizer.fingerprint[:12]}; build it with RUN/weights/tokenizer, or {remedy}"
        )
    if corpus.num_documents != num_rows:
        more = corpus.num_documents - corpus.info.num_sources
        causes = [f"dropped there: {listed(corpus.info.dropped)}"] if corpus.info.dropped else []
        causes += [f"{more} more than texts, by cutting"] if more else []
        told = f" ({'; '.join(causes)})" if causes else ""
        raise ValueError(
            f"{corpus.directory} has {corpus.num_documents} documents{told}, expected one for each of the {num_rows} rows of "
            f"the embeddings; {remedy}"
        )
    for document, text in enumerate(_record_texts(records)):
        found = corpus.block(document).text
        if found != text:
            raise ValueError(
                f"{corpus.directory}: document {document} is {_shown(found)}, expected the record of its row, {_shown(text)}; "
                f"{remedy}"
            )


def _record_texts(records: Path) -> Iterator[str]:
    """The records as a corpus has its texts, without control characters."""
    return (clean_text(text).strip() for text in block_texts(records))


def _batches(records: Path) -> Iterator[list[str]]:
    stream = _record_texts(records)
    while batch := list(itertools.islice(stream, _AT_ONCE)):
        yield batch


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…")
