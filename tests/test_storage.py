"""Objects and their local copies, index versions and corpora on the fake store, without a run."""

import logging
from pathlib import Path

import fsspec
import numpy as np
import pytest

from realm_jax import storage
from realm_jax.config.saving import saved
from realm_jax.corpus.build import corpus as corpus_job
from realm_jax.corpus.store import Corpus
from realm_jax.retrieval.adopt_version import adopt_version
from realm_jax.retrieval.build_version import IndexSettings, build_version
from realm_jax.retrieval.host_sharded import RemoteRows
from realm_jax.retrieval.manifest import IndexRefused
from realm_jax.retrieval.shards import map_embeddings
from realm_jax.retrieval.versions import list_versions, load_version, read_manifest, retire, verify, withdraw
from realm_jax.run_dir import RunDir, check_can_write, read_json, write_json_atomically
from realm_jax.run_lock import InUse, exclusive
from realm_jax.storage import as_place, copy_of, fetch, put
from realm_jax.training.metrics import MetricWriter, read_metrics
from tests import object_store
from tests.retrieval.made_index import BATCHES, EMBED, CountingEmbed, make_corpus, make_version


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object_store.Objects:
    for name in (object_store.ROOT, object_store.CACHE):
        monkeypatch.setenv(name, "")  # put back afterwards
    return object_store.use(tmp_path / "store")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", 37)


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on nothing is in the cache."""
    monkeypatch.setenv(object_store.CACHE, str(tmp_path / "another"))


def test_slashes_survive(objects):
    run = RunDir.of("gs://bucket/runs/a")
    assert str(run.index_version(300)) == "gs://bucket/runs/a/index/00000300"
    assert str(run.checkpoints.absolute()) == "gs://bucket/runs/a/checkpoints"
    assert str(run.stage("ict").metrics_jsonl.parent) == "gs://bucket/runs/a/stages/ict/metrics"
    assert isinstance(as_place("runs/a"), Path)


@pytest.mark.parametrize("place", ["az://box/run", "file:///run", "gs://", "gs://bucket/../other"])
def test_other_places_are_refused(place):
    with pytest.raises(ValueError, match="expected"):
        RunDir.of(place)


def test_a_missing_library_is_named(monkeypatch):
    def missing(scheme: str) -> None:
        raise ImportError("Please install s3fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ValueError, match=r"s3://bucket/run: s3:// needs a library .*pip install 'realm_jax\[s3\]'"):
        RunDir.of("s3://bucket/run")


def test_what_a_library_raises_is_an_os_error(objects, monkeypatch):
    class HttpError(Exception):
        pass

    def refuse(self: object, path: str, **kwargs: object) -> None:
        raise HttpError("403: nobody may not read the bucket")

    monkeypatch.setattr(object_store.FakeObjectStore, "info", refuse)
    with pytest.raises(OSError, match="HttpError: 403: nobody may not read the bucket; look at"):
        as_place("gs://bucket/run").exists()


def test_places_that_cannot_be_written_are_refused(objects, monkeypatch):
    check_can_write("gs://bucket/run", "--run_dir")
    assert objects.keys("") == []

    def refuse(self: object, path: str, value: bytes, **kwargs: object) -> None:
        raise PermissionError(13, "403")

    monkeypatch.setattr(object_store.FakeObjectStore, "pipe_file", refuse)
    with pytest.raises(ValueError, match="--run_dir: expected a place that can be written to, got gs://bucket/run"):
        check_can_write("gs://bucket/run", "--run_dir")


def test_local_places_are_asked_for_where_only_files_do():
    with pytest.raises(ValueError, match="convert: expected a local path, got gs://bucket/run; use one"):
        storage.require_local("gs://bucket/run", "convert")
    storage.require_local("runs/a", "convert")


def test_json_is_read_and_replaced(objects):
    place = as_place("gs://bucket/a/b.json")
    with pytest.raises(FileNotFoundError):
        read_json(place)
    write_json_atomically(place, {"a": 1})
    write_json_atomically(place, {"a": 2})
    assert read_json(place) == {"a": 2} and objects.keys("") == ["bucket/a/b.json"]


@pytest.mark.parametrize("name", ["../../../../outside", "a/../../../../../outside", "/outside", "a\x00b", ".."])
def test_no_name_of_an_object_leads_out_of_the_cache(objects, tmp_path, name):
    """A bucket may hold objects of any name, and a shared one those of anybody."""
    put(as_place("gs://bucket/folder/file"), b"one")
    if "\x00" not in name and not name.startswith("/"):  # names that the fake store knows to list
        objects.put(f"bucket/folder/{name}", b"from elsewhere")
        with pytest.raises(OSError, match="the name of an object leads out of its folder; remove it"):
            fetch("gs://bucket/folder")
    with pytest.raises(OSError, match="the name of an object leads out of its folder; remove it"):
        copy_of(as_place("gs://bucket/folder") / name)
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and "store" not in path.relative_to(tmp_path).parts[:1]
    ]
    assert not written and not Path("/outside").exists()


def test_a_copy_is_fetched_once_for_each_state(objects, monkeypatch):
    place = as_place("gs://bucket/folder/file")
    put(place, b"one")
    put(as_place("gs://bucket/folder/below/other"), b"two")
    copy = fetch("gs://bucket/folder")
    assert (copy / "file").read_bytes() == b"one" and (copy / "below" / "other").read_bytes() == b"two"
    downloads = []
    original = object_store.FakeObjectStore.get_file

    def counted(self: object, path: str, *args: object, **kwargs: object) -> object:
        downloads.append(path)
        return original(self, path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(object_store.FakeObjectStore, "get_file", counted)
    assert fetch(place) == copy / "file" and fetch("gs://bucket/folder") == copy
    assert downloads == []
    mapped = np.memmap(copy / "file", np.uint8, "r")
    put(place, b"new")
    as_place("gs://bucket/folder/below/other").unlink()
    assert fetch("gs://bucket/folder") == copy and (copy / "file").read_bytes() == b"new"
    assert downloads == ["gs://bucket/folder/file"]
    assert bytes(mapped) == b"one"  # who has it mapped keeps it
    assert not (copy / "below" / "other").exists()
    with pytest.raises(FileNotFoundError):
        fetch("gs://bucket/nothing")


def test_a_download_cut_short_is_no_copy(objects, monkeypatch):
    place = as_place("gs://bucket/file")
    put(place, b"whole")
    monkeypatch.setattr(
        object_store.FakeObjectStore, "get_file", lambda self, path, target, **kwargs: Path(target).write_bytes(b"who")
    )
    with pytest.raises(OSError, match="expected 5 bytes, got 3"):
        fetch(place)
    assert not copy_of(place).exists()


def test_a_lock_guards_this_machine_and_says_so(objects, caplog):
    lock = RunDir.of("gs://bucket/locked").trainer_lock
    caplog.set_level(logging.WARNING)
    message = "another trainer is at work"
    with exclusive(lock, message), pytest.raises(InUse, match=message), exclusive(lock, message):
        pass
    with exclusive(lock, message):
        pass
    assert caplog.text.count("an object store has no locks; start no second process there from another machine") == 1
    assert objects.keys("") == []


def test_a_configuration_is_saved_kept_and_taken_back(objects):
    run = RunDir.of("gs://bucket/run")
    with pytest.raises(ValueError, match="no"), saved(run, "train", "a = 1\n"):
        raise ValueError("no")
    assert objects.keys("") == []
    with saved(run, "train", "a = 1\n"):
        write_json_atomically(run.report_json, {})
    with pytest.raises(ValueError, match="no"), saved(run, "train", "a = 2\n"):
        write_json_atomically(run.trainer_status(0), {})
        raise ValueError("no")
    assert run.config_file("train").read_text() == "a = 1\n" and not run.config_file("train", 1).exists()
    with pytest.raises(ValueError, match="late"), saved(run, "train", "a = 2\n"):
        write_json_atomically(run.report_json, {"later": 1})
        raise ValueError("late")
    assert run.config_file("train").read_text() == "a = 2\n" and run.config_file("train", 1).read_text() == "a = 1\n"


def test_metrics_go_on_where_they_are(objects, monkeypatch, tmp_path):
    run = RunDir.of("gs://bucket/run")
    with MetricWriter(run) as writer:
        writer.write(1, {"loss": 3.0})
        writer.write(2, {"loss": 2.0})
        assert read_metrics(run) == []  # nothing is appended there
        writer.flush()
        assert [entry["step"] for entry in read_metrics(run)] == [1, 2]
        writer.write(3, {"loss": 1.0})
    assert [entry["step"] for entry in read_metrics(run)] == [1, 2, 3]
    another_machine(monkeypatch, tmp_path)
    with MetricWriter(run) as writer:
        writer.resume_from(3)
        writer.write(3, {"loss": 0.5})
    assert [entry["loss"] for entry in read_metrics(run)] == [3.0, 2.0, 0.5]
    assert len([key for key in objects.keys("bucket/run/metrics/") if "tfevents" in key]) >= 1


def test_a_version_is_built_verified_and_searched(objects, corpus, monkeypatch, tmp_path):
    manifest = make_version("gs://bucket/index", corpus)
    local = make_version(tmp_path / "index", corpus)
    assert [shard.files for shard in manifest.shards] == [shard.files for shard in local.shards]
    assert list_versions("gs://bucket/index") == [300]
    assert not list((storage.cache_dir() / "scratch").rglob("*.npy"))
    another_machine(monkeypatch, tmp_path)
    place = as_place("gs://bucket/index/00000300")
    assert verify(place) == manifest
    queries = np.random.default_rng(0).normal(size=(5, EMBED)).astype(np.float32)
    found = load_version(place, manifest=manifest).search(queries, 3)
    expected = load_version(tmp_path / "index" / "00000300").search(queries, 3)
    np.testing.assert_array_equal(found.ids, expected.ids)


def test_a_killed_build_goes_on_after_the_last_uploaded_shard(objects, corpus, monkeypatch, tmp_path):
    uploads = []
    original = storage.upload

    def upload(file: Path, place: storage.RemotePath) -> None:
        if len(uploads) == 5:  # in the midst of the third shard's two files
            raise KeyboardInterrupt
        uploads.append(place)
        original(file, place)

    embed = CountingEmbed()
    settings = IndexSettings("exact", shard_bytes=5 * 4 * EMBED)

    def build() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        build_version(
            "gs://bucket/index", 300, embed, corpus, settings,
            embed_dim=EMBED, snapshot_checksum="abc", batches=BATCHES, on_progress=lambda *done: seen.append(done),
        )  # fmt: skip
        return seen

    monkeypatch.setattr(storage, "upload", upload)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert len(uploads) == 5 and list_versions("gs://bucket/index") == []
    with pytest.raises(IndexRefused, match="never published"):
        verify("gs://bucket/index/00000300")
    monkeypatch.setattr(storage, "upload", original)
    another_machine(monkeypatch, tmp_path)
    calls = embed.calls
    seen = build()
    bounds = [37 * number // 8 for number in range(9)]
    assert seen[:5] == [(bound, 37) for bound in bounds[1:6]]  # five shards are there
    assert 0 < embed.calls - calls < calls + 3
    assert verify("gs://bucket/index/00000300").num_documents == 37


def test_damaged_objects_are_refused_by_name(objects, corpus, monkeypatch, tmp_path):
    make_version("gs://bucket/index", corpus, backend="exact")
    another_machine(monkeypatch, tmp_path)
    key = "bucket/index/00000300/shard-00001-of-00004/embeddings.npy"
    whole = objects.file(key).read_bytes()
    objects.put(key, whole[:-4])
    with pytest.raises(IndexRefused, match=rf"gs://{key}: expected {len(whole)} bytes, got {len(whole) - 4}"):
        verify("gs://bucket/index/00000300")
    objects.put(key, whole[:-4] + b"abcd")
    with pytest.raises(IndexRefused, match=rf"gs://{key} is corrupt: expected SHA-256"):
        verify("gs://bucket/index/00000300")
    objects.file(key).unlink()
    with pytest.raises(IndexRefused, match=rf"gs://{key} is missing"):
        verify("gs://bucket/index/00000300")
    objects.put(key, whole)  # what is mended is fetched again
    assert verify("gs://bucket/index/00000300").num_documents == 37


def test_a_network_that_fails_refuses_no_version(objects, corpus, monkeypatch, tmp_path):
    make_version("gs://bucket/index", corpus, backend="exact")
    another_machine(monkeypatch, tmp_path)
    place = as_place("gs://bucket/index/00000300")
    for method in ("get_file", "info", "cat_file"):
        with monkeypatch.context() as patched:

            def fail(self: object, *args: object, **kwargs: object) -> None:
                raise ConnectionResetError(104, "connection reset")

            patched.setattr(object_store.FakeObjectStore, method, fail)
            with pytest.raises(ConnectionResetError):
                verify(place)
    assert verify(place).num_documents == 37


def test_a_host_downloads_its_own_shards(objects, corpus, monkeypatch, tmp_path):
    make_version("gs://bucket/index", corpus)
    another_machine(monkeypatch, tmp_path)
    place = as_place("gs://bucket/index/00000300")
    manifest = verify(place, shards=[2])
    assert load_version(place, shards=[2], manifest=manifest).num_documents == manifest.shards[2].count
    assert [path.name for path in copy_of(place).iterdir()] == ["shard-00002-of-00004"]
    rows = RemoteRows(place, manifest)
    wanted = np.array([[0, 36, -1], [17, 17, 9]])
    took = rows.take(wanted)
    assert len(rows) == 37 and [path.name for path in copy_of(place).iterdir()] == ["shard-00002-of-00004"]
    every = np.concatenate([map_embeddings(place, shard, EMBED) for shard in manifest.shards])
    np.testing.assert_array_equal(took, np.where(wanted[..., None] >= 0, every[wanted], 0))
    np.testing.assert_array_equal(rows.take(np.array([-1])), np.zeros((1, EMBED)))


def test_versions_are_retired_and_their_copies_with_them(objects, corpus, monkeypatch, tmp_path):
    for version in (1, 2, 3):
        make_version("gs://bucket/index", corpus, version, backend="exact")
    builder = storage.cache_dir()
    another_machine(monkeypatch, tmp_path)
    rows = load_version("gs://bucket/index/00000001", manifest=verify("gs://bucket/index/00000001"))
    monkeypatch.setenv(object_store.CACHE, str(builder))
    assert retire("gs://bucket/index", (), newest=2) == [1]
    assert list_versions("gs://bucket/index") == [2, 3] and not objects.keys("bucket/index/00000001")
    another_machine(monkeypatch, tmp_path)
    verify("gs://bucket/index/00000003")
    assert [path.name for path in copy_of(as_place("gs://bucket/index")).iterdir()] == ["00000003"]
    assert rows.embeddings(np.array([3])).any()  # still mapped
    withdraw("gs://bucket/index", 3)
    assert list_versions("gs://bucket/index") == [2]


def test_another_runs_index_is_adopted(objects, corpus, tmp_path):
    for source, target in (("gs://bucket/a", "gs://bucket/b"), (str(tmp_path / "a"), "gs://bucket/c"),
                           ("gs://bucket/a", str(tmp_path / "d"))):  # fmt: skip
        if not list_versions(RunDir.of(source).index):
            make_version(RunDir.of(source).index, corpus, 300)
        adopt_version(
            RunDir.of(source), RunDir.of(target).index, CountingEmbed(), corpus,
            embed_dim=EMBED, snapshot_checksum="mine", document_len=48,
        )  # fmt: skip
        manifest = verify(RunDir.of(target).index_version(0))
        assert manifest.snapshot_checksum == "mine"
        assert manifest.shards == read_manifest(RunDir.of(source).index_version(300)).shards


def _texts(objects: object_store.Objects) -> None:
    for number in range(30):
        text = f"Ann was born in Oslo in {1900 + number}. She lived in Rome and wrote {number} books about ships."
        objects.put(f"shelf/texts/{number:02d}.txt", text.encode())


def test_the_corpus_job_reads_and_writes_there(objects, monkeypatch, tmp_path):
    _texts(objects)
    settings = {"source": "gs://shelf/texts", "vocab_size": 120, "block_len": 32, "num_workers": 0}
    info = corpus_job(run_dir="gs://bucket/run", **settings)
    assert info.counts["articles"] == 30 and info.source == "gs://shelf/texts"
    there = [key.removeprefix("bucket/run/corpus/") for key in objects.keys("bucket/run/corpus/")]
    assert "corpus.json" in there and "tokens/bodies.values.npy" in there
    assert corpus_job(run_dir="gs://bucket/run", **settings).fingerprint == info.fingerprint  # used again
    another_machine(monkeypatch, tmp_path)
    opened = Corpus.open("gs://bucket/run/corpus")
    local = corpus_job(run_dir=str(tmp_path / "run"), **settings | {"source": str(fetch("gs://shelf/texts"))})
    assert opened.fingerprint == local.fingerprint
    assert opened.block(0).text.startswith("Ann was born in Oslo in 1900.")
    # its tokenizer, by itself, for another corpus
    again = corpus_job(run_dir="gs://bucket/other", **settings | {"tokenizer": "gs://bucket/run/corpus/tokenizer"})
    assert again.tokenizer_fingerprint == info.tokenizer_fingerprint


def test_a_corpus_whose_upload_was_interrupted_is_none(objects, monkeypatch):
    _texts(objects)
    settings = {"source": "gs://shelf/texts", "vocab_size": 120, "block_len": 32, "num_workers": 0}
    original = storage.upload

    def upload(file: Path, place: storage.RemotePath) -> None:
        if place.name == "corpus.json":
            raise OSError("the machine is taken away")
        original(file, place)

    monkeypatch.setattr(storage, "upload", upload)
    with pytest.raises(OSError, match="taken away"):
        corpus_job(run_dir="gs://bucket/run", **settings)
    assert objects.keys("bucket/run/corpus/tokens/")
    with pytest.raises(ValueError, match=r"gs://bucket/run/corpus holds an unfinished corpus \(no corpus.json\)"):
        Corpus.open("gs://bucket/run/corpus")
    monkeypatch.setattr(storage, "upload", original)
    corpus_job(run_dir="gs://bucket/run", **settings)
    assert Corpus.open("gs://bucket/run/corpus").info.counts["articles"] == 30
    with pytest.raises(ValueError, match=r"no corpus at gs://bucket/nowhere"):
        Corpus.open("gs://bucket/nowhere")
