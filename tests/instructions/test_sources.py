"""Where examples are read from, how many are drawn, and what is dropped."""

import gzip
import json
import random
import sys
import types

import numpy as np
import pytest

from realm_jax.instructions.fields import Field
from realm_jax.instructions.records import Place
from realm_jax.instructions.sources import MAX_EXAMPLES, read_examples, resolve
from realm_jax.instructions.template_file import own_templates
from tests.instructions.made_records import COQA, MADE

OWN = own_templates()


def write_lines(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(source, **settings):
    return read_examples(str(source), templates=OWN, **settings)


def questions(count):
    return [{"question": f"who is {i}?", "answers": [f"Ann {i}", "Bob"]} for i in range(count)]


@pytest.mark.parametrize("name", [m.name for m in MADE if m.name not in ("oasst1", "squad_v2")])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_json_lines_of_a_set(tmp_path, name, suffix):
    made = next(m for m in MADE if m.name == name)
    path = write_lines(tmp_path / f"{name}.{suffix}", [made.record])
    found = read(f"{name}={path}")
    assert [e.query for e in found.examples] == [made.query] and found.dropped == {} and found.num_found == 1
    assert found.source == f"{name}={path}"


def test_a_list_and_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    records = [MADE[1].record | {"id": str(i)} for i in range(5)]
    (tmp_path / "list.json").write_text(json.dumps(records, indent=1))
    expected = read(f"commonsense_qa={tmp_path / 'list.json'}")
    assert sorted(e.id for e in expected.examples) == list("01234")
    for part, some in enumerate((records[:2], records[2:])):
        parquet.write_table(pyarrow.Table.from_pylist(some), tmp_path / f"train-{part}.parquet")
    assert read(f"commonsense_qa={tmp_path}/train-*.parquet").examples == expected.examples
    content = (tmp_path / "train-1.parquet").read_bytes()
    (tmp_path / "train-1.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"train-1\.parquet cannot be read as parquet after 0 records .*fetch it again"
    ):
        read(f"commonsense_qa={tmp_path}/train-*.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(20))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"which pyarrow reads: pip install pyarrow, or give JSON lines"):
        read(f"gsm8k={tmp_path / 'a.parquet'}")


def test_any_questions(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [*questions(2), {"question": "no answer", "answers": []}])
    found = read(path)
    assert {(e.dataset, e.group, e.query, e.answer, e.references) for e in found.examples} == {
        ("questions", "open_qa", f"who is {i}?", f"Ann {i}", (f"Ann {i}", "Bob")) for i in range(2)
    }
    assert found.dropped == {"no answer": 1}
    tsv = tmp_path / "nq.csv"
    tsv.write_text("who?\t['Ann', 'Bob']\n")
    assert read(tsv).examples[0].references == ("Ann", "Bob")
    trec = write_lines(
        tmp_path / "trec.jsonl", [*questions(2), {"question": "x", "answer": "a.*b", "answer_is_regex": True}]
    )
    assert read(trec).dropped == {"answer that is a regular expression": 1}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Small data sets under TFDS's names and with its features."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
    spans = tfds.features.Sequence({"input_text": text, "answer_start": tfds.features.Scalar(np.int32)})
    sets = {
        "TinyQuestions": ({"question": text, "answer": texts}, [{"question": f"who {i}", "answer": ["Ann"]} for i in range(30)]),
        "TinyCoqa": (
            {"story": text, "questions": texts, "answers": spans},
            [COQA | {"answers": [{"input_text": a, "answer_start": 0} for a in ("Ann", "no")]}],
        ),
        "TinyWiki": (
            {"question": text, "answer": text, "label": tfds.features.Scalar(np.int64)},
            [{"question": "how", "answer": a, "label": label} for a, label in (("yes", 1), ("no", 0), ("never", 0))],
        ),
    }  # fmt: skip
    data_dir = tmp_path_factory.mktemp("tfds")
    module = types.ModuleType("tiny_instruction_builders")  # TFDS wants its builders in an importable module
    sys.modules[module.__name__] = module
    for name, (features, records) in sets.items():

        def _info(self, features=features):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), description="Made.")

        def _split_generators(self, dl_manager, records=records):
            records = [{key: value for key, value in record.items() if key != "source"} for record in records]
            return {"train": enumerate(records)}

        builder = type(
            name, (tfds.core.GeneratorBasedBuilder,),
            {
                "__module__": module.__name__, "__doc__": "Made.", "VERSION": tfds.core.Version("1.0.0"),
                "pkg_dir_path": data_dir, "_info": _info, "_split_generators": _split_generators,
                "_generate_examples": lambda self: None,
            },
        )  # fmt: skip
        builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def test_tfds(tfds_dir):
    found = read(f"tfds:tiny_questions?data_dir={tfds_dir}")  # no template names it: any questions
    assert sorted(e.query for e in found.examples) == sorted(f"who {i}" for i in range(30))
    assert len(read(f"tfds:tiny_questions?split=train[:10%]&data_dir={tfds_dir}").examples) == 3
    coqa = read(f"coqa=tfds:tiny_coqa?data_dir={tfds_dir}")
    assert {(e.query, e.answer) for e in coqa.examples} == {("Who has a cat?", "Ann"), ("Is it a dog?", "no")}
    wiki = read(f"wiki_qa=tfds:tiny_wiki?data_dir={tfds_dir}")
    assert [e.answer for e in wiki.examples] == ["yes"] and wiki.dropped == {"left out by the template's keep": 2}
    with pytest.raises(ValueError, match="cannot read the TFDS data set 'tiny_none'"):
        read(f"coqa=tfds:tiny_none?data_dir={tfds_dir}")
    with pytest.raises(ValueError, match=r"parameters among \['split', 'data_dir'\]"):
        read("coqa=tfds:tiny_coqa?splt=train")


