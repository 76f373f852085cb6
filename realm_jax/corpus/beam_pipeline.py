"""Reading and cutting for the corpus job as an Apache Beam pipeline, for sources that one machine takes too long for.

    parts of the sources ── read ──▶ chunks of articles ──────────────┐
                               └───▶ ids ── settle ──▶ changes of ids ─┴─ cut ──▶ a file a chunk

The pipeline leaves the documents of every chunk in a folder; the machine that started it then reads the chunks in
the order of the source and writes the corpus, as it does without Beam: duplicates are dropped there, in that order.
So neither the runner nor the number of workers nor the order in which they finish can show in the corpus.
"""

import logging
import pickle
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from realm_jax.corpus.cutting import CutBatches, Cutter, in_batches
from realm_jax.corpus.source_text import RENAMED, SourceText, warn_of_renaming
from realm_jax.corpus.sources import OpenSource
from realm_jax.corpus.sources.article import DUPLICATE_ID
from realm_jax.corpus.sources.own_ids import PlacedId, id_group, settle_ids
from realm_jax.storage import RemotePath, as_place, copy_of, fetch_file, original_of, put, remove

logger = logging.getLogger(__name__)

# What goes from worker to worker and lies in one file: a few megabytes of text. Some four thousand are a Wikipedia.
CHUNK_CHARS = 4 << 20
_READ_AHEAD = 4  # chunks: a file of an object store takes long to open
_CHUNKS, _IDS, _REPORTS = "chunks", "ids", "reports"
_PARTS_FILE, _CUTTER_FILE, _REPORTS_FILE = "parts", "cutter", "reports"


class ChunkPlace(NamedTuple):
    """Where a chunk stands: places in ascending order are the order of the sources. Chunk -1 is the part as a whole."""

    part: int
    chunk: int


class Part(NamedTuple):
    """A part of source `number`, from 1, as `OpenSource` has it, under names by which every worker finds it."""

    number: int
    path: str
    source_format: str
    files: tuple[str, ...]
    naming_folder: str | None
    records: tuple[int, int] | None

    @classmethod
    def of(cls, number: int, source: OpenSource) -> "Part":
        return cls(
            number,
            source.path if isinstance(source.path, str) else _name_of(source.path),
            source.source_format,
            tuple(map(_name_of, source.files)),
            None if source.naming_folder is None else _name_of(source.naming_folder),
            source.records,
        )

    def open(self) -> OpenSource:
        """The part on this machine; what lies on an object store is downloaded first."""
        return OpenSource(
            copy_of(as_place(self.path)) if self.files else self.path,
            self.source_format,
            tuple(fetch_file(as_place(file)) for file in self.files),
            None if self.naming_folder is None else copy_of(as_place(self.naming_folder)),
            self.records,
        )


def _name_of(path: Path) -> str:
    return str(original_of(path).absolute())


class Report(NamedTuple):
    """What a worker did: of a part that it read, or of a chunk that it cut.

    Attributes:
      place: of the part or the chunk.
      dropped: counts by cause.
      file: that holds the documents of a chunk.
      renamed: ids that were changed.
      first_renamed: the first of them, old and new.
      error: why the text cannot be used, if so.
    """

    place: ChunkPlace
    dropped: dict[str, int]
    file: str = ""
    renamed: int = 0
    first_renamed: tuple[str, str] | None = None
    error: str = ""


def check_options(options: Sequence[str]) -> None:
    """Raises ValueError for a runner that Beam does not know, that is not installed, or that lacks a flag."""
    try:
        beam.Pipeline(options=PipelineOptions(list(options)))
    except ImportError as error:
        raise ValueError(f"pipeline_options={options}: more of Apache Beam has to be installed: {error}") from error


def folder_in(shared_dir: str) -> str:
    """The path of a new folder in a given one."""
    return str(as_place(shared_dir).absolute() / f"realm-jax-{uuid.uuid4().hex}")


def cut_in_pipeline(
    cutter: Cutter,
    text: SourceText,
    dropped: Counter[str],
    renamed: Counter[str],
    *,
    options: Sequence[str],
    shared_dir: str,
) -> CutBatches:
    """Reads and cuts the sources in a pipeline, and yields their documents in order.

    Args:
      cutter: cuts articles into documents; workers get a copy.
      text: the sources.
      dropped, renamed: counts as of `SourceText.read`, complete before the first batch is yielded.
      options: Beam's flags.
      shared_dir: a folder that this machine and the workers write to and read; it is removed when all is read.
    Raises:
      ValueError: a source cannot be used.
      ChildProcessError: the pipeline was stopped.
    """
    parts = [Part.of(number, part) for number, source in enumerate(text.open(dropped), 1) for part in source.parts()]
    folder = as_place(shared_dir)
    remove(folder)  # what a killed run left
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _save(shared_dir, _PARTS_FILE, parts)
        _save(shared_dir, _CUTTER_FILE, cutter)
        pipeline = beam.Pipeline(options=PipelineOptions(list(options)))
        build(pipeline, len(parts), shared_dir)
        start = time.monotonic()
        result = pipeline.run()
        state = result.wait_until_finish() or result.state
        if state != PipelineState.DONE:
            raise ChildProcessError(f"expected the pipeline to end as {PipelineState.DONE}, got {state}; see its log")
        reports: list[Report] = _load(shared_dir, _REPORTS_FILE)
        files = [report.file for report in reports if report.file]
        logger.info(
            "%d parts cut into %d files in %.0f s; now writing", len(parts), len(files), time.monotonic() - start
        )
        for report in reports:
            if report.error:
                raise ValueError(report.error)
            dropped.update(report.dropped)
            if report.first_renamed is not None and not renamed:
                warn_of_renaming(*report.first_renamed)
            renamed.update({RENAMED: report.renamed} if report.renamed else {})
        for batches in _load_in_order(shared_dir, files):
            yield from batches
    finally:
        remove(folder)


