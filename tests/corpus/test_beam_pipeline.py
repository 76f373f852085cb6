"""The corpus job in a Beam pipeline against the job without one: the same files to the byte, the same errors."""

import gzip
import importlib
import json
import os
import pickle
import random
from collections import Counter
from pathlib import Path

import pytest

from realm_jax.corpus import build as build_module
from realm_jax.corpus import cutting, sources
from realm_jax.corpus.build import corpus
from realm_jax.corpus.store import Corpus
from realm_jax.storage import as_place, fetch, objects
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from tests import object_store
from tests.corpus.sources.test_mediawiki import DUMP_HEAD, page

beam = pytest.importorskip("apache_beam", reason="Apache Beam has an environment of its own: make beam")
beam_pipeline = importlib.import_module("realm_jax.corpus.beam_pipeline")

HERE = ("--runner=BundleBasedDirectRunner",)
THREE_THREADS = ("--runner=FnApiRunner", "--direct_num_workers=3", "--direct_running_mode=multi_threading")
TWO_PROCESSES = ("--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
RUNNERS = {"one worker": HERE, "one worker, FnApi": ("--runner=FnApiRunner",), "three threads": THREE_THREADS}

PEOPLE = ["Zoë Brandt", "Amélie Noir", "Bob Ashworth", "Ida Lindqvist"]
PLACES = ["Köln", "Oslo", "Rome", "Lisbon", "Graz"]


def text_of(i):
    person, place = PEOPLE[i % 4], PLACES[i % 5]
    return (
        f"{person} was born in {place} in {1900 + i}. The family moved to {PLACES[(i + 1) % 5]} in {1905 + i}.\n"
        f"In {1920 + i} {person} founded a museum of clocks. It holds {i + 3} clocks and {2 * i} books."
    )


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def json_lines(folder):
    """Four files: ids that meet in one file and in two, texts that are twice there, records without ids, bad ones."""
    of = [{"id": str(i), "title": PEOPLE[i % 4], "text": text_of(i)} for i in range(40)]
    write_lines(folder / "a/part.jsonl", [*of[:12], {**of[3], "text": text_of(50)}, "{no", {"id": "e", "text": ""}])
    write_lines(folder / "b/part.jsonl", [{"text": text_of(60)}, {**of[5], "text": text_of(51)}, *of[12:20]])
    write_lines(folder / "b/q.jsonl.gz", [*of[20:30], {"id": "again", "text": text_of(2)}, {"id": "s", "text": "Hi."}])
    write_lines(folder / "c.jsonl", [{**of[1], "id": "c"}, *of[25:40], {"text": text_of(61)}])
    return str(folder)


def text_folder(folder):
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02d}.md").write_text(f"# Note {i}\n\n{text_of(i % 10)}\n", encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 30)
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / ".hidden").write_text("x")
    return str(folder)


def wikiextractor(folder):
    for name, numbers in (("AA/wiki_00", range(9)), ("AA/wiki_01", range(7, 15)), ("AB/wiki_00", range(15, 22))):
        docs = [
            f'<doc id="{i}" url="u" title="{PEOPLE[i % 4]}">\n{PEOPLE[i % 4]}\n\n{text_of(i)}\n</doc>' for i in numbers
        ]
        write_lines(folder / name, [*docs, '<doc id="r" url="u" title="R">\nR\n</doc>', "stray"])
    return str(folder)


def dump(folder):
    """A MediaWiki dump in three files, an article in two of them."""
    pytest.importorskip("mwxml")
    for name, numbers in (("1.xml", range(8)), ("2.xml", range(7, 14)), ("3.xml", range(14, 20))):
        pages = [page(i, f"Page {i}", f"'''{text_of(i)}'''") for i in numbers]
        redirect = page(90, "R", "#REDIRECT [[Page 1]]")
        write_lines(folder / name, [DUMP_HEAD, *pages, redirect, "<page><title>Torn</title></page>", "</mediawiki>"])
    return str(folder)


def meeting_sources(folder):
    """Three sources whose ids meet, one of them with ids that look as if they had been renamed."""
    first = write_lines(
        folder / "a.jsonl", [{"id": i, "text": text_of(k)} for k, i in enumerate(["2:5", "5", "6", "7"])]
    )
    second = [{"id": i, "text": text_of(k)} for k, i in enumerate(["5", "8", "2:2:5", "8", "7", "2:6", "6"], 10)]
    notes = folder / "notes"
    notes.mkdir()
    for k, name in enumerate(["5", "6", "9"], 20):
        (notes / name).write_text(text_of(k), encoding="utf-8")
    return first, write_lines(folder / "b.jsonl", second), str(notes)


