"""Versions on disk: what readers see, what they refuse, what is retired."""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from realm_jax.corpus.store import Corpus
from realm_jax.retrieval import versions
from realm_jax.retrieval.ball_tree import BallTreeIndex, BallTreeSettings
from realm_jax.retrieval.device_rows import SpareRows
from realm_jax.retrieval.exact import ExactIndex, ExactSettings, brute_force
from realm_jax.retrieval.manifest import Manifest, signed
from realm_jax.retrieval.scann_index import ScannIndex, ScannSettings
from realm_jax.retrieval.versions import IndexRefused, list_versions, load_version, read_manifest, retire, verify
from tests.retrieval.made_index import EMBED, make_corpus, make_version


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", 37)


@pytest.fixture
def index_dir(tmp_path: Path) -> Path:
    return tmp_path / "index"


def _embeddings(directory: Path, manifest: Manifest) -> np.ndarray:
    return np.concatenate([np.load(directory / shard.name / "embeddings.npy") for shard in manifest.shards])


def test_manifest_holds_what_the_readme_of_a_run_promises(index_dir, corpus):
    make_version(index_dir, corpus)
    content = json.loads((index_dir / "00000300" / "manifest.json").read_text())
    assert {key: content[key] for key in ("version", "snapshot_step", "num_documents", "embed_dim", "dtype")} == {
        "version": 300, "snapshot_step": 300, "num_documents": 37, "embed_dim": EMBED, "dtype": "float32",
    }  # fmt: skip
    assert content["corpus_fingerprint"] == corpus.fingerprint and content["snapshot_checksum"] == "checksum 0"
    assert content["backend"] == "scann" and content["parameters"] == dataclasses.asdict(ScannSettings())
    assert [(shard["first_document"], shard["count"]) for shard in content["shards"]] == [
        (0, 9),
        (9, 9),
        (18, 9),
        (27, 10),
    ]
    assert content["shards"][0]["name"] == "shard-00000-of-00004"
    for shard in content["shards"]:
        for file in shard["files"]:
            assert (index_dir / "00000300" / file["path"]).stat().st_size == file["bytes"]
            assert len(file["sha256"]) == 64
    assert content["search_recall"] == 1.0
    assert content["built_at"] > 1.7e9 and 0 < content["build_secs"] < 60
    assert Manifest.from_json(content).to_json() == content


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scann": ScannSettings(2, 2), "shard_bytes": 20 * 4 * EMBED},
        {"backend": "exact"},
        {"backend": "exact", "exact": ExactSettings("int8", oversample=30)},
        {"backend": "ball_tree", "ball_tree": BallTreeSettings(leaf_size=4)},
    ],
)
def test_a_loaded_version_answers_like_brute_force(index_dir, corpus, settings):
    manifest = make_version(index_dir, corpus, **settings)
    directory = index_dir / "00000300"
    rows = _embeddings(directory, manifest)
    queries = np.random.default_rng(3).standard_normal((6, EMBED)).astype(np.float32)
    expected = brute_force(queries, rows, 50)
    seen = []
    index = load_version(directory, on_shard=lambda done, total: seen.append((done, total)))
    backend = settings.get("backend", "scann")
    assert isinstance(index, {"exact": ExactIndex, "ball_tree": BallTreeIndex, "scann": ScannIndex}[backend])
    # chunks of the only device; shards, for the tree with its levels
    total = {"exact": 1, "ball_tree": len(manifest.shards) + 5, "scann": len(manifest.shards)}[backend]
    assert seen == [(done + 1, total) for done in range(total)]
    found = index.search(queries, 50)
    assert (index.num_documents, index.embed_dim) == (37, EMBED)
    assert np.array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-3)
    for other in ("exact", "ball_tree"):  # of any version
        assert np.array_equal(load_version(directory, backend=other).search(queries, 5).ids, expected.ids[:, :5])
    assert np.array_equal(index.embeddings(np.array([[36, -1]])), np.stack([rows[36], 0 * rows[0]])[None])


