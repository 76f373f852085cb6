"""Builds and publishes an index version: embeds a corpus, indexes it shard by shard, measures the recall.

The embed job calls it in a process of its own; the trainer calls it between two steps where one accelerator does all.
"""

import dataclasses
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.retrieval.ball_tree import BallTreeSettings
from realm_jax.retrieval.embed_documents import EmbedBatch, embed_in_batches
from realm_jax.retrieval.exact import ExactSettings
from realm_jax.retrieval.index import check_embeddings
from realm_jax.retrieval.length_batches import (
    LengthBatch,
    choose_lengths,
    input_lengths,
    length_batches,
    length_histogram,
)
from realm_jax.retrieval.manifest import Backend, IndexRefused, Manifest, Shard
from realm_jax.retrieval.recall import embed_sentences, random_sentences, recall_of_version, sample_documents
from realm_jax.retrieval.rolling import CarriedShard, carried_shards, carry
from realm_jax.retrieval.scann_index import ScannSettings, build_shard, save_shard
from realm_jax.retrieval.shards import (
    EMBEDDINGS,
    SCANN_ASSETS,
    SHARD_RECORD,
    describe_files,
    finish_shard,
    finished_shard,
    load_scann_shard,
    map_embeddings,
    save_embeddings,
    shard_name,
)
from realm_jax.retrieval.shares import ALONE, Share
from realm_jax.retrieval.versions import list_versions, publish, read_manifest, version_dir
from realm_jax.run_lock import exclusive
from realm_jax.storage import Place, RemotePath, as_place, clear_scratch, is_remote, publish_folder, remove, scratch_of
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)


class BuildStopped(Exception):  # noqa: N818 - nothing went wrong
    """The build was asked to stop; finished shards are kept for the next one."""


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """What an index version is made of.

    Attributes:
      backend: "scann" (host CPU), "exact" (on device), or "ball_tree" (host CPU, exact, for few dimensions). The last two
        store the embeddings alone.
      scann: settings of every shard; None to choose them from its document count.
      exact: how the exact index keeps its rows on the devices, and searches them.
      ball_tree: how the tree is made, whenever the version is loaded.
      shard_bytes: most bytes of embeddings in a shard. Loading a shard holds the GIL, so small shards keep the
        training thread running: docs/index_life_cycle.md has figures.
      shards_per_version: rolling refresh: each version embeds so many shards anew, those of the oldest snapshots, and takes
        the others from the version before, so that it comes sooner, of mixed age; None: all.
      recall_queries: how many sampled queries search_recall is measured with.
      recall_results: how many documents of each are compared with exact search.
    """

    backend: Backend = "scann"
    scann: ScannSettings | None = None
    exact: ExactSettings = ExactSettings()
    ball_tree: BallTreeSettings = BallTreeSettings()
    shard_bytes: int = 10 << 20  # 20 480 documents of 128: the smallest shard that has a tree
    shards_per_version: int | None = None
    recall_queries: int = 256
    recall_results: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("shard_bytes", "recall_queries", "recall_results"):
            if getattr(self, name) < 1:
                raise ValueError(f"IndexSettings.{name} must be at least 1, got {getattr(self, name)}")
        if self.shards_per_version is not None and self.shards_per_version < 1:
            raise ValueError(f"IndexSettings.shards_per_version must be at least 1, got {self.shards_per_version}")


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """How documents are batched for embedding.

    Attributes:
      document_len: most pieces of `[CLS] title [SEP] body [SEP]`, as in training.
      batch_size: documents of that length embedded at once; shorter ones come in multiples of it.
      num_lengths: how many static lengths are used, chosen from the corpus; 1 pads everything alike.
      query_len: pieces of the sampled queries that the recall is measured with.
    """

    document_len: int = 288
    batch_size: int = 64
    num_lengths: int = 4
    query_len: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("document_len", 8), ("batch_size", 1), ("num_lengths", 1), ("query_len", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"BatchSettings.{name} must be at least {least}, got {getattr(self, name)}")


DEFAULT_INDEX, DEFAULT_BATCHES = IndexSettings(), BatchSettings()