SOURCES = {make.__name__: make for make in (json_lines, text_folder, wikiextractor, dump, meeting_sources)}
SETTINGS = {"vocab_size": 80, "block_len": 24, "max_dropped_share": 0.5, "seed": 3}


@pytest.fixture
def small_parts(monkeypatch):
    """Every source in many parts, chunks and batches, which differ from those of the job without a pipeline."""
    monkeypatch.setattr(sources, "PART_BYTES", 900)
    monkeypatch.setattr(beam_pipeline, "CHUNK_CHARS", 700)
    monkeypatch.setattr(cutting, "BATCH_CHARS", 450)


@pytest.fixture
def shuffled(monkeypatch):
    """Parts reach the workers in a random order; what order that was is noted."""
    create, orders = beam.Create, []

    def shuffle(values, **settings):
        orders.append(random.Random(7).sample(list(values), len(values)))
        return create(orders[-1], **settings)

    monkeypatch.setattr(beam_pipeline.beam, "Create", shuffle)
    return orders


def files_of(directory):
    return {
        file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


@pytest.fixture
def run(tmp_path):
    """Runs the job; its files by name."""

    def run(source, name, **settings):
        corpus(run_dir=str(tmp_path / name), source=source, **(SETTINGS | settings))
        return files_of(tmp_path / name)

    return run


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("make", SOURCES)
def test_same_files_as_without_a_pipeline(run, tmp_path, small_parts, shuffled, make, runner):
    source = SOURCES[make](tmp_path / "source")
    expected = run(source, "plain", num_workers=0)
    got = run(source, "beam", pipeline_options=RUNNERS[runner])
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []
    ((order),) = shuffled
    assert len(order) >= 3 and order != sorted(order)


def test_the_sources_above_hold_what_they_are_for(run, tmp_path, caplog):
    """Else the test above would say less."""
    infos = {}
    for name, make in SOURCES.items():
        run(make(tmp_path / f"source {name}"), name, num_workers=0)
        infos[name] = Corpus.open(tmp_path / name / "corpus").info
    assert infos["json_lines"].dropped == {
        "duplicate id": 7,
        "empty text": 1,
        "exact duplicate block": 90,
        "malformed record": 1,
        "too short": 1,
    }
    assert infos["text_folder"].dropped.keys() == {
        "exact duplicate block",
        "file of another type",
        "hidden file",
        "not UTF-8",
    }
    assert infos["wikiextractor"].dropped["duplicate id"] == 2
    assert infos["dump"].dropped["duplicate id"] == 1
    assert infos["dump"].dropped["redirect"] == infos["dump"].dropped["malformed record"] == 3
    assert infos["meeting_sources"].dropped["duplicate id"] == 1
    assert infos["meeting_sources"].counts["renamed_ids"] == 6


def test_two_processes_of_beam(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 1500)  # parts are made here, not in the workers
    source = meeting_sources(tmp_path / "source")
    assert run(source, "plain", num_workers=0) == run(source, "beam", pipeline_options=TWO_PROCESSES)


def test_direct_runner(run, tmp_path, small_parts, shuffled, monkeypatch):
    """Without Prism, a program that it downloads where it can."""
    asked = []

    def refuse(self, pipeline, options):
        asked.append(pipeline)
        raise RuntimeError("no network")

    monkeypatch.setattr("apache_beam.runners.portability.prism_runner.PrismRunner.run_pipeline", refuse)
    source = json_lines(tmp_path / "source")
    expected = run(source, "plain", num_workers=0)
    assert run(source, "beam", pipeline_options=("--runner=DirectRunner",)) == expected
    assert len(asked) == 1


def test_other_formats_and_settings(run, tmp_path, small_parts, shuffled):
    header = "id\ttext\ttitle"
    for name, numbers in (("a.tsv", range(8)), ("b.tsv", range(6, 14))):
        rows = [f"{i}\t{text_of(i).replace(chr(10), ' ')}\t{PEOPLE[i % 4]}" for i in numbers]
        write_lines(tmp_path / "dpr" / name, [header, *rows, "3\tof two columns"])
    source = (str(tmp_path / "dpr"), json_lines(tmp_path / "source"))
    one = run(source, "one", num_workers=0)
    given = {
        "tokenizer": str(tmp_path / "one/corpus/tokenizer"),
        "tagger": f"rules:{tmp_path / 'one/corpus/salient_spans.json'}",
        "title_len": 2,
        "min_pieces": 30,
        "sample_chars": 500,
        "output_dir": str(tmp_path / "there"),
    }
    run(source, "plain", num_workers=0, **given)
    plain = files_of(tmp_path / "there")
    assert plain["corpus.json"] != one["corpus/corpus.json"]
    (tmp_path / "there").rename(tmp_path / "before")
    shared = tmp_path / "shared"
    run(source, "beam", pipeline_options=THREE_THREADS, pipeline_dir=str(shared), **given)
    assert files_of(tmp_path / "there") == plain
    assert list(shared.iterdir()) == []


def test_no_block_or_span_depends_on_where_the_folder_of_the_job_is(run, tmp_path, small_parts, monkeypatch):
    """Workers are elsewhere: sources are named to them in full."""
    meeting_sources(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    source = ("source/a.jsonl", "source/b.jsonl", "source/notes")
    seen = []
    save = beam_pipeline._save

    def note(folder, name, value):
        seen.extend(file for part in value for file in part.files) if name == "parts" else None
        return save(folder, name, value)

    monkeypatch.setattr(beam_pipeline, "_save", note)
    assert run(source, "plain", num_workers=0) == run(source, "beam", pipeline_options=HERE)
    assert len(seen) == 5 and all(file.startswith(str(tmp_path)) for file in seen)


def test_a_renamed_id_is_told_as_without_a_pipeline(run, tmp_path, small_parts, shuffled, caplog):
    source = meeting_sources(tmp_path / "source")
    told = []
    for name, settings in (("plain", {"num_workers": 0}), ("beam", {"pipeline_options": THREE_THREADS})):
        caplog.clear()
        with caplog.at_level("WARNING", "realm_jax.corpus.source_text"):
            run(source, name, **settings)
        told.append([r.getMessage() for r in caplog.records if r.name == "realm_jax.corpus.source_text"])
    assert told[0] == told[1] and len(told[0]) == 1 and "'5' is in more than one source" in told[0][0]


def _letters(folder):
    WordPieceTokenizer([*SPECIAL_PIECES, *"abcdefghijklmnopqrstuvwxyz", "."]).save(folder)
    return str(folder)


def bad_share(folder):
    json_lines(folder)
    write_lines(folder / "d.jsonl", ["{no", "{neither"] * 20)


def nothing_usable(folder):
    write_lines(folder / "a.jsonl", [{"text": "."}] * 3)


def no_header(folder):
    """Two bad files: the first is told of."""
    rows = [f"{i}\t{text_of(i).splitlines()[0]}\tt" for i in range(6)]
    write_lines(folder / "a.tsv", ["id\ttext\ttitle", *rows])
    write_lines(folder / "b.tsv", ["number\ttext\ttitle", *rows])
    write_lines(folder / "c.tsv", ["title\ttext", *rows])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (bad_share, {"max_dropped_share": 0.1}, r"49 of 94 records of .*source cannot be used \(41 malformed record"),
        (nothing_usable, {}, r"no text for a corpus in .*source \(3 too short\); expected some article"),
        (no_header, {"source_format": "dpr_tsv"}, r"b.tsv, line 1: expected a header .*got 'number"),
    ],
)
def test_same_errors_as_without_a_pipeline(run, tmp_path, small_parts, shuffled, make, settings, message):
    make(tmp_path / "source")
    settings = settings | {"tokenizer": _letters(tmp_path / "letters"), "tagger": "none"}
    errors = []
    for name, how in (("plain", {"num_workers": 0}), ("beam", {"pipeline_options": THREE_THREADS})):
        with pytest.raises(ValueError, match=message) as error:
            run(str(tmp_path / "source"), name, **settings, **how)
        errors.append(str(error.value))
        with pytest.raises(ValueError, match="unfinished corpus"):
            Corpus.open(tmp_path / name / "corpus")
    assert errors[0] == errors[1]
    assert not (tmp_path / "beam/corpus/unfinished-pipeline").exists()


