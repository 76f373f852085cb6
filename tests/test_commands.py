"""The commands that we tell users to type: each is understood, complete, and names only what there is."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from realm_jax import config
from realm_jax.__main__ import job_help, parse
from realm_jax.convert.hugging_face import Model
from realm_jax.convert.run_files import OPEN_QA_FILE, gin_files, open_qa_gin
from realm_jax.jobs import JOBS
from realm_jax.models import RetrieverConfig, SpanReaderConfig, TransformerConfig
from realm_jax.run_dir import RunDir
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["*.md", "docs/**/*.md", "gin/**/*.gin", "launch/*.py", "benchmarks/*.py"]
COMMAND = "python -m realm_jax "
PLACEHOLDERS = ("JOB", "JOB --help")  # speaks of any job, and is not to be typed as it stands


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
    """A place where runs/bert, runs/minilm, runs/dragon and runs/nq were converted and runs/qa trained, as far as gin files go."""
    place = tmp_path_factory.mktemp("converted")
    model = Model(
        {}, retriever=RetrieverConfig(TransformerConfig(), projection_size=None), knowledge_encoder=TransformerConfig()
    )
    for run in ("bert", "minilm", "dragon"):
        folder = RunDir(place / "runs" / run).weights
        folder.mkdir(parents=True)
        for name, text in gin_files(model).items():
            (folder / name).write_text(text)
    asked = RunDir(place / "runs" / "nq")
    asked.weights.mkdir(parents=True)
    untied = dataclasses.replace(model.retriever, tied=False)
    both = dataclasses.replace(model, retriever=untied, span_reader=SpanReaderConfig(TransformerConfig()))
    (asked.weights / OPEN_QA_FILE).write_text(open_qa_gin(asked, both, tiny.corpus(asked.corpus)))
    config.bind("train", ["runs/open_qa_tiny.gin"], ["CORPUS=runs/pretrain/corpus", "QUESTIONS=train.jsonl"])
    trained = RunDir(place / "runs" / "qa").config_file("train")
    trained.parent.mkdir()
    trained.write_text(config.operative_config())
    return place


@pytest.mark.parametrize(("place", "command"), [item for item in written() if item[1] not in PLACEHOLDERS])
def test_a_command_binds(place, command, converted, monkeypatch):
    monkeypatch.chdir(converted)
    line = parse(shlex.split(command))
    if line.help:
        return
    assert line.run_dir
    config.bind(line.job, line.gin_files, line.bindings)


def test_a_saved_configuration_asks_with_the_sizes_of_training(tmp_path):
    """What docs/serving.md warns of, with the figures that it names."""
    run_file, sizes = "runs/open_qa_minilm.gin", {}
    config.bind("train", [run_file], ["CORPUS=corpus", "QUESTIONS=train.jsonl"])
    (tmp_path / "config-train.gin").write_text(config.operative_config())
    for name, files, bindings in (
        ("saved", [str(tmp_path / "config-train.gin")], ["predict.task=@open_qa.OpenQa()"]),
        ("run file", [run_file], ["CORPUS=corpus", "QUESTIONS=train.jsonl"]),
    ):
        task = config.bind("predict", files, [*bindings, "predict.questions=who?"])["task"]
        sizes[name] = task.num_read, task.joint_len
    assert sizes == {"saved": (2, 192), "run file": (5, 320)}
    text = " ".join((ROOT / "docs" / "serving.md").read_text().split())
    assert "trains on two documents in 192 pieces and reads five in 320 when asked" in text