def build_version(
    index_dir: str | os.PathLike[str],
    version: int,
    embed_documents: EmbedBatch,
    corpus: Corpus,
    settings: IndexSettings = DEFAULT_INDEX,
    *,
    embed_dim: int,
    snapshot_checksum: str,
    batches: BatchSettings = DEFAULT_BATCHES,
    embed_queries: EmbedBatch | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    share: Share = ALONE,
) -> Manifest:
    """Embeds every document of a corpus, indexes the embeddings and publishes them as one version.

    Killed at any instant it leaves no version that readers could see; the next build of the same version from the same
    parameters continues after the last finished shard. A version that is already published is left as it is.

    Args:
      index_dir: RUN/index.
      version: the snapshot step.
      embed_documents: embeds a batch of document inputs; it is called with few different shapes.
      corpus: the knowledge corpus.
      settings: backend and shards.
      embed_dim: width of the embeddings.
      snapshot_checksum: of the parameters that `embed_documents` uses (`params_checksum`).
      batches: sizes of batches.
      embed_queries: embeds sentences drawn from the corpus, with which search_recall is measured; None to search for
        documents with their own embeddings, which is easier.
      on_progress: called after each batch with how many documents are embedded and how many there are.
      should_stop: asked between two batches.
      share: of the shards, where several builders work at the same version, each called with the same arguments.

    Returns:
      The manifest.

    Raises:
      ValueError: when embeddings are not finite or of another width, the corpus is empty, another process builds in
        the same place, or the version is published with other content.
      OSError: when a file cannot be written; published versions and finished shards are unharmed.
      BuildStopped: when should_stop said so.
      TimeoutError: when the other builders did not do their shares in time.
    """
    index_dir = as_place(index_dir)
    if corpus.num_documents == 0:
        raise ValueError(f"the corpus has no documents (fingerprint {corpus.fingerprint}); build it from other sources")
    lock = "builder.lock" if share.number == 0 else f"builder-{share.number:05d}.lock"
    with exclusive(index_dir / lock, "another process builds index versions"):
        if version in list_versions(index_dir):
            return already_published(index_dir, version, corpus, snapshot_checksum)
        try:
            return _Build(
                index_dir, version, embed_documents, corpus, settings, embed_dim, snapshot_checksum, batches,
                on_progress or (lambda done, total: None), should_stop or (lambda: False), share,
            ).run(embed_queries)  # fmt: skip
        except TimeoutError:  # an OSError, of which no disk is guilty
            raise
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"index version {version} could not be written ({error.strerror or error}); make sure that the disk of "
                f"{scratch_of(index_dir).resolve()} has space and can be written to, and start again: finished shards and "
                "published versions are unharmed",
            ) from error


def already_published(index_dir: Place, version: int, corpus: Corpus, snapshot_checksum: str) -> Manifest:
    """The manifest of a version that is there.

    Raises:
      ValueError: it was made from another corpus or snapshot.
    """
    manifest = read_manifest(version_dir(index_dir, version))
    if (manifest.corpus_fingerprint, manifest.snapshot_checksum) != (corpus.fingerprint, snapshot_checksum):
        raise ValueError(
            f"index version {version} is already published in {index_dir}, made from another "
            f"{'corpus' if manifest.corpus_fingerprint != corpus.fingerprint else 'snapshot'}; "
            "a version is never changed: use another run directory"
        )
    return manifest