def test_what_a_killed_run_left_is_cleared(run, tmp_path, small_parts):
    source = meeting_sources(tmp_path / "source")
    expected = run(source, "plain", num_workers=0)
    stale = tmp_path / "beam/corpus/unfinished-pipeline"
    stale.mkdir(parents=True)
    (stale / "reports").write_bytes(b"of another run")
    assert run(source, "beam", pipeline_options=HERE) == expected


def test_a_finished_corpus_is_used_again_however_it_was_made(run, tmp_path, monkeypatch):
    source = meeting_sources(tmp_path / "source")
    made = run(source, "run", pipeline_options=HERE)
    monkeypatch.setattr(beam_pipeline, "build", None)  # nothing may be built
    monkeypatch.setattr(build_module, "cut_in_order", None)
    assert run(source, "run", pipeline_options=HERE) == made
    assert run(source, "run") == made


def test_a_chunk_cut_twice_leaves_two_whole_files(tmp_path):
    """A runner may try again, or have two workers race: each report names a file that nobody else writes to."""
    tokenizer = WordPieceTokenizer([*SPECIAL_PIECES, *"abcdefghijklmnopqrstuvwxyz", "."])
    beam_pipeline._save(str(tmp_path), "cutter", cutting.Cutter(tokenizer, None, 8, 4))
    do = beam_pipeline.CutChunk(str(tmp_path))
    do.setup()
    articles = [sources.Article(str(i), "", text_of(i)) for i in range(3)]
    chunk = (4, 2), {"articles": [pickle.dumps(articles)], "changes": [(0, None), (2, "2:2")]}
    one, two = (pickle.loads(next(do.process(chunk))) for _ in range(2))
    assert one.file != two.file and one._replace(file="") == two._replace(file="")
    assert one.place == (4, 2) and one.dropped == {"duplicate id": 1} and one.first_renamed == ("2", "2:2")
    ((batch, cut),) = beam_pipeline._load(str(tmp_path), one.file)
    assert [article.id for article in batch] == ["1", "2:2"] and set(cut.articles.tolist()) == {0, 1}
    assert cut.characters == len(text_of(1)) + len(text_of(2))


