"""Swaps: between steps only, agreed on by all hosts, never to a damaged version, never waiting for ever."""

import logging
import threading
import time

import jax
import numpy as np
import pytest

from realm_jax.retrieval.agreement import SingleHost
from realm_jax.retrieval.device_rows import SpareRows
from realm_jax.retrieval.exact import ExactIndex, brute_force
from realm_jax.retrieval.hot_swap import NO_VERSION, HotSwap, VersionSource, WaitStopped
from realm_jax.retrieval.index import SearchResult


class FakeIndex:
    """Answers every query with its version."""

    num_documents, embed_dim = 8, 4

    def __init__(self, version):
        self.version = version

    def search(self, queries, num_results):
        shape = (len(queries), num_results)
        return SearchResult(np.full(shape, self.version, np.int64), np.zeros(shape, np.float32))

    def embeddings(self, document_ids):
        return np.zeros((*document_ids.shape, self.embed_dim), np.float32)


class Store:
    """Versions that appear, load slowly, or are damaged, as a test says."""

    def __init__(self, *versions):
        self.versions, self.damaged, self.gone = list(versions), set(), set()
        self.loads: list[int] = []
        self.may_load = threading.Event()
        self.may_load.set()

    def source(self):
        def load(version):
            self.loads.append(version)
            assert self.may_load.wait(20)
            if version in self.damaged:
                raise ValueError(f"shard of {version} is cut short")
            if version in self.gone:
                raise FileNotFoundError(str(version))
            return FakeIndex(version), 1000.0 + version

        return VersionSource(lambda: list(self.versions), load)


@pytest.fixture
def closing():
    made: list[HotSwap] = []
    yield made.append
    for swap in made:
        swap.close()


def make(store, closing, agreement=None, **kwargs):
    settings = {"swap_every_steps": 1, "timeout_secs": 5.0, "poll_secs": 0.01} | kwargs
    hot_swap = HotSwap(store.source(), agreement or SingleHost(), **settings)
    closing(hot_swap)
    return hot_swap


def wait_until(condition, secs=10.0):
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def loaded(hot_swap, version):
    wait_until(lambda: hot_swap._pending is not None and hot_swap._pending.version == version)


