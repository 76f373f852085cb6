"""The records of a data set, one dictionary each: of TFDS, of the Hugging Face hub, of JSON or parquet files."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from realm_jax.corpus.sources import tfds
from realm_jax.corpus.sources.article import MALFORMED, MAX_TEXT_CHARS
from realm_jax.corpus.sources.files import first_bytes, read_lines
from realm_jax.corpus.sources.json_document import json_document, refuse_damage
from realm_jax.data.question_formats.question import listed
from realm_jax.storage import fetch

HUB_PREFIX = "hf:"
HUB_EXAMPLE = "hf:openai/gsm8k?config=main&split=train"
_HUB_PARAMETERS = ("split", "config", "revision", "files")
_PARQUET = b"PAR1"
_AT_ONCE = 1000
# The hub keeps every public data set as parquet in a branch of its own, in folders CONFIG/SPLIT, whatever its authors published.
_PARQUET_BRANCH = "refs/convert/parquet"

Record = Mapping[str, Any]
OnDefect = Callable[[str, str], None]  # (where, cause)


class Place(NamedTuple):
    """Where a data set lies: its name without parameters and version, and these."""

    kind: str  # "tfds", "hf", "file"
    name: str
    parameters: dict[str, str]

    @classmethod
    def parse(cls, spec: str) -> "Place":
        """Raises ValueError for a parameter that does not exist."""
        if spec.startswith(tfds.PREFIX):
            return cls("tfds", *tfds.parse_spec(spec, ("split", "data_dir"), "tfds:gsm8k?split=train"))
        if spec.startswith(HUB_PREFIX):
            name, parameters = tfds.parse_spec(spec.removeprefix(HUB_PREFIX), _HUB_PARAMETERS, HUB_EXAMPLE)
            return cls("hf", name, parameters)
        return cls("file", spec, {})

    @property
    def set_name(self) -> str:
        """The name without a version, as in "squad/v2.0:3.0.0"."""
        return self.name.partition(":")[0]


def read_records(place: Place, on_defect: OnDefect) -> Iterator[tuple[str, Record]]:
    """The records of a data set, each with where it stands.

    Args:
      place: where they lie.
      on_defect: called for what is no record, such as a line that is no JSON.

    Raises:
      FileNotFoundError: no file lies there, or the hub cannot be reached.
      ValueError: there is no such data set, split or configuration, or a file is damaged.
    """
    if place.kind == "tfds":
        source = tfds.open_data_source(
            place.name,
            place.parameters.get("split", "train"),
            place.parameters.get("data_dir"),
            "tfds:gsm8k?split=train",
        )
        for number, record in tfds.read_records(source):
            yield f"record {number + 1}", record
        return
    files = _hub_files(place) if place.kind == "hf" else _local_files(place.name)
    for file in files:
        yield from _file_records(file, on_defect)


def _local_files(name: str) -> list[Path]:
    path = fetch(name)
    if "*" in path.name and not path.exists():
        found = sorted(file for file in path.parent.glob(path.name) if file.is_file())
        if found:
            return found
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(
            f"expected a file of records at {name}, {'got a folder' if path.is_dir() else 'where none is'}; name a file of "
            "JSON lines, a JSON list or parquet, or several as FOLDER/part-*.parquet"
        )
    return [path]


def _hub_files(place: Place) -> list[Path]:
    """The files of a split, downloaded where the cache of huggingface_hub has them not yet."""
    import huggingface_hub

    split, config = place.parameters.get("split", "train"), place.parameters.get("config", "default")
    pattern = place.parameters.get("files") or f"{config}/{split}/*.parquet"
    revision = place.parameters.get("revision") or ("main" if "files" in place.parameters else _PARQUET_BRANCH)
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError(f"expected ?files= to name files within the repository, got {pattern!r}")
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                place.name, repo_type="dataset", revision=revision, allow_patterns=[pattern]
            )
        )
    except (OSError, ValueError) as error:  # no network, no such repository, an id that is none
        raise FileNotFoundError(
            f"{HUB_PREFIX}{place.name} could not be fetched from the Hugging Face hub, revision {revision} "
            f"({' '.join(str(error).split())[:200]}); fetch it where there is internet, or read local files: "
            "NAME=PATH.jsonl or NAME=FOLDER/*.parquet"
        ) from error
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    if not files:
        raise ValueError(
            f"{HUB_PREFIX}{place.name} has no files {pattern} in revision {revision}; name another ?config= or ?split=, or the "
            "files themselves: ?files=train.jsonl"
        )
    return files


def _file_records(path: Path, on_defect: OnDefect) -> Iterator[tuple[str, Record]]:
    head = first_bytes(path)
    if head.startswith(_PARQUET):
        yield from _parquet_records(path)
    elif head.lstrip().startswith(b"["):
        for number, record in enumerate(listed(json_document(path), str(path)), 1):
            yield f"{path}, record {number}", record if isinstance(record, Mapping) else {}
    else:
        yield from _json_lines(path, on_defect)


def _json_lines(path: Path, on_defect: OnDefect) -> Iterator[tuple[str, Record]]:
    def on_drop(cause: str) -> None:
        refuse_damage(path, cause)
        on_defect(str(path), cause)

    for number, line in read_lines(path, on_drop, 4 * MAX_TEXT_CHARS):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # RecursionError: a line of ten thousand brackets
            record = None
        if isinstance(record, dict):
            yield where, record
        else:
            on_defect(where, MALFORMED)


def _parquet_records(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path} is parquet, which pyarrow reads: pip install pyarrow, or give JSON lines") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, record {number}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as parquet after {number} records ({error}); fetch it again"
        ) from error
