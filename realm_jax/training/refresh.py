"""How a run's index follows its retriever: snapshots go out, versions come in, between two steps."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from realm_jax.retrieval import agreement, versions
from realm_jax.retrieval.adopt_version import SAMPLE_DOCUMENTS, adopt_version
from realm_jax.retrieval.agreement import CoordinationMail
from realm_jax.retrieval.build_version import DEFAULT_BATCHES, DEFAULT_INDEX, BatchSettings, BuildStopped, IndexSettings
from realm_jax.retrieval.device_rows import SpareRows
from realm_jax.retrieval.embedder import Embedder, embed_snapshot
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.retrieval.host_sharded import load_own_shards
from realm_jax.retrieval.hot_swap import HotSwap, Swap, VersionSource, WaitStopped
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.resident import place_documents
from realm_jax.retrieval.scann_process import is_large
from realm_jax.run_dir import RunDir
from realm_jax.storage import as_place
from realm_jax.tasks.task import Params, Retrieval
from realm_jax.training.checkpoint import NO_VERSION
from realm_jax.training.snapshots import SnapshotWriter, forget_snapshots_after, params_checksum, snapshot_checksum
from realm_jax.training.state import InStepBatch
from realm_jax.training.status import TrainerStatus
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RefreshConfig:
    """The life of the index during a run.

    Modes:
      asynchronous: the trainer never waits; it serves the newest version that the embed job has published. The paper's.
      synchronous: at each multiple of `snapshot_every_steps` the trainer waits for the index of that very snapshot.
        Reproducible: a run equals itself bit for bit, also after a kill and a resume.
      frozen: the first index is served to the end (an ablation).
      replay: swaps happen at the steps, and to the versions, that `replay_file` (another run's metrics/swaps.jsonl)
        recorded: an asynchronous run done again. Only the snapshots of these versions are made, and the trainer waits
        for each version where it was swapped in.
    """

    mode: Literal["asynchronous", "synchronous", "frozen", "replay"] = "asynchronous"
    embedder: Literal["separate", "in_trainer"] = (
        "separate"  # in_trainer: embeds between steps, for one-device machines
    )
    snapshot_every_steps: int = 500
    swap_every_steps: int = 1  # a loaded version waits for the next multiple
    index_hosts: Literal["replicated", "sharded"] = (
        "replicated"  # sharded: each host holds its share, and all search together
    )
    search: Literal["look_ahead", "in_step"] = (
        "look_ahead"  # in_step: on the devices, exactly, as part of the train step
    )
    scann: Literal["auto", "in_trainer", "apart"] = (
        "auto"  # apart: loaded and searched by a process of its own; auto: where loading a shard would hold up a step
    )
    max_index_age_steps: int | None = None  # none: any age will do
    when_too_old: Literal["wait", "stop"] = "wait"
    timeout_secs: float = 3600.0  # for what a step cannot do without, and for other hosts
    poll_secs: float = 0.5
    replay_file: str | None = None
    first_index: str | None = None  # a run whose newest index is this one's version 0, if this retriever made it
    index: IndexSettings = (
        DEFAULT_INDEX  # of the embedder inside the trainer (the embed job has its own); `exact` of a step that searches
    )
    batches: BatchSettings = DEFAULT_BATCHES  # likewise

    def __post_init__(self) -> None:
        check_fields(self)
        if self.snapshot_every_steps < 1 or self.swap_every_steps < 1:
            raise ValueError(
                "RefreshConfig.snapshot_every_steps and swap_every_steps must be at least 1, "
                f"got {self.snapshot_every_steps} and {self.swap_every_steps}"
            )
        for name in ("timeout_secs", "poll_secs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"RefreshConfig.{name} must be a number of seconds above 0, got {getattr(self, name)}; "
                    "leave it out for the default"
                )
        if self.max_index_age_steps is not None and self.max_index_age_steps < self.snapshot_every_steps - 1:
            raise ValueError(  # the trainer would wait for a version of a snapshot that it makes only later
                f"RefreshConfig.max_index_age_steps must be at least snapshot_every_steps - 1 = "
                f"{self.snapshot_every_steps - 1}, got {self.max_index_age_steps}: no index is ever that new between two "
                "snapshots; raise it, make snapshots more often, or set it to None for any age"
            )
        if self.embedder == "in_trainer" and self.mode == "asynchronous":
            raise ValueError(
                "RefreshConfig: an embedder inside the trainer cannot be asynchronous; "
                "set mode='synchronous', or embedder='separate' and start the embed job"
            )
        if self.search == "in_step" and self.index_hosts == "sharded":
            raise ValueError(
                "RefreshConfig: search='in_step' shards the index over all devices of all hosts by itself; leave index_hosts out"
            )
        if (self.mode == "replay") != (self.replay_file is not None):
            raise ValueError("RefreshConfig.replay_file goes with mode='replay', and only with it")

    def read_replay(self) -> dict[int, int]:
        """Step to version of the recorded swaps; of several at one step the last.

        Raises:
          ValueError: when the file is missing, empty, or does not hold swaps.
        """
        if self.replay_file is None:
            return {}
        remedy = "name the metrics/swaps.jsonl of the run to repeat"
        try:
            lines = as_place(self.replay_file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(
                f"RefreshConfig.replay_file {self.replay_file} cannot be read ({error.strerror}); {remedy}"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"RefreshConfig.replay_file {self.replay_file}: expected UTF-8 text, got other bytes ({error}); {remedy}"
            ) from error
        swaps: dict[int, int] = {}
        for number, line in enumerate(lines, start=1):
            try:
                swap = json.loads(line)
                step, version = int(swap["step"]), int(swap["version"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.replay_file}, line {number}: expected a line of a run's metrics/swaps.jsonl, got {line[:80]!r} "
                    f"({error!r}); {'remove the torn last line, or ' if number == len(lines) else ''}{remedy}"
                ) from error
            if not 0 <= version <= step:
                raise ValueError(
                    f"{self.replay_file}, line {number}: version {version} cannot be served from step {step} on; {remedy}"
                )
            swaps[step] = version
        if not swaps:
            raise ValueError(
                f"RefreshConfig.replay_file {self.replay_file}: expected the swaps of a run, got an empty file; {remedy}"
            )
        return swaps


class _ShardSteps(NamedTuple):
    """With which steps' retrievers a version's shards were embedded."""

    mean: float  # over documents
    oldest: int


class Refresher:
    """Everything that happens to the index during a run, between two steps."""

    def __init__(
        self,
        config: RefreshConfig,
        run: RunDir,
        retrieval: Retrieval,
        mesh: Mesh,
        status: TrainerStatus,
        kept_versions: Callable[[], list[int]],
        should_stop: Callable[[], bool] = lambda: False,
    ):
        """Args:
        config: the mode and its intervals.
        run: where snapshots and versions lie.
        retrieval: the task's side of it.
        mesh: of the parameters.
        status: told which versions are in use.
        kept_versions: those that checkpoints need, for the embedder inside the trainer; the embed job reads the status.
        should_stop: asked while waiting for an index, or embedding one here; ends that with WaitStopped.
        """
        self.config, self._run, self._retrieval, self._status = config, run, retrieval, status
        self._kept_versions, self._should_stop = kept_versions, should_stop
        self._replay = config.read_replay()
        self._first_step = 0
        self._of_this_run: set[int] = set()
        self._snapshots = SnapshotWriter(run, mesh, retrieval.corpus.info.tokenizer_fingerprint)
        expected: dict[str, Any] = {
            "corpus_fingerprint": retrieval.corpus.fingerprint,
            "embed_dim": retrieval.config.embed_dim,
            "num_documents": retrieval.corpus.num_documents,
        }

        in_step = config.search == "in_step"
        if in_step and retrieval.in_step is None:
            raise ValueError(
                "RefreshConfig.search='in_step': this task needs the host between search and step; set it to 'look_ahead'"
            )
        self._documents = (
            place_documents(retrieval.corpus, mesh, retrieval.in_step.max_title_len)
            if in_step and retrieval.in_step
            else None
        )
        spare = SpareRows()
        placed: dict[str, Any] = {"spare": spare} | (
            {"backend": "exact", "mesh": mesh, "exact": config.index.exact} if in_step else {}
        )
        sharded = config.index_hosts == "sharded" and jax.process_count() > 1
        mail = CoordinationMail(config.timeout_secs) if sharded else None

        self._ages_of: dict[int, _ShardSteps] = {}

        def load(version: int) -> tuple[Index, float]:
            directory = run.index_version(version)
            manifest = versions.read_manifest(directory)
            self._ages_of[version] = _ShardSteps(manifest.mean_step, min(manifest.shard_steps))
            apart = not in_step and (config.scann == "apart" or (config.scann == "auto" and is_large(manifest)))
            if mail is None:
                manifest = versions.verify(directory, **expected)
                return versions.load_version(directory, manifest=manifest, apart=apart, **placed), manifest.built_at
            host = jax.process_index()  # the other hosts verify what they load
            own = versions.shards_of_host(manifest, host, mail.num_hosts)
            manifest = versions.verify(directory, shards=own, **expected)
            return load_own_shards(directory, manifest, mail, host, apart), manifest.built_at

        self._hot_swap = HotSwap(
            VersionSource(self._list_versions, load),
            agreement.for_this_run(config.timeout_secs),
            swap_every_steps=config.swap_every_steps,
            timeout_secs=config.timeout_secs,
            poll_secs=config.poll_secs,
            is_leader=jax.process_index() == 0,
            on_pending=lambda version: status.update(pending_version=version),
            should_stop=should_stop,
        )

    @property
    def index(self) -> Index:
        """What is searched now."""
        return self._hot_swap.index

    def step_inputs(self, examples: Any) -> Any:
        """What the train step takes beside state and key: a prepared batch as it is, or with documents and index to search."""
        if self._documents is None:
            return examples
        index = self._hot_swap.index
        assert isinstance(index, ExactIndex)
        return InStepBatch(examples, self._documents, index.device_rows)

    @property
    def version(self) -> int:
        return self._hot_swap.version

    def mixed_ages(self, step: int) -> dict[str, float]:
        """How old the served index is at a step, over its documents and its oldest shard, where rolling refresh mixes ages."""
        steps = self._ages_of[self.version]
        if steps.oldest == self.version:
            return {}
        return {"index_mean_age_steps": step - steps.mean, "index_oldest_age_steps": float(step - steps.oldest)}

    @property
    def built_at(self) -> float:
        """When the served version was published, in unix seconds."""
        return self._hot_swap.built_at

    def serve_first(self, first_step: int, params: Params, resumed_version: int) -> Swap:
        """Blocks until there is an index: that of the parameters before the first step, or the resumed checkpoint's
        (NO_VERSION in a fresh run).

        What a killed run did after its last checkpoint is forgotten: unless it is repeated to the bit, the same steps
        have other snapshots now.
        """
        self._first_step = first_step
        if jax.process_index() == 0:  # in this order: the embed job looks for the snapshot after it has published
            forget_snapshots_after(self._run, first_step)
            versions.withdraw_after(self._run.index, first_step)
        # one that was damaged and therefore removed the embed job then builds again, although there are newer ones
        needed = {resumed_version} - {NO_VERSION}
        self._status.update(awaited_versions=sorted(needed.union(self._awaited(first_step))))
        version: int | None = resumed_version
        if version == NO_VERSION:
            self._snapshot(0, params, wait=True)
            version = None if self.config.mode == "asynchronous" else 0
        swap = self._hot_swap.serve(version)
        self._status.update(index_version=self.version)
        if self.config.mode == "asynchronous":
            self._hot_swap.watch()
        return swap._replace(pause_ms=0.0)  # nothing was running yet that could have been held up

    def begin_step(self, step: int, params: Params) -> Swap | None:
        """Hands out a snapshot if one is due, and swaps a version in if one is ready (or must be waited for).

        Raises:
          TimeoutError: a version that the step cannot do without did not come.
          WaitStopped: the run was asked to stop before it came. Called again for the same step, also by a run resumed there,
            it does the same as the first time.
        """
        if step == 0:
            return None  # serve_first has done it
        config = self.config
        must_serve = self._must_serve(step)
        if self._snapshot_due(step):
            self._snapshot(step, params, wait=must_serve is not None)
        swap = self._hot_swap.begin_step(step, wait_for=must_serve)
        age = step - self.version
        if (
            config.mode == "asynchronous"
            and config.max_index_age_steps is not None
            and age > config.max_index_age_steps
        ):
            if config.when_too_old == "stop":
                raise TimeoutError(
                    f"step {step}: index {self.version:08d} is older than max_index_age_steps="
                    f"{config.max_index_age_steps}; look at the embed job, or set when_too_old='wait'"
                )
            swap = self._hot_swap.wait_for_newer(step)
        self._status.update(index_version=self.version, awaited_versions=self._awaited(step + 1), step=step)
        return swap

    def last_snapshot(self, step: int, params: Params) -> None:
        """The retriever as training left it, for an index of the finished run."""
        self._snapshots.write(step, self._retrieval.retriever_params(params), wait=True)

    def _snapshot_due(self, step: int) -> bool:
        """Whether a snapshot is written before `step`. The first index always needs one."""
        if self.config.mode == "frozen":
            return step == 0
        if self.config.mode == "replay":
            return step == 0 or step in self._replay.values()
        return step % self.config.snapshot_every_steps == 0

    def _must_serve(self, step: int) -> int | None:
        """The version that must be served from `step` on, if the mode says so."""
        if self.config.mode == "synchronous" and self._snapshot_due(step):
            return step
        return self._replay.get(step)

    def _awaited(self, step: int) -> list[int]:
        """The versions that a replay swaps in at `step` or later: neither they nor their snapshots may be retired."""
        return sorted({version for swap_step, version in self._replay.items() if swap_step >= step})

    def _list_versions(self) -> list[int]:
        """The published versions but those of snapshots that this run has not made.

        An embed job may be late with a snapshot that a killed run wrote after the checkpoint that this one resumed from.
        """
        return [version for version in versions.list_versions(self._run.index) if self._is_of_this_run(version)]

    def _is_of_this_run(self, version: int) -> bool:
        if version == 0 or version in self._of_this_run:  # version 0 may be of given parameters
            return True
        try:
            manifest = versions.read_manifest(self._run.index_version(version))
        except versions.IndexRefused:
            return True  # damaged: to load it says how
        try:
            is_of_this_run = snapshot_checksum(self._run, version) == manifest.snapshot_checksum
        except FileNotFoundError:
            is_of_this_run = version <= self._first_step  # its snapshot's record was removed; it is no later one's
        if is_of_this_run:
            self._of_this_run.add(version)
        return is_of_this_run

    def close(self) -> None:
        self._hot_swap.close()
        self._snapshots.close()

    def _snapshot(self, step: int, params: Params, wait: bool) -> None:
        """Hands the retriever to the embed job, or embeds here and now."""
        here = self.config.embedder == "in_trainer"
        retriever_params = self._retrieval.retriever_params(params)
        if step == 0 and self.config.first_index is not None:  # before the snapshot: no embedder then makes it
            self._adopt(RunDir.of(self.config.first_index), self._snapshots.to_host(retriever_params))
        self._snapshots.write(step, retriever_params, wait=wait or here, keep=self._awaited(step))
        if here and jax.process_index() == 0:
            retrieval = self._retrieval
            batches = dataclasses.replace(self.config.batches, document_len=retrieval.document_len)
            try:
                embed_snapshot(
                    self._run, step, retrieval.config, retrieval.corpus,
                    settings=self.config.index, batches=batches, should_stop=self._should_stop,
                )  # fmt: skip
            except BuildStopped as stopped:
                raise WaitStopped(f"index version {step:08d}") from stopped
            in_use = {self.version, *self._kept_versions(), *self._awaited(step)}
            versions.retire(self._run.index, in_use)

    def _adopt(self, source: RunDir, params: Params) -> None:
        """Another run's index as version 0 of this one, which process 0 publishes."""
        if jax.process_index() != 0:
            return
        retrieval = self._retrieval
        embedder = Embedder(retrieval.config, params)
        adopt_version(
            source, self._run.index, embedder.embed_documents, retrieval.corpus,
            embed_dim=retrieval.config.embed_dim, snapshot_checksum=params_checksum(params),
            document_len=retrieval.document_len, sample=embedder.rounded(SAMPLE_DOCUMENTS),
        )  # fmt: skip