def test_a_loaded_version_waits_for_the_next_step(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    assert hot_swap.version == NO_VERSION
    first = hot_swap.serve(None)
    assert (first.version, hot_swap.version, hot_swap.built_at) == (0, 0, 1000.0)
    hot_swap.watch()
    assert hot_swap.begin_step(1) is None
    store.versions.append(10)
    loaded(hot_swap, 10)
    during = hot_swap.index
    time.sleep(0.05)
    assert hot_swap.version == 0 and hot_swap.index is during and during.version == 0  # never within a step
    swap = hot_swap.begin_step(12)
    assert swap is not None and (swap.step, swap.version) == (12, 10)
    assert hot_swap.version == 10 and hot_swap.index.version == 10 and hot_swap.built_at == 1010.0
    assert swap.pause_ms >= 0 and hot_swap.begin_step(13) is None


def test_swaps_happen_at_multiples(closing):
    store = Store(0)
    hot_swap = make(store, closing, swap_every_steps=5)
    hot_swap.serve(None)
    hot_swap.watch()
    store.versions.append(3)
    loaded(hot_swap, 3)
    swaps = {step: hot_swap.begin_step(step) for step in range(1, 11)}
    assert [step for step, swap in swaps.items() if swap] == [5]


def test_without_a_watch_nothing_is_swapped(closing):
    """Frozen, synchronous and replay modes: only what a step asks for is served."""
    store = Store(0, 5)
    hot_swap = make(store, closing)
    hot_swap.serve(0)
    assert all(hot_swap.begin_step(step) is None for step in range(1, 8)) and store.loads == [0]
    assert hot_swap.begin_step(8, wait_for=0) is None and store.loads == [0]  # is served already
    swap = hot_swap.begin_step(9, wait_for=5)
    assert swap is not None and (swap.step, swap.version, hot_swap.index.version) == (9, 5, 5)


def test_a_step_waits_for_the_version_it_needs(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    hot_swap.serve(0)
    threading.Timer(0.2, store.versions.append, [4]).start()
    start = time.monotonic()
    swap = hot_swap.begin_step(4, wait_for=4)
    assert swap is not None and swap.version == 4
    assert 0.15 < time.monotonic() - start < 5 and swap.pause_ms > 150


def test_replay_goes_back_to_an_older_version(closing):
    store = Store(0, 5, 9)
    hot_swap = make(store, closing)
    hot_swap.serve(9)
    assert hot_swap.begin_step(20, wait_for=5).version == 5 and hot_swap.version == 5


def test_a_damaged_version_is_refused_and_the_old_one_serves(closing, caplog):
    store = Store(0)
    store.damaged.add(10)
    hot_swap = make(store, closing)
    hot_swap.serve(None)
    hot_swap.watch()
    with caplog.at_level(logging.ERROR):
        store.versions.append(10)
        wait_until(lambda: 10 in store.loads)
        wait_until(lambda: "refused" in caplog.text)
    assert "index version 00000010 refused, version 00000000 keeps serving: shard of 10 is cut short" in caplog.text
    assert hot_swap.begin_step(11) is None and hot_swap.version == 0
    time.sleep(0.1)
    assert store.loads.count(10) == 1  # not tried for ever
    store.versions.append(20)
    loaded(hot_swap, 20)
    assert hot_swap.begin_step(21).version == 20


def test_the_first_index_may_be_damaged_too(closing):
    store = Store(0, 3)
    store.damaged.add(3)
    hot_swap = make(store, closing)
    assert hot_swap.serve(None).version == 0
    with pytest.raises(
        ValueError, match="index version 00000003 is needed to go on, but refused: shard of 3 is cut short"
    ):
        hot_swap.begin_step(3, wait_for=3)


def test_a_version_that_is_retired_while_it_loads_is_no_fault(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    hot_swap.serve(None)
    hot_swap.watch()
    store.gone.add(5)
    store.versions.append(5)
    wait_until(lambda: 5 in store.loads)
    store.versions[:] = [0, 6]
    loaded(hot_swap, 6)
    assert hot_swap.begin_step(7).version == 6


def test_a_version_that_appears_while_another_waits(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    hot_swap.serve(None)
    hot_swap.watch()
    store.versions.append(10)
    loaded(hot_swap, 10)
    store.versions.append(20)
    loaded(hot_swap, 20)  # the newest wins; nothing older is swapped in afterwards
    assert hot_swap.begin_step(21).version == 20
    time.sleep(0.05)
    assert hot_swap.begin_step(22) is None and hot_swap.version == 20


def test_no_more_than_two_indexes_lie_on_the_devices(closing):
    """Also when a version that waits for its step is overtaken by a newer one; and all lie in the same two places."""
    rows = {
        version: np.random.default_rng(version).standard_normal((421, 6)).astype(np.float32) for version in range(5)
    }
    queries, spare = rows[0][:3], SpareRows()
    published, places, held = [0], [], []

    def load(version):
        def count(done, total):
            held.append(sum(array.shape == (5, 85, 6) for array in jax.live_arrays()))

        index = ExactIndex(rows[version], chunk=100, spare=spare, on_block=count)
        places.append(index.device_rows.chunks.unsafe_buffer_pointer())
        return index, 0.0

    hot_swap = HotSwap(
        VersionSource(lambda: list(published), load), SingleHost(), swap_every_steps=1, timeout_secs=5.0, poll_secs=0.01
    )
    closing(hot_swap)
    hot_swap.serve(None)
    hot_swap.watch()
    for step, arriving in ((1, [1]), (2, [2, 3]), (3, [4])):
        for version in arriving:  # 2 is loaded, waits, and is overtaken by 3
            published.append(version)
            loaded(hot_swap, version)
        assert hot_swap.begin_step(step).version == arriving[-1]
        expected = brute_force(queries, rows[arriving[-1]], 4)
        assert np.array_equal(hot_swap.index.search(queries, 4).ids, expected.ids)
    assert len(places) == 5 and len(set(places)) == 2
    assert len(held) == 25 and max(held) == 2


def test_a_version_that_waits_comes_back_when_the_newer_one_is_damaged(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    hot_swap.serve(None)
    hot_swap.watch()
    store.versions.append(10)
    loaded(hot_swap, 10)
    store.damaged.add(20)
    store.versions.append(20)
    wait_until(lambda: 20 in store.loads)
    loaded(hot_swap, 10)
    assert hot_swap.begin_step(21).version == 10


def test_what_is_about_to_be_loaded_is_told_first(closing):
    store, told = Store(0), []
    hot_swap = make(store, closing, on_pending=lambda version: told.append((version, list(store.loads))))
    hot_swap.serve(None)
    assert told == [(0, [])]


def test_time_outs_say_what_was_waited_for(closing):
    store = Store()
    hot_swap = make(store, closing, timeout_secs=0.1)
    with pytest.raises(
        TimeoutError, match=r"no first index version was published within 0 s; is the embed job running.*none"
    ):
        hot_swap.serve(None)
    store.versions.append(1)
    store.damaged.add(1)
    with pytest.raises(
        TimeoutError, match=r"no first index version .* Version 00000001 was refused: shard of 1 is cut short\."
    ):
        hot_swap.serve(None)
    store.versions[:] = [0, 2]
    hot_swap.serve(0)
    with pytest.raises(TimeoutError, match=r"no index version 00000007 was published within 0 s.*there: 0, 2"):
        hot_swap.begin_step(7, wait_for=7)
    hot_swap.serve(2)
    hot_swap.watch()
    start = time.monotonic()
    with pytest.raises(
        TimeoutError, match=r"step 9: index 00000002 is too old and no newer one came.*max_index_age_steps"
    ):
        hot_swap.wait_for_newer(9)
    assert time.monotonic() - start < 3


def test_every_wait_ends_when_the_run_is_to_stop(closing):
    store, asked = Store(), threading.Event()
    hot_swap = make(store, closing, should_stop=asked.is_set, timeout_secs=60.0)
    started = time.monotonic()
    threading.Timer(0.2, asked.set).start()
    with pytest.raises(WaitStopped, match=r"^the first index version$"):
        hot_swap.serve(None)
    assert time.monotonic() - started >= 0.2
    store.versions.append(0)
    assert hot_swap.serve(0).version == 0  # what is there is not waited for
    with pytest.raises(WaitStopped, match=r"^index version 00000007$"):
        hot_swap.begin_step(7, wait_for=7)
    hot_swap.watch()
    with pytest.raises(WaitStopped, match=r"^an index newer than version 00000000$"):
        hot_swap.wait_for_newer(9)
    assert hot_swap.version == 0 and time.monotonic() - started < 20


def test_waiting_for_a_newer_version(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    hot_swap.serve(None)
    hot_swap.watch()
    threading.Timer(0.2, store.versions.append, [8]).start()
    swap = hot_swap.wait_for_newer(9)
    assert (swap.step, swap.version, hot_swap.version) == (9, 8, 8) and 150 < swap.pause_ms < 5000


def test_a_fault_that_is_no_damage_ends_the_run(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    hot_swap.serve(None)
    broken = VersionSource(store.source().list_versions, lambda version: 1 / 0)
    hot_swap._source = broken
    store.versions.append(4)
    hot_swap.watch()
    wait_until(lambda: hot_swap._failure is not None)
    with pytest.raises(ZeroDivisionError):
        hot_swap.begin_step(5)


def test_a_file_system_that_stumbles_does_not(closing):
    store = Store(0)
    hot_swap = make(store, closing)
    hot_swap.serve(None)
    list_versions, failures = hot_swap._source.list_versions, [OSError("stale file handle")]

    def stumbling():
        if failures:
            raise failures.pop()
        return list_versions()

    hot_swap._source = VersionSource(stumbling, hot_swap._source.load)
    store.versions.append(4)
    hot_swap.watch()
    loaded(hot_swap, 4)
    assert hot_swap.begin_step(5).version == 4


# --- several hosts, as threads that agree through a table


class Hall:
    """Where the hosts of a test meet."""

    def __init__(self, hosts):
        self.hosts, self.said, self.lock = hosts, {}, threading.Condition()

    def member(self, host):
        hall = self

        class Member:
            def exchange(self, name, message):
                with hall.lock:
                    assert (name, host) not in hall.said, f"host {host} said {name} twice"
                    hall.said[(name, host)] = message
                    hall.lock.notify_all()
                    done = hall.lock.wait_for(lambda: all((name, h) in hall.said for h in range(hall.hosts)), 10)
                    if not done:
                        raise TimeoutError(name)
                    return [hall.said[(name, h)] for h in range(hall.hosts)]

        return Member()


def run_hosts(*work):
    """Runs each host's work in a thread and gives what each returned."""
    results, errors = {}, []

    def run(number, function):
        try:
            results[number] = function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n, f), daemon=True) for n, f in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]
    return [results[n] for n in range(len(work))]


def two_hosts(closing, stores, **kwargs):
    hall = Hall(len(stores))
    return [make(store, closing, hall.member(host), is_leader=host == 0, **kwargs) for host, store in enumerate(stores)]


def start_and_step(hot_swap, steps, before_step=lambda step: None, serve=0):
    def work():
        hot_swap.serve(serve)
        hot_swap.watch()
        swaps = {}
        for step in range(1, steps):
            before_step(step)
            swap = hot_swap.begin_step(step)
            if swap is not None:
                swaps[step] = swap.version
            time.sleep(0.005)
        return swaps

    return work


def test_a_slow_host_delays_the_swap_of_all_to_the_same_step(closing):
    stores = [Store(0), Store(0)]
    hosts = two_hosts(closing, stores)
    stores[0].versions.append(10)  # only the leader looks; the follower is told
    stores[1].versions.append(10)

    def before_step(step):
        if step == 2:
            stores[1].may_load.clear()
        if step == 40:
            stores[1].may_load.set()

    # the follower holds its load back from step 2 to step 40
    slow = start_and_step(hosts[1], 120, before_step)
    swaps = run_hosts(start_and_step(hosts[0], 120), slow)
    assert swaps[0] == swaps[1] and list(swaps[0].values()) == [10]
    (step,) = swaps[0]
    assert step <= 2 or step >= 40


def test_hosts_begin_with_the_version_that_the_first_host_sees(closing):
    """Host 1 looks a little later and sees a newer version: both must serve the same one."""
    stores = [Store(0), Store(0, 10)]
    hosts = two_hosts(closing, stores)
    swaps = run_hosts(lambda: hosts[0].serve(None).version, lambda: hosts[1].serve(None).version)
    assert swaps == [0, 0]


def test_a_version_that_one_host_refuses_is_given_up_by_all(closing, caplog):
    """Else the hosts would wait for it for ever and never take a newer one."""
    stores = [Store(0, 10), Store(0, 10)]
    stores[1].damaged.add(10)
    hosts = two_hosts(closing, stores)

    def before_step(step):
        if step == 60:
            stores[0].versions.append(20)
            stores[1].versions.append(20)

    with caplog.at_level(logging.WARNING):
        swaps = run_hosts(start_and_step(hosts[0], 300, before_step), start_and_step(hosts[1], 300))
    assert swaps[0] == swaps[1] and list(swaps[0].values()) == [20]
    assert "refused" in caplog.text


def test_hosts_wait_together_for_a_newer_version(closing):
    stores = [Store(0), Store(0)]
    hosts = two_hosts(closing, stores)

    def work(hot_swap):
        def run():
            hot_swap.serve(0)
            hot_swap.watch()
            swap = hot_swap.wait_for_newer(7)
            return swap.version

        return run

    for store in stores:
        threading.Timer(0.2, store.versions.append, [5]).start()
    assert run_hosts(work(hosts[0]), work(hosts[1])) == [5, 5]
