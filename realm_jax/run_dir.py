"""The paths inside a run directory. Nothing else in the project spells them."""

import dataclasses
import json
import os
import tempfile
import threading
from typing import Any

from realm_jax.storage import Place, RemotePath, as_place, put


@dataclasses.dataclass(frozen=True)
class RunDir:
    """A run directory and the places in it, local or on an object store. Nothing here touches the disk.

    >>> RunDir.of("runs/pretrain").index_version(300).as_posix()
    'runs/pretrain/index/00000300'
    """

    path: Place

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", as_place(self.path))

    @classmethod
    def of(cls, place: "str | os.PathLike[str] | RunDir") -> "RunDir":
        """The run directory at a path; a RunDir passes through."""
        return cls(place.path if isinstance(place, RunDir) else as_place(place))

    @property
    def checkpoints(self) -> Place:
        """Resume units, one directory a step, written by Orbax."""
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Place:
        """Retriever parameters alone, one directory a step, for the embed job."""
        return self.path / "snapshots"

    @property
    def index(self) -> Place:
        """Index versions, named by the snapshot step that they were embedded with."""
        return self.path / "index"

    @property
    def metrics(self) -> Place:
        """TensorBoard events and metrics.jsonl."""
        return self.path / "metrics"

    @property
    def profile(self) -> Place:
        """Traces of steps, `train.profile_steps`."""
        return self.path / "profile"

    @property
    def metrics_jsonl(self) -> Place:
        return self.metrics / "metrics.jsonl"

    @property
    def status(self) -> Place:
        """What each process of the run last said about itself."""
        return self.path / "status"

    @property
    def logs(self) -> Place:
        """What the processes of the run print, when a launcher starts them."""
        return self.path / "logs"

    @property
    def embedder_status(self) -> Place:
        return self.builder_status(0)

    def builder_status(self, number: int) -> Place:
        """Of one of several embed jobs; the first is the one that publishes."""
        return self.status / ("embedder.json" if number == 0 else f"embedder-{number:05d}.json")

    @property
    def trainer_lock(self) -> Place:
        """Held by the run's trainer (process 0 of several) while it is at work."""
        return self.status / "trainer.lock"

    @property
    def launcher_lock(self) -> Place:
        """Held by a launcher of the run's jobs."""
        return self.status / "launcher.lock"

    def other_launcher_lock(self, host: int) -> Place:
        """Held by the launcher of a machine of the run that is not the first."""
        return self.status / f"launcher-{host:05d}.lock"

    @property
    def weights(self) -> Place:
        """What the convert job knows of weights from elsewhere: settings, gin files, tokenizer, tensors without a use."""
        return self.path / "weights"

    @property
    def corpus(self) -> Place:
        """Where the corpus job writes when it is told no other place."""
        return self.path / "corpus"

    @property
    def report_json(self) -> Place:
        return self.path / "report.json"

    @property
    def report_html(self) -> Place:
        return self.path / "report.html"

    @property
    def examples(self) -> Place:
        """Masked sentences with their candidates and predictions, to look at."""
        return self.path / "examples.json"

    def config_file(self, job: str, number: int = 0) -> Place:
        """The operative configuration of a job, saved when it starts; with a number, an earlier one, 1 the first."""
        return self.path / f"config-{job}{f'.{number}' if number else ''}.gin"

    def snapshot(self, step: int) -> Place:
        return self.snapshots / f"{step:08d}"

    def index_version(self, version: int) -> Place:
        return self.index / f"{version:08d}"

    def evaluation(self, name: str) -> Place:
        return self.path / "evaluation" / f"{name}.json"

    def ranking(self, name: str, row: str) -> Place:
        """The documents that a row of an evaluation's table ranks, as a TREC run."""
        return self.path / "evaluation" / f"{name}-{row}.run"

    def judgements(self, name: str) -> Place:
        """What such rankings are scored against, as TREC has it."""
        return self.path / "evaluation" / f"{name}.qrels"

    def predictions(self, name: str) -> Place:
        """Answers to a file of questions, in the form that official scorers read."""
        return self.path / "predictions" / name

    def retrieved(self, name: str) -> Place:
        """Instruction examples with the documents found for them."""
        return self.path / "retrieved" / name

    def trainer_status(self, process: int) -> Place:
        return self.status / f"trainer-{process:05d}.json"

    def stage(self, name: str) -> "RunDir":
        """A run inside this run, such as a warm start; itself a run directory."""
        return RunDir(self.path / "stages" / name)


def check_can_write(place: str | os.PathLike[str], name: str) -> None:
    """Refuses a folder that cannot be made or written to, before slow work would be lost; leaves nothing there.

    Args:
      place: the folder; it need not be there.
      name: how messages call it.

    Raises:
      ValueError: with the reason and the remedy.
    """
    place = as_place(place)
    if isinstance(place, RemotePath):
        _check_can_put(place, name)
        return
    try:
        there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
        is_folder = there.is_dir()
        if is_folder:  # a file without a name where there are such: the folder keeps its time
            with tempfile.TemporaryFile(dir=there):
                pass
    except OSError as error:
        raise ValueError(
            f"{name}: expected a folder that can be written to, got {place} ({error.strerror}); name another, or change "
            "its permissions"
        ) from error
    if not is_folder:
        raise ValueError(
            f"{name}: expected a folder, got {place}, where {there} is a file; name another, or move the file"
        )


def _check_can_put(place: RemotePath, name: str) -> None:
    probe = place / f".{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        put(probe, b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{name}: expected a place that can be written to, got {place} ({error.strerror or error}); name another, or "
            "change its permissions"
        ) from error


def write_json_atomically(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file so that a reader sees the old content or the new one, never a part, also after a crash.

    Raises:
      ValueError: for NaN or infinity, which JSON does not have.
    """
    write_text_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file by writing it beside its place, flushing it to the disk, and renaming it; an object by one PUT."""
    path = as_place(path)
    if isinstance(path, RemotePath):
        put(path, text.encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
      FileNotFoundError: when there is none.
      ValueError: when it does not hold JSON, naming file and place.
    """
    path = as_place(path)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise ValueError(f"{path} does not hold JSON: {error}") from error
