"""Checkpoints: all that a run needs to go on as if it had not stopped, and how its parameters are read from there."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from realm_jax.run_dir import RunDir, read_json
from realm_jax.storage import Place, move_folder
from realm_jax.text.tokenizer import check_same_pieces
from realm_jax.training import uploaded_checkpoints
from realm_jax.training.checksums import checksum
from realm_jax.training.sharding import BATCH
from realm_jax.training.state import TrainState

logger = logging.getLogger(__name__)

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
        self._uploaded_to = uploaded_checkpoints.uploaded_from(run)  # None where Orbax writes there itself
        self._directory = (
            uploaded_checkpoints.begin(self._uploaded_to) if self._uploaded_to else run.checkpoints.absolute()
        )
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
                    "checksum": _checksum(unit),
                }
            ),
        }
        if unit.candidate_ids is not None:
            items["candidates"] = ocp.args.StandardSave({"ids": unit.candidate_ids})
        self._versions[step], self._writing = unit.index_version, step
        with self._saying_what_failed():
            saved = self._manager.save(step, args=ocp.args.Composite(**items))
            if self._uploaded_to is not None:
                self._manager.wait_until_finished()
                uploaded_checkpoints.upload(self._uploaded_to, self._manager.all_steps())
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
            except Exception as error:  # of a file that is cut short or gone Orbax raises just that
                reason = next(iter(str(error).splitlines()), repr(error))[:200]  # tensorstore tells pages
                logger.error(
                    "checkpoint %s cannot be read (%s); trying the one before it", self._directory / str(step), reason
                )
                failures[step] = f"{step}: {reason}"
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
        """Moves checkpoints away that cannot be read while an older one can: else Orbax would not write those steps again."""
        for step in damaged:
            place = self._directory / str(step)
            if jax.process_index() == 0:
                move_folder(place, place.with_name(f"damaged-{step}-{os.getpid()}"))
                if self._uploaded_to is not None:
                    uploaded = self._uploaded_to / str(step)
                    move_folder(uploaded, uploaded.with_name(f"damaged-{step}-{os.getpid()}"))
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
        ids = restored.candidates["ids"] if "candidates" in items else None
        unit = ResumeUnit(restored.state, int(restored.meta["index_version"]), ids)
        expected, got = restored.meta.get("checksum"), _checksum(unit)
        if expected not in (None, got):  # none: written before there was one
            raise ValueError(f"what it holds is corrupt: expected checksum {expected}, got {got}")
        self._versions[step] = unit.index_version
        return unit

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


def _checksum(unit: ResumeUnit) -> int:
    """Of all that a checkpoint holds: the libraries that write the arrays notice no bit that flips on the disk."""
    return int(checksum((unit.state, jnp.int32(unit.index_version), unit.candidate_ids)))


def checkpoint_identity(place: Place) -> Identity:
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
    place = uploaded_checkpoints.readable(run.checkpoints) / str(steps[-1] if step is None else step)
    check_same_pieces(place, str(checkpoint_identity(place).get("tokenizer")), tokenizer)


def list_checkpoints(run: RunDir) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    if not run.checkpoints.is_dir():
        return []
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(uploaded_checkpoints.readable(run.checkpoints), options=options) as manager:
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
    step, state_dir = _find_state(run, step)
    with ocp.PyTreeCheckpointer() as reader:
        tree = _params_tree(reader, state_dir)
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        restored = reader.restore(
            state_dir,
            args=ocp.args.PyTreeRestore(
                item={"params": wanted}, restore_args={"params": restore_args}, partial_restore=True
            ),
        )
    return step, restored["params"]


def learners(run: RunDir, step: int | None = None) -> list[str]:
    """What a checkpoint has parameters of, such as "retriever"; nothing is loaded. Arguments and errors: `load_params`."""
    _, state_dir = _find_state(run, step)
    with ocp.PyTreeCheckpointer() as reader:
        return sorted(_params_tree(reader, state_dir))


def _find_state(run: RunDir, step: int | None) -> tuple[int, Place]:
    steps = list_checkpoints(run)
    if not steps or (step is not None and step not in steps):
        there = f"there: {', '.join(map(str, steps)) or 'none'}" if _is_begun(run) else f"there is no run in {run.path}"
        raise FileNotFoundError(
            f"no checkpoint {'' if step is None else f'of step {step} '}under {run.checkpoints} ({there}); "
            "train that run first or name another"
        )
    step = steps[-1] if step is None else step
    return step, uploaded_checkpoints.readable(run.checkpoints) / str(step) / "state"


def _is_begun(run: RunDir) -> bool:
    """Whether a job has made anything in the run: the one that asks has saved its configuration there already."""
    if not run.path.is_dir():
        return False
    aside = {run.logs.name, run.status.name}
    names = {entry.name for entry in run.path.iterdir()} - aside
    return any(not name.startswith("config-") or name == run.config_file("train").name for name in names)


def _params_tree(reader: ocp.PyTreeCheckpointer, state_dir: Place) -> dict[str, Any]:
    """Shapes and dtypes of the parameters, without their values."""
    metadata = reader.metadata(state_dir).item_metadata
    if metadata is None:
        raise ValueError(f"{state_dir} is damaged: it does not say what it holds; name an older step, or train again")
    tree: dict[str, Any] = metadata.tree["params"]
    return tree
