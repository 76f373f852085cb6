"""Hosts agree through the key-value store of jax.distributed: two real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from realm_jax.retrieval.agreement import SingleHost, for_this_run

SCRIPT = Path(__file__).with_name("agreeing_host.py")


@pytest.fixture
def start_hosts():
    started: list[subprocess.Popen] = []

    def start(what):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        for host in range(2):
            command = [sys.executable, str(SCRIPT), str(host), "2", str(port), what]
            started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def answer(process):
    output, errors = process.communicate(timeout=120)
    assert output.strip(), errors[-3000:]
    return json.loads(output.strip().splitlines()[-1])


def test_one_host_agrees_with_itself():
    assert SingleHost().exchange("name", {"a": 1}) == [{"a": 1}]
    assert isinstance(for_this_run(1.0), SingleHost)


def test_a_host_that_loads_slowly_delays_the_swap_of_both_to_the_same_step(start_hosts):
    first, second = (answer(host) for host in start_hosts("swap"))
    assert first == second and first["said"] == [{"host": 0}, {"host": 1}]
    ((step, version, index),) = first["swaps"]
    assert (version, index) == (4, "index 4") and step % 2 == 0
    assert step >= 5 + 10  # loading took 1 s, a step at least 0.05 s; busy machines have longer steps
    assert step < 60


def test_letters_reach_whom_they_are_for_from_several_threads(start_hosts):
    first, second = (answer(host) for host in start_hosts("mail"))
    assert first["first"] == ["0 to 0", "1 to 0"] and second["first"] == ["0 to 1", "1 to 1"]
    for host in (first, second):
        assert host["second"] == ["again", "again"]
        assert host["beside"] == [[[0, turn], [1, turn]] for turn in range(3)]
        assert host["large"] == [3_000_000, 3_000_000]


@pytest.mark.faults
def test_a_host_that_does_not_search_along_is_named(start_hosts):
    waiting, _ = start_hosts("dead searcher")
    assert answer(waiting)["message"].startswith("host 1 of 2 did not search along within 2 s; it has died or is stuck")


@pytest.mark.faults
def test_a_host_that_says_nothing_is_named_soon(start_hosts):
    waiting, _ = start_hosts("dead peer")
    got = answer(waiting)
    assert got["message"].startswith("host 1 of 2 said nothing about swap/7 within 2 s; it has died or is stuck")
    assert 1.5 < got["secs"] < 15
