"""RA-DIT's inputs: template files, records of data sets, what the retrieve job has written, sets of few-shot questions."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.evaluation import few_shot
from realm_jax.evaluation.few_shot import load_templates, read_examples
from realm_jax.instructions import sources
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.retrieved import Preferences, open_retrieved, save_preferences, save_retrieved
from realm_jax.instructions.template_file import OWN_FILE, own_templates, read_templates
from tests import tiny
from tests.fuzz.target import Target

_FEW_SHOT_FILE = Path(few_shot.__file__).with_name("templates.toml")
_WORDS = (
    b"{a.__class__}",
    b"{0}",
    b"{{",
    b"}}",
    b"{q}",
    b"{choices}",
    b"[[",
    b"]]",
    b"= [",
    b"nan",
    b"1e999",
    b"..",
    b"'''",
    b"\\u0000",
)
_RECORDS = b"".join(
    json.dumps(record).encode() + b"\n"
    for record in (
        {
            "id": "a",
            "question": "Where?",
            "choices": {"label": ["A", "B"], "text": ["here", "there"]},
            "answerKey": "A",
        },
        {"id": "b", "question": "Why?", "choices": {"label": ["A", "B"], "text": ["so", "else"]}, "answerKey": "B"},
    )
)
_MESSAGES = b"".join(
    json.dumps(record).encode() + b"\n"
    for record in (
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Hi?", "rank": None},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "Yes.", "rank": 0},
        {"message_id": "3", "parent_id": "2", "role": "prompter", "text": "So?", "rank": None},
        {"message_id": "4", "parent_id": "3", "role": "assistant", "text": "No.", "rank": 1},
    )
)
_MMLU = b'What is it?,one,two,three,four,B\n"Why, then?",a,b,c,d,A\n'
_KILT = b"".join(
    json.dumps({"id": str(number), "input": f"Is {number} even?", "output": [{"answer": "yes", "provenance": [{"title": "T"}]}]}).encode()
    + b"\n"
    for number in range(3)
)  # fmt: skip


def _read_template_file(data: bytes, folder: Path) -> None:
    path = folder / "templates.toml"
    path.write_bytes(data)
    for template in read_templates(path).by_name.values():
        assert template.expected


def _read_few_shot_templates(data: bytes, folder: Path) -> None:
    path = folder / "templates.toml"
    path.write_bytes(data)
    load_templates(path)


def _reader(name: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / "records.jsonl"
        path.write_bytes(data)
        found = sources.read_examples(f"{name}={path}", templates=own_templates())
        for example in found.examples:
            assert example.prompt and example.answer and example.query
            "".join((*example[:5], *example.references, example.id)).encode()

    return run


def _few_shot_reader(name: str, file: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        read_examples(load_templates()[name], str(path))

    return run


def _retrieved(folder: Path) -> Sequence[bytes]:
    """A folder of the retrieve job, of which one file at a time is changed; an input's first byte says which."""
    corpus = tiny.corpus(folder / "corpus")
    example = InstructionExample("made", "open_qa", "Who?\nA:", "Ada", "Who?", ("Ada",), "7")
    documents = np.array([[1, 2], [3, -1]], np.int64)
    scores = np.array([[1.0, 0.5], [2.0, -np.inf]], np.float32)
    whole = folder / "whole"
    save_retrieved(whole, [example, example], documents, scores, {"corpus": corpus.fingerprint})
    save_preferences(whole, Preferences(scores, np.array([1, 1], np.int32), {"identity": {}}))
    return [bytes([number]) + (whole / name).read_bytes() for number, name in enumerate(_FILES)]


_FILES = (
    "examples.jsonl",
    "documents.npy",
    "scores.npy",
    "retrieved.json",
    "log_likelihoods.npy",
    "num_tokens.npy",
    "judged.json",
)


def _open_retrieved(data: bytes, folder: Path) -> None:
    place = folder / "changed"
    place.mkdir(exist_ok=True)
    for name in _FILES:
        (place / name).write_bytes((folder / "whole" / name).read_bytes())
    (place / _FILES[data[0] % len(_FILES) if data else 0]).write_bytes(data[1:])
    found = open_retrieved(str(place), Corpus.open(folder / "corpus"))
    assert found.documents.shape == found.scores.shape and len(found.examples) == len(found.documents)


TARGETS = [
    Target("template_file", lambda folder: (OWN_FILE.read_bytes(),), _read_template_file, words=_WORDS),
    Target("few_shot_templates", lambda folder: (_FEW_SHOT_FILE.read_bytes(),), _read_few_shot_templates, words=_WORDS),
    Target("instructions", (_RECORDS, gzip.compress(_RECORDS)), _reader("commonsense_qa")),
    Target("conversations", (_MESSAGES, gzip.compress(_MESSAGES)), _reader("oasst1")),
    Target("retrieved", _retrieved, _open_retrieved),
    Target("few_shot_mmlu", (_MMLU,), _few_shot_reader("mmlu", "law_test.csv"), words=(b'"', b'""', b",,", b"\r", b"\x00")),
    Target("few_shot_kilt", (_KILT,), _few_shot_reader("zsre", "dev.jsonl")),
    Target("few_shot_fever", (b'{"id": 1, "claim": "It is.", "label": "SUPPORTS"}\n' * 3,), _few_shot_reader("fever", "dev.jsonl")),
    Target("few_shot_hotpot", (json.dumps([{"_id": "a", "question": "Who?", "answer": "Ada"}] * 2).encode(),), _few_shot_reader("hotpot_qa", "dev.json")),
]  # fmt: skip
