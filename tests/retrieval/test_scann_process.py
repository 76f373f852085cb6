"""ScaNN in a process of its own: the same answers, damage named, a process that dies replaced, none left behind."""

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from realm_jax.retrieval.build_version import IndexSettings
from realm_jax.retrieval.host_sharded import load_own_shards
from realm_jax.retrieval.manifest import IndexRefused
from realm_jax.retrieval.scann_index import ScannSettings
from realm_jax.retrieval.scann_process import LARGE_SHARD_BYTES, ScannProcess, SearchProcessEnded, is_large
from realm_jax.retrieval.stall import StallMeter
from realm_jax.retrieval.versions import load_version, verify
from tests.retrieval.made_index import EMBED, make_corpus, make_version
from tests.retrieval.test_host_sharded import PostOffice


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    root = tmp_path_factory.mktemp("apart")
    corpus = make_corpus(root / "corpus", 37)
    make_version(root / "index", corpus)
    return root / "index" / "00000300"


@pytest.fixture(scope="module")
def apart(version):
    return load_version(version, apart=True)


def queries(count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, EMBED)).astype(np.float32)


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, secs: float = 20.0) -> bool:
    deadline = time.monotonic() + secs
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_answers_are_those_of_an_index_in_this_process(version, apart):
    here = load_version(version)
    assert isinstance(apart, ScannProcess) and apart.process_id != os.getpid()
    assert (apart.num_documents, apart.embed_dim) == (here.num_documents, here.embed_dim) == (37, EMBED)
    for count, num_results in ((5, 4), (1, 37), (16, 50), (0, 3)):
        ours, theirs = apart.search(queries(count), num_results), here.search(queries(count), num_results)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
    documents = np.array([[3, -1], [36, 0]])
    np.testing.assert_array_equal(apart.embeddings(documents), here.embeddings(documents))


def test_shares_of_it(version):
    some = load_version(version, apart=True, shards=[1, 2])
    np.testing.assert_array_equal(
        some.search(queries(), 20).ids, load_version(version, shards=[1, 2]).search(queries(), 20).ids
    )
    assert some.num_documents == load_version(version, shards=[1, 2]).num_documents


def test_shared_by_hosts(version):
    """Each host's process holds its own shards, and the hosts answer together."""
    office, manifest = PostOffice(2), verify(version)
    shared = [load_own_shards(version, manifest, office.of(host), host, apart=True) for host in range(2)]
    assert sum(index.num_own_documents for index in shared) == 37
    asked = [queries(3, seed=1), queries(5, seed=2)]
    with ThreadPoolExecutor(2) as hosts:
        answers = list(hosts.map(lambda index, q: index.search(q, 6), shared, asked))
    whole = load_version(version)
    for answer, own in zip(answers, asked, strict=True):
        expected = whole.search(own, 6)
        np.testing.assert_array_equal(answer.ids, expected.ids)
        np.testing.assert_allclose(answer.scores, expected.scores, rtol=1e-4)  # whose are added up in another order


