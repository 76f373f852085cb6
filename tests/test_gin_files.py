"""Every gin file of the project: its form, and that the run files build for the jobs that they configure."""

import re
from pathlib import Path

import pytest

from realm_jax import config
from realm_jax.jobs import JOBS

GIN = Path(__file__).resolve().parent.parent / "gin"
FILES = sorted(path.relative_to(GIN).as_posix() for path in GIN.rglob("*.gin"))
RUNS = [name for name in FILES if name.startswith("runs/")]
REQUIRED = re.compile(r"--gin\.(\S+)=VALUE(?= --gin\.|$)")


def bind_with_required(job: str, name: str) -> dict:
    """Binds a run file, giving a text to what it leaves open for the command line."""
    bindings: list[str] = []
    while True:
        try:
            return config.bind(job, [name], bindings)
        except config.ConfigError as error:
            open_names = REQUIRED.findall(str(error))
            if not open_names or len(bindings) > 5:
                raise
            bindings += [f"{name}=nowhere" for name in open_names]


def configured_jobs(name: str) -> list[str]:
    """The jobs that a run file, or a file it includes, has bindings for."""
    text = (GIN / name).read_text()
    for included in re.findall(r"^include ['\"](.+)['\"]", text, re.MULTILINE):
        text += config.find_gin_file(included).read_text()
    return [job for job, entry in JOBS.items() if re.search(rf"^{re.escape(entry.short_name)}[.:]", text, re.MULTILINE)]


@pytest.mark.parametrize("name", FILES)
def test_form(name):
    lines = (GIN / name).read_text().splitlines()
    assert lines[0].startswith("#"), "a gin file says in its first line what it is"
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0].startswith(("from __gin__ import dynamic_registration", "include "))
    assert not any("__main__" in line for line in code)


@pytest.mark.parametrize("name", RUNS)
def test_header_of_a_run_file_says_how_to_run_it(name):
    text = (GIN / name).read_text()
    header = text.split("\n\n")[0]
    assert "--gin_file=" + name in header or "make " in header, "the command"
    for word in ("hardware", "time", "expect"):
        assert word in header.lower(), word


@pytest.mark.parametrize(("name", "job"), [(name, job) for name in RUNS for job in configured_jobs(name)])
def test_run_file_builds(name, job):
    kwargs = bind_with_required(job, name)
    assert all(type(value).__name__ != "ConfigurableReference" for value in kwargs.values())


def test_there_are_run_files():
    assert "runs/realm_tiny.gin" in RUNS
