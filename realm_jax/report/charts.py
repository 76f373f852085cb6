"""Line charts as inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 26  # RIGHT: half of the last step number
MAX_POINTS = 400  # longer curves are thinned
SMOOTH_FROM = 40  # noisy curves of at least so many points get a running mean


class Line(NamedTuple):
    """One curve; values that are not finite leave a gap."""

    name: str
    steps: Float64[np.ndarray, "points"]
    values: Float64[np.ndarray, "points"]


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    step_range: tuple[int, int] | None = None,
    swaps: Sequence[tuple[int, int]] = (),
    smooth: bool = False,
    from_zero: bool = False,
    as_stairs: bool = False,
    peaks: bool = False,
) -> str:
    """A chart of one or more curves over steps, with a hairline wherever an index version was swapped in.

    Args:
      lines: curves; at least one point among them.
      label: what it shows, for screen readers.
      step_range: first and last step of the axis, so that several charts line up; None for those of the curves.
      swaps: (step, version) of each swap.
      smooth: draw the points faintly and a running mean over them.
      from_zero: let the vertical axis include 0.
      as_stairs: a straight line would say something between the points that is not so.
      peaks: of a curve with too many points draw the greatest of neighbours, not their mean.
    """
    lines = [_thinned(line, "last" if as_stairs else "max" if peaks else "mean") for line in lines]
    values = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    steps = np.concatenate([line.steps for line in lines])
    if not len(values):
        return ""
    y_ticks = ticks(min(values.min(), 0.0) if from_zero else values.min(), values.max())
    first, last = step_range or (steps.min(), steps.max())
    x_low, x_high = float(first), float(max(last, first + 1))
    x_ticks = ticks(x_low, x_high, 5)
    y_low, y_high = min(y_ticks[0], values.min()), max(y_ticks[-1], values.max())

    def x(step: int | float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:g}</text>')
    for step, version in swaps:
        if x_low <= step <= x_high:
            parts.append(
                f'<line class="swap" x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                f"<title>version {version} serves from step {step}</title></line>"
            )
    for number, line in enumerate(lines):
        smoothed = running_mean(line.values) if smooth and len(line.values) >= SMOOTH_FROM else None
        faint = "" if smoothed is None else " faint"
        parts.append(_path(line.steps, line.values, x, y, f"line s{number % 4}{faint}", as_stairs))
        if smoothed is not None:
            parts.append(_path(line.steps, smoothed, x, y, f"line s{number % 4}", False))
        for step, value in zip(line.steps, line.values, strict=True):
            if math.isfinite(value):
                alone = " alone" if len(line.steps) == 1 else ""
                parts.append(
                    f'<circle class="point s{number % 4}{alone}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="4">'
                    f"<title>{escape(line.name)}, step {step:g}: {value:.4g}</title></circle>"
                )
    return "".join([*parts, "</svg>"])


def _path(steps: np.ndarray, values: np.ndarray, x: object, y: object, style: str, as_stairs: bool) -> str:
    assert callable(x) and callable(y)
    commands, pen_down, last = [], False, 0.0
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            pen_down = False
            continue
        if as_stairs and pen_down:
            commands.append(f"L{x(step):.1f} {last:.1f}")
        commands.append(f"{'L' if pen_down else 'M'}{x(step):.1f} {y(value):.1f}")
        pen_down, last = True, y(value)
    return f'<path class="{style}" d="{"".join(commands)}"/>'


def ticks(low: int | float, high: int | float, count: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about `count` of them.

    >>> ticks(0.0, 0.61), ticks(13, 450, 5)
    ([0.0, 0.2, 0.4, 0.6, 0.8], [0.0, 100.0, 200.0, 300.0, 400.0, 500.0])
    """
    low, high = float(low), float(high)
    if high <= low:
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999), default=10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def running_mean(values: Float64[np.ndarray, "points"]) -> Float64[np.ndarray, "points"]:
    """Mean over a centred window of a tenth of the points, of which the ends have half; gaps are left out of it."""
    reach = max(1, len(values) // 20)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    number = counts[high] - counts[low]
    return np.divide(sums[high] - sums[low], number, out=np.full(len(values), np.nan), where=number > 0)


def _thinned(line: Line, keep: Literal["mean", "max", "last"]) -> Line:
    """At most MAX_POINTS points, each of as many neighbours."""
    size = -(-len(line.steps) // MAX_POINTS)
    if size <= 1:
        return line
    edges = np.arange(0, len(line.steps), size)
    if keep == "last":
        last = np.append(edges[1:], len(line.steps)) - 1
        return Line(line.name, line.steps[last], line.values[last])
    counts = np.diff(np.append(edges, len(line.steps)))
    steps = np.add.reduceat(line.steps, edges) / counts
    if keep == "max":
        return Line(line.name, steps, np.maximum.reduceat(line.values, edges))
    return Line(line.name, steps, np.add.reduceat(line.values, edges) / counts)
