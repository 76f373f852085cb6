"""Charts draw what they are given."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from realm_jax.report.charts import LEFT, MAX_POINTS, RIGHT, WIDTH, Line, line_chart, running_mean, ticks


def line(steps, values, name="loss"):
    return Line(name, np.asarray(steps, float), np.asarray(values, float))


def curves(svg):
    return [e.get("d") for e in ET.fromstring(svg).iter("path")]


def test_points_lie_where_the_ticks_say():
    svg = line_chart([line([0, 50, 100], [0.0, 1.0, 2.0])], label="x")
    (curve,) = curves(svg)
    places = [tuple(map(float, place.split())) for place in re.findall(r"[ML]([\d.]+ [\d.]+)", curve)]
    assert [x for x, _ in places] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    labels = {
        float(e.text): float(e.get("y")) for e in ET.fromstring(svg).iter("text") if e.get("text-anchor") == "end"
    }
    assert labels[0] - 4 == places[0][1] and labels[1] - 4 == places[1][1] and labels[2] - 4 == places[2][1]
    assert labels[0] > labels[2]


def test_a_gap_breaks_the_curve_and_breaks_nothing_else():
    (curve,) = curves(line_chart([line([1, 2, 3, 4], [1.0, np.nan, np.inf, 2.0])], label="x"))
    assert curve.count("M") == 2 and "nan" not in curve and "inf" not in curve


def test_nothing_finite_is_no_chart():
    assert line_chart([line([1], [np.nan])], label="x") == ""


def test_one_point_and_equal_values_can_be_drawn():
    assert 'class="point s0 alone"' in line_chart([line([3], [0.5])], label="x")
    assert curves(line_chart([line([1, 2], [0.0, 0.0])], label="x"))


def test_swaps_within_the_steps_are_marked():
    svg = line_chart([line([10, 20], [1, 2])], label="x", swaps=[(5, 1), (15, 9), (25, 12)])
    assert re.findall(r"version (\d+) serves from step (\d+)", svg) == [("9", "15")]


def test_stairs_hold_a_value_until_the_next():
    (curve,) = curves(line_chart([line([0, 10], [1, 3])], label="x", as_stairs=True))
    first, corner, last = re.findall(r"[ML]([\d.]+) ([\d.]+)", curve)
    assert corner == (last[0], first[1])


def test_the_last_step_number_fits_into_the_picture():
    svg = line_chart([line([0, 1000], [1.0, 2.0])], label="x")
    x = max(float(e.get("x")) for e in ET.fromstring(svg).iter("text") if e.get("text-anchor") == "middle")
    assert x + 4 * 3.7 <= WIDTH  # half of four digits, 11 pixels high


def test_long_curves_are_thinned():
    svg = line_chart([line(np.arange(10_000), np.ones(10_000))], label="x")
    assert svg.count("<circle") <= MAX_POINTS


def test_a_peak_of_a_long_curve_is_not_averaged_away():
    values = np.zeros(10_000)
    values[7_000] = 106.0
    drawn = [line_chart([line(np.arange(10_000), values)], label="x", peaks=peaks) for peaks in (True, False)]
    assert ["loss, step 7,012: 106" in svg.replace("7012", "7,012") for svg in drawn] == [True, False]


def test_long_stairs_show_only_values_that_were_there():
    values = np.repeat([0.0, 50.0, 400.0], [3333, 3333, 3334])
    svg = line_chart([line(np.arange(10_000), values)], label="x", as_stairs=True)
    assert set(re.findall(r"step \d+: ([\d.]+)", svg)) == {"0", "50", "400"}


def test_a_smoothed_curve_is_drawn_over_its_points():
    values = np.tile([0.0, 1.0], 50)
    assert len(curves(line_chart([line(np.arange(100), values)], label="x", smooth=True))) == 2
    smooth = running_mean(values)
    assert np.abs(smooth - 0.5).max() < 0.1  # at the ends too, where a single point would say the last word
    assert np.isfinite(running_mean(np.array([1.0, np.nan, 3.0])))[[0, 2]].all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 8.9), (1e-9, 3e-9), (0.5, 0.5), (0, 0), (-1e6, 1e7)])
def test_ticks_cover_the_range(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_names_are_escaped():
    svg = line_chart([line([1, 2], [1, 2], name="<b>&'\"")], label='"><script>')
    assert "<b>" not in svg and "<script>" not in svg
    ET.fromstring(svg)