def test_a_version_says_how_its_exact_index_is_kept(index_dir, corpus):
    settings = ExactSettings("bfloat16", oversample=7, recall_target=0.9, chunk=5)
    make_version(index_dir, corpus, 10, backend="exact", exact=settings)
    make_version(index_dir, corpus, 20)
    directory = index_dir / "00000010"
    content = json.loads((directory / "manifest.json").read_text())
    assert content["parameters"] == dataclasses.asdict(settings) and content["dtype"] == "float32"
    index = load_version(directory)
    assert isinstance(index, ExactIndex) and index.settings == settings
    assert index.device_rows.chunks.shape == (8, 5, EMBED) and index.device_rows.chunks.dtype == "uint16"  # bits
    assert load_version(directory, backend="exact").settings == settings
    assert load_version(directory, exact=ExactSettings("int8")).settings == ExactSettings("int8")
    # one that was built for another backend says nothing of it; neither does one of before these settings
    assert load_version(index_dir / "00000020", backend="exact").settings == ExactSettings()
    content["parameters"] = {}
    (directory / "manifest.json").write_text(json.dumps(signed(content)))
    assert load_version(directory).settings == ExactSettings()
    content["parameters"] = {"dtype": "int8", "oversample": 0}
    (directory / "manifest.json").write_text(json.dumps(signed(content)))
    with pytest.raises(IndexRefused, match=r"manifest.json: parameters of 'exact': ExactSettings.oversample must be"):
        load_version(directory)


def test_versions_follow_each_other_in_the_same_buffers(index_dir, corpus):
    for version in (10, 20, 30):
        make_version(index_dir, corpus, version, seed=version, backend="exact", exact=ExactSettings("int8"))
    spare, places = SpareRows(), []
    for version in (10, 20, 30):
        index = load_version(index_dir / f"{version:08d}", spare=spare)
        rows = _embeddings(index_dir / f"{version:08d}", read_manifest(index_dir / f"{version:08d}"))
        assert np.array_equal(index.search(rows[:3], 1).ids, brute_force(rows[:3], rows, 1).ids)
        places.append(index.device_rows.chunks.unsafe_buffer_pointer())
        del index
    assert places == places[:1] * 3


@pytest.mark.parametrize("backend", ["scann", "exact", "ball_tree"])
def test_hosts_share_a_version(index_dir, corpus, backend):
    from realm_jax.retrieval import merge_results

    manifest = make_version(index_dir, corpus)
    directory = index_dir / "00000300"
    queries = np.random.default_rng(3).standard_normal((6, EMBED)).astype(np.float32)
    shares = [versions.shards_of_host(manifest, host, 3) for host in range(3)]
    assert shares == [[0], [1], [2, 3]]
    if backend != "scann":
        with pytest.raises(ValueError, match=rf"backend '{backend}' needs consecutive shards, got \[0, 2\]"):
            load_version(directory, backend=backend, shards=[0, 2])
    if backend != "scann":
        with pytest.raises(ValueError, match=rf"backend '{backend}' needs consecutive shards, got \[0, 2\]"):
            load_version(directory, backend=backend, shards=[0, 2])
    hosts = [load_version(directory, backend=backend, shards=share) for share in shares]
    assert [host.num_documents for host in hosts] == [9, 9, 19]
    merged = merge_results([host.search(queries, 5) for host in hosts], 5)
    assert np.array_equal(merged.ids, brute_force(queries, _embeddings(directory, manifest), 5).ids)
    with pytest.raises(ValueError, match=r"5 hosts cannot share an index of 4 shards"):
        versions.shards_of_host(manifest, 0, 5)
    # a host reads and verifies its own share only
    (directory / "shard-00003-of-00004" / "embeddings.npy").unlink()
    verify(directory, shards=[0, 1])
    with pytest.raises(IndexRefused, match=r"shard-00003-of-00004/embeddings.npy is missing"):
        verify(directory, shards=[2, 3])
    with pytest.raises(ValueError, match=r"expected shards among 0 … 3, got \[4\]"):
        verify(directory, shards=[4])


