"""What a run keeps: checkpoints (the resume unit) and snapshots (the retriever alone, for the embed job)."""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.run_dir import RunDir, read_json, write_json_atomically
from realm_jax.training.sharding import BATCH
from realm_jax.training.state import TrainState

logger = logging.getLogger(__name__)

PARAMS_FILE = "params.safetensors"
SNAPSHOT_FILE = "snapshot.json"
NO_VERSION = -1


class ResumeUnit(NamedTuple):
    """All that a run needs to go on as if it had not stopped. Data and rng are functions of (seed, step)."""

    state: TrainState
    index_version: int  # served when the step began; NO_VERSION for tasks without retrieval
    candidate_ids: Any  # [batch, num_candidates] of the next step, selected with the parameters of the step before it


# What decides which examples a step sees, besides the step: `seed`, `batch_size`, and the fingerprints of `Task.data`.
Identity = Mapping[str, str | int]


class Checkpoints:
    """Orbax checkpoints of one run: asynchronous, atomic, resumable on any number of devices and hosts."""

    def __init__(self, run: RunDir, max_to_keep: int = 2, identity: Identity = MappingProxyType({})):
        """Args:
        run: whose they are.
        max_to_keep: how many, at least one.
        identity: kept beside them; a run with another one cannot go on from them.
        """
        if max_to_keep < 1:
            raise ValueError(f"expected keep_checkpoints of at least 1, got {max_to_keep}")
        self._identity = dict(identity)
        self._directory = run.checkpoints.absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, save_interval_steps=1)
        handlers = {  # named, or a manager that has saved nothing yet could not read the candidates' shape
            "state": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
            "candidates": ocp.StandardCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)
        self._versions: dict[int, int] = {}
        self._writing = -1  # the step whose checkpoint is being written

    def save(self, step: int, unit: ResumeUnit) -> None:
        """Starts writing; the arrays may be donated as soon as this returns.

        Raises:
          OSError: when this checkpoint, or the one before it, could not be written.
        """
        self.wait()
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(unit.state),
            "meta": ocp.args.JsonSave(
                {
                    "index_version": unit.index_version,
                    "has_candidates": unit.candidate_ids is not None,
                    "identity": self._identity,
                }
            ),
        }
        if unit.candidate_ids is not None:
            items["candidates"] = ocp.args.StandardSave({"ids": unit.candidate_ids})
        self._versions[step], self._writing = unit.index_version, step
        with self._saying_what_failed():
            saved = self._manager.save(step, args=ocp.args.Composite(**items))
        assert saved, f"checkpoint {step} was left out: {self._manager.latest_step()} is there already"

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, abstract_state: TrainState, mesh: Mesh, batch_size: int | None) -> ResumeUnit:
        """The newest checkpoint that can be read; a damaged one is named in the log and the one before it is used.

        Args:
          abstract_state: shapes, dtypes and shardings to restore to, whatever they were when saved.
          mesh: where the candidate ids go.
          batch_size: rows of the candidate ids, for tasks with retrieval.

        Raises:
          ValueError: when no checkpoint can be read, or the run has another seed, batch size or corpus than they.
        """
        self._check_identity()
        failures = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                unit = self._restore(step, abstract_state, mesh, batch_size)
            except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
                logger.error(
                    "checkpoint %s cannot be read (%s); trying the one before it", self._directory / str(step), error
                )
                failures[step] = f"{step}: {next(iter(str(error).splitlines()), repr(error))[:200]}"
            else:
                self._put_aside(list(failures))
                return unit
        raise ValueError(
            f"no checkpoint under {self._directory} can be read ({'; '.join(failures.values())}); was it written with another "
            "configuration? Otherwise remove the directory to start afresh"
        )

    def _check_identity(self) -> None:
        """Refuses to go on with other examples than the run began with."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = checkpoint_identity(self._directory / str(step))
            except (ValueError, OSError):
                continue  # a damaged checkpoint; restoring tells
            for name, ours in self._identity.items():
                if saved.get(name) != ours:
                    raise ValueError(
                        f"{self._directory} was written with {name}={saved.get(name)}, this run has {name}={ours}: it would "
                        "not go on with the same examples; use the settings that it began with, or another --run_dir"
                    )
            return

    def _put_aside(self, damaged: list[int]) -> None:
        """Renames checkpoints that cannot be read while an older one can: else Orbax would not write those steps again."""
        for step in damaged:
            place = self._directory / str(step)
            if jax.process_index() == 0:
                place.rename(place.with_name(f"damaged-{step}-{os.getpid()}"))
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints are put aside")
            self._manager.reload()

    def _restore(self, step: int, abstract_state: TrainState, mesh: Mesh, batch_size: int | None) -> ResumeUnit:
        items: dict[str, Any] = {
            "state": ocp.args.StandardRestore(abstract_state),
            "meta": ocp.args.JsonRestore(),
        }
        # The last step of a run selected nothing for a next one; every other checkpoint of a task with retrieval must.
        has_candidates = bool(read_json(self._directory / str(step) / "meta" / "metadata")["has_candidates"])
        if batch_size is not None and has_candidates:
            saved = self._manager.item_metadata(step)["candidates"]
            shape = tuple(saved["ids"].shape)
            if shape[0] != batch_size:
                raise ValueError(f"it was written with batch_size={shape[0]}, this run has batch_size={batch_size}")
            wanted = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, BATCH))
            items["candidates"] = ocp.args.StandardRestore({"ids": wanted})
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        version = int(restored.meta["index_version"])
        self._versions[step] = version
        ids = restored.candidates["ids"] if "candidates" in items else None
        return ResumeUnit(restored.state, version, ids)

    def kept_versions(self) -> list[int]:
        """Index versions that a resume from a kept checkpoint would need."""
        versions = set()
        for step in self._manager.all_steps():
            if step not in self._versions:
                self._versions[step] = int(
                    read_json(self._directory / str(step) / "meta" / "metadata")["index_version"]
                )
            versions.add(self._versions[step])
        if self._versions:  # the newest may still be on its way to the disk
            versions.add(self._versions[max(self._versions)])
        return sorted(versions - {NO_VERSION})

    def wait(self) -> None:
        """Blocks until what was saved is on disk.

        Raises:
          OSError: when it could not be written; the checkpoints before it are unharmed.
        """
        with self._saying_what_failed():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._saying_what_failed():
            self._manager.close()

    @contextlib.contextmanager
    def _saying_what_failed(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore tells of a full disk by a ValueError
            reason = next(iter(str(error).partition(" [tensorstore_spec=")[0].splitlines()), repr(error))
            raise OSError(
                f"checkpoint of step {self._writing} could not be written; make sure that the disk of {self._directory} has "
                f"space and can be written to, then start the same command: it goes on from the one before ({reason})"
            ) from error


def checkpoint_identity(place: Path) -> Identity:
    """What a checkpoint keeps of its run's identity.

    Raises:
      ValueError: a damaged file, or one written before there was such a thing.
    """
    identity = read_json(place / "meta" / "metadata").get("identity")
    if not isinstance(identity, dict):
        raise ValueError(f"{place} does not say which data it was trained on; train that run again")
    return identity


def check_tokenizer(run: RunDir, tokenizer: str, step: int | None = None) -> None:
    """Refuses a checkpoint that was trained on other pieces than those of a corpus: its embeddings mean other words.

    Args:
      run: with checkpoints; without any nothing is refused here.
      tokenizer: fingerprint of the corpus's.
      step: which checkpoint; none takes the newest.

    Raises:
      ValueError: with both fingerprints and the remedy.
    """
    steps = list_checkpoints(run)
    if not steps or (step is not None and step not in steps):
        return
    place = run.checkpoints.absolute() / str(steps[-1] if step is None else step)
    got = checkpoint_identity(place).get("tokenizer")
    if got != tokenizer:
        raise _other_tokenizer(place, str(got), tokenizer)


def _other_tokenizer(place: Path, theirs: str, ours: str) -> ValueError:
    return ValueError(
        f"{place} was trained on the pieces of tokenizer {theirs[:12]}, the corpus has {ours[:12]}; build the corpus with "
        "that run's tokenizer directory, or train on this corpus"
    )


def list_checkpoints(run: RunDir) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    if not run.checkpoints.is_dir():
        return []
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(run.checkpoints.absolute(), options=options) as manager:
        return sorted(manager.all_steps())


def load_params(run: RunDir, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Parameters of a run's checkpoint, as host arrays: for warm starts and evaluation.

    Args:
      run: the run.
      step: which checkpoint; none takes the newest.

    Returns:
      (step, params).

    Raises:
      FileNotFoundError: when the run has no such checkpoint.
    """
    steps = list_checkpoints(run)
    if not steps or (step is not None and step not in steps):
        have = ", ".join(map(str, steps)) or "none"
        raise FileNotFoundError(
            f"no checkpoint {'' if step is None else f'of step {step} '}under {run.checkpoints} (there: {have}); "
            "train that run first or name another"
        )
    step = steps[-1] if step is None else step
    state_dir = run.checkpoints.absolute() / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(state_dir).item_metadata
        if metadata is None:
            raise ValueError(
                f"{state_dir} is damaged: it does not say what it holds; name an older step, or train again"
            )
        tree = metadata.tree["params"]
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        restored = reader.restore(
            state_dir,
            args=ocp.args.PyTreeRestore(
                item={"params": wanted}, restore_args={"params": restore_args}, partial_restore=True
            ),
        )
    return step, restored["params"]


