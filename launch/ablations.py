"""The paper's Table 2 in small: what each part of REALM is worth on the embedded corpus, over several seeds.

    python launch/ablations.py --run_dir=runs/ablations --seeds=0,1,2
    python launch/ablations.py --run_dir=runs/ablations --rows=refresh    # how the index is kept fresh, at the same work

Every seed has its own world, its own warm starts (shared by its variants) and its own runs, two at a time, each on half of
the cores, the index refreshed inside the trainer (synchronous, so that a run is reproducible). Done runs are not done
again. Writes RUN/table.md and RUN/table.json, of the other rows RUN/table-refresh.md and RUN/table-refresh.json.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processes import PREEMPTED, Child, Display, Stopped, StopSignals, split_cores, stop_all

from realm_jax.run_dir import RunDir, read_json, write_json_atomically, write_text_atomically

RUN_FILE = "runs/realm_tiny.gin"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table: a name and what differs from REALM."""

    name: str
    bindings: tuple[str, ...] = ()
    swaps: tuple[tuple[int, int], ...] = ()  # (step, version served from it on); none: each snapshot's, at once

    @property
    def folder(self) -> str:
        return self.name.replace(",", "").replace(" ", "_")


FROZEN = Variant("index never refreshed", ("--gin.refresh.RefreshConfig.mode=frozen",))
SEARCHED_STALE = "index never refreshed, and searched so"
VARIANTS = (
    Variant("REALM"),
    FROZEN,
    Variant("uniform masks", ("--gin.masking.MaskingConfig.kind=uniform",)),
    Variant("random span masks", ("--gin.masking.MaskingConfig.kind=random_span",)),
    Variant("per-span marginal", ("--gin.realm.Realm.marginal=per_span",)),
    # as many documents as the others, so that only the null document is missing
    Variant("no null document", ("--gin.realm.Realm.null_document=False", "--gin.realm.Realm.num_candidates=4")),
)
# An embedder that needs PASS steps for the whole corpus: a version is of the snapshot that it began with.
PASS, SHARDS = 80, 4
PART = PASS // SHARDS
REFRESHED = (
    Variant("REALM"),
    Variant("whole index, 80 steps late", swaps=tuple((step, step - PASS) for step in (100, 180, 260, 340))),
    Variant(
        "a quarter at a time, 20 steps late",
        (
            "--gin.refresh.RefreshConfig.index=@build_version.IndexSettings()",
            f"--gin.build_version.IndexSettings.shard_bytes={512 * 512}",  # of 2000 documents: four shards
            "--gin.build_version.IndexSettings.shards_per_version=1",
        ),
        swaps=tuple((step, step - PART) for step in range(2 * PART, 341, PART)),
    ),
    FROZEN,
)
TABLES = {"paper": VARIANTS, "refresh": REFRESHED}
FIGURES = ("recall_at_1", "recall_at_5", "recall_at_20", "with_retrieval", "null_only", "null_document_prob")
HEADS = ("recall@1", "recall@5", "recall@20", "span right", "without documents", "weight of null")


@dataclasses.dataclass(frozen=True)
class Work:
    """Processes to run one after the other."""

    name: str
    commands: Sequence[list[str]]