def test_wrong_corpus_or_retriever_is_refused(index_dir, corpus):
    make_version(index_dir, corpus)
    directory = index_dir / "00000300"
    assert verify(directory, corpus_fingerprint=corpus.fingerprint, embed_dim=EMBED, num_documents=37).version == 300
    with pytest.raises(IndexRefused, match=r"expected corpus_fingerprint other, got .*another corpus: rebuild it"):
        verify(directory, corpus_fingerprint="other")
    with pytest.raises(IndexRefused, match=r"expected num_documents 38, got 37; .*another corpus"):
        verify(directory, num_documents=38)
    with pytest.raises(IndexRefused, match=r"expected embed_dim 128, got 16; .*another retriever"):
        verify(directory, embed_dim=128)


def _shard_files(directory: Path) -> list[Path]:
    return sorted(
        file for file in directory.rglob("*") if file.is_file() and file.name not in ("manifest.json", "shard.json")
    )


def test_any_damaged_file_is_refused_by_name(index_dir, corpus):
    make_version(index_dir, corpus)
    directory = index_dir / "00000300"
    files = _shard_files(directory)
    assert len(files) >= 8
    for file in files:
        whole = file.read_bytes()
        name = str(file.relative_to(directory))
        file.write_bytes(whole[:-1])
        with pytest.raises(IndexRefused, match=rf"{name}: expected {len(whole)} bytes, got {len(whole) - 1}; remove"):
            verify(directory)
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        file.write_bytes(flipped)
        with pytest.raises(IndexRefused, match=rf"{name} is corrupt: expected SHA-256 .* let the embed job build"):
            load_version(directory)
        file.unlink()
        with pytest.raises(IndexRefused, match=rf"{name} is missing \(No such file or directory\); remove"):
            verify(directory)
        file.write_bytes(whole)
    verify(directory)


def test_torn_manifests_are_refused(index_dir, corpus):
    make_version(index_dir, corpus)
    path = index_dir / "00000300" / "manifest.json"
    whole = path.read_bytes()
    for torn in (
        b"",
        whole[: len(whole) // 2],
        b"\xff" + whole,
        b"[]",
        b"{}",
        b"[" * 100_000,
        whole.replace(b'"count": 9', b'"count": 8', 1),
        whole.replace(b'"built_at": ', b'"built_at": 1e999', 1),
        whole.replace(b'"search_recall": ', b'"search_recall": 1' + b"0" * 400, 1),
        whole.replace(b'"search_recall": ', b'"search_recall": NaN, "other": ', 1),
        whole.replace(b".npy", b"\\u0000", 1),
        whole.replace(b".npy", b"\\ud800", 1),
    ):
        path.write_bytes(torn)
        with pytest.raises(IndexRefused, match=r"manifest.json is damaged: .*remove the version's directory"):
            verify(path.parent)
    content = json.loads(whole)
    for change in ({"version": 301}, {"snapshot_step": 1}, {"embed_dim": "16"}, {"extra": 1}, {"shards": []}):
        path.write_text(json.dumps(signed(content | change)))
        with pytest.raises(IndexRefused, match=r"manifest.json is"):
            verify(path.parent)
    for name in ("../../etc", "shard-00000-of-00004/../x"):
        path.write_text(whole.decode().replace("shard-00000-of-00004", name))
        with pytest.raises(IndexRefused, match=r"manifest.json is damaged"):
            verify(path.parent)
    path.unlink()
    with pytest.raises(IndexRefused, match=r"manifest.json is missing: this index version was never published"):
        load_version(path.parent)


def test_any_flipped_bit_of_a_manifest_is_noticed(index_dir, corpus):
    make_version(index_dir, corpus)
    path = index_dir / "00000300" / "manifest.json"
    whole = path.read_bytes()
    manifest, unnoticed = read_manifest(path.parent), []
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert read_manifest(path.parent) == manifest
            unnoticed.append(whole[place : place + 1])
        except IndexRefused as error:
            assert "manifest.json" in str(error) and "remove the version's directory" in str(error)
    # what was read was equal: white space that became other white space, digits beyond what a float holds
    assert len(whole) > 2000 and len(unnoticed) < 10 and all(byte.isspace() or byte.isdigit() for byte in unnoticed)


def test_unfinished_versions_do_not_exist_yet(index_dir, corpus):
    assert list_versions(index_dir) == []
    make_version(index_dir, corpus, 20)
    make_version(index_dir, corpus, 3)
    (index_dir / "00000040" / "shard-00000-of-00001").mkdir(parents=True)
    (index_dir / "notes").mkdir()
    assert list_versions(index_dir) == [3, 20]


def test_a_published_version_is_never_changed(index_dir, corpus):
    first = make_version(index_dir, corpus)
    directory = index_dir / "00000300"
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in directory.rglob("*") if file.is_file()}
    assert make_version(index_dir, corpus) == first  # the same again does nothing
    later = dataclasses.replace(first, built_at=first.built_at + 9)
    assert versions.publish(index_dir, later) == directory
    with pytest.raises(
        ValueError, match=r"version 300 is already published .* another snapshot; a version is never changed"
    ):
        make_version(index_dir, corpus, seed=1)
    with pytest.raises(ValueError, match=r"already published in .* with other content"):
        versions.publish(index_dir, dataclasses.replace(first, search_recall=0.5))
    assert {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in directory.rglob("*") if file.is_file()
    } == before


