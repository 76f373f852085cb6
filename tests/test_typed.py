import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
import pytest

from realm_jax import typed


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 1
    rate: float = 0.5
    lengths: tuple[int, ...] = ()
    nested: Optional["Config"] = None

    def __post_init__(self) -> None:
        typed.check_fields(self)


CONFORMS = [
    (3, int), (3, float), (0.5, float), ("a", str), (True, bool), (None, None), (None, int | None), (3, int | None),
    ((), tuple[int, ...]), ((1, 2), tuple[int, ...]), ((1, "a"), tuple[int, str]), ((), tuple[()]),
    (((1, 2), (3, 4)), tuple[tuple[int, int], ...]), ("a", Literal["a", "b"]), (2, Literal[1, 2]), (Config(), Config),
    (None, Config | None), (len, Callable[[str], int]), (len, Callable), (Path("a"), str | Path), ([1], list[int]),
    ([1], Sequence[int]), ({"a": 1}, Mapping[str, int]), ({"a": 1}, dict[str, int]), (object(), Any), (1, "unresolved"),
    (int, type[int]),
]  # fmt: skip
DIFFERS = [
    (3.0, int), (True, int), (True, float), (np.float32(3), int), ("3", int), ("3", float), (None, int), (3, str),
    (1, bool), ([1, 2], tuple[int, ...]), ((1, "2"), tuple[int, ...]), ((1,), tuple[int, int]), ((1,), tuple[()]),
    ("c", Literal["a", "b"]), (True, Literal[1, 2]), (Config, Config), (3, Callable[[str], int]), ("ab", Sequence[str]),
    ({"a": "1"}, Mapping[str, int]), ([1], list[str]), (0, None), (3, type[int]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), CONFORMS)
def test_conforms(value, annotation):
    assert typed.conforms(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), DIFFERS)
def test_differs(value, annotation):
    assert not typed.conforms(value, annotation)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (int | None, "int or None"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a", 1], "'a' or 1"),
        (Config, "Config"),
        (Callable[[int], float], "Callable[[int], float]"),
    ],
)
def test_describe(annotation, text):
    assert typed.describe(annotation) == text


def test_check_fields_names_class_field_expected_and_got():
    assert Config(size=2, rate=1, lengths=(1, 2), nested=Config()).rate == 1
    with pytest.raises(ValueError, match=r"^Config\.size must be int, got '2' \(str\)$"):
        Config(size="2")
    with pytest.raises(ValueError, match=r"^Config\.lengths must be tuple\[int, \.\.\.\], got \[1, 2\] \(list\)$"):
        Config(lengths=[1, 2])
    with pytest.raises(ValueError, match=r"^Config\.nested must be Config or None, got 3 \(int\)$"):
        Config(nested=3)


def test_a_long_value_is_shortened():
    with pytest.raises(ValueError) as excinfo:
        Config(size="x" * 1000)
    assert len(str(excinfo.value)) < 120


def test_check_arguments():
    def job(*, run_dir: str, steps: int = 1) -> None:
        """Does nothing."""

    typed.check_arguments("train", job, {"run_dir": "a", "steps": 2})
    with pytest.raises(ValueError, match=r"^train\.steps must be int, got 2\.5 \(float\)$"):
        typed.check_arguments("train", job, {"steps": 2.5})


def test_a_text_where_several_are_wanted():
    def job(*, warm_start: tuple[str, ...] = (), lengths: tuple[int, ...] = ()) -> None:
        """Does nothing."""

    expected = r'^train\.warm_start must be tuple\[str, \.\.\.\], got \'runs/a\' \(str\); write \("runs/a",\)$'
    with pytest.raises(ValueError, match=expected):
        typed.check_arguments("train", job, {"warm_start": "runs/a"})
    with pytest.raises(ValueError, match=r"; write \('say \"a\"',\)$"):
        typed.check_arguments("train", job, {"warm_start": 'say "a"'})
    with pytest.raises(ValueError, match=r"got 'a' \(str\)$"):
        typed.check_arguments("train", job, {"lengths": "a"})
