"""From what a run left behind to the figures of report.json."""

import bisect
import datetime
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from realm_jax.report.figures import EVALUATED, RECALLS
from realm_jax.report.gather import read_swaps
from realm_jax.run_dir import RunDir, read_json
from realm_jax.storage import Place, as_place, modified_at
from realm_jax.training.metrics import read_metrics, series

ROWS = {"bm25": "bm25", "ict": "ict", "realm": "checkpoint"}  # of report.json, by rows of the evaluation


def assemble(run: RunDir) -> dict[str, Any] | None:
    """The final figures of a pre-training run; None until both evaluations (retrieval and reading) are there.

    A figure that was not measured is null: `ict` of a run without a warm start, say. Versions, pauses and ages are those
    of metrics/swaps.jsonl, which holds every swap however rarely metrics are logged; the first index is no swap.
    `retrieval_wait_share` is the mean wait over the mean time of a step. `evaluated_on` says what the sentences were.
    """
    places = [run.evaluation("retrieval"), run.evaluation("reading")]
    if not all(place.exists() for place in places):
        return None
    evaluation = read_json(places[0])
    retrieval, reading = evaluation["rows"], read_json(places[1])["rows"]
    metrics = read_metrics(run)
    figures: dict[str, Any] = {
        recall: {name: retrieval.get(row, {}).get(recall) for name, row in ROWS.items()} for recall in RECALLS
    }
    figures["masked_span_accuracy"] = {name: reading.get(name, {}).get("with_retrieval") for name in ROWS}
    figures["masked_span_accuracy"]["null_only"] = reading["realm"]["null_only"]
    figures["retrieval_utility"] = reading["realm"]["retrieval_utility"]
    figures |= _of_training(metrics, read_swaps(run))
    served = retrieval.get("served_index", {})
    figures["search_recall"] = served.get("search_recall")
    figures["served_index_version"] = served.get("version")
    figures["corpus"] = _of_corpus(run, evaluation["corpus"])
    figures["evaluated_on"] = evaluation.get("queries", {}).get("kind", EVALUATED)
    figures["seed"] = _seed(run, metrics)
    figures["wall_secs"] = _wall_secs(run)
    return figures


def _of_corpus(run: RunDir, evaluated: Mapping[str, Any]) -> dict[str, int | None]:
    """Documents and pieces of the corpus that was evaluated on, there or, if the run was moved, inside the run."""
    for place in (as_place(evaluated["directory"]), run.corpus):
        if (place / "corpus.json").exists():
            found = read_json(place / "corpus.json")
            if found["num_documents"] == evaluated["documents"]:
                return {"documents": found["num_documents"], "pieces": found["num_pieces"]}
    return {"documents": evaluated["documents"], "pieces": None}


def _of_training(metrics: list[dict[str, Any]], swaps: list[dict[str, Any]]) -> dict[str, int | float | None]:
    def values(name: str) -> np.ndarray:
        return series(metrics, name)[1]

    # a resumed run serves its version once more: no swap
    hot_swaps = [after for before, after in itertools.pairwise(swaps) if after["version"] != before["version"]]
    ages = values("index_age_steps").tolist()
    ages += [after["step"] - 1 - before["version"] for before, after in itertools.pairwise(swaps)]
    step_secs, waits = values("step_secs"), values("retrieval_wait_ms")
    waited = len(waits) > 0 and len(step_secs) > 0
    return {
        "index_versions_served": len({swap["version"] for swap in swaps}),
        "swap_pause_ms_max": max((float(swap["pause_ms"]) for swap in hot_swaps), default=None),
        "index_age_steps_max": max(map(float, ages), default=None),
        "step_secs_median": float(np.median(step_secs)) if len(step_secs) else None,
        "step_secs_max_over_median_at_swaps": _slowest_swap(metrics, [swap["step"] for swap in hot_swaps]),
        "retrieval_wait_share": float(waits.mean() / 1e3 / step_secs.mean()) if waited else None,
    }


def _slowest_swap(metrics: list[dict[str, Any]], swapped_before: list[int]) -> float | None:
    """The slowest step at which a version was swapped in, as a multiple of the median step.

    Of steps that share a line of metrics only the slowest is known: where the swap was at another, the figure is an upper
    bound. None when a swap's line is missing, or tells of several steps but not the slowest, as in older runs.
    """
    lines = [entry for entry in metrics if "index_version" in entry]  # of steps: evaluations have lines of their own
    ends = [line["step"] for line in lines]  # how many steps are done
    at_swaps = []
    for step in swapped_before:
        number = bisect.bisect_right(ends, step)
        if number == len(lines):
            return None
        line, begin = lines[number], ends[number - 1] if number else 0
        if "step_secs" not in line:
            continue  # compiled first, and so not timed
        if "step_secs_max" not in line and line["step"] - begin > 1:
            return None
        at_swaps.append(line.get("step_secs_max", line["step_secs"]))
    return max(at_swaps) / float(np.median(series(lines, "step_secs")[1])) if at_swaps else None


def _configs(run: RunDir, job: str) -> list[Place]:
    """The configurations that a job was run with, the newest last."""
    earlier = itertools.takewhile(
        lambda path: path.exists(), (run.config_file(job, number) for number in itertools.count(1))
    )
    return [path for path in (*earlier, run.config_file(job)) if path.exists()]


def _seed(run: RunDir, metrics: list[dict[str, Any]]) -> int | None:
    """The seed of the configuration in force at the last step: a later command may have found nothing to train."""
    configs = _configs(run, "train")
    if not configs:
        return None
    last_step_at = max((entry["time"] for entry in metrics if "time" in entry), default=math.inf)
    in_force = [path for path in configs if modified_at(path) <= last_step_at] or configs
    for line in in_force[-1].read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("train.seed", "loop.train.seed"):
            return int(value)
    return 0  # the default


def _wall_secs(run: RunDir) -> float:
    """From the first thing that the run wrote (its corpus job's configuration, or the trainer's) to now."""
    begun = min((modified_at(path) for job in ("corpus", "train") for path in _configs(run, job)), default=None)
    now = datetime.datetime.now().timestamp()
    return round(now - begun, 1) if begun is not None else 0.0


def table(figures: Mapping[str, Any]) -> str:
    """The headline figures as aligned text, in per cent."""
    names = ["bm25", "ict", "realm", "null_only"]
    on = figures["evaluated_on"]
    width = max(22, len(on))
    lines = [f"{on:{width}}" + "".join(f"{name:>11}" for name in names)]
    for figure in (*RECALLS, "masked_span_accuracy"):
        cells = (figures[figure].get(name) for name in names)
        lines.append(
            f"{figure:{width}}" + "".join(f"{'' if cell is None else f'{100 * cell:.1f}':>11}" for cell in cells)
        )
    return "\n".join(lines)