def test_retire_keeps_the_newest_and_those_in_use(index_dir, corpus):
    for version in (10, 20, 30, 40, 50, 60):
        make_version(index_dir, corpus, version)
    (index_dir / "00000015" / "shard-00000-of-00004").mkdir(parents=True)  # an interrupted build of long ago
    (index_dir / "00000070" / "shard-00000-of-00004").mkdir(parents=True)  # one that is under way
    assert retire(index_dir, keep={20, 999}) == [10, 30, 40]
    assert list_versions(index_dir) == [20, 50, 60]
    assert sorted(path.name for path in index_dir.glob("0*")) == ["00000020", "00000050", "00000060", "00000070"]
    assert retire(index_dir, keep=set(), newest=1) == [20, 50]
    verify(index_dir / "00000060")
    with pytest.raises(ValueError, match=r"newest=0"):
        retire(index_dir, keep=set(), newest=0)


def test_an_interrupted_retirement_is_finished_later(index_dir, corpus, monkeypatch):
    make_version(index_dir, corpus, 10)
    make_version(index_dir, corpus, 20)
    monkeypatch.setattr(versions.shutil, "rmtree", lambda *a, **k: None)
    assert retire(index_dir, keep=set(), newest=1) == [10]
    monkeypatch.undo()
    assert list_versions(index_dir) == [20] and (index_dir / "00000010").exists()
    assert retire(index_dir, keep=set(), newest=1) == []
    assert not (index_dir / "00000010").exists()


def test_a_loaded_version_outlives_its_files(index_dir, corpus):
    make_version(index_dir, corpus, 10)
    index = load_version(index_dir / "00000010")
    make_version(index_dir, corpus, 20)
    retire(index_dir, keep=set(), newest=1)
    assert (index.search(np.ones((1, EMBED), np.float32), 3).ids >= 0).all()


def test_loading_while_being_retired_is_refused_not_fatal(index_dir, corpus):
    make_version(index_dir, corpus, 10)
    make_version(index_dir, corpus, 20)
    manifest = verify(index_dir / "00000010")
    with pytest.raises(IndexRefused, match=r"00000010"):
        load_version(
            index_dir / "00000010", manifest=manifest, on_shard=lambda done, total: retire(index_dir, set(), newest=1)
        )


def test_other_threads_run_between_shards(index_dir, corpus):
    make_version(index_dir, corpus)
    main, seen = threading.get_ident(), []
    load_version(index_dir / "00000300", on_shard=lambda done, total: seen.append(threading.get_ident()))
    assert seen == [main] * 4


@pytest.mark.parametrize("backend", ["exact", "ball_tree"])
def test_exact_versions_hold_no_scann_assets(index_dir, corpus, backend):
    manifest = make_version(index_dir, corpus, backend=backend)
    assert [file.path for file in manifest.shards[0].files] == ["shard-00000-of-00004/embeddings.npy"]
    with pytest.raises(IndexRefused, match=rf"built for the backend '{backend}' and holds no ScaNN assets"):
        load_version(index_dir / "00000300", backend="scann")


def test_read_manifest_reads_nothing_else(index_dir, corpus):
    manifest = make_version(index_dir, corpus)
    for file in _shard_files(index_dir / "00000300"):
        file.unlink()
    assert read_manifest(index_dir / "00000300") == manifest