def test_a_pipeline_that_is_stopped(run, tmp_path, monkeypatch):
    class Stopped:
        state = "CANCELLED"

        def wait_until_finish(self):
            return self.state

    monkeypatch.setattr(beam.Pipeline, "run", lambda pipeline: Stopped())
    source = meeting_sources(tmp_path / "source")
    with pytest.raises(ChildProcessError, match="expected the pipeline to end as DONE, got CANCELLED"):
        run(source, "beam", pipeline_options=HERE)
    assert not (tmp_path / "beam/corpus/unfinished-pipeline").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runner=CamelRunner",), "Unexpected pipeline runner: CamelRunner"),
        (("--runner=DataflowRunner", "--project=p"), r"(?s)temp_location.*required option: region"),
    ],
)
def test_runners_that_are_not_to_be_had(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(meeting_sources(tmp_path / "source"), "beam", pipeline_options=options)
    assert not (tmp_path / "beam").exists()


def test_files_are_read_ahead_in_order(tmp_path):
    for i in range(20):
        beam_pipeline._save(str(tmp_path), str(i), i * i)
    names = [str(i) for i in range(20)]
    assert list(beam_pipeline._load_in_order(str(tmp_path), names)) == [i * i for i in range(20)]
    assert list(beam_pipeline._load_in_order(str(tmp_path), [])) == []


def test_object_store(tmp_path, small_parts, shuffled, monkeypatch):
    """Source and corpus on one, and workers whose cache is empty."""
    for name in (object_store.ROOT, object_store.CACHE):
        monkeypatch.setenv(name, "")
    object_store.use(tmp_path / "store")
    object_store.copy_in(Path(json_lines(tmp_path / "json")), "gs://bucket/json")
    object_store.copy_in(Path(text_folder(tmp_path / "text")), "gs://bucket/text")
    source = ("gs://bucket/json", "gs://bucket/text", str(tmp_path / "text"))
    run_pipeline, own_cache = beam.Pipeline.run, os.environ[object_store.CACHE]

    def run_elsewhere(pipeline):
        os.environ[object_store.CACHE] = str(tmp_path / "cache of the workers")
        try:
            return run_pipeline(pipeline)
        finally:
            os.environ[object_store.CACHE] = own_cache

    monkeypatch.setattr(beam.Pipeline, "run", run_elsewhere)
    made = {}
    for name, how in (("plain", {"num_workers": 0}), ("beam", {"pipeline_options": THREE_THREADS})):
        corpus(run_dir=f"gs://bucket/{name}", source=source, **SETTINGS, **how)
        assert "corpus/unfinished-pipeline" not in "".join(objects(as_place(f"gs://bucket/{name}")))
        made[name] = files_of(fetch(f"gs://bucket/{name}/corpus"))
    assert len(made["plain"]) > 15 and made["plain"] == made["beam"]
    assert len(files_of(tmp_path / "cache of the workers/copies/gs/bucket/json")) == 4


def test_the_pipeline_counts_as_the_source_does(tmp_path):
    """Of parts alone: what they drop together, ids in two parts aside, is what the whole drops."""
    folder = json_lines(tmp_path / "source")
    whole, in_parts = Counter(), Counter()
    opened = sources.open_source(folder)
    list(opened.read(lambda cause: whole.update([cause])))
    for part in opened.parts():
        list(part.read(lambda cause: in_parts.update([cause])))
    assert in_parts == whole
