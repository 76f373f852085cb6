"""Another run's index as version 0: the same files under this run's name, or a refusal that says why."""

import os
import shutil

import jax
import numpy as np
import pytest

from realm_jax.models import Retriever
from realm_jax.retrieval.adopt_version import MAX_DISTANCE, adopt_version
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings, build_version
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.manifest import IndexRefused
from realm_jax.retrieval.versions import list_versions, load_version, read_manifest, verify
from realm_jax.run_dir import RunDir
from tests import tiny

LEN = 24
ROWS = 16  # a multiple of the simulated devices


def random_params(seed):
    ids = np.ones((1, 4), np.int32)
    params = jax.jit(Retriever(tiny.retriever()).init)(jax.random.key(seed), ids, ids * 0, ids > 0)["params"]
    return jax.device_get(params)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def params():
    return random_params(0)


@pytest.fixture(scope="module")
def source(tmp_path_factory, corpus, params):
    """A run with version 30, in two shards."""
    run = RunDir.of(tmp_path_factory.mktemp("source"))
    build_version(
        run.index, 30, Embedder(tiny.retriever(), params).embed_documents, corpus,
        IndexSettings("exact", shard_bytes=4 * 16 * 20), embed_dim=16, snapshot_checksum="theirs",
        batches=BatchSettings(LEN, ROWS, 1, 16),
    )  # fmt: skip
    return run


def adopt(source, index_dir, corpus, params, **changes):
    settings = {"embed_dim": 16, "snapshot_checksum": "ours", "document_len": LEN, "sample": ROWS} | changes
    embed_documents = Embedder(tiny.retriever(), params).embed_documents
    return adopt_version(source, index_dir, embed_documents, corpus, **settings)


def test_the_files_are_shared_and_the_manifest_is_ours(source, corpus, params, tmp_path):
    manifest = adopt(source, tmp_path / "index", corpus, params)
    assert (manifest.version, manifest.snapshot_step, manifest.snapshot_checksum) == (0, 0, "ours")
    assert len(manifest.shards) == 2
    ours, theirs = tmp_path / "index" / "00000000", source.index_version(30)
    assert verify(ours) == manifest
    for file in (file for shard in manifest.shards for file in shard.files):
        assert (ours / file.path).samefile(theirs / file.path)
    query = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    np.testing.assert_array_equal(load_version(ours).search(query, 5).ids, load_version(theirs).search(query, 5).ids)
    assert adopt(source, tmp_path / "index", corpus, params) == manifest  # again, as after a kill
    with pytest.raises(ValueError, match=r"already published .* made from another snapshot"):
        adopt(source, tmp_path / "index", corpus, params, snapshot_checksum="another")


def test_files_are_copied_where_they_cannot_be_linked(source, corpus, params, tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    manifest = adopt(source, tmp_path / "index", corpus, params)
    file = manifest.shards[1].files[0].path
    assert not (tmp_path / "index/00000000" / file).samefile(source.index_version(30) / file)
    verify(tmp_path / "index" / "00000000")


def test_another_retriever_is_refused(source, corpus, tmp_path):
    with pytest.raises(
        ValueError, match=rf"made by another retriever .* expected at most {MAX_DISTANCE}; warm-start from"
    ):
        adopt(source, tmp_path / "index", corpus, random_params(1))
    assert list_versions(tmp_path / "index") == []


def test_documents_cut_elsewhere_are_refused(source, corpus, params, tmp_path):
    with pytest.raises(ValueError, match=r"made by another retriever .* with its document_len"):
        adopt(source, tmp_path / "index", corpus, params, document_len=8)


def test_a_run_without_an_index_is_refused(corpus, params, tmp_path):
    with pytest.raises(ValueError, match=r"first_index: .*empty has no index version; name a run that has one"):
        adopt(RunDir.of(tmp_path / "empty"), tmp_path / "index", corpus, params)


def test_another_corpus_or_damage_is_refused(source, corpus, params, tmp_path):
    other = tiny.corpus(tmp_path / "other", [*tiny.WORDS, "extra"])
    with pytest.raises(IndexRefused, match="expected corpus_fingerprint"):
        adopt(source, tmp_path / "index", other, params)
    damaged = RunDir.of(tmp_path / "damaged")
    shutil.copytree(source.path, damaged.path, dirs_exist_ok=True)
    shard = read_manifest(damaged.index_version(30)).shards[0]
    place = damaged.index_version(30) / shard.files[0].path
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    with pytest.raises(IndexRefused, match="is corrupt"):
        adopt(damaged, tmp_path / "index", corpus, params)
