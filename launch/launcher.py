"""Starts a run's jobs on one machine, one after the other or side by side, and watches over them."""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from command_line import Settings
from hosts import has_accelerator, visible_devices
from processes import GRACE_SECS, PREEMPTED, Child, Display, split_cores, stop_all

from realm_jax.corpus.info import CORPUS_FILE
from realm_jax.run_dir import RunDir, read_json
from realm_jax.run_lock import exclusive
from realm_jax.storage import Place, RemotePath
from realm_jax.training.progress import progress_figures

TRAINERS = ("train", "ict", "reader")
FIRST_BACK_OFF_SECS, LONGEST_BACK_OFF_SECS = 1.0, 60.0
HEALTHY_SECS = 300.0  # an embed job that lived so long has nothing to do with the failures before it
OTHER_HOST_SECS = 24 * 3600.0  # how long one machine waits for what another makes, such as the corpus
LOCK_SECS = 10.0  # a train command that was refused for its settings holds the trainer's lock for some
TOLD = ("will not learn", "nothing to train")  # of a trainer's log, what whoever looks at the screen should know
LOOK_SECS, REMOTE_LOOK_SECS = 0.5, 5.0  # between two looks at the children; the run's files may cost requests


class StageFailed(Exception):  # noqa: N818 - reads as what it says
    """A stage that ended with an error, or before it was done."""


class Preempted(Exception):  # noqa: N818 - reads as what it says
    """A training that SIGTERM ended, though not by this launcher: on another machine of the run."""