class _Build:
    """One build, from the shards' bounds to the manifest."""

    def __init__(
        self,
        index_dir: Place,
        version: int,
        embed_documents: EmbedBatch,
        corpus: Corpus,
        settings: IndexSettings,
        embed_dim: int,
        snapshot_checksum: str,
        batches: BatchSettings,
        on_progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        share: Share,
    ):
        self.share = share
        self.index_dir, self.version, self.corpus, self.settings = index_dir, version, corpus, settings
        self.embed_documents, self.embed_dim, self.batches = embed_documents, embed_dim, batches
        self.snapshot_checksum = snapshot_checksum
        self.on_progress, self.should_stop = on_progress, should_stop
        self.directory = version_dir(index_dir, version)
        self.workplace = scratch_of(self.directory)  # the directory itself where that is local
        self.special = SpecialIds.of(corpus.tokenizer)
        self.static_lengths = choose_lengths(length_histogram(corpus, batches.document_len), batches.num_lengths)
        # shards of equal size: every one has the same settings, and hosts that share an index hold equal parts
        total = corpus.num_documents
        self.num_shards = -(-total // max(1, settings.shard_bytes // (4 * embed_dim)))
        self.bounds = [total * number // self.num_shards for number in range(self.num_shards + 1)]
        self.parameters = {
            "scann": dataclasses.asdict(settings.scann or ScannSettings.for_documents(-(-total // self.num_shards))),
            "exact": dataclasses.asdict(settings.exact),
            "ball_tree": dataclasses.asdict(settings.ball_tree),
        }[settings.backend]
        self.done = 0

    def run(self, embed_queries: EmbedBatch | None) -> Manifest:
        started = time.monotonic()
        names = [shard_name(number, self.num_shards) for number in range(self.num_shards)]
        carried = self._carried(names)
        renewed = [number for number in range(self.num_shards) if number not in carried]
        own = self.share.part_of(renewed)
        self.workplace.mkdir(parents=True, exist_ok=True)
        if self.share.number != 0:
            for number in own:
                self._shard(number, names[number])
            missing = f"builder 0 did not publish index version {self.version}"
            return self.share.wait_for(self._published, missing, self._check_going_on)
        if self.share.count == 1:
            clear_scratch(self.directory)  # finished shards are uploaded
            self.workplace.mkdir(parents=True, exist_ok=True)
        for leftover in _children(self.workplace) + (_children(self.directory) if is_remote(self.directory) else []):
            if leftover.name not in names:
                _remove(leftover)
        shards = {number: self._carry(found) for number, found in carried.items()}
        shards |= {number: self._shard(number, names[number]) for number in own}
        shards |= {number: self._awaited(number, names[number], renewed) for number in renewed if number not in shards}
        return self._publish([shards[number] for number in range(self.num_shards)], embed_queries, started)

    def _publish(self, shards: list[Shard], embed_queries: EmbedBatch | None, started: float) -> Manifest:
        recall = self._search_recall(shards, embed_queries)
        manifest = Manifest(
            version=self.version,
            snapshot_step=self.version,
            snapshot_checksum=self.snapshot_checksum,
            corpus_fingerprint=self.corpus.fingerprint,
            num_documents=self.corpus.num_documents,
            embed_dim=self.embed_dim,
            dtype="float32",
            backend=self.settings.backend,
            parameters=self.parameters,
            shards=tuple(shards),
            search_recall=recall,
            built_at=time.time(),
            build_secs=time.monotonic() - started,
        )
        publish(self.index_dir, manifest)
        logger.info(
            "published index version %d: %d documents in %d shards, search recall %.3f, %.1f s",
            self.version, manifest.num_documents, self.num_shards, recall, manifest.build_secs,
        )  # fmt: skip
        return manifest

    def _published(self) -> Manifest | None:
        if self.version not in list_versions(self.index_dir):
            return None
        return already_published(self.index_dir, self.version, self.corpus, self.snapshot_checksum)

    def _awaited(self, number: int, name: str, renewed: Sequence[int]) -> Shard:
        """A shard of another builder's share."""
        made_from = self._made_from(number, self.version, self.snapshot_checksum)
        return self.share.wait_for(
            lambda: finished_shard(self.directory, name, made_from),
            f"builder {renewed.index(number) % self.share.count} did not finish {name}",
            self._check_going_on,
        )

    def _carried(self, names: Sequence[str]) -> dict[int, CarriedShard]:
        if self.settings.shards_per_version is None:
            return {}
        return carried_shards(self.index_dir, self.version, names, self.settings.shards_per_version, self._made_from)

    def _carry(self, carried: CarriedShard) -> Shard:
        shard = carry(carried, self.directory)
        self.done += shard.count
        self.on_progress(self.done, self.corpus.num_documents)
        return shard

    def _made_from(self, number: int, version: int, snapshot_checksum: str) -> dict[str, Any]:
        """All that a shard depends on."""
        first, end = self.bounds[number : number + 2]
        return {
            "version": version,
            "snapshot_checksum": snapshot_checksum,
            "corpus_fingerprint": self.corpus.fingerprint,
            "first_document": first,
            "count": end - first,
            "embed_dim": self.embed_dim,
            "document_len": self.batches.document_len,
            "backend": self.settings.backend,
            "parameters": self.parameters if self.settings.backend == "scann" else {},  # no other's shape its files
        }

    def _shard(self, number: int, name: str) -> Shard:
        """The shard of this number: one that an interrupted build finished, or a new one."""
        made_from = self._made_from(number, self.version, self.snapshot_checksum)
        first, count = made_from["first_document"], made_from["count"]
        shard = finished_shard(self.directory, name, made_from)
        if shard is not None:
            self.done += count
            self.on_progress(self.done, self.corpus.num_documents)
            return shard
        place = self.workplace / name
        _remove(place)
        embeddings = self._embed(first, count)
        check_embeddings(embeddings, first)
        place.mkdir()
        try:
            save_embeddings(place / EMBEDDINGS, embeddings)
            if self.settings.backend == "scann":
                save_shard(build_shard(embeddings, first, ScannSettings(**self.parameters)), place / SCANN_ASSETS)
            shard = Shard(name, first, count, describe_files(self.workplace, name))
            self._check_readable(shard)
            publish_folder(self.directory / name, SHARD_RECORD)
            finish_shard(self.directory, shard, made_from)
        except OSError:
            _remove(place)  # a full disk gets back what can be given back
            raise
        return shard

    def _check_readable(self, shard: Shard) -> None:
        # a full disk may cut a file short without an error; its checksum would then vouch for half a file
        try:
            map_embeddings(self.workplace, shard, self.embed_dim)
            if self.settings.backend == "scann":
                load_scann_shard(self.workplace, shard, self.embed_dim, self.parameters)
        except IndexRefused as error:
            raise OSError(errno.EIO, f"what was written cannot be read: {error}") from error

    def _embed(self, first: int, count: int) -> np.ndarray:
        documents = np.arange(first, first + count, dtype=np.int64)
        lengths = input_lengths(self.corpus, documents, self.batches.document_len)
        batches = self._until_stopped(length_batches(lengths, self.static_lengths, self.batches.batch_size))
        result = np.zeros((count, self.embed_dim), np.float32)
        for rows, embedded in embed_in_batches(self.corpus, documents, batches, self.embed_documents, self.special):
            if embedded.ndim != 2 or embedded.shape[1] != self.embed_dim:
                raise ValueError(f"expected embeddings [rows, {self.embed_dim}], got {list(embedded.shape)}")
            result[rows] = embedded
            self.done += len(rows)
            self.on_progress(self.done, self.corpus.num_documents)
        return result

    def _until_stopped(self, batches: Iterator[LengthBatch]) -> Iterator[LengthBatch]:
        for batch in batches:
            self._check_going_on()
            yield batch

    def _check_going_on(self) -> None:
        if self.should_stop():
            raise BuildStopped(f"stopped while building index version {self.version}; finished shards are kept")

    def _search_recall(self, shards: Sequence[Shard], embed_queries: EmbedBatch | None) -> float:
        settings = self.settings
        if settings.backend == "exact" and (settings.exact.dtype, settings.exact.recall_target) == ("float32", 1.0):
            return 1.0
        queries = self._recall_queries(shards, embed_queries)
        return recall_of_version(
            self.directory, shards, settings.backend, self.parameters, queries, settings.recall_results
        )

    def _recall_queries(self, shards: Sequence[Shard], embed_queries: EmbedBatch | None) -> np.ndarray:
        documents = sample_documents(self.corpus.num_documents, self.settings.recall_queries)
        if embed_queries is not None:
            sentences = random_sentences(self.corpus, documents)
            return embed_sentences(
                sentences, embed_queries, self.batches.query_len, self.batches.batch_size, self.special
            )
        parts = []
        for shard in shards:
            own = documents[(documents >= shard.first_document) & (documents < shard.first_document + shard.count)]
            parts.append(map_embeddings(self.directory, shard, self.embed_dim)[own - shard.first_document])
        return np.concatenate(parts)


def _children(directory: Place) -> list[Place]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _remove(path: Place) -> None:
    if isinstance(path, RemotePath):
        remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
