"""Checkpoints: all that a run needs to go on as if it had not stopped, and how its parameters are read from there."""

import contextlib
import enum
import errno
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from realm_jax.run_dir import RunDir, read_json
from realm_jax.storage import Place, is_remote, move_folder
from realm_jax.text.tokenizer import check_same_pieces
from realm_jax.training import uploaded_checkpoints
from realm_jax.training.checksums import checksum, checksum_of_host
from realm_jax.training.sharding import BATCH, state_shardings
from realm_jax.training.state import TrainState

logger = logging.getLogger(__name__)

NO_VERSION = -1

# What is written in one piece is read in one: other devices, and fewer, read their parts of it without the rest.
_IN_CHUNKS = ocp.SaveArgs(chunk_byte_size=1 << 28)


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
            "state": ocp.args.StandardSave(unit.state, jax.tree.map(lambda _: _IN_CHUNKS, unit.state)),
            "meta": ocp.args.JsonSave(
                {
                    "index_version": unit.index_version,
                    "has_candidates": unit.candidate_ids is not None,
                    "identity": self._identity,
                    "checksum": _checksum(unit),
                    "params_checksum": int(checksum(unit.state.params)),
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

    def is_begun(self) -> bool:
        """Whether there is a checkpoint to go on from. Called by all processes.

        Raises:
          OSError: processes that see different checkpoints.
        """
        steps = sorted(self._manager.all_steps())
        seen = _of_all_processes(zlib.crc32(repr(steps).encode()))
        if len(set(seen)) > 1:
            raise OSError(
                f"expected the same checkpoints under {self._directory} on all {len(seen)} processes, got others than here "
                f"({', '.join(map(str, steps)) or 'none'}) on one; use a --run_dir that all of them share, or start again "
                "where it is one: its listing may be late"
            )
        return bool(steps)

    def restore(self, abstract_state: TrainState, mesh: Mesh, batch_size: int | None) -> ResumeUnit:
        """The newest checkpoint that can be read; a damaged one is named in the log and the one before it is used.

        Called by all processes: they restore the same one, and one that any of them cannot read is damaged for all.

        Args:
          abstract_state: shapes, dtypes and shardings to restore to, whatever they were when saved.
          mesh: where the candidate ids go.
          batch_size: rows of the candidate ids, for tasks with retrieval.

        Raises:
          ValueError: when no checkpoint can be read, or the run has another seed, batch size or corpus than they.
          OSError: what says nothing of a checkpoint, such as a network that is away; none is put aside.
          MemoryError, JaxRuntimeError: too little memory; likewise.
        """
        self._check_identity()
        failures = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                unit = self._restore(step, abstract_state, mesh, batch_size)
            except _DamagedError as error:
                logger.error(
                    "checkpoint %s cannot be read (%s); trying the one before it", self._directory / str(step), error
                )
                failures[step] = f"{step}: {error}"
            else:
                self._put_aside(list(failures))
                return unit
        raise ValueError(
            f"no checkpoint under {self._directory} can be read ({'; '.join(failures.values())}); was it written with another "
            "configuration? Otherwise remove the directory to start afresh"
        )

    def _check_identity(self) -> None:
        """Refuses to go on with other examples than the run began with."""
        refusal = self._other_examples()
        if any(_of_all_processes(bool(refusal))):
            raise ValueError(
                refusal or f"{self._directory}: another process refuses to go on from there; its own message says why"
            )

    def _other_examples(self) -> str:
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = checkpoint_identity(self._directory / str(step))
            except (ValueError, OSError):
                continue  # a damaged checkpoint; restoring tells
            for name, ours in self._identity.items():
                if saved.get(name) != ours:
                    return (
                        f"{self._directory} was written with {name}={saved.get(name)}, this run has {name}={ours}: it would "
                        "not go on with the same examples; use the settings that it began with, or another --run_dir"
                    )
            return ""
        return ""

    def _put_aside(self, damaged: list[int]) -> None:
        """Moves checkpoints away that cannot be read while an older one can: else Orbax would not write those steps again."""
        if not damaged:
            return
        failure: OSError | None = None
        try:
            for step in damaged if jax.process_index() == 0 else ():
                place = self._directory / str(step)
                move_folder(place, place.with_name(f"damaged-{step}-{os.getpid()}"))
                if self._uploaded_to is not None:
                    uploaded = self._uploaded_to / str(step)
                    move_folder(uploaded, uploaded.with_name(f"damaged-{step}-{os.getpid()}"))
        except OSError as error:
            failure = error
        if any(_of_all_processes(failure is not None)):  # this waits for process 0, too
            raise failure or OSError("process 0 cannot move damaged checkpoints away; its own message says why")
        self._manager.reload()

    def _restore(self, step: int, abstract_state: TrainState, mesh: Mesh, batch_size: int | None) -> ResumeUnit:
        """What a checkpoint holds, once all processes have read it and found it sound.

        Raises:
          _DamagedError, OSError, MemoryError, JaxRuntimeError: see `_agreeing`.
        """
        place = self._directory / str(step)
        with _agreeing(place):
            unit, expected = _read(place, abstract_state, mesh, batch_size)
        with _agreeing(place):  # the sum is made by all processes together: each must have its arrays before
            got = _checksum(unit)
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


def _read(
    place: Place, abstract_state: TrainState, mesh: Mesh, batch_size: int | None
) -> tuple[ResumeUnit, int | None]:
    """This process's part of a checkpoint, and the checksum that it was written with.

    It waits for no other process, as `CheckpointManager.restore` does at its end, where one that cannot read never comes.
    """
    meta = read_json(place / "meta" / "metadata")
    folder = epath.Path(place)
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        ids = None
        # The last step of a run selected nothing for a next one; every other checkpoint of a task with retrieval must.
        if batch_size is not None and meta["has_candidates"]:
            shape = tuple(handler.metadata(folder / "candidates")["ids"].shape)
            if shape[0] != batch_size:
                raise ValueError(f"it was written with batch_size={shape[0]}, this run has batch_size={batch_size}")
            wanted = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, BATCH))
            ids = handler.restore(folder / "candidates", args=ocp.args.StandardRestore({"ids": wanted}))["ids"]
        state = handler.restore(folder / "state", args=ocp.args.StandardRestore(abstract_state))
    return ResumeUnit(state, int(meta["index_version"]), ids), meta.get("checksum")


