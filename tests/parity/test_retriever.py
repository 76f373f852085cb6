"""RealmRetriever on real text: what the reader gets of a question's documents, which hold an answer, and where."""

import itertools
import json
from pathlib import Path

import pytest

from realm_jax.text.word_piece import WordPieceTokenizer
from tests.convert.retrieved import check_retrieved
from tests.parity.conftest import run_reference

pytestmark = [pytest.mark.parity, pytest.mark.needs_data]

MAX_LENGTH, MAX_SPAN_WIDTH = 96, 10
FILES = ("squad_subset.jsonl", "tydiqa_en.dev.jsonl", "qed.dev.jsonl")
QUESTIONS_OF_A_FILE = 250
OTHERS = (1, 7, 40)  # whose passages a question gets beside its own


@pytest.fixture(scope="module")
def asked(shared_data: Path, vocab: Path) -> dict:
    """Questions with their own passage and three of others, but for those that the port cuts otherwise, see below.

    In the place of every third one's answers stands the beginning of a longer word of the passage.
    """
    tokenizer = WordPieceTokenizer.from_vocab_file(vocab)
    vocabulary = vocab.read_text(encoding="utf-8").splitlines()
    passages: dict[str, int] = {}
    found, left_out = [], 0
    for name in FILES:
        with (shared_data / "openqa" / name).open(encoding="utf-8") as file:
            for line in [next(file) for _ in range(QUESTIONS_OF_A_FILE)]:
                record = json.loads(line)
                document = passages.setdefault(record["passage"], len(passages))
                pieces = tokenizer.encode(record["question"]).ids
                answers = [tokenizer.encode(answer).ids.tolist() for answer in record["answer"]]
                # the port leaves unknown pieces out of a question, takes them for equal in an answer, and cuts a question
                # that is longer than the document
                if tokenizer.unk_id in pieces or len(pieces) > (MAX_LENGTH - 3) // 2 or not all(answers):
                    left_out += 1
                elif not any(tokenizer.unk_id in answer for answer in answers):
                    found.append({"question": record["question"], "answers": record["answer"], "documents": [document]})
    assert len(found) > 500 and len(passages) > 300 and left_out < 40
    texts = list(passages)
    for one in found[::3]:
        words = [vocabulary[piece] for piece in tokenizer.encode(texts[one["documents"][0]]).ids]
        starts = [word for word, rest in itertools.pairwise(words) if word.isalpha() and rest.startswith("##")]
        one["answers"] = starts[:1] or one["answers"]
    for one in found:
        one["documents"] += [(one["documents"][0] + other) % len(passages) for other in OTHERS]
    shape = {"max_length": MAX_LENGTH, "max_span_width": MAX_SPAN_WIDTH}
    return {"vocab": vocabulary, "blocks": texts, "asked": found, **shape}


def test_layout_answers_and_spans(asked: dict, tmp_path: Path):
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    run_reference("retriever", tmp_path / "asked.json", tmp_path / "answered.json")
    answered = json.loads((tmp_path / "answered.json").read_text(encoding="utf-8"))
    counts = check_retrieved(answered, tmp_path)
    assert counts["documents"] == 4 * len(asked["asked"])
    assert counts["answers"] > 0.2 * counts["documents"] and counts["cut"] > 0.2 * counts["documents"], counts
    assert min(counts.values()) > 20, counts  # of every kind there is something to compare
