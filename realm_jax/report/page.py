"""The page of a run: figures, curves and examples laid out for the template, which escapes every text."""

import datetime
import importlib.metadata
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from realm_jax.report.charts import Line, line_chart
from realm_jax.report.figures import EVALUATED, RECALLS, RETRIEVERS
from realm_jax.report.gather import Entry, Gathered
from realm_jax.training.metrics import series

MAX_EXAMPLES = 24
TEXT_SHOWN = 400  # characters of a candidate before "more"
ROW_NAMES = {"bm25": "BM25", "ict": "ICT (warm start)", "realm": "REALM", "null_only": "null document only"}


class ChartPlan(NamedTuple):
    """A chart: its title, what it tells, and which metrics it draws."""

    title: str
    note: str
    names: tuple[str, ...]
    smooth: bool = False
    from_zero: bool = False
    stairs: bool = False
    peaks: bool = False
    unless_zero: bool = False  # zero throughout where nothing can be measured


CHARTS = (
    ChartPlan("Loss", "−log p(y|x) a masked piece", ("loss",), smooth=True),
    ChartPlan("Retrieval utility", "in training: log p(y|x) − log p(y|x, ∅), in nats", ("retrieval_utility",), smooth=True),
    ChartPlan("Recall", "held-out sentences whose document is found", ("recall_at_",), from_zero=True),
    ChartPlan("Gold document", "in training: among the candidates, and its p(z|x)", ("gold_selected", "gold_prob"),
              smooth=True, from_zero=True, unless_zero=True),
    ChartPlan("Null document", "p(∅|x); rises when the index is stale",
              ("null_document_prob",), smooth=True, from_zero=True),
    ChartPlan("Retrieval entropy", "of p(z|x), in nats", ("retrieval_entropy",), smooth=True),
    ChartPlan("Index age", "steps since the served index's snapshot", ("index_age_steps",),
              from_zero=True),
    ChartPlan("Index version", "the snapshot step that it was embedded with", ("index_version",), stairs=True),
    ChartPlan("Swap pause", "longest that the training thread was held up, ms", ("swap_pause_ms",), from_zero=True,
              peaks=True),
    ChartPlan("Step time", "seconds, median", ("step_secs",), from_zero=True),
    ChartPlan("Search", "ms a batch; ms that the device waited for it",
              ("search_ms", "retrieval_wait_ms"), from_zero=True),
    ChartPlan("Throughput", "examples a second", ("examples_per_sec",), from_zero=True),
    ChartPlan("Gradient norm", "of all parameters, before clipping", ("grad_norm",), smooth=True, from_zero=True),
    ChartPlan("Learning rate", "", ("learning_rate",), from_zero=True),
)  # fmt: skip
STAGE_CHARTS = (
    ChartPlan("Loss", "", ("loss",), smooth=True),
    ChartPlan("Accuracy and recall", "", ("accuracy", "recall_at_", "in_batch_accuracy"), from_zero=True),
)


class Chart(NamedTuple):
    title: str
    note: str
    legend: list[str]  # names in the order of their colours; empty for a single curve
    last: str
    svg: Markup


def render(gathered: Gathered) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("realm_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        name=gathered.run.path.resolve().name,
        missing=gathered.missing,
        table=headline(gathered.figures),
        evaluated_on=(gathered.figures or {}).get("evaluated_on", EVALUATED),
        gains=gains(gathered.figures),
        tiles=tiles(gathered),
        charts=charts(gathered.metrics, CHARTS, gathered.swaps),
        swaps=gathered.swaps,
        stages=[
            chart._replace(title=f"{name}: {chart.title}")
            for name, entries in gathered.stages.items()
            for chart in charts(entries, STAGE_CHARTS, ())
        ],
        examples=[example(entry) for entry in gathered.examples[:MAX_EXAMPLES]],
        num_examples=len(gathered.examples),
        evaluations={name: evaluation(content) for name, content in gathered.evaluations.items()},
        versions=[version_row(manifest) for manifest in gathered.versions],
        configs=gathered.configs,
        provenance=provenance(gathered),
    )


class Cell(NamedTuple):
    text: str
    share: int | float | None  # 0 … 1, drawn as a bar behind the number
    best: bool


def headline(figures: Entry | None) -> list[tuple[str, list[Cell]]]:
    """Rows of the table that the run is about: recalls and masked-span accuracy by retriever."""
    if figures is None:
        return []
    columns = [figures[name] for name in (*RECALLS, "masked_span_accuracy")]
    extra = sorted({key for column in columns for key in column} - {*RETRIEVERS, "null_only"})
    best = [max((value for value in column.values() if value is not None), default=None) for column in columns]
    rows = []
    for key in (*RETRIEVERS, *extra, "null_only"):
        values = [column.get(key) for column in columns]
        if any(value is not None for value in values):
            cells = [
                Cell(percent(value), value, value is not None and value == top)
                for value, top in zip(values, best, strict=True)
            ]
            rows.append((ROW_NAMES.get(key, key), cells))
    return rows


