"""RealmForOpenQA's embeddings as index version 0 of the converted run: nothing is embedded again."""

import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from realm_jax.convert.block_corpus import check_block_corpus, write_block_corpus
from realm_jax.convert.block_records import (
    RECORDS_FILE,
    block_texts,
    check_block_records,
    find_block_records,
    write_block_records,
)
from realm_jax.convert.model import Model
from realm_jax.convert.run_files import BLOCKS_FILE, MODEL_FILE, OPEN_QA_FILE, open_qa_gin, read_run
from realm_jax.corpus.info import CORPUS_FILE
from realm_jax.corpus.ragged import Ragged
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings, build_version
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.manifest import Backend, Manifest, sha256_of
from realm_jax.retrieval.recall import random_sentences
from realm_jax.run_dir import RunDir, write_text_atomically
from realm_jax.storage import as_place

logger = logging.getLogger(__name__)

VERSION = 0  # a converted run has made no step
_ROWS_AT_ONCE = 256
_QUERY_LEN = 64


def index_blocks(run: RunDir, corpus: str = "", block_records: str = "", backend: Backend = "scann") -> Manifest:
    """Makes the documents' embeddings of a converted run its index, so that it can be asked.

    RUN/weights/open_qa.gin is the run file for predict, serve and evaluate. Killed at any time, it goes on where it was; done
    twice, it does nothing.

    Args:
      run: converted from RealmForOpenQA.
      corpus: of the documents, where there is one; by default RUN/corpus, which is made of the records unless it is there.
      block_records: the documents' texts, for a run that was converted without them.
      backend: of the index.

    Returns:
      The manifest of version 0.

    Raises:
      ValueError: a run of another class, no texts, or a corpus in which a document is not the record of its row.
      FileNotFoundError: no such file of records.
    """
    if not (run.weights / MODEL_FILE).is_file():
        raise ValueError(
            f"{run.path} holds no converted model; convert a RealmForOpenQA into it first (--gin.convert.source=SOURCE)"
        )
    model = read_run(run)
    if model.block_embeds is None:
        raise ValueError(
            f"{run.path} was converted from {model.architecture}, which has no embeddings of documents; expected "
            "RealmForOpenQA. Others make their index with the corpus and embed jobs"
        )
    records = _records(run, block_records, len(model.block_embeds))
    opened = _corpus(run, corpus, records, model)
    manifest = _build(run, model, opened, backend)
    write_text_atomically(run.weights / OPEN_QA_FILE, open_qa_gin(run, model, opened))
    logger.info("predict, serve and evaluate ask it with --gin_file=%s", run.weights / OPEN_QA_FILE)
    return manifest


def _records(run: RunDir, named: str, expected: int) -> Path:
    """RUN/weights/block_records.jsonl, which the file named becomes."""
    place = run.weights / RECORDS_FILE
    found = find_block_records(named, str(run.weights))
    if found is None:
        raise ValueError(
            f'{run.path} has the embeddings of {expected} documents, and not their texts; name those, a line {{"text": …}} '
            "for each row (--gin.convert.block_records=FILE)"
        )
    check_block_records(found, expected)
    if place.exists() and found != place:
        check_block_records(place, expected)
        if any(one != other for one, other in zip(block_texts(place), block_texts(found), strict=True)):
            raise ValueError(f"{place} has other texts than {found}; leave out block_records, or remove it")
    elif found != place:
        write_block_records(place, block_texts(found))
    return place


def _corpus(run: RunDir, named: str, records: Path, model: Model) -> Corpus:
    assert model.tokenizer is not None and model.block_embeds is not None
    directory = as_place(named) if named else run.corpus
    if not named and not (directory / CORPUS_FILE).exists():
        return write_block_corpus(directory, records, model.tokenizer)
    corpus = Corpus.open(directory)
    other = "leave out corpus" if named else f"remove {directory}"
    check_block_corpus(corpus, records, len(model.block_embeds), model.tokenizer, other)
    return corpus


def _build(run: RunDir, model: Model, corpus: Corpus, backend: Backend) -> Manifest:
    rows, config = model.block_embeds, model.retriever
    assert rows is not None and config is not None
    last = len(rows) - 1
    special = SpecialIds.of(corpus.tokenizer)
    embedder = Embedder(config, model.params["retriever"])

    def stored(ids: np.ndarray, segment_ids: np.ndarray) -> Float32[np.ndarray, "rows embed"]:
        # [CLS] [SEP] document [SEP]; rows that pad a batch have some special piece there, and are dropped afterwards
        return np.asarray(rows[np.minimum(ids[:, 2], last)], np.float32)

    def embed_sentences_of(ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        # [CLS] document [SEP]
        sentences = random_sentences(corpus, np.minimum(ids[:, 1], last).astype(np.int64))
        inputs = query_inputs(sentences, query_len, special)
        return np.asarray(embedder.embed_queries(inputs.ids, inputs.segment_ids))

    query_len = min(_QUERY_LEN, config.encoder.max_length)
    with tqdm(total=len(rows), desc="index", unit=" documents", disable=None) as bar:
        return build_version(
            run.index,
            VERSION,
            stored,
            _numbered(corpus),
            IndexSettings(backend=backend),
            embed_dim=config.embed_dim,
            # not the snapshot's: what made these rows is not known
            snapshot_checksum=sha256_of(run.weights / BLOCKS_FILE),
            batches=BatchSettings(
                document_len=8, batch_size=embedder.rounded(_ROWS_AT_ONCE), num_lengths=1, query_len=8
            ),
            embed_queries=embed_sentences_of,
            on_progress=lambda done, total: bar.update(done - bar.n),
        )


def _numbered(corpus: Corpus) -> Corpus:
    """The corpus with a single piece in each document, its number: by it the embeddings are told apart that are asked for."""
    count = corpus.num_documents
    view = Corpus.open(corpus.directory)
    one_each = np.arange(count + 1, dtype=np.int64)
    view.titles = Ragged(np.zeros(0, np.int32), np.zeros(count + 1, np.int64))
    view.bodies = Ragged(np.arange(count, dtype=np.int32), one_each)
    view.sentence_ends = Ragged(np.ones(count, np.int32), one_each)
    return view
