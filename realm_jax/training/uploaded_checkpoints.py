"""Checkpoints on an object store that Orbax cannot write to: it writes them to the local disk, from where they are uploaded.

Orbax itself writes to file systems and to gs://, there also from several processes at once. For s3:// a step is finished
when the object that is uploaded last is there.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

import jax

from realm_jax.run_dir import RunDir
from realm_jax.storage import (
    Place,
    RemotePath,
    clear_scratch,
    copy_of,
    fetch,
    link_or_copy,
    remove,
    scratch_of,
    upload_copy,
)

RECORD = "_CHECKPOINT_METADATA"
"""A file that Orbax puts into every step; here the last one to be uploaded."""


def uploaded_from(run: RunDir) -> RemotePath | None:
    """Where a run's checkpoints are uploaded to; None where Orbax writes them itself.

    Raises:
      ValueError: several processes, each with a part of the checkpoint.
    """
    place = run.checkpoints
    if not isinstance(place, RemotePath) or str(place).startswith("gs://"):
        return None
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes cannot write checkpoints to {place}; use a --run_dir on gs:// or on a file "
            "system that they share"
        )
    return place


def begin(place: RemotePath) -> Path:
    """A folder for Orbax to go on in, with the finished steps in it."""
    folder = scratch_of(place)
    clear_scratch(place)
    shutil.copytree(readable(place), folder, copy_function=link_or_copy)  # no file of a finished step is changed
    return folder


def readable(place: Place) -> Place:
    """Where Orbax can read a run's checkpoints: there, or from a local copy of the finished steps."""
    if not isinstance(place, RemotePath) or str(place).startswith("gs://"):
        return place.absolute()
    copy = copy_of(place)
    copy.mkdir(parents=True, exist_ok=True)
    finished = _finished(place)
    for step in copy.iterdir():
        if step.name not in finished:
            shutil.rmtree(step)
    for step_name in finished:
        fetch(place / step_name)
    return copy


def upload(place: RemotePath, steps: Collection[int]) -> None:
    """Uploads those of the steps that are not there yet, then removes the others."""
    names, finished = {str(step) for step in steps}, _finished(place)
    folder = scratch_of(place)
    for name in names - finished:
        files = sorted(path.relative_to(folder).as_posix() for path in (folder / name).rglob("*") if path.is_file())
        for file in sorted(files, key=lambda file: file == f"{name}/{RECORD}"):
            upload_copy(folder / file, place / file)
    for name in finished - names:
        remove(place / name, RECORD)


def _finished(place: RemotePath) -> set[str]:
    names = {child.name for child in place.iterdir()} if place.is_dir() else set()
    return {name for name in names if name.isdecimal() and (place / name / RECORD).exists()}
