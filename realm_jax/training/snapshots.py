"""Snapshots: the retriever's parameters alone, as a run hands them to the embed job."""

import concurrent.futures
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.run_dir import RunDir, read_json, write_json_atomically
from realm_jax.storage import Place, RemotePath, put, remove
from realm_jax.text.tokenizer import check_same_pieces

logger = logging.getLogger(__name__)

PARAMS_FILE = "params.safetensors"
SNAPSHOT_FILE = "snapshot.json"


def save_snapshot(
    run: RunDir,
    step: int,
    retriever_params: Mapping[str, Any],
    max_to_keep: int = 3,
    keep: Collection[int] = (),
    tokenizer: str | None = None,
) -> Place:
    """Writes the retriever's parameters for the embed job; visible at once and whole, by a rename.

    On an object store by snapshot.json, which is written last.

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
    content = _content(retriever_params)
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
    record = {"step": step, "sha256": checksum, "bytes": len(content), "tokenizer": tokenizer}
    try:
        if isinstance(place, RemotePath):
            put(place / PARAMS_FILE, content)
            write_json_atomically(place / SNAPSHOT_FILE, record)
        else:
            _write_by_rename(place, content, record)
    except OSError as error:
        raise OSError(
            f"the snapshot of step {step} could not be written ({error.strerror or error}); make sure that the disk of "
            f"{run.snapshots.resolve()} has space and can be written to"
        ) from error
    for old in set(list_snapshots(run)[:-max_to_keep]) - set(keep):
        (run.snapshot(old) / PARAMS_FILE).unlink(missing_ok=True)
    return place


def _write_by_rename(place: Path, content: bytes, record: Mapping[str, Any]) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        (temporary / PARAMS_FILE).write_bytes(content)
        write_json_atomically(temporary / SNAPSHOT_FILE, record)
        shutil.rmtree(place, ignore_errors=True)  # a torn one, without snapshot.json, or one without parameters
        temporary.rename(place)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets back what can be given back
        raise


def _content(retriever_params: Mapping[str, Any]) -> bytes:
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in sorted(flatten_params(retriever_params).items())}
    )


def params_checksum(retriever_params: Mapping[str, Any]) -> str:
    """sha256 that a snapshot of these parameters (host arrays) has."""
    return hashlib.sha256(_content(retriever_params)).hexdigest()


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
            remove(run.snapshot(later), SNAPSHOT_FILE)


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
    if theirs is not None and tokenizer is not None:
        check_same_pieces(place, theirs, tokenizer)
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

    def to_host(self, retriever_params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as host arrays; every process of a run must ask."""
        return dict(jax.device_get(self._copy(retriever_params)))

    def _write(self, step: int, copied: Mapping[str, Any], keep: tuple[int, ...]) -> None:
        save_snapshot(self._run, step, jax.device_get(copied), keep=keep, tokenizer=self._tokenizer)

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self._executor.shutdown(wait=True)


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


def check_shapes(abstract: Any, params: Mapping[str, Any], what: str, remedy: str) -> None:
    """Refuses parameters of another model than is configured, before anything is compiled.

    Args:
      abstract: the model's parameters as `jax.eval_shape` of its `init` gives them.
      params: that were loaded.
      what: names the model.
      remedy: what to do.

    Raises:
      ValueError: naming a parameter, expected and got.
    """
    named = jax.tree_util.tree_flatten_with_path(abstract)[0]
    expected = {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in named}
    got = {name: tuple(leaf.shape) for name, leaf in flatten_params(params).items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"the parameters are not of this {what}: parameter {name}: expected {expected.get(name, 'none')}, "
                f"got {got.get(name, 'none')}; {remedy}"
            )