def build(pipeline: beam.Pipeline, num_parts: int, shared_dir: str) -> None:
    """Adds to a pipeline what reads `num_parts` parts, cuts them, and leaves documents and reports in the folder.

    Elements are numbers, strings and bytes: Beam's coders are not asked to understand our types.
    """
    read = (
        pipeline
        | "Parts" >> beam.Create(range(num_parts), reshuffle=False)
        | "ToWorkers" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(ReadPart(shared_dir)).with_outputs(_CHUNKS, _IDS, _REPORTS)
    )
    changes = read[_IDS] | "ById" >> beam.GroupByKey() | "SettleIds" >> beam.FlatMap(_changes_of_group)
    cut = (
        {"articles": read[_CHUNKS], "changes": changes}
        | "ByChunk" >> beam.CoGroupByKey()
        | "Cut" >> beam.ParDo(CutChunk(shared_dir))
    )
    _ = (
        (read[_REPORTS], cut)
        | "AllReports" >> beam.Flatten()
        | "Together" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "WriteReports" >> beam.Map(_save_reports, shared_dir)
    )


class ReadPart(beam.DoFn):
    """Reads a part of a source, given its number: articles in chunks, the id of each, and a report."""

    def __init__(self, shared_dir: str):
        self._shared_dir = shared_dir
        self._parts: list[Part] = []

    def setup(self) -> None:
        self._parts = _load(self._shared_dir, _PARTS_FILE)

    def process(self, part: int) -> Iterator[Any]:
        number = self._parts[part].number
        dropped: Counter[str] = Counter()
        error = ""
        try:
            articles = self._parts[part].open().read(lambda cause: dropped.update([cause]))
            for chunk, batch in enumerate(in_batches(articles, CHUNK_CHARS)):
                yield beam.pvalue.TaggedOutput(_CHUNKS, ((part, chunk), pickle.dumps(batch)))
                for index, article in enumerate(batch):
                    placed = ((part, chunk, index), number, article.id)
                    yield beam.pvalue.TaggedOutput(_IDS, (id_group(article.id), placed))
        except ValueError as unusable:  # text that no retry can make better; told by the machine that started this
            error = str(unusable)
        yield beam.pvalue.TaggedOutput(_REPORTS, pickle.dumps(Report(ChunkPlace(part, -1), dict(dropped), error=error)))


class CutChunk(beam.DoFn):
    """Cuts a chunk of articles, their ids settled, leaves the documents in a file, and reports."""

    def __init__(self, shared_dir: str):
        self._shared_dir = shared_dir
        self._cutter: Cutter | None = None

    def setup(self) -> None:
        self._cutter = _load(self._shared_dir, _CUTTER_FILE)

    def process(self, chunk: tuple[Any, Any]) -> Iterator[bytes]:
        assert self._cutter is not None
        place, values = ChunkPlace(*chunk[0]), chunk[1]
        (content,) = values["articles"]
        new_ids: dict[int, str | None] = dict(values["changes"])
        articles, renamed = [], []
        for index, article in enumerate(pickle.loads(content)):
            new_id = new_ids.get(index, article.id)
            if new_id is None:
                continue
            if new_id != article.id:
                renamed.append((article.id, new_id))
            articles.append(article._replace(id=new_id))
        num_dropped = list(new_ids.values()).count(None)
        batches = [
            ([article._replace(text="") for article in batch], self._cutter(batch)) for batch in in_batches(articles)
        ]
        # Of two attempts at a chunk one counts: the one whose report arrives. Each has a file of its own.
        file = f"cut-{place.part:06d}-{place.chunk:06d}-{uuid.uuid4().hex}"
        _save(self._shared_dir, file, batches)
        yield pickle.dumps(
            Report(
                place,
                {DUPLICATE_ID: num_dropped} if num_dropped else {},
                file,
                len(renamed),
                renamed[0] if renamed else None,
            )
        )


def _changes_of_group(group: tuple[str, Iterable[Any]]) -> list[Any]:
    ids = [PlacedId(*entry) for entry in group[1]]
    changes = settle_ids(ids) if len(ids) > 1 else {}
    return [((part, chunk), (index, new_id)) for (part, chunk, index), new_id in changes.items()]


def _save_reports(reports: list[bytes], shared_dir: str) -> None:
    _save(shared_dir, _REPORTS_FILE, sorted(map(pickle.loads, reports), key=lambda report: report.place))


def _load_in_order(shared_dir: str, files: Sequence[str]) -> Iterator[Any]:
    """What the files hold, one after the other, the next ones read meanwhile."""
    with ThreadPoolExecutor(_READ_AHEAD) as executor:
        under_way: deque[Future[Any]] = deque()
        try:
            for file in files:
                under_way.append(executor.submit(_load, shared_dir, file))
                if len(under_way) > _READ_AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _save(shared_dir: str, name: str, value: object) -> None:
    place = as_place(shared_dir) / name
    content = pickle.dumps(value)
    if isinstance(place, RemotePath):
        put(place, content)
    else:
        place.write_bytes(content)


def _load(shared_dir: str, name: str) -> Any:
    return pickle.loads((as_place(shared_dir) / name).read_bytes())
