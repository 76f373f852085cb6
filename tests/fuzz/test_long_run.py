"""The long run's last word: what was found, and who had fewer inputs than asked."""

import json
import multiprocessing
import sys

import pytest

from tests.fuzz import __main__ as long_run

_INPUTS = {"markdown": 100, "mediawiki": 99}


class _Made:
    """A process that only writes the record of a target."""

    found = ""
    exitcode = 0

    def __init__(self, target, args):
        self.name, self.options = args

    def start(self):
        findings = {self.found: self.found} if self.found else {}
        record = {"inputs": _INPUTS[self.name], "faults": len(findings), "secs": 60.0, "findings": findings}
        (self.options["out"] / f"{self.name}.json").write_text(json.dumps(record))

    def join(self): ...


class _Found(_Made):
    found = "KeyError at json.py:1"


@pytest.mark.parametrize(
    ("made", "targets", "status", "short"),
    [
        (_Made, "markdown", 0, []),
        (_Made, "markdown,mediawiki", 3, ["mediawiki"]),
        (_Found, "markdown,mediawiki", 1, ["mediawiki"]),
    ],
)
def test_fewer_inputs_than_asked_are_short(made, targets, status, short, tmp_path, monkeypatch, capsys):
    context = type("Context", (), {"Process": made})
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(
        sys, "argv", ["fuzz", f"--targets={targets}", "--inputs=100", "--minutes=1", f"--out={tmp_path}"]
    )
    assert long_run.main() == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("  SHORT")] == short
    assert [line for line in lines if line.startswith("SHORT")] == [
        f"SHORT: 1 of 2 targets had fewer than the 100 inputs asked, in 1 minutes each: {name}; give more --minutes"
        for name in short
    ]
