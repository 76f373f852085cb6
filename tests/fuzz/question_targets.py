"""Files of questions in every format that is read from disk."""

import json
from collections.abc import Callable
from pathlib import Path

from realm_jax.data.questions import read_questions
from tests.fuzz.corpus_targets import _SQUAD, _packed
from tests.fuzz.target import Target

_SEEDS = {
    "jsonl": b'{"question": "Who?", "answer": ["Ada", "A"], "id": 3, "gold_id": "7", "title": "T", "passage": "P"}\n'
    b'{"question": "When?", "answers": "1990", "answer_is_regex": true}\n',
    "json_list": json.dumps(
        [{"question": "Who?", "answers": ["Ada"], "positive_ctxs": [{"title": "T", "text": "P", "passage_id": "7"}]}]
    ).encode(),
    "dpr_tsv": b"who wrote it\t['Ada', \"B\"]\n\"say \"\"when\"\"\"\t\"['1990']\"\n",
    "curated_trec": b"1\tfact\tWho wrote it?\tAda( Brook)?\n2\tfact\tWhen?\t19\\d\\d\n",
    "web_questions": json.dumps(
        [
            {"url": "u", "targetValue": '(list (description "Jaxon \\"J\\" B") (description Oslo))', "utterance": "who?"},
            {"qId": "a", "answers": ["x"], "qText": "when?"},
        ]
    ).encode(),
    "trivia_qa": json.dumps(
        {"Data": [{"Question": "Who?", "QuestionId": "a", "Answer": {"Value": "Ada", "Aliases": ["A"], "NormalizedAliases": ["a"]}}]}
    ).encode(),
    "squad": _SQUAD,
}  # fmt: skip
_WORDS = {
    "dpr_tsv": (b"[{[]: 1}]", b"-" * 3000, b"1" + b"+1" * 3000, b"\\N{x}", b"b''", b"f'{1}'", b"__import__('os')", b"'\\x", b"[" * 150),
    "curated_trec": (b"(a+)+$", b"{99999999999}", b"(?P<a>", b"(?:" * 300, b"[[", b"(?i:", b"\\1", b"a{1,1000}" * 5),
    "web_questions": (b'(description \\"', b"(description a)", b"(list", b"\\\\"),
}  # fmt: skip


def _reader(name: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / "questions"
        path.write_bytes(data)
        for source_format in ("auto", name):
            try:
                found = read_questions(path, source_format)
            except ValueError:
                continue
            for question in found.questions:
                assert question.text.strip() and isinstance(question.answers, tuple)
                "".join((question.text, question.id, *question.answers)).encode()

    return run


TARGETS = [
    Target(f"questions_{name}", _packed(seed), _reader(name), words=_WORDS.get(name, ()))
    for name, seed in _SEEDS.items()
]
