"""Building a version: right rows, few shapes, finished shards kept, refusals, and kills at any instant."""

import concurrent.futures
import dataclasses
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, document_inputs
from realm_jax.retrieval import build_version as module
from realm_jax.retrieval.build_version import BatchSettings, BuildStopped, IndexSettings, build_version
from realm_jax.retrieval.exact import ExactSettings
from realm_jax.retrieval.recall import embed_sentences, random_sentences, sample_documents
from realm_jax.retrieval.shares import Share
from realm_jax.retrieval.versions import list_versions, load_version, retire, verify
from tests.retrieval.made_index import BATCHES, EMBED, CountingEmbed, make_corpus, make_version

SHARDS = IndexSettings(shard_bytes=10 * 4 * EMBED, recall_queries=20)  # at most 10 documents a shard


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", 37)


@pytest.fixture
def index_dir(tmp_path: Path) -> Path:
    return tmp_path / "index"


def _build(index_dir: Path, corpus: Corpus, embed: object, **kwargs: object):
    arguments = {"settings": SHARDS, "embed_dim": EMBED, "snapshot_checksum": "abc", "batches": BATCHES} | kwargs
    return build_version(index_dir, 300, embed, corpus, **arguments)


def _rows(index_dir: Path) -> np.ndarray:
    return np.concatenate([np.load(file) for file in sorted(index_dir.glob("00000300/*/embeddings.npy"))])


def _one_by_one(corpus: Corpus, embed: CountingEmbed, document_len: int) -> np.ndarray:
    special = SpecialIds.of(corpus.tokenizer)
    inputs = [document_inputs(corpus, np.array([row]), document_len, special) for row in range(corpus.num_documents)]
    return np.concatenate([embed(one.ids, one.segment_ids) for one in inputs])


@pytest.mark.parametrize("num_documents", [1, 3, 4, 37])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_row_is_the_embedding_of_its_document_alone(tmp_path, num_documents, batch_size):
    corpus = make_corpus(tmp_path / "corpus", num_documents)
    batches = BatchSettings(document_len=48, batch_size=batch_size, num_lengths=3, query_len=16)
    manifest = _build(tmp_path / "index", corpus, CountingEmbed(), batches=batches)
    rows = _rows(tmp_path / "index")
    assert rows.shape == (num_documents, EMBED) == (manifest.num_documents, EMBED)  # no padding row is indexed
    assert np.array_equal(rows, _one_by_one(corpus, CountingEmbed(), 48))


