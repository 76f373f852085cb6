"""Runs a whole pre-training on this machine: corpus, warm starts, trainer beside embed job, evaluation, report.

    python launch/local.py --run_dir=runs/pretrain                       the embedded corpus
    python launch/local.py --run_dir=runs/mine --corpus=my/documents     your own documents
    python launch/local.py --run_dir=runs/wiki --corpus=wiki/ --recipe=encyclopedia      tens of thousands of articles

    python launch/local.py --run_dir=runs/trial --corpus=docs --gin.train.num_steps=60   every training cut short: a trial

--gin.NAME.PARAM=VALUE (or --gin.MACRO=VALUE) sets a parameter of the run files; it is passed on to every job but the report.

Every stage is an ordinary `python -m realm_jax JOB` in a process of its own, its output in RUN/logs/. The same command
resumes whatever was interrupted: a corpus or a training that is done is not done again, evaluation and report are. The last
line printed is the report's path.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from processes import (  # noqa: E402 - beside this script
    GRACE_SECS,
    Child,
    Display,
    Stopped,
    StopSignals,
    split_cores,
    stop_all,
    stopped_early,
)

from realm_jax.run_dir import RunDir, check_can_write, read_json  # noqa: E402 - the checkout's own package
from realm_jax.run_lock import InUse, exclusive  # noqa: E402
from realm_jax.storage import require_local  # noqa: E402
from realm_jax.training.progress import progress_figures  # noqa: E402

RECIPES = ("tiny", "documents", "encyclopedia")
TRAINERS = ("train", "ict", "reader")
FIRST_BACK_OFF_SECS, LONGEST_BACK_OFF_SECS = 1.0, 60.0
HEALTHY_SECS = 300.0  # an embed job that lived so long has nothing to do with the failures before it


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line said."""

    run: RunDir
    documents: tuple[str, ...]
    recipe: str
    bindings: tuple[str, ...]
    embedder: str
    embedder_devices: str
    trainer_devices: str

    @property
    def run_file(self) -> str:
        return self.stage_file("realm")

    def stage_file(self, stage: str) -> str:
        return f"runs/{stage}_{self.recipe}.gin"


class StageFailed(Exception):  # noqa: N818 - reads as what it says
    """A stage that ended with an error, or before it was done."""


class Launcher:
    """Starts the stages one after the other, two at a time where they do not need each other."""

    def __init__(self, settings: Settings, check_signals: Callable[[], None]):
        """Args:
        settings: what the command line said.
        check_signals: asked at each look at the children; raises Stopped when it is time to end.
        """
        self.settings, self.run, self.check_signals = settings, settings.run, check_signals
        self.children: list[Child] = []
        self.started = time.monotonic()
        self.display = Display()

    def launch(self) -> Path:
        """All stages; returns the report's path.

        Raises:
          StageFailed: naming the stage, with the end of its log.
          InUse: a trainer that this launcher did not start is at work.
          Stopped: by a signal.
        """
        self.stage("corpus", [self.child("corpus", self.run, self.settings.run_file, [])])
        first, second = split_cores()
        self.stage(
            "warm start",
            [
                self.child("train", self.run.stage("reader"), self.settings.stage_file("reader"), first, "reader"),
                self.child("train", self.run.stage("ict"), self.settings.stage_file("ict"), second, "ict"),
            ],
        )
        self.pretrain(first, second)
        self.stage("evaluate", [self.child("evaluate", self.run, self.settings.run_file, [])])
        self.stage("report", [self.child("report", self.run, None, [])])
        self.display.done()
        return self.run.report_html

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
        child = Child(name, command, self.run.logs / f"{name}.log", cores, environment or {})
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

    def stage(self, title: str, children: list[Child]) -> None:
        """Waits for processes that must all end well."""
        self.display.begin(title)
        while any(child.running() for child in children):
            self.check(children)
            self.display.show(" · ".join(self.progress_of(child) for child in children if child.running()))
            self.pause()
        self.check(children)

    def pretrain(self, trainer_cores: Sequence[int], embedder_cores: Sequence[int]) -> None:
        """The trainer, and beside it an embed job that is started again whenever it dies."""
        self.display.begin("REALM")
        check_no_trainer(self.run)
        in_trainer = self.settings.embedder == "in_trainer"
        for status in self.run.status.glob("trainer-*.json"):
            status.unlink()  # of an earlier trainer: the embed job would take its last word for this one's
        inside = ["--gin.refresh.RefreshConfig.embedder=in_trainer", "--gin.refresh.RefreshConfig.mode=synchronous"]
        trainer = self.child(
            "train", self.run, self.settings.run_file, [] if in_trainer else trainer_cores, "train",
            inside if in_trainer else (), _visible_devices(self.settings.trainer_devices),
        )  # fmt: skip
        embedder, embedder_began = None if in_trainer else self.start_embedder(embedder_cores), time.monotonic()
        restart_at, back_off = 0.0, FIRST_BACK_OFF_SECS
        while trainer.running():
            if embedder is not None and not embedder.running() and restart_at == 0.0:
                code = embedder.process.returncode
                if time.monotonic() - embedder_began >= HEALTHY_SECS:
                    back_off = FIRST_BACK_OFF_SECS
                self.display.note(
                    f"embed job ended with {code}, starting it again in {back_off:.0f} s; see {embedder.log}"
                )
                restart_at, back_off = time.monotonic() + back_off, min(2 * back_off, LONGEST_BACK_OFF_SECS)
            elif restart_at and time.monotonic() >= restart_at:
                embedder, embedder_began, restart_at = self.start_embedder(embedder_cores), time.monotonic(), 0.0
            self.display.show(" · ".join(filter(None, [self.progress_of(trainer), self.embedder_progress()])))
            self.pause()
        self.check([trainer])
        if embedder is not None:
            deadline = time.monotonic() + GRACE_SECS
            while embedder.running() and time.monotonic() < deadline:
                self.pause()  # it ends by itself when the trainer has
            embedder.stop()

    def pause(self) -> None:
        """Between two looks at the children."""
        self.check_signals()
        time.sleep(0.5)

    def start_embedder(self, cores: Sequence[int]) -> Child:
        environment = _visible_devices(self.settings.embedder_devices)
        if self.settings.embedder == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        return self.child("embed", self.run, self.settings.run_file, cores, "embed", (), environment)

    def check(self, children: list[Child]) -> None:
        for child in children:
            if child.running():
                continue
            if child.process.returncode:
                raise StageFailed(
                    f"{child.name} ended with {child.process.returncode}; the end of {child.log}:\n{child.last_words()}"
                )
            stopped = stopped_early(self.run_of(child)) if child.name in TRAINERS else None
            if stopped is not None:
                raise StageFailed(f"{child.name} {stopped}")

    def run_of(self, child: Child) -> RunDir:
        return self.run.stage(child.name) if child.name in ("ict", "reader") else self.run

    def progress_of(self, child: Child) -> str:
        if child.name not in TRAINERS:
            said = child.last_words(1)
            return child.name if not said or said.startswith("$ ") else said
        run = self.run_of(child)
        try:
            status = read_json(run.trainer_status(0))
            lines = run.metrics_jsonl.read_bytes().rstrip().rsplit(b"\n", 1)
            figures: dict[str, Any] = json.loads(lines[-1])
        except (OSError, ValueError):
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


