"""Another run's index as the first version of this one: the corpus need not be embedded again."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, document_inputs
from realm_jax.retrieval.build_version import already_published
from realm_jax.retrieval.manifest import Manifest
from realm_jax.retrieval.recall import sample_documents
from realm_jax.retrieval.shards import map_embeddings, share_file
from realm_jax.retrieval.versions import list_versions, publish, verify, version_dir
from realm_jax.run_dir import RunDir
from realm_jax.run_lock import exclusive
from realm_jax.storage import Place, remove

logger = logging.getLogger(__name__)

SAMPLE_DOCUMENTS = 32
MAX_DISTANCE = 0.05
"""Distance over length, between the embedding of this run's retriever and the index's: bfloat16 against float32 makes 0.01
of it, another retriever about 1."""


def adopt_version(
    source: RunDir,
    index_dir: Place,
    embed_documents: Callable[[np.ndarray, np.ndarray], Any],
    corpus: Corpus,
    *,
    embed_dim: int,
    snapshot_checksum: str,
    document_len: int,
    sample: int = SAMPLE_DOCUMENTS,
) -> Manifest:
    """Publishes the newest index version of another run as version 0, if this run's retriever would have made it.

    Some documents are embedded with this run's parameters and compared. Files are linked where the file system can, for
    nothing published is ever changed; else copied.

    Args:
      source: the other run.
      index_dir: RUN/index of this one.
      embed_documents: with this run's parameters; called once with `sample` rows.
      corpus: the knowledge corpus.
      embed_dim: of this run's retriever.
      snapshot_checksum: of this run's snapshot 0, for the manifest.
      document_len: pieces of `[CLS] title [SEP] body [SEP]`.
      sample: how many documents are compared.

    Raises:
      ValueError: the other run has no index, or one of another corpus or retriever (IndexRefused when damaged).
    """
    found = list_versions(source.index)
    if not found:
        raise ValueError(
            f"RefreshConfig.first_index: {source.path} has no index version; name a run that has one, or set it to None: "
            "the corpus is then embedded"
        )
    with exclusive(index_dir / "builder.lock", "another process builds index versions"):
        if 0 in list_versions(index_dir):
            return already_published(index_dir, 0, corpus, snapshot_checksum)
        origin = version_dir(source.index, found[-1])
        manifest = verify(
            origin, corpus_fingerprint=corpus.fingerprint, embed_dim=embed_dim, num_documents=corpus.num_documents
        )
        _check_embeddings(origin, manifest, embed_documents, corpus, document_len, sample)
        directory = version_dir(index_dir, 0)
        remove(directory)
        for shard in manifest.shards:
            for file in shard.files:
                share_file(origin / file.path, directory / file.path)
        shards = tuple(dataclasses.replace(shard, snapshot_step=None) for shard in manifest.shards)
        adopted = dataclasses.replace(
            manifest, version=0, snapshot_step=0, snapshot_checksum=snapshot_checksum, shards=shards
        )
        publish(index_dir, adopted)
    logger.info("serving the index of %s (%d documents) as version 0", origin, manifest.num_documents)
    return adopted


def _check_embeddings(
    origin: Place,
    manifest: Manifest,
    embed_documents: Callable[[np.ndarray, np.ndarray], Any],
    corpus: Corpus,
    document_len: int,
    sample: int,
) -> None:
    documents = sample_documents(corpus.num_documents, sample)
    padded = np.pad(documents, (0, sample - len(documents)), mode="edge")
    inputs = document_inputs(corpus, padded, document_len, SpecialIds.of(corpus.tokenizer))
    embedded = np.asarray(embed_documents(inputs.ids, inputs.segment_ids), np.float32)[: len(documents)]
    stored = np.empty_like(embedded)
    for shard in manifest.shards:
        here = (documents >= shard.first_document) & (documents < shard.first_document + shard.count)
        rows = map_embeddings(origin, shard, manifest.embed_dim)
        stored[here] = rows[documents[here] - shard.first_document]
    distances = np.linalg.norm(embedded - stored, axis=1) / np.linalg.norm(stored, axis=1)
    worst = int(distances.argmax())
    if not distances[worst] <= MAX_DISTANCE:
        raise ValueError(
            f"RefreshConfig.first_index: {origin} was made by another retriever than this run starts with: document "
            f"{documents[worst]} has an embedding {distances[worst]:.2f} of its length away, expected at most {MAX_DISTANCE}; "
            "warm-start from the run that made it, with its document_len, or set first_index to None"
        )
