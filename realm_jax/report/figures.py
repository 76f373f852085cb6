"""report.json: the final figures of a pre-training run, checked when written and when read."""

import math
import os
from collections.abc import Mapping
from typing import Any

from realm_jax.run_dir import RunDir, write_json_atomically

RECALLS = ("recall_at_1", "recall_at_5", "recall_at_20")
RETRIEVERS = ("bm25", "ict", "realm")
EVALUATED = "evaluated sentences"  # where "evaluated_on" does not say which
# Objects and the keys that each must have. A key whose figure was not measured holds null.
TABLES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(RECALLS, RETRIEVERS),
    "masked_span_accuracy": (*RETRIEVERS, "null_only"),
    "corpus": ("documents", "pieces"),
}
NUMBERS = (
    "retrieval_utility",
    "index_versions_served",
    "swap_pause_ms_max",
    "index_age_steps_max",
    "step_secs_median",
    "retrieval_wait_share",
    "search_recall",
    "seed",
    "wall_secs",
)


def write_report(run: RunDir | str | os.PathLike[str], figures: Mapping[str, Any]) -> None:
    """Checks the figures and writes RUN/report.json. Keys beyond the ones asked for are kept.

    Raises:
      ValueError: naming every key that is missing or does not hold a finite number.
    """
    run = RunDir.of(run)
    check_figures(figures, str(run.report_json))
    write_json_atomically(run.report_json, dict(figures))


def check_figures(figures: Any, where: str = "report.json") -> None:
    """Checks the figures of a run against `TABLES` and `NUMBERS`.

    Raises:
      ValueError: naming every key that is missing or does not hold a finite number (null: not measured).
    """
    if not isinstance(figures, Mapping):
        raise ValueError(f"{where}: expected an object of figures, got {type(figures).__name__}")
    missing: list[str] = []
    wrong: list[str] = []
    for name, keys in TABLES.items():
        if not isinstance(figures.get(name), Mapping):
            (wrong if name in figures else missing).append(name)
            continue
        missing += [f"{name}.{key}" for key in keys if key not in figures[name]]
        wrong += [f"{name}.{key}" for key, value in figures[name].items() if not _is_figure(value)]
    for name in NUMBERS:
        if name not in figures:
            missing.append(name)
        elif not _is_figure(figures[name]):
            wrong.append(name)
    if missing or wrong:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"holds no finite number (or null) in {', '.join(wrong)}"] if wrong else []
        raise ValueError(f"{where} {' and '.join(parts)}")


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