def test_bad_queries_are_refused_here(apart):
    bad = queries()
    bad[2, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 5 queries are not finite"):
        apart.search(bad, 3)
    with pytest.raises(ValueError, match=f"must be \\[batch, {EMBED}\\]"):
        apart.search(queries()[:, 1:], 3)
    assert apart.search(queries(), 3).ids.shape == (5, 3)  # and it still serves


def test_damage_is_named(version, tmp_path):
    manifest = verify(version)
    wrong = dataclasses.replace(manifest, parameters={"no_such_setting": 1})
    with pytest.raises(IndexRefused, match="no_such_setting"):
        ScannProcess(version, wrong, [0])
    with pytest.raises(IndexRefused, match="readable ScaNN shard"):
        ScannProcess(tmp_path, manifest, [0])


def test_a_process_that_dies_is_started_again_once(version, caplog):
    index = load_version(version, apart=True)
    expected = index.search(queries(), 5)
    first = index.process_id
    os.kill(first, signal.SIGKILL)
    again = index.search(queries(), 5)
    assert index.process_id != first and "ended (signal SIGKILL); loading it again" in caplog.text
    np.testing.assert_array_equal(again.ids, expected.ids)


def test_one_that_cannot_live_is_an_error(version, monkeypatch):
    index = load_version(version, apart=True)

    def dies(question):
        os.kill(index.process_id, signal.SIGKILL)
        return ask(question)

    ask = index._child.ask
    loading = index._to_load
    monkeypatch.setattr(index._child, "ask", lambda question: (ask if question is loading else dies)(question))
    with pytest.raises(
        SearchProcessEnded, match=r"version 00000300 ended twice \(signal SIGKILL\); .* the run resumes"
    ):
        index.search(queries(), 5)


def test_one_that_dies_while_it_loads_is_refused(version, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(IndexRefused, match=r"loads index version 00000300 ended \(exit status 1\)"):
        load_version(version, apart=True)


def test_it_ends_with_the_index(version):
    index = load_version(version, apart=True)
    process_id = index.process_id
    assert is_alive(process_id)
    del index
    gc.collect()
    assert wait_until(lambda: not is_alive(process_id))


def test_who_lets_go_of_an_index_does_not_wait_for_its_process(version, monkeypatch):
    index = load_version(version, apart=True)
    process, waiting, ended = index._child.process, [], threading.Event()
    wait = process.wait

    def wait_long():
        waiting.append(threading.current_thread().name)
        ended.wait(20)
        return wait()

    monkeypatch.setattr(process, "wait", wait_long)
    index.close()
    assert wait_until(lambda: waiting == ["scann-process-end"])
    ended.set()
    assert wait_until(lambda: process.returncode is not None)


_DIES = """
import os, signal, sys
from realm_jax.retrieval.versions import load_version
index = load_version(sys.argv[1], apart=True)
print(index.process_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_ends_with_a_trainer_that_is_killed(version):
    ended = subprocess.run([sys.executable, "-c", _DIES, str(version)], stdout=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL
    process_id = int(ended.stdout)
    assert wait_until(lambda: not is_alive(process_id))


def test_signals_to_the_group_do_not_end_it(version):
    """Ctrl-C and a scheduler's SIGTERM reach all processes; the trainer takes its last step with this index."""
    index = load_version(version, apart=True)
    first = index.process_id
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(first, number)
    time.sleep(0.1)
    assert index.search(queries(), 2).ids.shape == (5, 2) and index.process_id == first


def test_which_versions_are_large(version):
    manifest = verify(version)
    assert not is_large(manifest)
    documents = LARGE_SHARD_BYTES // (4 * EMBED) + 1
    shard = dataclasses.replace(manifest.shards[0], count=documents)
    large = dataclasses.replace(manifest, shards=(shard,), num_documents=documents)
    assert is_large(large) and not is_large(dataclasses.replace(large, backend="exact"))


@pytest.mark.slow
def test_loading_a_large_shard_holds_up_nothing_here(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", 60_000, longest=4)
    settings = ScannSettings(num_leaves=20, leaves_to_search=2)
    make_version(tmp_path / "index", corpus, scann=settings, shard_bytes=1 << 30)
    stalls = {}
    for apart in (False, True):
        with StallMeter() as meter:
            load_version(tmp_path / "index" / "00000300", apart=apart)
        stalls[apart] = meter.worst_ms
    assert stalls[True] < 0.5 * stalls[False], stalls


@pytest.mark.slow
def test_a_run_that_loads_it_apart_is_the_same_run(version, tmp_path):
    from realm_jax.training.metrics import read_metrics
    from realm_jax.training.refresh import RefreshConfig
    from tests import tiny
    from tests.training.realm_run import run_realm

    corpus = tiny.corpus(tmp_path / "z")
    logs = {}
    for scann in ("in_trainer", "apart"):
        refresh = RefreshConfig(
            mode="synchronous", embedder="in_trainer", snapshot_every_steps=2, timeout_secs=120.0, scann=scann,
            index=IndexSettings(recall_queries=8, recall_results=4),
        )  # fmt: skip
        run_realm(str(tmp_path / scann), str(corpus.directory), 4, refresh=refresh)
        logs[scann] = [row["loss"] for row in read_metrics(tmp_path / scann) if "loss" in row]
    assert logs["apart"] == logs["in_trainer"] and len(logs["apart"]) > 0