class Ablations:
    """Runs what is missing, two processes at a time."""

    def __init__(
        self,
        run: RunDir,
        seeds: Sequence[int],
        num_steps: int,
        others: Sequence[str],
        variants: Sequence[Variant] = VARIANTS,
    ):
        self.run, self.seeds, self.others, self.variants = run, seeds, list(others), variants
        self.steps = num_steps
        self.num_steps = [f"--gin.train.num_steps={num_steps}"]
        self.display = Display()
        self.running: dict[int, Child] = {}
        self.check_signals: Callable[[], None] = lambda: None  # asked at each look at the processes; raises Stopped

    def of_seed(self, seed: int) -> RunDir:
        return RunDir.of(self.run.path / f"seed{seed}")

    def of_variant(self, seed: int, variant: Variant) -> RunDir:
        return RunDir.of(self.of_seed(seed).path / variant.folder)

    def command(self, job: str, run: RunDir, gin_file: str, seed: int, extra: Sequence[str] = ()) -> list[str]:
        corpus = self.of_seed(seed).corpus
        macros = [f"--gin.CORPUS={corpus}"]
        if gin_file == RUN_FILE:
            stages = tuple(str(self.of_seed(seed).stage(name).path) for name in ("ict", "reader"))
            macros += [f"--gin.X_CORPUS={corpus / 'x_train'}", f"--gin.HELDOUT={corpus / 'x_heldout'}"]
            macros += [f"--gin.WARM_START={stages}", f"--gin.world.WorldConfig.seed={seed}"]
        seeded = [f"--gin.train.seed={seed}"] if job == "train" else []
        return [
            sys.executable, "-m", "realm_jax", job, f"--run_dir={run.path}", f"--gin_file={gin_file}",
            *macros, *seeded, *extra, *self.others,
        ]  # fmt: skip

    def warm_starts(self) -> Iterator[Work]:
        """Reader and retriever of every seed."""
        for seed in self.seeds:
            for stage in ("reader", "ict"):
                run = self.of_seed(seed).stage(stage)
                yield Work(f"{stage} {seed}", [self.command("train", run, f"runs/{stage}_tiny.gin", seed)])

    def runs(self) -> Iterator[Work]:
        """Every row of the table for every seed, but those that are done."""
        for variant in self.variants:
            for seed in self.seeds:
                run = self.of_variant(seed, variant)
                if run.evaluation("reading").exists():
                    continue
                if variant is self.variants[0]:
                    self.lend_stages(run)  # its evaluation measures the warm starts, once a seed
                bindings = [*self.refresh(variant), *variant.bindings, *self.num_steps]
                commands = [self.command(job, run, RUN_FILE, seed, bindings) for job in ("train", "evaluate")]
                yield Work(f"{variant.name} {seed}", commands)

    def refresh(self, variant: Variant) -> list[str]:
        """How the index follows the retriever; where a version comes late, its swaps are written down to be replayed."""
        settings = {"mode": "frozen" if variant is FROZEN else "synchronous", "embedder": "in_trainer"}
        if variant.swaps:
            file = self.run.path / f"{variant.folder}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            swaps = [swap for swap in variant.swaps if swap[0] < self.steps]
            lines = [json.dumps({"step": step, "version": version}) for step, version in swaps]
            write_text_atomically(file, "\n".join(lines) + "\n")
            settings |= {"mode": "replay", "replay_file": str(file)}
        return [f"--gin.refresh.RefreshConfig.{name}={value}" for name, value in settings.items()]

    def lend_stages(self, run: RunDir) -> None:
        """Lets a variant's run find the seed's warm starts where evaluation looks for them."""
        link = run.stage("ict").path.parent
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("..") / link.name, target_is_directory=True)

    def go(self) -> None:
        """Works through everything.

        Raises:
          SystemExit: a process failed; its log is named.
          Stopped: by a signal.
        """
        corpora = [Work(f"corpus {s}", [self.command("corpus", self.of_seed(s), RUN_FILE, s)]) for s in self.seeds]
        for title, works in (
            ("corpora", corpora),
            ("warm starts", list(self.warm_starts())),
            ("REALM", list(self.runs())),
        ):
            self.display.begin(title)
            self.follow(works)
        self.display.done()

    def follow(self, works: list[Work]) -> None:
        """Does all of them, two side by side, each on its half of the cores."""
        todo, slots = list(works), dict[int, tuple[Work, Child]]()
        while todo or slots:
            for half in (0, 1):
                if half in slots:
                    work, child = slots[half]
                    if child.running():
                        continue
                    if child.process.returncode == PREEMPTED:
                        self.stop()
                        raise SystemExit(f"{work.name}: {child.last_words(1)}")
                    if child.process.returncode:
                        self.stop()
                        raise SystemExit(f"{work.name} failed; the end of {child.log}:\n{child.last_words()}")
                    slots.pop(half)
                    if len(work.commands) > 1:
                        todo.insert(0, Work(work.name, work.commands[1:]))
                if todo:
                    slots[half] = (todo[0], self.start(half, todo[0]))
                    todo.pop(0)
            self.display.show(" · ".join(work.name for work, _ in slots.values()) + f", {len(todo)} to come")
            self.check_signals()
            time.sleep(0.5)

    def start(self, half: int, work: Work) -> Child:
        log = self.run.logs / f"{work.name.replace(' ', '_')}.log"
        self.running[half] = Child(work.name, work.commands[0], log, split_cores()[half], {})
        return self.running[half]

    def stop(self) -> None:
        stop_all(list(self.running.values()))

    def rows(self) -> dict[str, list[dict[str, float]]]:
        """Figures of each row by seed."""
        found: dict[str, list[dict[str, float]]] = {"ICT only": []}
        for variant in self.variants:
            for seed in self.seeds:
                run = self.of_variant(seed, variant)
                retrieval = read_json(run.evaluation("retrieval"))["rows"]
                reading = read_json(run.evaluation("reading"))["rows"]
                found.setdefault(variant.name, []).append({**retrieval["checkpoint"], **reading["realm"]})
                if variant is FROZEN:
                    found.setdefault(SEARCHED_STALE, []).append(retrieval["served_index"])
                if variant is self.variants[0]:
                    found["ICT only"].append({**retrieval["ict"], **reading["ict"]})
                    found.setdefault("BM25", []).append({**retrieval["bm25"], **reading["bm25"]})
        return found


def table(rows: dict[str, list[dict[str, float]]], seeds: Sequence[int]) -> str:
    """Markdown: mean ± standard deviation over seeds."""
    lines = ["| | " + " | ".join(HEADS) + " |", "|---" * (len(HEADS) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for figure in FIGURES:
            values = [run[figure] for run in runs if figure in run]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            shown = f"{statistics.mean(values):.3f}" if values else "–"
            cells.append(shown if math.isnan(spread) else f"{shown} ± {spread:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Seeds: {', '.join(map(str, seeds))}; mean ± standard deviation."])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", default="runs/ablations")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated; default 0,1,2")
    parser.add_argument("--num_steps", type=int, default=200, help="REALM steps of every variant; default 200")
    parser.add_argument("--rows", choices=TABLES, default="paper", help="which table; default paper")
    known, others = parser.parse_known_args(arguments)
    if any(not argument.startswith("--gin.") for argument in others):
        parser.error(f"unknown argument {others[0]}; besides the above only --gin.NAME.PARAM=VALUE is passed on")
    seeds = [int(seed) for seed in known.seeds.split(",")]
    ablations = Ablations(RunDir.of(known.run_dir), seeds, known.num_steps, others, TABLES[known.rows])
    ablations.run.path.mkdir(parents=True, exist_ok=True)
    ablations.check_signals = StopSignals().check
    try:
        ablations.go()
    except Stopped as stopped:
        ablations.display.note(str(stopped))
        return stopped.exit_status
    finally:
        ablations.stop()
    rows = ablations.rows()
    name = "table" if known.rows == "paper" else f"table-{known.rows}"
    write_json_atomically(ablations.run.path / f"{name}.json", rows)
    text = table(rows, seeds)
    write_text_atomically(ablations.run.path / f"{name}.md", text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
