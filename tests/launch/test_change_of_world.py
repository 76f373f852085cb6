"""What changes of the world, what is asked about it, and the table: with the real corpus job, the answers made up."""

import json
import sys

import pytest

from realm_jax.corpus.build import corpus
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.world import WorldConfig
from realm_jax.run_dir import RunDir, write_json_atomically
from tests.launch.stub_stages import load_launcher


@pytest.fixture(scope="module")
def launcher():
    return load_launcher("change_of_world")


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world") / "corpus"
    world = WorldConfig(num_articles=60, seed=4)
    corpus(run_dir=str(directory.parent), output_dir=str(directory), source="world", world=world, tokenizer="train:bpe", vocab_size=600, block_len=160, num_workers=0)  # fmt: skip
    return directory


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_embedded_world_on_a_later_day(launcher, trained_on, tmp_path):
    change = launcher.ChangeOfWorld(RunDir.of(tmp_path / "run"), "runs/rag_tiny.gin", trained_on, (), [])
    change.make_corpora()
    before, after = (Corpus.open(change.corpus(day)) for day in launcher.DAYS)
    assert change.corpus("before") == trained_on
    assert before.info.tokenizer_fingerprint == after.info.tokenizer_fingerprint
    assert before.num_documents == after.num_documents and before.fingerprint != after.fingerprint
    assert after.info.block_len == 160 and after.info.settings["world"]["revision"] == 1

    asked = change.ask()
    was, now = (_lines(change.questions(day)) for day in launcher.DAYS)
    assert 6 < asked == len(was) == len(now) < 24  # about half of the 24 questions about held-out entities
    assert [row["question"] for row in was] == [row["question"] for row in now]
    assert all(one["answer"] != other["answer"] for one, other in zip(was, now, strict=True))


def test_two_collections(launcher, trained_on, tmp_path):
    text = "A state in the south. The current governor of the state is {}. It is large."
    for day, articles in {
        "old": [("1", "Alaba", text.format("Robert Bent")), ("2", "Oregano", text.format("Jo Ott"))],
        "new": [("1", "Alaba", text.format("Kay Ivo"))],
    }.items():
        rows = [json.dumps({"id": key, "title": title, "text": body}) for key, title, body in articles]
        (tmp_path / f"{day}.jsonl").write_text("\n".join(rows))
    sources = (str(tmp_path / "old.jsonl"), str(tmp_path / "new.jsonl"))
    change = launcher.ChangeOfWorld(RunDir.of(tmp_path / "run"), "runs/rag_tiny.gin", trained_on, sources, [])
    change.make_corpora()
    for day, governor in {"before": "Robert Bent", "after": "Kay Ivo"}.items():
        found = Corpus.open(change.corpus(day))
        assert found.info.tokenizer_fingerprint == change.info.tokenizer_fingerprint
        assert found.num_documents == 2  # what has not changed is still there
        texts = [" ".join(row["text"] for row in _lines(change.folder / day / "articles.jsonl"))]
        assert governor in texts[0] and "Jo Ott" in texts[0]
    assert change.ask() == 1
    [row] = _lines(change.questions("after"))
    assert row == {"question": "Alaba: The current governor of the state is what.", "answer": ["Kay Ivo"]}


def test_nothing_has_changed(launcher, trained_on, tmp_path):
    (tmp_path / "same.jsonl").write_text(
        json.dumps({"id": "1", "title": "A", "text": "Nothing ever happens here at all."})
    )
    sources = (str(tmp_path / "same.jsonl"), str(tmp_path / "same.jsonl"))
    change = launcher.ChangeOfWorld(RunDir.of(tmp_path / "run"), "runs/rag_tiny.gin", trained_on, sources, [])
    with pytest.raises(SystemExit, match="nothing that can be asked has changed"):
        change.ask()


def test_each_day_is_asked_with_the_documents_of_each(launcher, trained_on, tmp_path, monkeypatch):
    change = launcher.ChangeOfWorld(RunDir.of(tmp_path), "runs/rag_tiny.gin", trained_on, (), ["--gin.QUESTIONS=q"])
    commands = []
    monkeypatch.setattr(change, "follow", lambda title, command: commands.append(command))
    change.answer()
    assert [command[3] for command in commands] == ["evaluate", "evaluate"]
    for documents, command in zip(launcher.DAYS, commands, strict=True):
        assert f"--gin.evaluate.corpus={change.corpus(documents)}" in command
        assert command.index("--gin.QUESTIONS=q") < command.index("--gin.evaluate.served=False")
        assert f"{change.questions('before')}', '{change.questions('after')}" in " ".join(command)

    figures = {("before", "before"): 0.9, ("before", "after"): 0.1, ("after", "before"): 0.2, ("after", "after"): 0.8}
    for (documents, day), right in figures.items():
        rows = {
            name: {"questions": 40, "exact_match": value, "f1": value}
            for name, value in (("rag", right), ("closed_book", 0.05))
        }
        write_json_atomically(change.answers(documents, day), {"rows": rows})
    table = launcher.table(change.rows())
    assert "40 questions whose answer changed" in table
    assert "| documents of before | 90.0 | 90.0 | 10.0 | 10.0 |" in table
    assert "| documents of after | 20.0 | 20.0 | 80.0 | 80.0 |" in table
    assert "| the question alone | 5.0 | 5.0 | 5.0 | 5.0 |" in table


def test_what_cannot_be_compared_is_refused(launcher, trained_on, tmp_path, capsys):
    common = [f"--run_dir={tmp_path}", "--gin_file=runs/rag_tiny.gin", f"--corpus={trained_on}"]
    for wrong, message in ((["--before=x"], "go together"), (["--what=1"], "unknown argument --what=1")):
        with pytest.raises(SystemExit):
            launcher.main([*common, *wrong])
        assert message in capsys.readouterr().err
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"id": "1", "title": "A", "text": "Some text about something, and more of it."}))
    corpus(
        run_dir=str(tmp_path),
        output_dir=str(tmp_path / "mine"),
        source=str(text),
        tokenizer=str(trained_on / "tokenizer"),
        num_workers=0,
    )
    with pytest.raises(SystemExit, match="not the embedded corpus"):
        launcher.ChangeOfWorld(RunDir.of(tmp_path), "f.gin", tmp_path / "mine", (), [])


def test_a_job_that_fails_is_named_with_its_log(launcher, trained_on, tmp_path):
    change = launcher.ChangeOfWorld(RunDir.of(tmp_path), "runs/rag_tiny.gin", trained_on, (), [])
    with pytest.raises(
        SystemExit, match=r"documents before failed; the end of .*documents_before\.log:\nno such thing"
    ):
        change.follow("documents before", [sys.executable, "-S", "-c", "import sys; sys.exit('no such thing')"])
    stopped = launcher.Stopped(15)

    def stop():
        raise stopped

    change.check_signals = stop
    with pytest.raises(launcher.Stopped) as found:
        change.follow("waits", [sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    assert found.value is stopped and "sleep" in (change.folder / "logs" / "waits.log").read_text()