def test_the_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo_id, *, repo_type, revision, allow_patterns):
        asked.append((repo_id, repo_type, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "main" / "train").mkdir(parents=True)
    gsm8k = next(m for m in MADE if m.name == "gsm8k")
    write_lines(tmp_path / "main" / "train" / "0000.parquet", [gsm8k.record])  # what a file holds, its content says
    for source in ("hf:openai/gsm8k", "gsm8k=hf:openai/gsm8k?split=train", "gsm8k=hf:someone/copy?config=main"):
        assert [e.query for e in read(source).examples] == [gsm8k.query]
    parquet = ("dataset", "refs/convert/parquet", ["main/train/*.parquet"])
    assert asked == [("openai/gsm8k", *parquet)] * 2 + [("someone/copy", *parquet)]
    write_lines(tmp_path / "mine.jsonl", [gsm8k.record])
    assert len(read("gsm8k=hf:openai/gsm8k?files=mine.jsonl").examples) == 1
    assert asked[-1] == ("openai/gsm8k", "dataset", "main", ["mine.jsonl"])
    with pytest.raises(
        ValueError, match=r"has no files main/test/\*\.parquet in revision refs/convert/parquet; name another"
    ):
        read("hf:openai/gsm8k?split=test")
    with pytest.raises(ValueError, match=r"expected .*files= to name files within the repository"):
        read("gsm8k=hf:openai/gsm8k?files=../x")
    with pytest.raises(ValueError, match=r"no template of .* is of hf:someone/other; write NAME=hf:someone/other"):
        read("hf:someone/other")
    with pytest.raises(ValueError, match="parameters among"):
        read("hf:openai/gsm8k?conf=main")

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        FileNotFoundError, match=r"hf:openai/gsm8k could not be fetched.*no route to host.*NAME=PATH\.jsonl"
    ):
        read("hf:openai/gsm8k")


def test_which_template_and_which_place():
    def found(source):
        template, place = resolve(source, OWN)
        return template.name, place

    assert found("squad_v2") == ("squad_v2", Place("tfds", "squad/v2.0", {}))
    assert found("tfds:squad/v2.0:3.0.0?split=validation") == (
        "squad_v2", Place("tfds", "squad/v2.0:3.0.0", {"split": "validation"}),
    )  # fmt: skip
    assert found("hf:rajpurkar/squad_v2?split=validation") == (
        "squad_v2", Place("hf", "rajpurkar/squad_v2", {"config": "squad_v2", "split": "validation"}),
    )  # fmt: skip
    assert found("hf:openai/gsm8k?config=socratic")[1].parameters == {"config": "socratic"}
    assert found("tfds:natural_questions_open")[0] == "questions"
    assert found("drop=/data/a=b.jsonl") == ("drop", Place("file", "/data/a=b.jsonl", {}))
    for source in ("gsm9k", "gsm9k=x.jsonl"):
        with pytest.raises(ValueError, match=r"expected a template of .*templates\.toml among .*'gsm8k'.*got 'gsm9k'"):
            found(source)
    with pytest.raises(ValueError, match="plain_text names no source of its own; write plain_text=PATH"):
        found("plain_text")


def message(number, parent, role, text, rank=None, lang="en"):
    return {"message_id": f"m{number}", "parent_id": None if parent is None else f"m{parent}", "role": role, "text": text,
            "rank": rank, "lang": lang}  # fmt: skip


TREE = [
    message(0, None, "prompter", "Hi!"),
    message(1, 0, "assistant", "What?", rank=1),
    message(2, 0, "assistant", "Hello.", rank=0),
    message(3, 2, "prompter", "Where is Oslo?"),
    message(4, 3, "assistant", "In Norway."),
    message(5, 1, "prompter", "Why what?"),  # nobody answered
]