def test_few_static_shapes_and_little_padding(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", 200, longest=120)
    bucketed, padded = CountingEmbed(), CountingEmbed()
    lengths = {"document_len": 128, "batch_size": 8, "query_len": 16}
    _build(tmp_path / "a", corpus, bucketed, batches=BatchSettings(num_lengths=4, **lengths), settings=IndexSettings())
    _build(tmp_path / "b", corpus, padded, batches=BatchSettings(num_lengths=1, **lengths), settings=IndexSettings())
    assert len(bucketed.shapes) == 4 and len(padded.shapes) == 1
    assert np.array_equal(_rows(tmp_path / "a"), _rows(tmp_path / "b"))


def test_recall_is_measured_with_sentences(index_dir, corpus):
    embed, seen = CountingEmbed(), []

    def embed_queries(ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        seen.append((ids.shape, segment_ids.max()))
        return embed(ids, segment_ids)

    assert _build(index_dir, corpus, embed, embed_queries=embed_queries).search_recall == 1.0
    assert seen == [((4, 16), 0)] * 5
    documents = sample_documents(37, 20)
    assert len(set(documents.tolist())) == 20 and documents.max() < 37
    special = SpecialIds.of(corpus.tokenizer)
    sentences = random_sentences(corpus, documents)
    for document, sentence in zip(documents, sentences, strict=True):
        body, half = corpus.bodies[document], corpus.sentence_ends[document][0]
        assert sentence.tolist() in (body[:half].tolist(), body[half:].tolist())
    queries = embed_sentences(sentences, embed, 16, 4, special)
    assert queries.shape == (20, EMBED)


def test_recall_of_a_bad_index_is_low(tmp_path):
    from realm_jax.retrieval.scann_index import ScannSettings

    corpus = make_corpus(tmp_path / "corpus", 400)
    poor = IndexSettings(scann=ScannSettings(num_leaves=40, leaves_to_search=1, reorder=10))
    good = IndexSettings(scann=ScannSettings(num_leaves=40, leaves_to_search=40))
    assert _build(tmp_path / "poor", corpus, CountingEmbed(), settings=poor).search_recall < 0.8
    assert _build(tmp_path / "good", corpus, CountingEmbed(), settings=good).search_recall > 0.95


def test_recall_is_that_of_the_rows_that_are_searched(tmp_path):
    """In int8 without more candidates than results, some are the wrong ones, and the manifest says so."""
    corpus = make_corpus(tmp_path / "corpus", 400)
    recalls = {}
    for name, exact in (
        ("float32", ExactSettings()),
        ("coarse", ExactSettings("int8", oversample=1)),
        ("enough", ExactSettings("int8", oversample=8)),
    ):
        settings = IndexSettings(backend="exact", exact=exact, shard_bytes=100 * 4 * EMBED, recall_queries=100)
        recalls[name] = _build(tmp_path / name, corpus, CountingEmbed(), settings=settings).search_recall
    assert recalls["float32"] == recalls["enough"] == 1.0 and 0.8 < recalls["coarse"] < 1.0


# --- rolling refresh

ROLLING = dataclasses.replace(SHARDS, shards_per_version=1)


def _roll(index_dir: Path, corpus: Corpus, version: int, embed: object, **kwargs: object):
    """Embeddings tell which version they were made for."""
    arguments = {"settings": ROLLING, "embed_dim": EMBED, "batches": BATCHES} | kwargs
    return build_version(index_dir, version, embed, corpus, snapshot_checksum=f"of {version}", **arguments)


class _Shifted(CountingEmbed):
    def __init__(self, shift: float):
        super().__init__()
        self.shift = shift

    def __call__(self, ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        return super().__call__(ids, segment_ids) + np.float32(self.shift)


def test_rolling_refresh_renews_the_oldest_shards_and_keeps_the_others(index_dir, corpus):
    first = _roll(index_dir, corpus, 100, _Shifted(1.0))
    assert len(first.shards) == 4 and first.shard_steps == (100, 100, 100, 100)
    for version, steps in ((110, (110, 100, 100, 100)), (120, (110, 120, 100, 100)), (150, (110, 120, 150, 100))):
        manifest = _roll(index_dir, corpus, version, _Shifted(version))
        assert manifest.shard_steps == steps and verify(index_dir / f"{version:08d}") == manifest
    assert manifest.mean_step == pytest.approx(
        sum(s * n.count for s, n in zip(steps, manifest.shards, strict=True)) / 37
    )
    retire(index_dir, keep=[], newest=1)  # what was linked is not gone with the version that it was made for
    expected = [_one_by_one(corpus, _Shifted(1.0 if step == 100 else step), BATCHES.document_len) for step in steps]
    index = load_version(index_dir / "00000150", backend="exact")
    for shard, rows in zip(manifest.shards, expected, strict=True):
        documents = np.arange(shard.first_document, shard.first_document + shard.count)
        np.testing.assert_array_equal(index.embeddings(documents), rows[documents])
    # two shards at once, the two oldest
    wider = dataclasses.replace(ROLLING, shards_per_version=2)
    assert _roll(index_dir, corpus, 160, _Shifted(160.0), settings=wider).shard_steps == (160, 120, 150, 160)


def test_rolling_refresh_embeds_all_where_the_version_before_was_made_otherwise(index_dir, corpus):
    _roll(index_dir, corpus, 100, _Shifted(1.0))
    longer = dataclasses.replace(BATCHES, document_len=BATCHES.document_len + 8)
    assert set(_roll(index_dir, corpus, 110, _Shifted(2.0), batches=longer).shard_steps) == {110}
    finer = dataclasses.replace(ROLLING, shard_bytes=5 * 4 * EMBED)
    assert set(_roll(index_dir, corpus, 120, _Shifted(3.0), batches=longer, settings=finer).shard_steps) == {120}
    damaged = next((index_dir / "00000120").glob("shard-00003-*/embeddings.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert set(_roll(index_dir, corpus, 130, _Shifted(4.0), batches=longer, settings=finer).shard_steps) == {130}


def test_an_interrupted_rolling_build_goes_on(index_dir, corpus):
    settings = dataclasses.replace(ROLLING, shards_per_version=2)
    _roll(index_dir, corpus, 100, _Shifted(1.0), settings=settings)
    asked = iter([False] * 3 + [True] * 99)
    with pytest.raises(BuildStopped):
        _roll(index_dir, corpus, 110, _Shifted(2.0), settings=settings, should_stop=lambda: next(asked))
    assert list_versions(index_dir) == [100]
    embed = _Shifted(2.0)
    assert _roll(index_dir, corpus, 110, embed, settings=settings).shard_steps == (110, 110, 100, 100)
    whole = _Shifted(2.0)
    _roll(index_dir.parent / "other", corpus, 110, whole, settings=settings)
    assert 0 < embed.calls < whole.calls / 2  # of the two shards one was finished


def test_settings_of_rolling_refresh():
    with pytest.raises(ValueError, match="shards_per_version must be at least 1, got 0"):
        IndexSettings(shards_per_version=0)


# --- several builders


def test_builders_share_a_version(index_dir, corpus, tmp_path):
    """Each embeds its own shards alone; what they publish is the version that one builder makes."""
    embeds = [CountingEmbed() for _ in range(3)]
    shares = [Share(number, 3, timeout_secs=30.0, poll_secs=0.01) for number in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        building = [
            threads.submit(_build, index_dir, corpus, embed, share=share)
            for embed, share in zip(embeds, shares, strict=True)
        ]
        manifests = [future.result() for future in building]
    alone = CountingEmbed()
    expected = _build(tmp_path / "alone", corpus, alone)
    unclocked = [dataclasses.replace(manifest, built_at=0.0, build_secs=0.0) for manifest in (expected, *manifests)]
    assert unclocked[0] == unclocked[1] == unclocked[2] == unclocked[3]
    assert sum(embed.calls for embed in embeds) == alone.calls and min(embed.calls for embed in embeds) > 0
    assert not list(index_dir.glob("*.lock"))


def test_builders_share_a_rolled_version(index_dir, corpus, tmp_path):
    """Two of four shards are renewed, each by another builder; builder 0 links the other two."""
    settings = dataclasses.replace(ROLLING, shards_per_version=2)
    shares = [Share(number, 2, timeout_secs=30.0, poll_secs=0.01) for number in range(2)]
    alone_dir = tmp_path / "alone"
    for version in (100, 110, 120):
        embeds = [_Shifted(version) for _ in shares]
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            building = [
                threads.submit(_roll, index_dir, corpus, version, embed, settings=settings, share=share)
                for embed, share in zip(embeds, shares, strict=True)
            ]
            manifests = [future.result() for future in building]
        expected = _roll(alone_dir, corpus, version, _Shifted(version), settings=settings)
        for manifest in manifests:
            assert dataclasses.replace(manifest, built_at=0.0, build_secs=0.0) == dataclasses.replace(
                expected, built_at=0.0, build_secs=0.0
            )
        assert min(embed.calls for embed in embeds) > 0
    assert expected.shard_steps == (110, 110, 120, 120)
    assert verify(index_dir / "00000120") == manifests[0]


def test_a_share_that_is_not_done_is_named(index_dir, corpus):
    with pytest.raises(
        TimeoutError, match=r"builder 1 did not finish shard-00001-of-00004 within 0 s; .* start it again"
    ):
        _build(index_dir, corpus, CountingEmbed(), share=Share(0, 2, timeout_secs=0.05, poll_secs=0.01))
    with pytest.raises(TimeoutError, match="builder 0 did not publish index version 300 within 0 s"):
        _build(index_dir, corpus, CountingEmbed(), share=Share(1, 2, timeout_secs=0.05, poll_secs=0.01))
    assert list_versions(index_dir) == []
    again = CountingEmbed()  # all shards are finished
    assert _build(index_dir, corpus, again, share=Share(0, 2)).num_documents == 37 and not again.shapes
    with pytest.raises(BuildStopped):
        _build(
            index_dir.parent / "x",
            corpus,
            CountingEmbed(),
            share=Share(1, 2),
            should_stop=iter([False] * 9 + [True] * 9).__next__,
        )


def test_backends_are_chosen_in_gin(tmp_path):
    from realm_jax import config

    (tmp_path / "run.gin").write_text("""
from __gin__ import dynamic_registration
include 'runs/realm_tiny.gin'
from realm_jax.retrieval import ball_tree
from realm_jax.retrieval import build_version
from realm_jax.retrieval import embed
from realm_jax.retrieval import exact
embed.embed.index = @build_version.IndexSettings()
build_version.IndexSettings.backend = 'exact'
build_version.IndexSettings.exact = @exact.ExactSettings()
build_version.IndexSettings.ball_tree = @ball_tree.BallTreeSettings()
exact.ExactSettings:
  dtype = 'int8'
  recall_target = 0.95
ball_tree.BallTreeSettings.leaf_size = 16
""")
    macros = [f"{name}={tmp_path}" for name in ("CORPUS", "X_CORPUS", "HELDOUT")]
    index = config.bind("embed", [str(tmp_path / "run.gin")], macros)["index"]
    assert (index.backend, index.exact) == ("exact", ExactSettings("int8", recall_target=0.95))
    assert index.ball_tree.leaf_size == 16


def test_a_ball_tree_says_what_it_prunes(tmp_path, caplog):
    corpus = make_corpus(tmp_path / "corpus", 100)
    with caplog.at_level(logging.INFO):
        manifest = _build(tmp_path / "index", corpus, CountingEmbed(), settings=IndexSettings(backend="ball_tree"))
    assert (manifest.backend, manifest.parameters, manifest.search_recall) == ("ball_tree", {"leaf_size": 32}, 1.0)
    # sums of many pieces differ in length most of all: some are pruned, but not enough
    assert "% of the documents are pruned for the 100 sampled queries; the backend 'exact' will search" in caplog.text


def test_shards_do_not_depend_on_how_the_devices_keep_them(index_dir, corpus):
    """A build that was interrupted goes on when nothing but the dtype of the exact index was changed meanwhile."""
    first = IndexSettings(backend="exact", shard_bytes=SHARDS.shard_bytes)
    _build(index_dir, corpus, CountingEmbed(), settings=first)
    (index_dir / "00000300" / "manifest.json").unlink()
    again = CountingEmbed()
    second = IndexSettings(backend="exact", shard_bytes=SHARDS.shard_bytes, exact=ExactSettings("int8"))
    manifest = _build(index_dir, corpus, again, settings=second)
    assert again.calls == 0 and manifest.parameters["dtype"] == "int8"


def test_progress_counts_documents(index_dir, corpus):
    seen = []
    _build(index_dir, corpus, CountingEmbed(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (37, 37) and seen == sorted(set(seen))


def test_non_finite_embeddings_are_refused(index_dir, corpus):
    embed = CountingEmbed()

    def broken(ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        result = embed(ids, segment_ids)
        result[ids[:, 1] == ids[0, 1]] = np.nan
        return result

    with pytest.raises(ValueError, match=r"\d of 9 document embeddings are not finite, the first is document \d; "):
        _build(index_dir, corpus, broken)
    assert list_versions(index_dir) == []


def test_wrong_width_and_empty_corpora_are_refused(index_dir, corpus, tmp_path):
    with pytest.raises(ValueError, match=r"expected embeddings \[rows, 16\], got \[4, 8\]"):
        _build(index_dir, corpus, CountingEmbed(embed_dim=8), batches=BatchSettings(48, 4, 1, 16))
    with pytest.raises(ValueError, match=r"the corpus has no documents"):
        _build(index_dir, make_corpus(tmp_path / "empty", 0), CountingEmbed())
    with pytest.raises(ValueError, match=r"IndexSettings.shard_bytes must be at least 1, got 0"):
        IndexSettings(shard_bytes=0)
    with pytest.raises(ValueError, match=r"BatchSettings.document_len must be at least 8, got 4"):
        BatchSettings(document_len=4)


def test_a_stopped_build_continues_where_it_was(index_dir, corpus):
    embed = CountingEmbed()
    seen: list[int] = []
    with pytest.raises(BuildStopped, match=r"stopped while building index version 300"):
        _build(
            index_dir, corpus, embed,
            on_progress=lambda done, total: seen.append(done), should_stop=lambda: bool(seen) and seen[-1] >= 20,
        )  # fmt: skip
    assert list_versions(index_dir) == []
    finished = sorted(path.parent.name for path in index_dir.glob("00000300/*/shard.json"))
    assert finished == ["shard-00000-of-00004", "shard-00001-of-00004"]
    (index_dir / "00000300" / "notes.txt").write_text("a leftover")
    before = {file: file.stat().st_mtime_ns for file in index_dir.glob("00000300/shard-0000[01]*/embeddings.npy")}
    again = CountingEmbed()
    manifest = _build(index_dir, corpus, again)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert again.calls == 6  # three batches a shard
    assert np.array_equal(_rows(index_dir), _one_by_one(corpus, embed, 48))
    assert verify(index_dir / "00000300") == manifest
    assert not (index_dir / "00000300" / "notes.txt").exists()


@pytest.mark.parametrize("change", ["checksum", "corpus", "backend", "damage"])
def test_leftovers_of_something_else_are_discarded(index_dir, corpus, tmp_path, change):
    _build(index_dir, corpus, CountingEmbed())
    (index_dir / "00000300" / "manifest.json").unlink()  # as killed just before publishing
    embed, kwargs = CountingEmbed(seed=1), {}
    if change == "checksum":
        kwargs = {"snapshot_checksum": "another"}
    elif change == "corpus":
        corpus = make_corpus(tmp_path / "another", 37, seed=1)
    elif change == "backend":
        kwargs = {"settings": IndexSettings(backend="exact", shard_bytes=SHARDS.shard_bytes)}
    else:
        file = index_dir / "00000300" / "shard-00001-of-00004" / "embeddings.npy"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    _build(index_dir, corpus, embed, **kwargs)
    expected = _one_by_one(corpus, CountingEmbed(seed=1), 48)
    if change == "damage":
        expected[:9] = _one_by_one(corpus, CountingEmbed(), 48)[:9]
        expected[18:] = _one_by_one(corpus, CountingEmbed(), 48)[18:]
    assert np.array_equal(_rows(index_dir), expected)
    verify(index_dir / "00000300", corpus_fingerprint=corpus.fingerprint)


def test_one_builder_at_a_time(index_dir, corpus):
    def nested(ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        with pytest.raises(
            ValueError, match=rf"another process builds index versions \(process {os.getpid()} on .* holds"
        ):
            make_version(index_dir, corpus)
        return CountingEmbed()(ids, segment_ids)

    _build(index_dir, corpus, nested)
    assert list_versions(index_dir) == [300]


def test_a_full_disk_damages_nothing(index_dir, corpus, monkeypatch):
    make_version(index_dir, corpus, 10)
    saved = module.save_embeddings
    calls = []

    def full(path: Path, rows: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        saved(path, rows)

    monkeypatch.setattr(module, "save_embeddings", full)
    with pytest.raises(OSError, match=r"index version 300 could not be written \(No space left on device\); make sure"):
        _build(index_dir, corpus, CountingEmbed(), settings=IndexSettings("exact", shard_bytes=SHARDS.shard_bytes))
    assert list_versions(index_dir) == [10]
    verify(index_dir / "00000010")
    # what cannot be used is given back, what is finished stays
    assert sorted(path.name for path in (index_dir / "00000300").iterdir()) == [
        "shard-00000-of-00004",
        "shard-00001-of-00004",
    ]
    monkeypatch.undo()
    _build(index_dir, corpus, CountingEmbed(), settings=IndexSettings("exact", shard_bytes=SHARDS.shard_bytes))
    assert list_versions(index_dir) == [10, 300]


_CHILD = """
import os, signal, sys
from pathlib import Path
from realm_jax.corpus.store import Corpus
from realm_jax.retrieval.build_version import IndexSettings, build_version
from tests.retrieval.made_index import BATCHES, EMBED, CountingEmbed

directory, kill_at, backend, rows = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
while kill_at > 0 and os.fork():  # a build for each line read, in a process that ends like a job of its own
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    kill_at = int(sys.stdin.readline() or 0)
    if not kill_at:
        sys.exit()
events = 0
def counted(function):
    def call(*arguments, **kwargs):
        global events
        events += 1
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **kwargs)
    return call
os.fsync, os.rename, os.replace = counted(os.fsync), counted(os.rename), counted(os.replace)
Path.replace, Path.mkdir = counted(Path.replace), counted(Path.mkdir)
corpus = Corpus.open(directory / "corpus")
embed = CountingEmbed()
settings = IndexSettings(backend=backend, shard_bytes=rows * 4 * EMBED, recall_queries=20)
try:
    build_version(
        directory / "index", 300, embed, corpus, settings, embed_dim=EMBED, snapshot_checksum="abc", batches=BATCHES
    )
except (OSError, ValueError) as error:
    print(error)
    sys.exit(3)
print(events, embed.calls)
"""


def _child(directory: Path, kill_at: int, backend: str = "exact", rows: int = 10, prelude: str = ""):
    return subprocess.run(
        [sys.executable, "-c", prelude + _CHILD, str(directory), str(kill_at), backend, str(rows)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.faults
def test_killed_at_any_instant_no_broken_version_is_seen(tmp_path, corpus):
    # the corpus fixture lies in tmp_path; one undisturbed build counts the events
    whole = _child(tmp_path, 0)
    events, calls = map(int, whole.stdout.split())
    assert whole.returncode == 0 and events > 25 and calls == 12
    expected = {
        str(file.relative_to(tmp_path)): file.read_bytes() for file in (tmp_path / "index" / "00000300").rglob("*.npy")
    }
    (tmp_path / "index").rename(tmp_path / "undisturbed")
    kept_calls = []
    points = [3, events // 3, 2 * events // 3, events - 3, events - 1, events]
    # all in one process that forks for each build: importing takes longer than building
    killer = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path), str(points[0]), "exact", "10"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killer.stdin and killer.stdout
    for number, kill_at in enumerate(points):
        if number:
            killer.stdin.write(f"{kill_at}\n")
            killer.stdin.flush()
        assert int(killer.stdout.readline()) == -signal.SIGKILL
        visible = list_versions(tmp_path / "index")  # only when whole
        assert visible == ([300] if kill_at > events - 2 else [])
        for _ in visible:
            verify(tmp_path / "index" / "00000300", corpus_fingerprint=corpus.fingerprint)
        finished = len(list((tmp_path / "index").glob("00000300/*/shard.json")))
        again = CountingEmbed()
        _build(tmp_path / "index", corpus, again, settings=IndexSettings("exact", shard_bytes=SHARDS.shard_bytes))
        kept_calls.append((finished, again.calls))
        verify(tmp_path / "index" / "00000300")
        found = {
            str(file.relative_to(tmp_path)): file.read_bytes()
            for file in (tmp_path / "index" / "00000300").rglob("*.npy")
        }
        assert found == expected
        (tmp_path / "index").rename(tmp_path / f"killed-at-{kill_at}")
    killer.communicate(timeout=60)
    assert killer.returncode == 0
    assert kept_calls[0] == (0, 12) and kept_calls[-1] == (4, 0)
    # the more shards were finished, the fewer batches are embedded again
    assert [finished for finished, _ in kept_calls] == sorted(finished for finished, _ in kept_calls)
    assert [calls for _, calls in kept_calls] == sorted((calls for _, calls in kept_calls), reverse=True)
    assert 0 < kept_calls[1][1] < 12


_LIMIT = {
    "exact": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n",
    # only while ScaNN writes: some of its files it cuts short without a word
    "scann": """
import resource
from realm_jax.retrieval import build_version as module
whole = module.save_shard
def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    try:
        whole(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
module.save_shard = limited
""",
}
_REASON = {"exact": "File too large", "scann": ""}


@pytest.mark.faults
@pytest.mark.parametrize("backend", ["exact", "scann"])
def test_a_file_size_limit_gives_a_clear_error(tmp_path, backend):
    # a write beyond the limit fails as on a full disk; 40 rows of 64 bytes
    corpus = make_corpus(tmp_path / "corpus", 40)
    make_version(tmp_path / "index", corpus, 10)
    failed = _child(tmp_path, 0, backend, rows=40, prelude=_LIMIT[backend])
    assert failed.returncode == 3, failed.stderr
    assert f"index version 300 could not be written ({_REASON[backend]}" in failed.stdout
    assert "make sure that the disk of" in failed.stdout
    assert list_versions(tmp_path / "index") == [10]
    verify(tmp_path / "index" / "00000010")
    assert not list((tmp_path / "index" / "00000300").iterdir())
    _build(tmp_path / "index", corpus, CountingEmbed(), settings=IndexSettings(backend=backend))
    assert list_versions(tmp_path / "index") == [10, 300]
