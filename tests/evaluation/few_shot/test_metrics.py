"""Scores and averages against numbers worked by hand."""

import importlib.util
import math

import pytest

from realm_jax.evaluation.few_shot.example import Example
from realm_jax.evaluation.few_shot.metrics import METRICS, check_metrics, mean, over_subjects


def test_each_metric():
    town = Example({}, ("Oslo fjord", "Oslo"))
    text = METRICS["text"]
    assert text["exact_match"]("the Oslo!", town) == 1.0 and text["exact_match"]("in Oslo", town) == 0.0
    assert text["f1"]("in Oslo", town) == pytest.approx(2 / 3)
    assert text["exact_match"]("1904 or so", Example({}, (r"19\d\d",), is_regex=True)) == 1.0
    assert text["rouge_l"]("in the fjord of Oslo", town) == pytest.approx(1 / 3)  # of "Oslo": 1 of 5 words, 1 of 1
    chosen = Example({}, ("B",), options=("A", "B"))
    assert METRICS["choice"]["accuracy"]("B", chosen) == 1.0 and METRICS["choice"]["accuracy"]("A", chosen) == 0.0


def test_yes_and_no_of_hotpot_qa():
    f1 = METRICS["text"]["hotpot_f1"]
    assert f1("Yes.", Example({}, ("yes",))) == 1.0
    assert f1("no", Example({}, ("no way",))) == 0.0  # and 2/3 by words
    assert f1("yes", Example({}, ("no", "yes"))) == 1.0
    assert f1("Oslo fjord", Example({}, ("Oslo",))) == pytest.approx(2 / 3)


def test_standard_errors():
    found = mean([1.0, 1.0, 0.0, 1.0, 0.0])
    assert found.mean == pytest.approx(0.6) and found.questions == 5
    assert found.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))  # √(p (1 - p) / (n - 1))
    assert mean([1.0]) == (1.0, None, 1)
    with pytest.raises(ValueError, match="no questions"):
        mean([])


def test_averages_over_subjects():
    values, subjects = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0], ["law", "art", "law", "law", "law", "art"]
    means, macro = over_subjects(values, subjects)
    assert list(means) == ["art", "law"]
    assert means["law"] == (1.0, 0.0, 4) and means["art"] == (0.0, 0.0, 2)
    assert macro.mean == 0.5 and macro.questions == 6  # all questions: 4 / 6
    _, macro = over_subjects([1.0, 0.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b", "b"])
    errors = math.sqrt(0.5 * 0.5 / 1), math.sqrt(1 / 3 * 2 / 3 / 2)
    assert macro.mean == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert macro.standard_error == pytest.approx(math.sqrt(errors[0] ** 2 + errors[1] ** 2) / 2)
    assert over_subjects([1.0, 0.0, 1.0], ["a", "a", "b"])[1].standard_error is None


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_metrics(["f1"])
    with pytest.raises(ValueError, match=r"realm_jax\[text-scores\]"):
        check_metrics(["rouge_l"])
