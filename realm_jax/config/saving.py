"""The configuration of a job, saved in its run directory when it starts: what made the run, whatever is tried on it later."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from realm_jax.run_dir import RunDir, write_text_atomically
from realm_jax.run_lock import InUse
from realm_jax.storage import RemotePath, objects, put


@contextlib.contextmanager
def saved(run: RunDir, job: str, text: str) -> Iterator[None]:
    """Saves `text` as RUN/config-JOB.gin, and runs the job inside.

    An earlier one that differs is kept, with its time, as config-JOB.1.gin, config-JOB.2.gin, …, the last the newest. A
    job that refuses (ValueError, OSError) before it has written anything in the run leaves the run as it was: the
    earlier configuration in its place, and no directory where there was none. So does one that refuses because another
    process is at work there, whatever that writes.
    """
    place = run.config_file(job)
    earlier = place.read_bytes() if place.exists() else None
    if earlier == text.encode():
        yield
        return
    if isinstance(run.path, RemotePath):
        with _saved_as_object(run, run.path, job, text, earlier):
            yield
        return
    made = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    kept = None if earlier is None else _keep(run, job, earlier)
    write_text_atomically(place, text)
    saved_ns = place.stat().st_mtime_ns
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, InUse) or not _has_written(run, place, saved_ns):
            if kept is not None:
                kept.replace(place)
            else:
                place.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process of the run, on another host, has put something there
                for folder in made:
                    folder.rmdir()
        raise


@contextlib.contextmanager
def _saved_as_object(run: RunDir, path: RemotePath, job: str, text: str, earlier: bytes | None) -> Iterator[None]:
    """`saved` on an object store, where what is kept has the time at which it was kept."""
    place, kept = path / run.config_file(job).name, None
    before = _states(run, path)
    if earlier is not None:
        numbered = (path / run.config_file(job, number).name for number in itertools.count(1))
        kept = next(free for free in numbered if not free.exists())
        put(kept, earlier)
    put(place, text.encode())
    try:
        yield
    except (ValueError, OSError) as error:
        after = {name: state for name, state in _states(run, path).items() if kept is None or name != kept.name}
        if isinstance(error, InUse) or before | {place.name: ""} == after | {place.name: ""}:
            if earlier is None:
                place.unlink(missing_ok=True)
            else:
                put(place, earlier)
            if kept is not None:
                kept.unlink(missing_ok=True)
        raise


def _states(run: RunDir, path: RemotePath) -> dict[str, str]:
    """The run's objects, those aside in which its processes speak of themselves."""
    aside = (f"{run.logs.name}/", f"{run.status.name}/")
    return {name: state for name, state in objects(path).items() if not name.startswith(aside)}


def _keep(run: RunDir, job: str, earlier: bytes) -> Path:
    """Writes an earlier configuration beside its place, under the next free number. Several hosts may do so at once."""
    times = run.config_file(job).stat()
    for number in itertools.count(1):
        place = run.config_file(job, number)
        try:
            with place.open("xb") as file:
                file.write(earlier)
        except FileExistsError:
            continue
        os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
        return place
    raise AssertionError


def _has_written(run: RunDir, config_file: Path, since_ns: int) -> bool:
    """Whether anything in the run is as new as its configuration; what processes say of themselves does not count."""
    for folder, folders, files in os.walk(run.path):
        if Path(folder) == run.path:
            folders[:] = [name for name in folders if name not in (run.logs.name, run.status.name)]
        for path in (Path(folder, name) for name in (*folders, *files)):
            try:
                if path != config_file and path.stat().st_mtime_ns >= since_ns:
                    return True
            except FileNotFoundError:  # gone since it was listed: something is at work here
                return True
    return False
