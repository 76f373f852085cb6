"""A run's curves in one picture, drawn anew while it trains."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from realm_jax.run_dir import RunDir
from realm_jax.training.metrics import read_metrics, series

Entries = Sequence[Mapping[str, Any]]

COLOURS = ("#2a6fbb", "#c8642b", "#3d8b57", "#8558a8")
SWAP = "#b9b7ae"
SMOOTHED_FROM = 20  # points; a noisy curve of as many also gets its running mean
DPI = 110
SHORT = 12  # characters of a label; two such stand side by side in a legend
ROW = 0.09  # of the axes' height: a line of a legend


class Line(NamedTuple):
    label: str
    steps: np.ndarray
    values: np.ndarray


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
      title, unit: above it and at its left.
      lines: what it draws of the metrics.
      absent: what it says where there is nothing to draw.
      smooth: whether curves are noisy.
      swaps: whether hot swaps are marked.
      from_zero: whether its values are counts or shares, to be seen from 0 on.
    """

    title: str
    unit: str
    lines: Callable[[Entries], list[Line]]
    absent: str = "no figures yet"
    smooth: bool = True
    swaps: bool = True
    from_zero: bool = False


def metrics(names: Mapping[str, str]) -> Callable[[Entries], list[Line]]:
    """Lines of metrics by name, each with its label; those that the entries lack are left out."""
    return lambda entries: [Line(label, *series(entries, name)) for name, label in names.items()]


def recalls(entries: Entries) -> list[Line]:
    """Recall@k of the held-out sentences, for each k that was measured."""
    names = {name for entry in entries for name in entry if name.startswith("heldout_recall_at_")}
    ranks = sorted(int(name.rsplit("_", 1)[1]) for name in names)
    return [Line(f"recall@{rank}", *series(entries, f"heldout_recall_at_{rank}")) for rank in ranks]


PRETRAINING = (
    Panel("Loss", "−log p(y|x), nats a masked piece", metrics({"loss": "REALM"})),
    Panel("Retrieval utility", "log p(y|x) − log p(y|x, ∅), nats", metrics({"retrieval_utility": "gain by retrieval"})),
    Panel(
        "Recall",
        "share of held-out sentences",
        recalls,
        "no held-out sentences,\nor no figures yet",
        smooth=False,
        from_zero=True,
    ),
    Panel(
        "Staleness of the index",
        "steps since its snapshot",
        metrics({"index_age_steps": "age"}),
        smooth=False,
        from_zero=True,
    ),
    Panel(
        "Where the probability goes",
        "p(z|x)",
        metrics({"null_document_prob": "null document", "gold_prob": "gold document"}),
        from_zero=True,
    ),
)
QUESTIONS = (
    Panel(
        "Loss",
        "nats a question",
        metrics({"loss": "both", "early_update_loss": "early update", "reader_loss": "reader"}),
        swaps=False,
    ),
    Panel(
        "Training questions",
        "share",
        metrics(
            {
                "answer_retrieved": "a retrieved document has the answer",
                "answer_read": "a document read has it",
                "best_span_right": "answered right",
            }
        ),
        swaps=False,
        from_zero=True,
    ),
)


def pretraining_files(run: RunDir) -> list[Path]:
    """The metrics that `pretraining` draws."""
    return [Path(str(one.metrics_jsonl)) for one in (run.stage("reader"), run.stage("ict"), run)]


def pretraining(run: RunDir) -> bytes:
    """The picture of a pre-training and its warm starts, as PNG."""
    stages = {"reader": "reader (masked words)", "ict": "retriever (ICT)"}
    entries = {name: read_metrics(run.stage(name)) for name in stages}
    warm = Panel(
        "Warm starts: loss",
        "nats",
        lambda _: [Line(label, *series(entries[name], "loss")) for name, label in stages.items()],
        swaps=False,
    )
    return picture((warm, *PRETRAINING), read_metrics(run))


def questions(run: RunDir) -> bytes:
    """The picture of a fine-tuning on questions, as PNG."""
    return picture(QUESTIONS, read_metrics(run))


def picture(panels: Sequence[Panel], entries: Entries) -> bytes:
    """All panels, three in a row, as PNG."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    swaps = swapped_at(entries)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        draw(axes, panel, entries, swaps if panel.swaps else swaps[:0])
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def swapped_at(entries: Entries) -> np.ndarray:
    """The first logged steps at which another version of the index served."""
    steps, versions = series(entries, "index_version")
    return steps[1:][np.diff(versions) != 0]


def draw(axes: Any, panel: Panel, entries: Entries, swaps: np.ndarray) -> None:
    """One panel with its title, its axes, its legend, and the steps at which the index was swapped."""
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel("training step", fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    lines = [line for line in panel.lines(entries) if np.isfinite(line.values).any()]
    if not lines:
        axes.text(0.5, 0.5, panel.absent, ha="center", va="center", color="gray", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for place, step in enumerate(swaps):
        axes.axvline(step, color=SWAP, linewidth=0.8, zorder=0, label="hot swap" if place == 0 else None)
    for line, colour in zip(lines, COLOURS, strict=False):
        noisy = panel.smooth and len(line.steps) >= SMOOTHED_FROM
        label = None if noisy else line.label
        marker = "o" if len(line.steps) < SMOOTHED_FROM else None
        axes.plot(line.steps, line.values, color=colour, alpha=0.3 if noisy else 1.0, label=label, marker=marker, ms=3)
        if noisy:
            axes.plot(line.steps, smoothed(line.values), color=colour, label=f"{line.label}, smoothed")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    legend_above(axes)


def legend_above(axes: Any) -> None:
    """A legend at the top, and so much room there that it covers no curve."""
    labels = axes.get_legend_handles_labels()[1]
    columns = 2 if max(map(len, labels)) <= SHORT else 1
    room = ROW * -(-len(labels) // columns) + 0.02
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, bottom + (top - bottom) / (1 - room))
    axes.legend(fontsize=8, frameon=False, ncols=columns, loc="upper left", borderaxespad=0)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean that forgets with a tenth of the points; what is not finite is passed over.

    >>> smoothed(np.array([1.0, float("nan"), 3.0])).tolist()
    [1.0, 1.0, 2.3333333333333335]
    """
    keep = 1 - 1 / max(2, len(values) / 10)
    mean, weight, out = 0.0, 0.0, []
    for value in values.tolist():
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight if weight else math.nan)
    return np.array(out)