def check_no_trainer(run: RunDir) -> None:
    """Refuses a run whose trainer is at work, such as one that outlived a killed launcher.

    Raises:
      InUse: naming it.
    """
    with exclusive(run.trainer_lock, "a trainer is at work in this run"):
        pass


def _visible_devices(devices: str) -> dict[str, str]:
    """The accelerators that a process may use; empty for all."""
    return {"CUDA_VISIBLE_DEVICES": devices, "TPU_VISIBLE_CHIPS": devices} if devices else {}


def parse(arguments: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True, help="where the run lies; an interrupted one is resumed")
    parser.add_argument(
        "--corpus",
        action="append",
        default=[],
        help="your documents, in any format of the corpus job; may be given several times; none: the embedded corpus",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="the run files gin/runs/{reader,ict,realm}_RECIPE.gin; default: documents with --corpus, tiny without",
    )
    parser.add_argument(
        "--embedder",
        choices=("cpu", "devices", "in_trainer"),
        default="cpu",
        help="where documents are embedded: on the CPU beside the trainer (default), on --embedder_devices, or by the "
        "trainer itself between its steps",
    )
    parser.add_argument("--trainer_devices", default="", help="accelerators of the trainer, such as 0,1,2")
    parser.add_argument("--embedder_devices", default="", help="accelerators of the embed job, such as 3")
    known, others = parser.parse_known_args(arguments)
    wrong = [argument for argument in others if not argument.startswith("--gin.")]
    if wrong:
        parser.error(
            f"unknown argument {wrong[0]}; besides the above only --gin.NAME.PARAM=VALUE is passed on to the jobs"
        )
    if known.embedder == "devices" and not known.embedder_devices:
        parser.error("--embedder=devices needs --embedder_devices, and --trainer_devices without them")
    for source in known.corpus:
        if not Path(source).exists() and not source.startswith("tfds:"):
            parser.error(f"--corpus={source} does not exist")
    recipe = known.recipe or ("documents" if known.corpus else "tiny")
    if (recipe == "tiny") == bool(known.corpus):
        parser.error(f"--recipe={recipe} {'is for the embedded corpus, not for' if known.corpus else 'needs'} --corpus")
    try:
        require_local(known.run_dir, "launch/local.py, which keeps the jobs' output in --run_dir")
        check_can_write(known.run_dir, "--run_dir")
    except ValueError as refused:
        parser.error(str(refused))
    return Settings(
        RunDir.of(known.run_dir),
        tuple(known.corpus),
        recipe,
        tuple(others),
        known.embedder,
        known.embedder_devices,
        known.trainer_devices,
    )


def main(arguments: Sequence[str]) -> int:
    settings = parse(arguments)
    run = settings.run
    try:
        with exclusive(run.launcher_lock, "another launcher is at work in this run"):
            for trained in (run.stage("reader"), run.stage("ict"), run):
                check_no_trainer(trained)
            return launched(settings)
    except InUse as refused:
        print(f"local.py: {refused}", file=sys.stderr)
        return 1


def launched(settings: Settings) -> int:
    """Runs the stages and says what came out; returns the exit status."""
    launcher = Launcher(settings, StopSignals().check)
    try:
        report = launcher.launch()
    except StageFailed as failure:
        launcher.display.note(str(failure))
        return 1
    except Stopped as stopped:
        launcher.display.note(str(stopped))
        return stopped.exit_status
    finally:
        launcher.stop()
    said = (settings.run.logs / "report.log").read_text().rsplit("$ ", 1)[-1].splitlines()[1:]
    print("\n".join(line for line in said if line.strip() != str(report)))
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
