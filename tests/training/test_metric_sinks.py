"""Metrics that go to a service too: as metrics.jsonl gets them, once a run however often it is resumed, at no risk."""

import sys
from types import SimpleNamespace

import pytest

from realm_jax import config
from realm_jax.run_dir import RunDir, read_json
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.training.loop import train
from realm_jax.training.metric_sinks import MetricSink, Sinks, Wandb
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.recorder import Recorder
from tests import tiny


class Service:
    """Keeps what it is told, in place of wandb's run."""

    def __init__(self):
        self.begun, self.logged, self.metrics, self.finished = [], [], [], 0

    def init(self, **settings):
        self.begun.append(settings)
        return SimpleNamespace(log=self.log, define_metric=self.define_metric, finish=self.finish)

    def log(self, row):
        self.logged.append(dict(row))

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def finish(self):
        self.finished += 1


@pytest.fixture
def service(monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    return service


@pytest.mark.slow
def test_a_run_that_is_resumed_goes_on_in_the_same_place(service, tmp_path):
    corpus = tiny.corpus(tmp_path / "z")
    run = RunDir.of(tmp_path / "run")
    settings = {
        "run_dir": str(run.path), "task": tiny.ict(corpus.directory), "batch_size": 8, "checkpoint_every_steps": 2,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=2), "metric_sinks": (Wandb("realm"),),
    }  # fmt: skip
    train(**settings, num_steps=2)
    train(**settings, num_steps=4)
    first, second = service.begun
    assert first["id"] == second["id"] == read_json(run.metrics / "wandb.json")["id"] and first["resume"] == "allow"
    assert (first["project"], first["name"], first["mode"]) == ("realm", "run", "online")
    assert service.metrics == [("*", "step")] * 2 and service.finished == 2
    written = read_metrics(run)
    assert [row["step"] for row in service.logged] == [row["step"] for row in written] == [1, 2, 3, 4]
    assert [row["loss"] for row in service.logged] == [row["loss"] for row in written]


def test_a_service_that_goes_away_costs_its_curves_alone(tmp_path, caplog):
    class Dies:
        def write(self, step, metrics):
            raise ConnectionError("the service is away")

        def close(self):
            raise AssertionError("it was let go of")

    sinks = Sinks([SimpleNamespace(open=lambda run: Dies())], RunDir.of(tmp_path), 0)
    for step in (3, 4):
        sinks.write(step, {"loss": 1.0})
    sinks.close()
    assert caplog.text.count("Dies gets no metrics from step 3 on, training goes on: the service is away") == 1


@pytest.mark.faults
@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("the service is away"),
        pytest.param(ValueError("api_key not configured"), marks=pytest.mark.slow),
    ],
)
def test_a_service_that_cannot_be_reached_at_the_start_costs_its_curves_alone(
    service, monkeypatch, tmp_path, caplog, error
):
    def init(**settings):
        raise error

    monkeypatch.setattr(service, "init", init)
    corpus = tiny.corpus(tmp_path / "z")
    train(
        run_dir=str(tmp_path / "run"), task=tiny.ict(corpus.directory), batch_size=8, num_steps=2,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1), metric_sinks=(Wandb("realm"),),
    )  # fmt: skip
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    assert caplog.text.count(f"Wandb gets no metrics, training goes on: {error}") == 1
    assert caplog.text.count("gets no metrics") == 1


def test_one_sink_that_cannot_begin_leaves_the_others(tmp_path):
    def refuse(run):
        raise ConnectionError

    written = []
    works = SimpleNamespace(write=lambda step, metrics: written.append(step), close=lambda: None)
    settings = [SimpleNamespace(open=refuse), SimpleNamespace(open=lambda run: works)]
    Sinks(settings, RunDir.of(tmp_path), 0).write(3, {"loss": 1.0})
    assert written == [3]


@pytest.mark.faults
def test_the_service_is_waited_for_when_all_else_is_closed(service, monkeypatch, tmp_path):
    """Checkpoints that fail to close do not keep it open, nor it them."""
    closed = []
    for kind in (Recorder, Checkpoints):

        def close(self, kind=kind, own=kind.close):
            own(self)
            closed.append(kind.__name__)
            if kind is Checkpoints:
                raise OSError("the disk is full")

        monkeypatch.setattr(kind, "close", close)
    monkeypatch.setattr(service, "finish", lambda: closed.append("service"))
    corpus = tiny.corpus(tmp_path / "z")
    with pytest.raises(OSError, match="the disk is full"):
        train(
            run_dir=str(tmp_path / "run"), task=tiny.ict(corpus.directory), batch_size=8, num_steps=1,
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1), metric_sinks=(Wandb("realm"),),
        )  # fmt: skip
    assert closed == ["Recorder", "Checkpoints", "service"]


def test_other_processes_send_nothing(tmp_path):
    opened = []
    Sinks([SimpleNamespace(open=opened.append)], RunDir.of(tmp_path), 1).write(1, {})
    assert opened == []


def test_without_the_library_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"needs wandb: pip install 'realm_jax\[wandb\]'"):
        Sinks([Wandb("realm")], RunDir.of(tmp_path), 0)


def test_it_is_chosen_in_gin(tmp_path):
    run_file = tmp_path / "mine.gin"
    run_file.write_text(
        "from __gin__ import dynamic_registration\n\ninclude 'runs/ict_tiny.gin'\n\n"
        "from realm_jax.training import loop\nfrom realm_jax.training import metric_sinks\n\n"
        "loop.train.metric_sinks = (@metric_sinks.Wandb(),)\nmetric_sinks.Wandb.project = 'realm'\n"
    )
    assert config.bind("train", [str(run_file)], ["CORPUS=nowhere"])["metric_sinks"] == (Wandb("realm"),)
    assert isinstance(Wandb("realm"), MetricSink)
