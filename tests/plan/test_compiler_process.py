"""The compiler's process: what it says is heard, its environment is its own, and a crash is told."""

import logging
import os
import re
import signal
import sys
import time

import pytest

from realm_jax.plan import compiler_process
from realm_jax.plan.compiler_process import compile_apart
from realm_jax.plan.compiling import Compiled, MemoryOfProgram
from realm_jax.plan.hardware import find_slice
from realm_jax.plan.planned_run import MeshSizes, PlannedRun
from realm_jax.training.optimizer import OptimizerConfig
from tests import tiny


def apart(work, task=None):
    run = PlannedRun(task=task or tiny.realm("nowhere"), optimizer=OptimizerConfig(), num_steps=10, batch_size=8)
    return compile_apart(run, find_slice("v5e:2x4"), MeshSizes(8, 1, 1), work)


def made(number):
    return Compiled(float(number), MemoryOfProgram(number, 0, 0, 0), None)


def three_programs(connection, run, tpu, sizes):
    assert (run.batch_size, tpu.name, sizes.data) == (8, "v5e:2x4", 8)
    for number in range(3):
        time.sleep(0.3)
        connection.send(made(number))


def refuse(connection, run, tpu, sizes):
    connection.send(made(1))
    connection.send(ValueError(f"no such slice, {os.environ['LIBTPU_INIT_ARGS']} {os.environ['TPU_WORKER_HOSTNAMES']}"))


def crash(connection, run, tpu, sizes):
    connection.send(made(1))
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(connection, run, tpu, sizes):
    sys.exit(3)


def test_programs_come_by_name_and_the_time_is_told(monkeypatch, caplog):
    monkeypatch.setattr(compiler_process, "TELL_EVERY_SECS", 0.05)
    caplog.set_level(logging.INFO, "realm_jax.plan")
    assert apart(three_programs) == {"train step": made(0), "query embedding": made(1), "embed job": made(2)}
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "compiling the train step (1 of 3); BERT-base's takes 4 to 7 minutes on one core"
    assert re.fullmatch(r"still compiling the train step \(1 of 3\): \d+ s so far", told[1])
    assert "query embedding (2 of 3) compiled in 1 s" in told and told[-1] == "embed job (3 of 3) compiled in 2 s"


def test_a_task_without_an_index_has_one_program():
    assert apart(three_programs, tiny.ict("nowhere")) == {"train step": made(0)}


def test_a_refusal_comes_across_and_the_environment_is_the_process_s_own(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "ours")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    with pytest.raises(ValueError, match=r"^no such slice, --fibers_default_thread_stack_size=2097152 localhost$"):
        apart(refuse)
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "ours" and "LIBTPU_INIT_ARGS" not in os.environ


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (
            crash,
            r"process ended with signal SIGSEGV while it compiled the query embedding \(2 of 3\); .*or --analytical",
        ),
        (fail, r"process ended with exit status 3 while it compiled the train step \(1 of 3\)"),
    ],
)
def test_a_process_that_ends_is_told(work, told):
    with pytest.raises(ValueError, match=told):
        apart(work)