def gains(figures: Entry | None) -> list[str]:
    """What REALM gained over its warm start, in points."""
    if figures is None:
        return []
    told = []
    for name in RECALLS:
        before, after = figures[name]["ict"], figures[name]["realm"]
        if before is not None and after is not None:
            told.append(f"recall@{name.rsplit('_', 1)[1]} {100 * (after - before):+.1f} points over ICT")
    with_retrieval, without = (figures["masked_span_accuracy"][key] for key in ("realm", "null_only"))
    if with_retrieval is not None and without is not None:
        told.append(f"masked spans right {percent(with_retrieval)} % with retrieval, {percent(without)} % without")
    return told


def tiles(gathered: Gathered) -> list[tuple[str, str]]:
    """(what, figure) of the run in short."""
    figures = gathered.figures or {}
    last = {name: value for entry in gathered.metrics for name, value in entry.items()}
    shown: list[tuple[str, str | None]] = []
    if gathered.metrics:
        shown.append(("steps", f"{gathered.metrics[-1]['step']:,}"))
    evaluated = figures.get("retrieval_utility")
    of_what = "last training batch" if evaluated is None else str(figures.get("evaluated_on", EVALUATED))
    utility = last.get("retrieval_utility") if evaluated is None else evaluated
    shown += [
        (f"retrieval utility, {of_what}", _form(utility, "{:+.3f}")),
        ("index versions served", _form(figures.get("index_versions_served", len(gathered.swaps) or None), "{:,.0f}")),
        ("search recall of the index", _form(figures.get("search_recall"), "{:.3f}")),
        ("longest swap pause", _form(figures.get("swap_pause_ms_max"), "{:.1f} ms")),
        ("oldest index", _form(figures.get("index_age_steps_max"), "{:,.0f} steps")),
        ("median step", _form(figures.get("step_secs_median", last.get("step_secs")), "{:.3g} s")),
        ("of step time waiting for candidates", _form(figures.get("retrieval_wait_share"), "{:.1%}")),
        ("documents", _form(figures.get("corpus", {}).get("documents"), "{:,.0f}")),
        ("pieces", _form(figures.get("corpus", {}).get("pieces"), "{:,.0f}")),
        ("wall time", _form(figures.get("wall_secs"), duration)),
        ("seed", _form(figures.get("seed"), "{:.0f}")),
    ]
    return [(what, text) for what, text in shown if text is not None]


def charts(entries: Sequence[Entry], plans: Sequence[ChartPlan], swaps: Sequence[tuple[int, int]]) -> list[Chart]:
    """The charts that the metrics have points for."""
    known = sorted({name for entry in entries for name in entry}, key=_by_number)
    drawn = []
    for plan in plans:
        # a name that ends in "_" stands for every metric that holds it
        names = [
            name for wanted in plan.names for name in known if (wanted in name if wanted[-1] == "_" else wanted == name)
        ]
        lines = [Line(name, *series(entries, name)) for name in names]
        lines = [line for line in lines if any(map(math.isfinite, line.values))][:4]
        if not lines or (plan.unless_zero and not any(line.values.any() for line in lines)):
            continue
        svg = line_chart(
            lines,
            label=plan.title,
            step_range=(entries[0]["step"], entries[-1]["step"]),
            swaps=swaps,
            smooth=plan.smooth,
            from_zero=plan.from_zero,
            as_stairs=plan.stairs,
            peaks=plan.peaks,
        )
        legend = [_words(line.name) for line in lines] if len(lines) > 1 else []
        last = ", ".join(f"{line.values[-1]:.3g}" for line in lines)
        drawn.append(Chart(plan.title, plan.note, legend, last, Markup(svg)))
    return drawn


def _words(name: str) -> str:
    """A metric's name for people: heldout_recall_at_5 is recall@5."""
    return re.sub(r"recall_at_(\d+)$", r"recall@\1", name.removeprefix("heldout_")).replace("_", " ")


def _by_number(name: str) -> tuple[str, int]:
    found = re.search(r"(\d+)$", name)
    return (name[: found.start()], int(found[1])) if found else (name, 0)


