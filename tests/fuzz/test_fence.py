"""The limits hold: else the fuzzing would find nothing."""

import contextlib
import os
import pickle
import re
import shutil
import sys
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


@pytest.mark.parametrize(
    ("does", "what"),
    [
        (lambda folder: Path(f"{folder}-sibling").write_text(""), "open outside: .*-sibling"),
        (lambda folder: Path(f"{folder}-sibling").read_text(), "open outside: .*-sibling"),
        (lambda folder: Path(__file__).open("r+").close(), "open outside: .*test_fence.py"),
        (lambda folder: os.open(__file__, os.O_RDWR), "open outside: .*test_fence.py"),
        (lambda folder: Path("/proc/self/oom_score_adj").open("r+").close(), "open outside: /proc"),
        (lambda folder: Path(sys.prefix, "not-there").rmdir(), "os.rmdir outside"),
        (lambda folder: Path("/usr/not-there").unlink(), "os.remove outside: /usr/not-there"),
        (lambda folder: Path("/dev/not-there").chmod(0), "os.chmod outside: /dev/not-there"),
        (lambda folder: os.utime("/usr/not-there"), "os.utime outside: /usr/not-there"),
        (lambda folder: (folder / "a").rename(f"{folder}-a"), "os.rename outside: .*-a"),
        (lambda folder: Path("/usr/not-there").rename(folder / "a"), "os.rename outside: /usr/not-there"),
        (lambda folder: os.link("/usr/not-there", folder / "a"), "os.link outside: /usr/not-there"),
        (lambda folder: os.link(folder / "a", f"{folder}-a"), "os.link outside: .*-a"),
        (lambda folder: (folder / "link").symlink_to("/etc/hostname"), "os.symlink outside: /etc/hostname"),
        (lambda folder: (folder / "link").symlink_to("../a"), "os.symlink outside: .*/a"),
        (lambda folder: Path(f"{folder}-link").symlink_to(folder), "os.symlink outside: .*-link"),
        (lambda folder: os.remove("../a", dir_fd=os.open(folder, os.O_RDONLY)), "os.remove outside"),
        (lambda folder: Path(__file__).read_text(), None),
        (lambda folder: Path(os.devnull).write_text("x"), None),
        (lambda folder: (folder / "a").write_text("x"), None),
        (lambda folder: (folder / "a").rename(folder / "b"), None),
        (lambda folder: (folder / "link").symlink_to("a"), None),
        (lambda folder: os.remove("a", dir_fd=os.open(folder, os.O_RDONLY)), None),
        (lambda folder: shutil.rmtree(folder / "deep"), None),
    ],
)
def test_what_an_input_may_touch(does, what, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a").write_text("a")

    def run(data, folder):
        with contextlib.suppress(OSError):
            does(folder)

    fault = fault_of(Target("made", (b"",), run), b"", folder)
    assert (fault is None) == (what is None), fault
    assert fault is None or re.match(what, fault.what), fault


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
