"""Embeds with a retriever's parameters on all devices of this process, and builds the index version of a snapshot."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int32

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.models import Retriever, RetrieverConfig
from realm_jax.retrieval.build_version import (
    DEFAULT_BATCHES,
    DEFAULT_INDEX,
    BatchSettings,
    IndexSettings,
    build_version,
)
from realm_jax.retrieval.embed_documents import embed_in_batches
from realm_jax.retrieval.length_batches import choose_lengths, input_lengths, length_batches
from realm_jax.retrieval.manifest import Manifest
from realm_jax.retrieval.shares import ALONE, Share
from realm_jax.run_dir import RunDir
from realm_jax.training.snapshots import flatten_params, load_snapshot, snapshot_checksum

logger = logging.getLogger(__name__)

Method = Literal["embed_documents", "embed_queries"]
LOG_EVERY_SECS = 15.0


@functools.partial(jax.jit, static_argnames=("config", "method"))
def embed_inputs(
    params: Mapping[str, Any],
    ids: Int32[Array, "batch length"],
    segment_ids: Int32[Array, "batch length"],
    *,
    config: RetrieverConfig,
    method: Method,
) -> Float[Array, "batch embed"]:
    """Embeddings of documents or queries in float32. The one jitted program of the embed job and of the evaluation."""
    embeddings = Retriever(config).apply({"params": params}, ids, segment_ids, ids != 0, method=method)
    return jnp.asarray(embeddings, jnp.float32)


class Embedder:
    """A retriever on all devices of this process: parameters everywhere, batches cut by rows."""

    def __init__(self, config: RetrieverConfig, params: Mapping[str, Any]):
        """
        Args:
          config: of the retriever.
          params: its parameters, as a snapshot holds them.

        Raises:
          ValueError: when the parameters are not those of such a retriever.
        """
        check_params(config, params)
        self.config = config
        self.num_devices = jax.local_device_count()
        mesh = jax.make_mesh((self.num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices())
        self._rows = NamedSharding(mesh, P("data"))
        self._params = jax.device_put(params, NamedSharding(mesh, P()))

    def embed_documents(self, ids: np.ndarray, segment_ids: np.ndarray) -> Array:
        """Starts embedding `[CLS] title [SEP] body [SEP]`; the rows must be a multiple of `num_devices`."""
        return self._embed(ids, segment_ids, "embed_documents")

    def embed_queries(self, ids: np.ndarray, segment_ids: np.ndarray) -> Array:
        """Starts embedding `[CLS] x [SEP]`; the rows must be a multiple of `num_devices`."""
        return self._embed(ids, segment_ids, "embed_queries")

    def embed_corpus(self, corpus: Corpus, batches: BatchSettings) -> Float32[np.ndarray, "num_documents embed"]:
        """Embeds every document into memory, in the batches in which the embed job embeds a shard; logs how far it is.

        Args:
          corpus: the knowledge corpus.
          batches: sizes; the batch size is rounded up to a multiple of `num_devices`.

        Raises:
          ValueError: a corpus or lengths that the retriever cannot read.
        """
        check_inputs(self.config, corpus, batches)
        documents = np.arange(corpus.num_documents, dtype=np.int64)
        lengths = input_lengths(corpus, documents, batches.document_len)
        counts = np.bincount(lengths, minlength=batches.document_len + 1)
        in_batches = length_batches(
            lengths, choose_lengths(counts, batches.num_lengths), self.rounded(batches.batch_size)
        )
        embeddings = np.empty((corpus.num_documents, self.config.embed_dim), np.float32)
        special = SpecialIds.of(corpus.tokenizer)
        done, logged_at = 0, time.monotonic()
        for rows, embedded in embed_in_batches(corpus, documents, in_batches, self.embed_documents, special):
            embeddings[rows] = embedded
            done += len(rows)
            if time.monotonic() - logged_at >= LOG_EVERY_SECS:
                logger.info("embedded %d of %d documents", done, corpus.num_documents)
                logged_at = time.monotonic()
        return embeddings

    def rounded(self, batch_size: int) -> int:
        """The batch size, rounded up to a multiple of the devices."""
        return -(-batch_size // self.num_devices) * self.num_devices

    def _embed(self, ids: np.ndarray, segment_ids: np.ndarray, method: Method) -> Array:
        placed = jax.device_put((ids, segment_ids), self._rows)
        return embed_inputs(self._params, *placed, config=self.config, method=method)


def check_params(config: RetrieverConfig, params: Mapping[str, Any]) -> None:
    """Refuses parameters of another retriever, before anything is compiled.

    Raises:
      ValueError: naming a parameter, expected and got.
    """
    expected = _expected_shapes(config)
    got = {name: leaf.shape for name, leaf in flatten_params(params).items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"the parameters are not of this retriever: parameter {name}: expected {expected.get(name, 'none')}, "
                f"got {got.get(name, 'none')}; give the job the RetrieverConfig that the run is trained with"
            )


@functools.cache
def _expected_shapes(config: RetrieverConfig) -> dict[str, tuple[int, ...]]:
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 8), jnp.bool_)
    params = jax.eval_shape(Retriever(config).init, jax.random.key(0), ids, ids, mask)["params"]
    return {name: leaf.shape for name, leaf in _flat_shapes(params).items()}


def _flat_shapes(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat_shapes(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def check_inputs(config: RetrieverConfig, corpus: Corpus, batches: BatchSettings) -> None:
    """Refuses a corpus or lengths that the retriever cannot read.

    Raises:
      ValueError: with expected, got and the remedy.
    """
    encoder = config.encoder
    if corpus.info.vocab_size > encoder.vocab_size:
        raise ValueError(
            f"the retriever knows {encoder.vocab_size} pieces, the corpus's tokenizer has {corpus.info.vocab_size}; "
            "use the corpus that the retriever is trained on, or set vocab_size"
        )
    for name in ("document_len", "query_len"):
        length = getattr(batches, name)
        if encoder.positions == "learned" and length > encoder.max_length:
            raise ValueError(
                f"BatchSettings.{name} must be at most the encoder's max_length {encoder.max_length}, got {length}"
            )


def embed_snapshot(
    run: RunDir,
    step: int,
    config: RetrieverConfig,
    corpus: Corpus,
    *,
    document_len: int | None = None,
    settings: IndexSettings = DEFAULT_INDEX,
    batches: BatchSettings = DEFAULT_BATCHES,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    share: Share = ALONE,
) -> Manifest:
    """Embeds the corpus with a snapshot of the run and publishes the index version of that step.

    Args:
      run: whose snapshot is read and whose index gets the version.
      step: of the snapshot.
      config: of the retriever.
      corpus: the knowledge corpus.
      document_len: overrides that of `batches`.
      settings: of the index.
      batches: of the embedding; the batch size is rounded up to a multiple of this process's devices.
      on_progress, should_stop, share: see `build_version`.

    Raises:
      FileNotFoundError: when there is no such snapshot any more.
      ValueError, OSError, BuildStopped: see `build_version`.
    """
    checksum = snapshot_checksum(run, step)
    return embed_params(
        run,
        step,
        config,
        load_snapshot(run, step, corpus.info.tokenizer_fingerprint),
        checksum,
        corpus,
        settings=settings,
        batches=batches if document_len is None else dataclasses.replace(batches, document_len=document_len),
        on_progress=on_progress,
        should_stop=should_stop,
        share=share,
    )


def embed_params(
    run: RunDir,
    version: int,
    config: RetrieverConfig,
    params: Mapping[str, Any],
    checksum: str,
    corpus: Corpus,
    *,
    settings: IndexSettings,
    batches: BatchSettings,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    share: Share = ALONE,
) -> Manifest:
    """`embed_snapshot` with parameters at hand."""
    check_inputs(config, corpus, batches)
    embedder = Embedder(config, params)
    return build_version(
        run.index,
        version,
        embedder.embed_documents,
        corpus,
        settings,
        embed_dim=config.embed_dim,
        snapshot_checksum=checksum,
        batches=dataclasses.replace(batches, batch_size=embedder.rounded(batches.batch_size)),
        embed_queries=embedder.embed_queries,
        on_progress=on_progress,
        should_stop=should_stop,
        share=share,
    )