class _DamagedError(Exception):
    """A checkpoint that some process cannot read."""


class _Outcome(enum.IntEnum):
    """Of reading a checkpoint, from good to bad: processes that differ go by the worst."""

    SOUND = 0
    DAMAGED = 1
    OUT_OF_REACH = 2


@contextlib.contextmanager
def _agreeing(place: Place) -> Iterator[None]:
    """What fails in one process fails in all, before any goes on: one that went on alone would wait for the others for ever.

    Raises:
      _DamagedError: some process cannot read the checkpoint.
      OSError: some process could not read it now, which says nothing of the checkpoint.
      MemoryError, JaxRuntimeError: this process has too little memory.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # of a file that is cut short or gone Orbax raises just that
        failure = error
    try:
        _raise_the_worst(place, failure)
    finally:
        del failure  # it leads to this frame, and a circle would keep what it was reading


def _raise_the_worst(place: Place, failure: Exception | None) -> None:
    own = _Outcome.SOUND
    if failure is not None:
        own = _Outcome.OUT_OF_REACH if _is_no_damage(failure, place) else _Outcome.DAMAGED
    outcomes = _of_all_processes(own)
    worst = max(outcomes)
    reason = f"process {outcomes.index(worst)} cannot read it; its own message says why"
    if failure is not None and own == worst:
        reason = next(iter(str(failure).splitlines()), repr(failure))[:200]  # tensorstore tells pages
    if worst == _Outcome.DAMAGED:
        raise _DamagedError(reason) from failure
    if worst == _Outcome.OUT_OF_REACH:
        if isinstance(failure, MemoryError | jax.errors.JaxRuntimeError):
            raise failure
        raise OSError(
            f"checkpoint {place} cannot be read now ({reason}); it is left as it is: look at the network, the credentials and "
            "the permissions, then start the same command again"
        ) from failure


def _of_all_processes(number: int) -> list[int]:
    """The numbers of all processes, each of which calls this."""
    if jax.process_count() == 1:
        return [number]
    return [int(other) for other in multihost_utils.process_allgather(np.uint32(number))]


PASSING_ERRNOS = {
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH,
}  # fmt: skip
PASSING_CODES = re.compile(
    r"\b(ABORTED|CANCELLED|DEADLINE_EXCEEDED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE):"
)
"""How tensorstore and XLA, whose errors have few classes, begin to say that it lies at something else than the file."""


def _is_no_damage(error: BaseException, place: Place) -> bool:
    """Whether an error may be gone at the next try, the file being what it was: of memory, a network or permissions."""
    if isinstance(error, MemoryError) or PASSING_CODES.search(str(error)):
        return True
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return is_remote(place) or error.errno in PASSING_ERRNOS
    return error.__cause__ is not None and _is_no_damage(error.__cause__, place)


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


def check_tokenizer(
    run: RunDir,
    tokenizer: str,
    step: int | None = None,
    kind: Literal["tokenizer", "generator_tokenizer"] = "tokenizer",
) -> None:
    """Refuses a checkpoint that was trained on other pieces than those of a corpus: its embeddings mean other words.

    Args:
      run: with checkpoints; without any nothing is refused here.
      tokenizer: fingerprint of the corpus's, or of the generator's.
      step: which checkpoint; none takes the newest.
      kind: which of the two; a run that knows the other one alone, as a generator by itself, reads none of its pieces.

    Raises:
      ValueError: with both fingerprints and the remedy.
    """
    steps = list_checkpoints(run)
    if not steps or (step is not None and step not in steps):
        return
    place = uploaded_checkpoints.readable(run.checkpoints) / str(steps[-1] if step is None else step)
    identity = checkpoint_identity(place)
    if kind in identity or not {"tokenizer", "generator_tokenizer"} & identity.keys():
        check_same_pieces(place, str(identity.get(kind)), tokenizer)


def list_checkpoints(run: RunDir) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    if not run.checkpoints.is_dir():
        return []
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(uploaded_checkpoints.readable(run.checkpoints), options=options) as manager:
        return sorted(manager.all_steps())


def newest_step(run: RunDir, step: int | None = None) -> int:
    """The step of the newest checkpoint, or the one that is named, if it is there.

    Raises:
      FileNotFoundError: when the run has no such checkpoint.
    """
    return _find_state(run, step)[0]


def load_params(run: RunDir, step: int | None = None, mesh: Mesh | None = None) -> tuple[int, dict[str, Any]]:
    """Parameters of a run's checkpoint: for warm starts and evaluation.

    Args:
      run: the run.
      step: which checkpoint; none takes the newest.
      mesh: of devices of this process, which read their parts by the rules of `training.sharding`, so that nothing is whole anywhere;
        none: whole, as arrays of the host.

    Returns:
      (step, params).

    Raises:
      FileNotFoundError: when the run has no such checkpoint.
      ValueError: when what it holds is not what was written.
    """
    step, state_dir = _find_state(run, step)
    expected = read_json(state_dir.parent / "meta" / "metadata").get("params_checksum")
    with ocp.PyTreeCheckpointer() as reader:
        tree = _params_tree(reader, state_dir)
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        if mesh is None:
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        else:
            restore_args = jax.tree.map(
                lambda sharding: ocp.ArrayRestoreArgs(sharding=sharding), state_shardings(mesh, wanted)
            )
        restored = reader.restore(
            state_dir,
            args=ocp.args.PyTreeRestore(
                item={"params": wanted}, restore_args={"params": restore_args}, partial_restore=True
            ),
        )
    params = restored["params"]
    got = int(checksum(params)) if mesh is not None else checksum_of_host(params)
    if expected not in (None, got):  # none: written before there was one
        raise ValueError(
            f"the parameters in {state_dir} are corrupt: expected checksum {expected}, got {got}; name an older step, or train "
            "again"
        )
    return step, params


def params_checksum(run: RunDir, step: int | None = None) -> int | None:
    """What the parameters of a checkpoint add up to, by which one that was trained anew is told from the one before it; None of one that was
    written before there was such a thing. Arguments and errors: `load_params`."""
    found: int | None = read_json(_find_state(run, step)[1].parent / "meta" / "metadata").get("params_checksum")
    return found


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
