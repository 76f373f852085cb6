"""Any TensorFlow Datasets data set, by name, read without TensorFlow (so: prepared in the ArrayRecord format)."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl

from realm_jax.corpus.sources.article import MALFORMED, NOT_UTF8, Article, ArticleFilter, OnDrop

PREFIX = "tfds:"
_BATCH = 100  # records are read in groups: four times as fast as one by one
EXAMPLE = "tfds:wikipedia/20230601.en?split=train[:1%]"


@dataclasses.dataclass(frozen=True)
class TfdsSpec:
    """What `tfds:NAME?split=train&title=title&text=text&id=KEY&data_dir=DIR` says; all but the name may be left out."""

    name: str
    split: str = "train"
    title: str = "title"
    text: str = "text"
    id: str = ""  # "": the record's place in the split
    data_dir: str | None = None

    @classmethod
    def parse(cls, spec: str) -> "TfdsSpec":
        """Raises ValueError for a parameter that does not exist."""
        name, parameters = parse_spec(spec, [field.name for field in dataclasses.fields(cls) if field.name != "name"])
        return cls(name, **parameters)


def parse_spec(spec: str, valid: Sequence[str], example: str = EXAMPLE) -> tuple[str, dict[str, str]]:
    """The name and the parameters of `tfds:NAME?KEY=VALUE&…`.

    Raises:
      ValueError: for a parameter that does not exist.
    """
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    # "%" stands for itself before a bracket ("train[:1%]") and must not be read as an escape.
    parameters = dict(parse_qsl(query.replace("%]", "%25]").replace("%:", "%25:"), keep_blank_values=True))
    unknown = sorted(set(parameters) - set(valid))
    if unknown or not name:
        raise ValueError(f"expected a data set such as {example!r} with parameters among {list(valid)}, got {spec!r}")
    return name, parameters


def read_tfds(
    spec: str, on_drop: OnDrop, max_text_chars: int, records: tuple[int, int] | None = None
) -> Iterator[Article]:
    """One article a record, of all or of those from `records[0]` up to `records[1]`.

    The data set is downloaded and prepared if it is not there yet.
    """
    wanted = TfdsSpec.parse(spec)
    source = open_data_source(wanted.name, wanted.split, wanted.data_dir)
    features = sorted(source.dataset_info.features)
    for key in filter(None, (wanted.text, wanted.title, wanted.id)):
        if key not in features and key != "title":
            raise ValueError(
                f"{spec}: expected a feature {key!r}, got one with {features}; name it with ?text=, ?title=, ?id="
            )
    keep = ArticleFilter(on_drop, max_text_chars)
    for place, record in read_records(source, *(records or ())):
        try:
            title, text = _string(record.get(wanted.title, b"")), _string(record[wanted.text])
            article_id = _string(record[wanted.id]) if wanted.id else str(place)
        except UnicodeDecodeError:
            on_drop(NOT_UTF8)
        except TypeError:
            on_drop(MALFORMED)
        else:
            if article := keep.article(article_id, title, text):
                yield article


def num_records(spec: str) -> int:
    """Records of the split that a source names."""
    wanted = TfdsSpec.parse(spec)
    return len(open_data_source(wanted.name, wanted.split, wanted.data_dir))


def read_records(source: Any, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of an opened data set from `first` up to `stop`, or all, with their places, from 0."""
    stop = len(source) if stop is None else stop
    for start in range(first, stop, _BATCH):
        places = list(range(start, min(start + _BATCH, stop)))
        yield from zip(places, source.__getitems__(places), strict=True)


def _string(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    if getattr(value, "ndim", None) == 0:  # a number as id
        return str(value.item())
    raise TypeError(f"expected text, got {type(value).__name__}")


def open_data_source(name: str, split: str, data_dir: str | None = None, example: str = EXAMPLE) -> Any:
    """A split of a TFDS data set, opened without TensorFlow; downloaded and prepared if it is not there yet.

    Raises:
      ValueError: for names that TFDS does not know, and data sets that were prepared for TensorFlow.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.data_path.exists():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare(file_format="array_record")
        return builder.as_data_source(split=split)
    except (
        tfds.core.registered.DatasetNotFoundError,
        ValueError,
        NotImplementedError,
        ImportError,
        AssertionError,
    ) as error:
        raise ValueError(
            f"cannot read the TFDS data set {name!r}, split {split!r} "
            f"(data_dir {data_dir or 'default'}): "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}; "
            f"expected a name of the TFDS catalogue such as {example!r}, prepared with "
            "download_and_prepare(file_format='array_record')"
        ) from error
