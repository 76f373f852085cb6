"""Everything in a run directory that a report shows, read without a model."""

import json
import logging
from typing import Any, NamedTuple

from realm_jax.report.figures import check_figures
from realm_jax.run_dir import RunDir, read_json
from realm_jax.storage import Place
from realm_jax.training.metrics import read_metrics

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


class Gathered(NamedTuple):
    """What was found in a run directory."""

    run: RunDir
    figures: Entry | None  # report.json
    metrics: list[Entry]
    swaps: list[tuple[int, int]]  # (first step with the version, version), ascending
    stages: dict[str, list[Entry]]  # metrics of warm starts by name
    versions: list[Entry]  # manifests of the index versions still there
    evaluations: dict[str, Entry]
    examples: list[Entry]
    configs: dict[str, str]  # operative configurations by file name
    missing: list[str]


def gather(run: RunDir) -> Gathered:
    """Reads a run directory; what is absent is named in `missing`.

    Raises:
      ValueError: for files that are there but damaged, and for a report.json that lacks figures.
    """
    missing = []
    figures = read_json(run.report_json) if run.report_json.exists() else None
    if figures is None:
        missing.append("report.json: the final figures (the run is not over, or its evaluation failed)")
    else:
        check_figures(figures, str(run.report_json))
    metrics = read_metrics(run)
    if not metrics:
        missing.append("metrics/metrics.jsonl: the curves (no step was logged yet)")
    stages_dir = run.stage("x").path.parent
    names = sorted(path.name for path in stages_dir.iterdir() if path.is_dir()) if stages_dir.is_dir() else []
    stages = {name: found for name in names if (found := read_metrics(run.stage(name)))}
    examples_path = run.path / "examples.json"
    examples = read_json(examples_path) if examples_path.exists() else []
    if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
        raise ValueError(f"{examples_path}: expected a list of objects; remove the file or evaluate again")
    if not examples:
        missing.append("examples.json: masked sentences with their candidates (written by the final evaluation)")
    evaluations = {path.stem: read_json(path) for path in _sorted(run.evaluation("x").parent, "*.json")}
    versions = [_manifest(path) for path in _sorted(run.index, "*/manifest.json")]
    return Gathered(
        run=run,
        figures=figures,
        metrics=metrics,
        swaps=_swaps(run, metrics),
        stages=stages,
        versions=[version for version in versions if version],
        evaluations={name: content for name, content in evaluations.items() if isinstance(content, dict)},
        examples=examples,
        configs={path.name: path.read_text("utf-8", "replace") for path in _sorted(run.path, "config-*.gin")},
        missing=missing,
    )


def _sorted(directory: Place, pattern: str) -> list[Place]:
    return sorted(directory.glob(pattern)) if directory.is_dir() else []


def _manifest(path: Place) -> Entry | None:
    try:
        content = read_json(path)
    except (ValueError, FileNotFoundError) as error:  # torn, or retired while we looked
        logger.warning("left out of the report: %s", error)
        return None
    return content if isinstance(content, dict) else None


def read_swaps(run: RunDir) -> list[Entry]:
    """Every swap of a run by metrics/swaps.jsonl, ascending: "step" that it came before, "version", "pause_ms"."""
    path = run.metrics / "swaps.jsonl"
    found: list[Entry] = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found.append({**entry, "step": int(entry["step"]), "version": int(entry["version"])})
        except (ValueError, KeyError, TypeError):
            continue  # a line being written
    return sorted(found, key=lambda swap: swap["step"])


def _swaps(run: RunDir, metrics: list[Entry]) -> list[tuple[int, int]]:
    """From metrics/swaps.jsonl, else from where the logged index_version changes."""
    found = [(swap["step"], swap["version"]) for swap in read_swaps(run)]
    if found:
        return found
    version = None
    for entry in metrics:
        now = entry.get("index_version")
        if now is not None and now >= 0 and now != version:
            version = now
            found.append((entry["step"], int(now)))
    return found
