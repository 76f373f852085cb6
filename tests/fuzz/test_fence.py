"""The limits hold: else the fuzzing would find nothing."""

import os
import pickle
import re
from pathlib import Path

import pytest

from tests.fuzz.changes import KINDS, Change, changed
from tests.fuzz.target import Target, fault_of


class _Runs:
    def __reduce__(self):
        return os.getpid, ()


def _hang() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


@pytest.mark.parametrize(
    ("does", "what"),
    [
        (_hang, "more than 0.5 s"),
        (lambda: bytearray(1 << 30), "MemoryError"),
        (lambda: pickle.loads(pickle.dumps(_Runs())), "pickle.find_class"),
        (lambda: os.system("true"), "os.system"),
        (lambda: __import__("antigravity.never"), "imported antigravity|ModuleNotFoundError"),
        (lambda: Path("/tmp/../etc/hostname").read_bytes(), "open outside: /etc/hostname"),
        (lambda: [][1], "IndexError"),
        (lambda: 1 + "1", "TypeError"),
        (lambda: int("x"), None),
    ],
)
def test_what_an_input_must_not_do_is_a_fault(does, what, tmp_path):
    target = Target("made", (b"",), lambda data, folder: does(), refuses=(ValueError,), secs=0.5)
    fault = fault_of(target, b"", tmp_path)
    assert (fault is None) == (what is None)
    assert fault is None or re.search(what, fault.what), fault


def test_changes_are_the_same_for_the_same_numbers_and_stay_small():
    seeds = (b'{"a": [1, {"b": "c"}]}\n', b"second")
    assert changed(seeds, 0, [Change("flip", 2, 0)]) == b'{"`": [1, {"b": "c"}]}\n'
    assert changed(seeds, 2, [Change("cut", 5, 0)]) == b'{"a":'
    assert changed(seeds, 0, [Change("field", 1, 0x1)]) == b'{"a": [true, {"b": "c"}]}'
    for kind in KINDS:
        for number in range(200):
            made = changed(seeds, number, [Change(kind, number * 7919, number)] * 3)
            assert made == changed(seeds, number, [Change(kind, number * 7919, number)] * 3)
            assert len(made) <= 1 << 17