def flatten_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested parameters to names joined by "/"."""
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten_params(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def nest_params(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten_params`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return nested


def save_snapshot(
    run: RunDir,
    step: int,
    retriever_params: Mapping[str, Any],
    max_to_keep: int = 3,
    keep: Collection[int] = (),
    tokenizer: str | None = None,
) -> Path:
    """Writes the retriever's parameters for the embed job; visible at once and whole, by a rename.

    A snapshot that is already there with the same content is left as it is (a resumed run writes it again). Old ones lose
    their parameters, but not their snapshot.json: by it an index version that comes late is known for one of this run.

    Args:
      run: the run.
      step: the number of steps that were done.
      retriever_params: of that step.
      max_to_keep: of how many snapshots, the newest, the parameters are kept.
      keep: of which steps they are kept beside these.
      tokenizer: fingerprint of the one whose pieces the retriever reads.

    Raises:
      ValueError: when another content was published under the same step.
    """
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in sorted(flatten_params(retriever_params).items())}
    )
    checksum = hashlib.sha256(content).hexdigest()
    place = run.snapshot(step)
    if (place / SNAPSHOT_FILE).exists():
        if snapshot_checksum(run, step) != checksum:
            raise ValueError(
                f"{place} already holds another snapshot of step {step}; this run directory belongs to another run: "
                "choose another --run_dir, or remove it to start afresh"
            )
        if (place / PARAMS_FILE).exists():
            return place
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        (temporary / PARAMS_FILE).write_bytes(content)
        record = {"step": step, "sha256": checksum, "bytes": len(content), "tokenizer": tokenizer}
        write_json_atomically(temporary / SNAPSHOT_FILE, record)
        shutil.rmtree(place, ignore_errors=True)  # a torn one, without snapshot.json, or one without parameters
        temporary.rename(place)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets back what can be given back
        raise OSError(
            f"the snapshot of step {step} could not be written ({error.strerror or error}); make sure that the disk of "
            f"{run.snapshots.resolve()} has space and can be written to"
        ) from error
    for old in set(list_snapshots(run)[:-max_to_keep]) - set(keep):
        (run.snapshot(old) / PARAMS_FILE).unlink(missing_ok=True)
    return place


def list_snapshots(run: RunDir) -> list[int]:
    """Steps of the finished snapshots whose parameters are there, ascending."""
    return [step for step in _made_snapshots(run) if (run.snapshot(step) / PARAMS_FILE).exists()]


def _made_snapshots(run: RunDir) -> list[int]:
    found = run.snapshots.glob(f"[0-9]*/{SNAPSHOT_FILE}") if run.snapshots.is_dir() else ()
    return sorted(int(path.parent.name) for path in found)


def forget_snapshots_after(run: RunDir, step: int) -> None:
    """Removes the snapshots of later steps: a run that resumes at `step` will reach them with other parameters."""
    for later in _made_snapshots(run):
        if later > step:
            (run.snapshot(later) / SNAPSHOT_FILE).unlink(missing_ok=True)
            shutil.rmtree(run.snapshot(later), ignore_errors=True)


def load_snapshot(run: RunDir, step: int, tokenizer: str | None = None) -> dict[str, Any]:
    """The retriever's parameters of a snapshot, as host arrays.

    Args:
      run: the run.
      step: of the snapshot.
      tokenizer: fingerprint of the corpus's; a snapshot that says it reads other pieces is refused.

    Raises:
      FileNotFoundError: when there is none of that step (any more).
      ValueError: when the file is damaged.
    """
    place = run.snapshot(step)
    expected = snapshot_checksum(run, step)
    theirs = read_json(place / SNAPSHOT_FILE).get("tokenizer")
    if None not in (theirs, tokenizer) and theirs != tokenizer:
        raise _other_tokenizer(place, theirs, str(tokenizer))
    content = (place / PARAMS_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{place / PARAMS_FILE} does not have the checksum of {SNAPSHOT_FILE}; remove the snapshot")
    return nest_params(safetensors.numpy.load(content))


def snapshot_checksum(run: RunDir, step: int) -> str:
    """sha256 of a snapshot's parameters, also of one whose parameters are gone.

    Raises:
      FileNotFoundError: when the run has made none of that step, or has forgotten it.
      ValueError: when the record is damaged.
    """
    try:
        return str(read_json(run.snapshot(step) / SNAPSHOT_FILE)["sha256"])
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{run.snapshot(step) / SNAPSHOT_FILE} is damaged ({error}); remove the snapshot") from error


class SnapshotWriter:
    """Writes snapshots in the background, so that a step waits only for a copy on the device."""

    def __init__(self, run: RunDir, mesh: Mesh, tokenizer: str | None = None):
        self._run, self._tokenizer = run, tokenizer
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=NamedSharding(mesh, P()))
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._pending: concurrent.futures.Future[None] | None = None

    def write(
        self, step: int, retriever_params: Mapping[str, Any], wait: bool = False, keep: Collection[int] = ()
    ) -> None:
        """Copies the parameters now, writes them later (host 0 only).

        Args:
          step: the number of steps that were done.
          retriever_params: on the devices.
          wait: until it is written.
          keep: of which older steps the snapshots are kept in any case.

        Raises:
          OSError: with `wait`, when the disk is full, say. Without, that is logged at the next call, and training goes on
            with the index that it has.
          ValueError: when the snapshot before this one, or with `wait` this one, is another run's.
        """
        try:
            self.wait()
        except OSError as error:
            logger.error("%s; the index that is served grows older by one refresh", error)
        copied = self._copy(retriever_params)
        if jax.process_index() == 0:
            self._pending = self._executor.submit(self._write, step, copied, tuple(keep))
        if wait:
            self.wait()

    def _write(self, step: int, copied: Mapping[str, Any], keep: tuple[int, ...]) -> None:
        save_snapshot(self._run, step, jax.device_get(copied), keep=keep, tokenizer=self._tokenizer)

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self._executor.shutdown(wait=True)
