"""Where metrics go besides the run directory: services that a team looks at together."""

import dataclasses
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from realm_jax.run_dir import RunDir, read_json, write_json_atomically
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)


class NotInstalledError(ValueError):
    """A sink whose library is missing: no network will bring it."""


@runtime_checkable
class OpenSink(Protocol):
    """Takes the metrics of one run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Of a step, as metrics.jsonl gets them."""

    def close(self) -> None:
        """Sends what is left."""


@runtime_checkable
class MetricSink(Protocol):
    """The settings of such a place, made by gin or by hand."""

    def open(self, run: RunDir) -> OpenSink: ...


@dataclasses.dataclass(frozen=True)
class Wandb:
    """Weights & Biases; needs `pip install 'realm_jax[wandb]'`, and its own login (`wandb login`, or WANDB_API_KEY).

    A run that is resumed goes on in the same W&B run, whose id is kept in RUN/metrics/wandb.json. Curves are drawn over the
    run's own step, so that steps which are done again after a crash replace none and break nothing.
    """

    project: str
    entity: str | None = None
    name: str | None = None  # default: the run directory's
    mode: Literal["online", "offline"] = "online"

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self, run: RunDir) -> "_OpenWandb":
        """Begins or resumes the W&B run.

        Raises:
          NotInstalledError: when wandb is not, with the remedy.
          Exception: whatever wandb raises without a login or a network.
        """
        try:
            import wandb
        except ImportError as error:
            raise NotInstalledError("metric_sinks.Wandb needs wandb: pip install 'realm_jax[wandb]'") from error
        place = run.metrics / "wandb.json"
        if place.exists():
            run_id = str(read_json(place)["id"])
        else:
            run_id = uuid.uuid4().hex[:16]
            write_json_atomically(place, {"id": run_id, "project": self.project})
        own = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run.path.absolute().name,
            id=run_id,
            resume="allow",
            mode=self.mode,
            config={"run_dir": str(run.path)},
        )
        own.define_metric("*", step_metric="step")
        return _OpenWandb(own)


class _OpenWandb:
    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class Sinks:
    """All sinks of a run, on process 0. Metrics are not worth a run: one that fails is named once, and training goes on."""

    def __init__(self, settings: Sequence[MetricSink], run: RunDir, process_index: int):
        """Raises:
        NotInstalledError: for a sink without its library.
        """
        self._open: list[OpenSink] = []
        for setting in settings if process_index == 0 else ():
            try:
                self._open.append(setting.open(run))
            except NotInstalledError:
                raise
            except Exception as error:
                logger.error("%s gets no metrics, training goes on: %s", _name(setting), error)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for sink in list(self._open):
            try:
                sink.write(step, metrics)
            except Exception as error:  # whatever a service's library raises when the service is away
                self._open.remove(sink)
                logger.error("%s gets no metrics from step %d on, training goes on: %s", _name(sink), step, error)

    def close(self) -> None:
        for sink in self._open:
            try:
                sink.close()
            except Exception as error:
                logger.error("closing %s: %s", _name(sink), error)


def _name(sink: OpenSink | MetricSink) -> str:
    return type(sink).__name__.removeprefix("_Open")
