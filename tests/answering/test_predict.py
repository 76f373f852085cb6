"""The predict job: what it reads, answers and writes, with a run as fine-tuning leaves it."""

import io
import json
import re
import time

import pytest

from realm_jax.__main__ import main
from realm_jax.answering.asked import asked
from realm_jax.answering.explaining import excerpt, explained
from realm_jax.answering.loading import load_answerer, served_version
from realm_jax.answering.predict import predict
from realm_jax.corpus.writer import make_corpus
from realm_jax.run_dir import RunDir, write_json_atomically
from tests.answering import made_run, made_world

QUESTIONS = ["Where was Ada Brook born?", "where did elin frost sing", "über die Brücke: welcher river"]
ANSWERS = ["Oslo", "Bern", "Lima"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus, params):
    return made_run.make_run(tmp_path_factory.mktemp("run"), params, corpus)


@pytest.fixture(scope="module")
def task(corpus):
    return made_world.task(corpus.directory)


@pytest.fixture
def file(tmp_path):
    rows = [
        {"question": q, "answer": [a], "id": f"q{n}"} for n, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": " "}]))
    return tmp_path / "dev.jsonl"


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def typed(monkeypatch, content):
    """Puts bytes where standard input is read; Python's own decoding of it would end at the first bad byte."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))


EXPECTED = [{"question": q, "prediction": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


def test_a_file_is_answered_line_by_line(run, task, file, caplog):
    with caplog.at_level("INFO"):
        result = predict(run_dir=str(run.path), task=task, questions=str(file))
    assert result == {
        "questions": 3, "output": str(run.predictions("dev.jsonl")), "step": 600, "index_version": 500, "search_recall": 1.0,
    }  # fmt: skip
    assert lines(run.predictions("dev.jsonl").read_text()) == EXPECTED
    assert "über" in run.predictions("dev.jsonl").read_text()
    assert "left out 1: empty question; no answer is written for them" in caplog.text
    assert "checkpoint 600, index version 500 (exact, 7 documents, search recall 1.000), corpus" in caplog.text


def test_answers_by_id_as_squad_has_them(run, task, file, tmp_path):
    place = tmp_path / "out" / "answers.json"
    predict(run_dir=str(run.path), task=task, questions=str(file), form="squad", output=str(place))
    assert json.loads(place.read_text()) == {"q0": "Oslo", "q1": "Bern", "q2": "Lima"}
    (tmp_path / "same.jsonl").write_text('{"question": "a b", "id": "x"}\n{"question": "c d", "id": "x"}\n')
    with pytest.raises(ValueError, match=r"by the ids of their questions \(1 repeated: x\); use the form 'jsonl'"):
        predict(run_dir=str(run.path), task=task, questions=str(tmp_path / "same.jsonl"), form="squad")
    asked_there = [{"question": "where is Oslo?", "answers": []}, {"question": "and Bern?", "id": "b", "answers": []}]
    article = {"title": "T", "paragraphs": [{"context": "Oslo.", "qas": asked_there}]}
    (tmp_path / "nameless.json").write_text(json.dumps({"data": [article]}))
    with pytest.raises(ValueError, match=r"\(1 without one: 'where is Oslo\?'\); use the form 'jsonl'"):
        predict(run_dir=str(run.path), task=task, questions=str(tmp_path / "nameless.json"), form="squad")


def test_questions_as_arguments_and_from_standard_input(run, task, capsys, monkeypatch):
    predict(run_dir=str(run.path), task=task, questions=QUESTIONS[0])
    assert lines(capsys.readouterr().out) == EXPECTED[:1]
    predict(run_dir=str(run.path), task=task, questions=tuple(QUESTIONS))
    assert lines(capsys.readouterr().out) == EXPECTED
    text = f"\ufeff{QUESTIONS[0]}\r\n\n{json.dumps({'question': QUESTIONS[1], 'id': 'b'})}\n{QUESTIONS[2]}"
    typed(monkeypatch, text.encode())
    predict(run_dir=str(run.path), task=task, questions="-")
    assert lines(capsys.readouterr().out) == EXPECTED
    typed(monkeypatch, text.encode())
    predict(run_dir=str(run.path), task=task, questions="-", form="squad")
    assert json.loads(capsys.readouterr().out) == {"1": "Oslo", "b": "Bern", "4": "Lima"}


def test_who_waits_at_a_terminal_is_answered_at_once(run, task, monkeypatch, capsys):
    told = []

    class Terminal:
        def isatty(self):
            return True

        @property
        def buffer(self):
            for question in QUESTIONS[:2]:
                told.append(capsys.readouterr().out)
                yield f"{question}\n".encode()

    monkeypatch.setattr("sys.stdin", Terminal())
    predict(run_dir=str(run.path), task=task, questions="-")
    assert told[0] == "" and lines(told[1]) == EXPECTED[:1] and lines(capsys.readouterr().out) == EXPECTED[1:2]


def test_what_is_not_utf8_costs_its_own_line_alone(run, task, monkeypatch, capsys, caplog):
    typed(monkeypatch, f"{QUESTIONS[0]}\n".encode() + b"caf\xe9 de Oslo\n\xff\n" + f"{QUESTIONS[1]}\n".encode())
    assert predict(run_dir=str(run.path), task=task, questions="-")["questions"] == 2
    assert lines(capsys.readouterr().out) == EXPECTED[:2]
    assert "left out 2: not UTF-8; no answer is written for them" in caplog.text


def test_a_long_standard_input_with_repeated_ids_is_refused_at_once(monkeypatch, run, task):
    """Seconds, not hours: every id is counted once."""
    rows = [json.dumps({"question": f"where is {n}", "id": n // 2}) for n in range(40_000)]
    typed(monkeypatch, "\n".join(rows).encode())
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"\(20000 repeated: 0, 1, 2\); use the form 'jsonl'"):
        predict(run_dir=str(run.path), task=task, questions="-", form="squad")
    assert time.monotonic() - begin < 20  # under 1 s; comparing each with each takes minutes


def test_odd_questions_get_their_line(run, task, capsys, caplog):
    odd = ("ada \x00 brook\nborn", "where " * 10_000, "東京はどこですか", "ada \ud800")
    predict(run_dir=str(run.path), task=task, questions=odd)
    found = lines(capsys.readouterr().out)
    assert [row["question"] for row in found] == [
        "ada \x00 brook\nborn",
        ("where " * 10_000).strip(),
        "東京はどこですか",
    ]
    assert found[0]["prediction"] == "Oslo" and all(row["prediction"] for row in found)
    assert "1 question was longer than query_len=24 pieces and cut" in caplog.text
    assert "left out 1: text that is no Unicode" in caplog.text


def test_an_explanation_shows_documents_and_spans(run, task, file, capsys):
    predict(run_dir=str(run.path), task=task, questions=str(file), explain=True, output=str(file.parent / "out.jsonl"))
    text = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert text[0] == "question  Where was Ada Brook born?" and text[1].startswith("answer    Oslo  p 0.")
    assert text[3].startswith("* 0.") and "██" in text[3] and text[3].endswith("0  Ada Brook")
    assert text[4].endswith("She was born in [Oslo], the daughter of a joiner.") and "span p 0." in text[4]
    assert sum(line.startswith(("* ", "  0.")) for line in text[3:]) == 4 and text[-1].endswith("null document")


def test_explaining_takes_no_prediction_away(run, task, file, capsys, monkeypatch):
    """Predictions go where they go without it; the explanations to standard output where that is free, else beside it."""
    result = predict(run_dir=str(run.path), task=task, questions=str(file), explain=True)
    assert result["output"] == str(run.predictions("dev.jsonl"))
    assert lines(run.predictions("dev.jsonl").read_text()) == EXPECTED
    assert capsys.readouterr().out.count("p(z|x)") == 3
    for questions, output in ((tuple(QUESTIONS), None), ("-", None), (str(file), "-")):
        typed(monkeypatch, "\n".join(QUESTIONS).encode())
        predict(run_dir=str(run.path), task=task, questions=questions, output=output, explain=True)
        told = capsys.readouterr()
        assert lines(told.out) == EXPECTED and told.err.count("p(z|x)") == 3
    predict(run_dir=str(run.path), task=task, questions=QUESTIONS[0], form="squad", explain=True)
    told = capsys.readouterr()
    assert json.loads(told.out) == {"1": "Oslo"} and told.err.count("p(z|x)") == 1


def test_an_explanation_moves_no_cursor_and_shortens(answerer):
    (answer,) = answerer.answer(["where \x1b[2J is " + "ada " * 30])
    assert "\x1b" not in explained(answer) and "its last 12 pieces were not read" in explained(answer)
    before, span, after = excerpt(
        "ab " * 50 + "oslo " + "cd " * 50, answer.document.best_span._replace(start=150, end=154), 10
    )
    assert (before, span, after) == ("… ab ab ab ", "oslo", " cd cd cd …")


@pytest.mark.parametrize(
    "questions",
    [
        *("my/dev.jsonl", "dev set.json.gz", "hamlet", "questions.txt", "DEV.JSONL", "dev/questions", "données/dév"),
        *("/my files/dev", "./dev set", "../where to", "données.jsonl"),
    ],
)
def test_files_that_are_not_there_are_no_questions(questions):
    told = f"no file of questions at {questions}; to ask this as a question end it with a question mark"
    with pytest.raises(FileNotFoundError, match=re.escape(told)):
        asked(questions)


@pytest.mark.parametrize(
    "question",
    [
        *(
            "東京はどこですか",
            "谁写了哈姆雷特",
            "东京在哪里。",
            "東京はどこですか？",
            "أين؟",
            "أين",
            "Ποιος\u037e",
            "Ποιος",
            "რატომ",
        ),
        *(
            "ใครเขียนแฮมเล็ต",
            "ለምን፧",
            "Ինչո՞ւ",
            "hamlet?",
            "hamlet？",
            "hamlet\u061f",
            "hamlet\u037e",
            "hamlet;",
            "hamlet｡",
        ),
        *("dev.jsonl?", "what does and/or mean", "km/h?", "what is in/on a file", "a" * 300 + " b", "who " * 300),
    ],
)
def test_questions_in_every_script_are_no_files(question):
    (found,) = asked(question).questions
    assert found.text == question.strip()


@pytest.mark.parametrize("questions", ["", "  ", (), ("", "\ud800")])
def test_nothing_to_answer(questions):
    with pytest.raises(ValueError, match=r"predict\.questions holds no question"):
        asked(questions)


def test_lines_that_are_no_questions(monkeypatch, tmp_path, caplog):
    typed(
        monkeypatch,
        b'who\n\n{"question": \n{"question": '
        + b"[" * 100_000
        + b'\n{"query": "who"}\n{"question": "where", "id": "q"}\n',
    )
    assert [(question.text, question.id) for question in asked("-").questions] == [("who", "1"), ("where", "q")]
    told = 'left out 3: line that is no {"question": …} object (the first is line 3); no answer is written for them'
    assert caplog.messages == [told]
    (tmp_path / "empty.jsonl").write_text('{"question": ""}\n')
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no question"):
        asked(str(tmp_path / "empty.jsonl"))


def test_a_file_of_plain_questions_belongs_on_standard_input(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("who wrote it\n")
    told = (
        "plain.txt, which begins with 'who wrote it'; expected questions as plain text, one a line, on standard input "
        f"(--gin.predict.questions=- < {plain}), or a file of one of these: JSON lines"
    )
    with pytest.raises(ValueError, match=re.escape(told)) as excinfo:
        asked(str(plain))
    assert "named as the format" not in str(excinfo.value)
    plain.write_text("")
    with pytest.raises(ValueError, match=r"but the file is empty$"):
        asked(str(plain))


def test_the_version_that_is_served(run, tmp_path):
    assert served_version(run) == served_version(run, 500) == 500
    with pytest.raises(ValueError, match=r"index has no version 7; it has \[500\]"):
        served_version(run, 7)
    empty = RunDir.of(tmp_path)
    with pytest.raises(ValueError, match="holds no index version; make one with the embed job"):
        served_version(empty)
    for version in (100, 200):
        empty.index_version(version).mkdir(parents=True)
        write_json_atomically(empty.index_version(version) / "manifest.json", {})
    assert served_version(empty) == 200
    write_json_atomically(empty.trainer_status(0), {"index_version": 100})
    assert served_version(empty) == 100


def test_a_run_of_another_kind_corpus_or_shape(run, task, corpus, params, tmp_path):
    other = RunDir.of(tmp_path / "ict")
    made_run.save(other, {"retriever": params["retriever"]}, corpus)
    with pytest.raises(ValueError, match="has trained retriever, expected a retriever and a span_reader"):
        load_answerer(other, task)
    with pytest.raises(FileNotFoundError, match="no checkpoint under"):
        load_answerer(RunDir.of(tmp_path / "none"), task)
    part = make_corpus(tmp_path / "part", made_world.blocks()[:3], made_world.tokenizer())
    with pytest.raises(ValueError, match=r"expected corpus_fingerprint .*; the index was built from another corpus"):
        load_answerer(run, made_world.task(part.directory))
    with pytest.raises(ValueError, match="no corpus at"):
        load_answerer(run, made_world.task(tmp_path / "gone"))


@pytest.mark.parametrize("backend", ["scann", "exact"])
def test_an_index_of_either_kind_answers(backend, params, corpus, task, tmp_path):
    run = made_run.make_run(tmp_path, params, corpus, backend)
    loaded = load_answerer(run, task)
    assert loaded.manifest.backend == backend and loaded.describe().startswith(
        f"checkpoint 600, index version 500 ({backend}"
    )
    assert [answer.text for answer in loaded.answerer.answer(QUESTIONS)] == ANSWERS


def test_the_command_with_the_configuration_that_training_saved(run, capsys):
    command = [
        "predict", f"--run_dir={run.path}", f"--gin_file={run.config_file('train')}",
        "--gin.predict.task=@open_qa.OpenQa()", f"--gin.predict.questions={QUESTIONS[0]}",
    ]  # fmt: skip
    assert main(command) == 0
    assert lines(capsys.readouterr().out) == EXPECTED[:1]
    assert main([*command, "--explain"]) == 0
    told = capsys.readouterr()
    assert lines(told.out) == EXPECTED[:1] and "p(z|x)" in told.err
    assert main([*command[:-1], "--gin.predict.questions=no_such.jsonl"]) == 1
    assert "realm_jax predict: no file of questions at no_such.jsonl" in capsys.readouterr().err
