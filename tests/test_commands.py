"""The commands that we tell users to type: each is understood, complete, and names only what there is."""

import re
import shlex
from pathlib import Path

import pytest

from realm_jax import config
from realm_jax.__main__ import job_help, parse
from realm_jax.convert.hugging_face import Model
from realm_jax.convert.run_files import gin_files
from realm_jax.jobs import JOBS
from realm_jax.models import RetrieverConfig, TransformerConfig
from realm_jax.run_dir import RunDir

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["*.md", "docs/**/*.md", "gin/**/*.gin", "launch/*.py", "benchmarks/*.py"]
COMMAND = "python -m realm_jax "


def commands(text: str) -> list[str]:
    """What follows `python -m realm_jax` in a text, continued lines joined, without a remark after it."""
    joined = re.sub(r"\\\n#?\s*", "", text)
    found = re.findall(rf"{COMMAND}([^`\n]*)", joined)
    return [re.split(r"\s#\s", line)[0].strip() for line in found]


def written() -> list[tuple[str, str]]:
    """(place, command) of every command in a text of the project and in the help of a job."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for pattern in TEXTS for path in sorted(ROOT.glob(pattern))}
    texts |= {f"{job} --help": job_help(job).partition("example: ")[2] for job in JOBS}
    return [(place, command) for place, text in texts.items() for command in commands(text)]


def test_commands_are_found_in_every_form():
    assert commands("a `python -m realm_jax --help` b `python -m realm_jax JOB --help`") == ["--help", "JOB --help"]
    gin = "#   python -m realm_jax embed --run_dir=RUN \\\n#     --gin.CORPUS=x  # beside it\n#\n"
    assert commands(gin) == ["embed --run_dir=RUN --gin.CORPUS=x"]
    places = {place for place, _ in written()}
    assert {"README.md", "docs/training.md", "gin/runs/realm_tiny.gin", "gin/runs/ict_paper.gin"} <= places
    assert {f"{job} --help" for job in JOBS} <= places


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A place where runs/bert and runs/minilm were converted, as far as a command's gin files go."""
    place = tmp_path_factory.mktemp("converted")
    model = Model(
        {}, retriever=RetrieverConfig(TransformerConfig(), projection_size=None), knowledge_encoder=TransformerConfig()
    )
    for run in ("bert", "minilm"):
        folder = RunDir(place / "runs" / run).weights
        folder.mkdir(parents=True)
        for name, text in gin_files(model).items():
            (folder / name).write_text(text)
    return place


@pytest.mark.parametrize(("place", "command"), [item for item in written() if item[1].split()[0] != "JOB"])
def test_a_command_binds(place, command, converted, monkeypatch):
    monkeypatch.chdir(converted)
    line = parse(shlex.split(command))
    if line.help:
        return
    assert line.run_dir
    config.bind(line.job, line.gin_files, line.bindings)