def example(entry: Entry) -> dict[str, Any]:
    """An entry of examples.json with its candidates best first, ready to show; what it lacks is left out."""
    candidates = []
    for candidate in entry.get("candidates", []):
        probability = candidate.get("probability")
        text = str(candidate.get("text") or "")
        document = candidate.get("document", -1)
        is_null = isinstance(document, int) and document < 0
        candidates.append(
            {
                "title": "∅ null document" if is_null else str(candidate.get("title") or f"document {document}"),
                "is_null": is_null,
                "is_gold": bool(candidate.get("is_gold")),
                "probability": 0.0 if probability is None else min(max(float(probability), 0.0), 1.0),
                "log_prob": _form(candidate.get("log_prob"), "{:.2f}"),
                "prediction": candidate.get("prediction"),
                "start": text[:TEXT_SHOWN],
                "rest": text[TEXT_SHOWN:],
            }
        )
    candidates.sort(key=lambda candidate: -candidate["probability"])
    answer, prediction = entry.get("answer"), entry.get("prediction")
    return {
        "parts": re.split(r"(\[MASK\](?:\s*\[MASK\])*)", str(entry.get("masked_sentence", ""))),
        "answer": answer,
        "prediction": prediction,
        "null_prediction": entry.get("null_prediction"),
        "is_right": _plain(prediction) == _plain(answer),
        "candidates": candidates,
    }


def _plain(text: Any) -> str:
    return " ".join(str(text).lower().split())


def evaluation(content: Entry) -> dict[str, Any]:
    """An evaluation as a table: a row a retriever, a column a figure; other content as names and values."""
    rows = content.get("rows")
    if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
        plain = {name: _form(value, "{:.4g}") for name, value in content.items() if isinstance(value, int | float)}
        return {"columns": [], "rows": [], "plain": plain, "note": ""}
    found = dict.fromkeys(name for row in rows.values() for name in row)
    columns = sorted(found, key=lambda name: name not in ("step", "version"))  # which it was comes first
    table = []
    for name, row in rows.items():
        cells = [_cell(column, row.get(column)) for column in columns]
        table.append((ROW_NAMES.get(name, name.replace("_", " ")), cells))
    queries = content.get("queries", {})
    note = (
        f"{queries.get('count', '?')} queries of {queries.get('source', '?')}" if isinstance(queries, Mapping) else ""
    )
    return {"columns": [_words(column) for column in columns], "rows": table, "plain": {}, "note": note}


def _cell(column: str, value: Any) -> str:
    """A figure of an evaluation: shares in per cent, counts whole, the rest with three digits."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if any(word in column for word in ("recall", "mrr", "accuracy", "with_retrieval", "null_only", "selected")):
        return percent(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3f}"


def version_row(manifest: Entry) -> list[str]:
    """One index version: version, documents, backend, shards, megabytes, search recall, build seconds."""
    shards = [shard for shard in manifest.get("shards", []) if isinstance(shard, dict)]
    size = sum(file.get("bytes", 0) for shard in shards for file in shard.get("files", []))
    return [
        str(manifest.get("version", "?")),
        _form(manifest.get("num_documents"), "{:,.0f}") or "?",
        str(manifest.get("backend", "?")),
        str(len(shards)),
        f"{size / 1e6:.1f}",
        _form(manifest.get("search_recall"), "{:.3f}") or "",
        _form(manifest.get("build_secs"), "{:.1f}") or "",
    ]


def provenance(gathered: Gathered) -> list[tuple[str, str]]:
    """Where the figures come from: times and versions, and whatever report.json says beyond its schema."""
    told = [("run directory", gathered.run.path.resolve().name)]
    if gathered.metrics:
        times = [entry["time"] for entry in gathered.metrics if "time" in entry]
        if times:
            told.append(("training", f"{_when(min(times))} to {_when(max(times))}"))
    told.append(("page written", _when(datetime.datetime.now(datetime.UTC).timestamp())))
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("realm_jax", "jax", "flax") if _has(name)]
    told.append(("page written with", ", ".join([*packages, f"Python {platform.python_version()}"])))
    for name, value in (gathered.figures or {}).items():
        if isinstance(value, str):
            told.append((name.replace("_", " "), value))
    return told


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _when(secs: float) -> str:
    return datetime.datetime.fromtimestamp(secs, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def percent(value: int | float | None) -> str:
    """A share in per cent, without the sign.

    >>> percent(0.5824), percent(None)
    ('58.2', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def duration(secs: int | float) -> str:
    """Seconds for people.

    >>> duration(42.3), duration(754), duration(7380)
    ('42 s', '12 min 34 s', '2 h 3 min')
    """
    whole = round(secs)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _form(value: Any, form: str | Callable[[Any], str]) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return form(value) if callable(form) else form.format(value)