def test_messages_become_conversations(tmp_path):
    bad = [
        message(6, 99, "prompter", "Lost"),
        message(7, 6, "assistant", "Lost, too"),
        message(8, 3, "prompter", "Two in a row"),
        message(9, 8, "assistant", "Reply"),
        message(10, 11, "prompter", "Round"),
        message(11, 10, "assistant", "and round"),
        message(12, None, "moderator", "Stop."),
        {"message_id": "m13"},
    ]
    found = read(f"oasst1={write_lines(tmp_path / 'a.jsonl', [*TREE, *bad])}", max_dropped_share=0.8)
    by_id = {e.id: e for e in found.examples}
    assert set(by_id) == {"m0", "m3"}
    assert by_id["m0"].answer == "Hello." and by_id["m3"].query == "Where is Oslo?"
    assert (
        by_id["m3"].prompt.replace("Question:", "Q:").replace("Answer:", "A:")
        == "Q: Hi!\nA: Hello.\nQ: Where is Oslo?\nA:"
    )
    assert found.dropped == {
        "message that nobody answered": 1,
        "message that answers none of those read": 2,  # one, and a circle
        "message of the same side as the one before it": 1,
        "value of a wrong type": 1,
        "missing field": 1,
    }
    shuffled = random.Random(0).sample(TREE, len(TREE))
    assert read(f"oasst1={write_lines(tmp_path / 'b.jsonl', shuffled)}").examples == found.examples
    with pytest.raises(ValueError, match=r"more than 50% or all; .*line .*expects message_id, parent_id, role"):
        read(f"oasst1={tmp_path / 'a.jsonl'}")


def test_a_draw_is_of_the_content_and_the_seed(tmp_path):
    records = questions(300)
    path = write_lines(tmp_path / "a.jsonl", records)
    drawn = read(f"web_questions={path}", max_examples=30, seed=1)
    assert len(drawn.examples) == 30 and drawn.num_found == 300
    random.Random(0).shuffle(records)
    write_lines(path, records)
    assert read(f"web_questions={path}", max_examples=30, seed=1).examples == drawn.examples
    everything = read(f"web_questions={path}", max_examples=None, seed=1)
    assert everything.examples[:30] == drawn.examples and len(everything.examples) == 300
    places = [int(e.query[7:-1]) for e in drawn.examples]
    assert 100 < sum(places) / 30 < 200  # 150 ± 3 deviations of 16: not the first ones, not the last ones
    other = {e.query for e in read(f"web_questions={path}", max_examples=30, seed=2).examples}
    assert len(other & {e.query for e in drawn.examples}) < 10  # 3 expected
    assert MAX_EXAMPLES == 7500
    with pytest.raises(ValueError, match="expected max_examples of at least 1"):
        read(f"web_questions={path}", max_examples=0)


def test_what_is_dropped_is_counted_and_too_much_refused(tmp_path):
    bad = [{"question": "no answer", "answers": []}, {"answers": ["x"]}, {"question": 3, "answers": ["x"]}, [1]]
    lines = [*questions(4), *bad]
    found = read(f"web_questions={write_lines(tmp_path / 'a.jsonl', lines)}")
    assert found.dropped == {"no answer": 1, "missing field": 1, "value of a wrong type": 1, "malformed record": 1}
    assert found.num_found == 4
    path = write_lines(tmp_path / "b.jsonl", [*questions(1), *bad[1:3]])
    expected = (
        r"2 of 3 records cannot be used \(1 missing field, 1 value of a wrong type\), more than 50% or all; "
        r".*b\.jsonl, line 2: missing field: question in {'answers': \['x'\]}; "
        "the template web_questions expects question, answers; repair the records"
    )
    with pytest.raises(ValueError, match=expected):
        read(f"web_questions={path}")
    assert read(f"web_questions={path}", max_dropped_share=0.7).num_found == 1
    with pytest.raises(ValueError, match=r"0 of 0 records cannot be used \(none\).*there is no record"):
        read(f"web_questions={write_lines(tmp_path / 'c.jsonl', [])}")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file of records at .*none\.jsonl, where none is"):
        read(f"drop={tmp_path / 'none.jsonl'}")
    with pytest.raises(FileNotFoundError, match="got a folder; name a file of JSON lines"):
        read(f"drop={tmp_path}")
    path = write_lines(tmp_path / "a.jsonl.gz", questions(500))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is a truncated or corrupted file; get it again"):
        read(f"web_questions={path}")
    deep = tmp_path / "deep.jsonl"
    deep.write_text('{"question": "q", "answers": ' + "[" * 100_000 + "\n" + json.dumps(questions(1)[0]) + "\n")
    assert read(f"web_questions={deep}").dropped == {"malformed record": 1}


def test_a_field_alone():
    field = Field("f", (("a", "b"), ("c",)), join=" + ", nothing=("none",))
    assert field.texts({"c": ["x", " ", "y"]}) == ("x + y",)
    assert field.texts({"a": [{"b": "none"}]}) == () and field.spelled == "a.b or c"