class Launcher:
    """Starts the stages one after the other, two at a time where they do not need each other."""

    def __init__(self, settings: Settings, check_signals: Callable[[], None]):
        """Args:
        settings: what the command line said.
        check_signals: asked at each look at the children; raises Stopped when it is time to end.
        """
        self.settings, self.run, self.check_signals = settings, settings.run, check_signals
        self.children: list[Child] = []
        self.metrics_bytes: dict[str, int] = {}  # of each trainer's metrics when it began
        self.look_secs = REMOTE_LOOK_SECS if isinstance(self.run.path, RemotePath) else LOOK_SECS
        self.display = Display()

    def launch(self) -> Place | None:
        """All stages of this machine; returns the report's path, if it is the one that writes it.

        Raises:
          StageFailed: naming the stage, with the end of its log.
          InUse: a trainer that this launcher did not start is at work.
          Stopped: by a signal.
          Preempted: a training was ended by a signal to another machine of the run.
        """
        host, run_file = self.settings.host, self.settings.run_file
        if self.settings.embed_only:
            self.embed_for_others()
            return None
        # the devices of one machine of a slice do not run without the others'
        alone = {} if host.is_alone else {"JAX_PLATFORMS": "cpu"}
        if host.is_first:
            self.stage("corpus", lambda: [self.child("corpus", self.run, run_file, [], environment=alone)])
        else:
            self.wait_for("corpus", self.run.corpus / CORPUS_FILE)
        first, second = split_cores()
        reader, ict = self.run.stage("reader"), self.run.stage("ict")
        if host.is_alone and not has_accelerator():
            self.stage("warm start", lambda: [*self.warm_starts(reader, first), *self.warm_starts(ict, second)])
        else:  # one after the other: each has all devices
            for run in (reader, ict):
                self.stage(f"warm start: {run.path.name}", functools.partial(self.warm_starts, run))
        self.pretrain(first, second)
        if not host.is_first:
            self.display.done()
            return None
        self.stage("evaluate", lambda: [self.child("evaluate", self.run, run_file, [], environment=alone)])
        self.stage("report", lambda: [self.child("report", self.run, None, [], environment=alone)])
        self.display.done()
        return self.run.report_html

    def warm_starts(self, run: RunDir, cores: Sequence[int] = ()) -> list[Child]:
        name = run.path.name
        return [self.child("train", run, self.settings.stage_file(name), cores, name)]

    def wait_for(self, title: str, *places: Place) -> None:
        """Waits for what another machine of the run makes; any of the places will do."""
        self.display.begin(title)
        deadline = time.monotonic() + OTHER_HOST_SECS
        while not any(place.exists() for place in places):
            self.display.show(f"waiting for {places[0]}, which another machine of the run makes")
            if time.monotonic() > deadline:
                raise StageFailed(f"{places[0]} did not come in {OTHER_HOST_SECS:.0f} s; see the other machines' logs")
            self.pause()

    def child(
        self,
        job: str,
        run: RunDir,
        gin_file: str | None,
        cores: Sequence[int],
        name: str | None = None,
        extra: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> Child:
        name = name or job
        command = [sys.executable, "-m", "realm_jax", job, f"--run_dir={run.path}"]
        if gin_file is not None:
            command += [f"--gin_file={gin_file}", *self.macros(name), *self.settings.bindings, *extra]
        if job == "train" and not self.settings.host.is_alone:
            command.append("--gin.train.distributed=True")
        if name in TRAINERS:
            with contextlib.suppress(OSError):  # there are none yet
                self.metrics_bytes[name] = len(run.metrics_jsonl.read_bytes())
        child = Child(name, command, self.settings.logs / f"{name}.log", cores, environment or {})
        self.children.append(child)
        return child

    def macros(self, name: str) -> list[str]:
        """What the run files leave open: where things lie."""
        corpus = self.run.corpus
        found = [f"--gin.CORPUS={corpus}"]
        if name == "corpus" and self.settings.documents:
            return [*found, f"--gin.SOURCE={self.settings.documents}"]  # a tuple of paths, as gin writes it
        if name in ("train", "embed", "evaluate"):
            stages = tuple(str(self.run.stage(stage).path) for stage in ("ict", "reader"))
            found.append(f"--gin.WARM_START={stages}")
            if not self.settings.documents:
                found += [f"--gin.X_CORPUS={corpus / 'x_train'}", f"--gin.HELDOUT={corpus / 'x_heldout'}"]
        return found

    def stage(self, title: str, start: Callable[[], list[Child]]) -> None:
        """Starts processes and waits until all have ended well."""
        self.display.begin(title)
        children = start()
        while any(child.running() for child in children):
            self.check(children)
            self.tell(children)
            self.display.show(" · ".join(self.progress_of(child) for child in children if child.running()))
            self.pause()
        self.tell(children)
        self.check(children)

    def pretrain(self, trainer_cores: Sequence[int], embedder_cores: Sequence[int]) -> None:
        """The trainer, and beside it an embed job that is started again whenever it dies."""
        self.display.begin("REALM")
        in_trainer = self.settings.embedder == "in_trainer"
        if self.settings.host.is_first:
            check_no_trainer(self.run)
            for status in self.run.status.glob("trainer-*.json"):
                status.unlink()  # of an earlier trainer: the embed job would take its last word for this one's
        inside = ["--gin.refresh.RefreshConfig.embedder=in_trainer", "--gin.refresh.RefreshConfig.mode=synchronous"]
        trainer = self.child(
            "train", self.run, self.settings.run_file, trainer_cores if self.settings.embeds else [], "train",
            inside if in_trainer else (), visible_devices(self.settings.trainer_devices, 8476),
        )  # fmt: skip
        embedder = Embedder(self, embedder_cores) if self.settings.embeds else None
        while trainer.running():
            self.tell([trainer])
            if embedder is not None:
                embedder.keep_alive()
            self.display.show(" · ".join(filter(None, [self.progress_of(trainer), self.embedder_progress()])))
            self.pause()
        self.tell([trainer])
        self.check([trainer])
        if embedder is not None:
            deadline = time.monotonic() + GRACE_SECS
            while embedder.child.running() and time.monotonic() < deadline:
                self.pause()  # it ends by itself when the trainer has
            embedder.child.stop()

    def embed_for_others(self) -> None:
        """The embed job alone, from the first snapshot of the run's trainer, elsewhere, to its end."""
        self.wait_for("corpus", self.run.corpus / CORPUS_FILE)
        self.wait_for("trainer", self.run.snapshots)
        self.display.begin("embed")
        embedder = Embedder(self, [])
        # it also ends well when a trainer was stopped, which may come again
        while embedder.child.running() or embedder.child.process.returncode or not self.trainers_finished():
            embedder.keep_alive()
            self.display.show(self.embedder_progress())
            self.pause()
        self.display.done()

    def trainers_finished(self) -> bool:
        """Whether all processes of the run's trainer say that they have done all steps."""
        try:
            said = [read_json(place)["state"] for place in self.run.status.glob("trainer-*.json")]
        except (OSError, ValueError):  # one is being replaced
            return False
        return bool(said) and set(said) == {"finished"}

    def pause(self) -> None:
        """Between two looks at the children."""
        self.check_signals()
        time.sleep(self.look_secs)

    def start_embedder(self, cores: Sequence[int]) -> Child:
        environment = visible_devices(self.settings.embedder_devices, 8477)
        if self.settings.embedder == "cpu" and not self.settings.embed_only:
            environment["JAX_PLATFORMS"] = "cpu"
        host = self.settings.host
        share = (
            () if host.is_alone else (f"--gin.embed.builder={host.number}", f"--gin.embed.num_builders={host.total}")
        )
        return self.child("embed", self.run, self.settings.run_file, cores, "embed", share, environment)

    def check(self, children: list[Child]) -> None:
        for child in children:
            if child.running():
                continue
            if child.process.returncode == PREEMPTED:
                raise Preempted(f"{child.name}: {child.last_words(1)}")
            if child.process.returncode:
                raise StageFailed(
                    f"{child.name} ended with {child.process.returncode}; the end of {child.log}:\n{child.last_words()}"
                )

    def tell(self, children: list[Child]) -> None:
        """Shows what trainers said that changes what a run is worth."""
        for child in children:
            if child.name in TRAINERS:
                for line in child.new_lines():
                    if any(words in line for words in TOLD):
                        self.display.note(f"{child.name}: {line}")

    def run_of(self, child: Child) -> RunDir:
        return self.run.stage(child.name) if child.name in ("ict", "reader") else self.run

    def progress_of(self, child: Child) -> str:
        if child.name not in TRAINERS:
            return child.last_words(1) or "starting"
        run = self.run_of(child)
        try:
            status = read_json(run.trainer_status(0))
            written = run.metrics_jsonl.read_bytes()
            figures: dict[str, Any] = json.loads(written.rstrip().rsplit(b"\n", 1)[-1])
        except (OSError, ValueError):
            return f"{child.name} starting"
        # what was there before, of which a resumed trainer cuts off what came after its checkpoint
        before = self.metrics_bytes[child.name] = min(self.metrics_bytes.get(child.name, 0), len(written))
        if len(written) == before:
            return f"{child.name} starting"
        kept = {name: value for name, value in figures.items() if not isinstance(value, str)}
        return f"{child.name} {figures['step']}/{status['num_steps']} {progress_figures(kept)}"

    def embedder_progress(self) -> str:
        try:
            status = read_json(self.run.embedder_status)
        except (OSError, ValueError):
            return ""
        if int(status.get("version", -1)) < 0:  # it has only begun
            return f"embed {status.get('state')}"
        total = max(1, int(status.get("documents_total", 0)))
        done = int(status.get("documents_done", 0))
        return f"embed {status.get('version')}: {status.get('state')} {100 * done // total}%"

    def stop(self) -> None:
        """Ends whatever runs, trainers first: they write a checkpoint."""
        stop_all(sorted(self.children, key=lambda child: child.name not in TRAINERS))


class Embedder:
    """The embed job beside the trainer, started again whenever it dies, ever later."""

    def __init__(self, launcher: Launcher, cores: Sequence[int]):
        self.launcher, self.cores = launcher, cores
        self.child, self.began = launcher.start_embedder(cores), time.monotonic()
        self.restart_at, self.back_off = 0.0, FIRST_BACK_OFF_SECS

    def keep_alive(self) -> None:
        if self.child.running():
            return
        if self.restart_at == 0.0:
            if time.monotonic() - self.began >= HEALTHY_SECS:
                self.back_off = FIRST_BACK_OFF_SECS
            self.launcher.display.note(
                f"embed job ended with {self.child.process.returncode}, starting it again in {self.back_off:.0f} s; "
                f"see {self.child.log}"
            )
            self.restart_at = time.monotonic() + self.back_off
            self.back_off = min(2 * self.back_off, LONGEST_BACK_OFF_SECS)
        elif time.monotonic() >= self.restart_at:
            self.child, self.began, self.restart_at = self.launcher.start_embedder(self.cores), time.monotonic(), 0.0


def check_no_trainer(run: RunDir) -> None:
    """Refuses a run whose trainer is at work, such as one that outlived a killed launcher, and does not end soon.

    Raises:
      InUse: naming it.
    """
    with exclusive(run.trainer_lock, "a trainer is at work in this run", LOCK_SECS):
        pass
