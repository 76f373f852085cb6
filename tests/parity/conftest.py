"""The other side: an environment with transformers and torch, in which tests/parity/reference.py runs."""

import collections
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import tokenizers

from realm_jax.text.byte_level import SPECIAL_PIECES as BART_PIECES
from realm_jax.text.byte_level import ByteLevelTokenizer
from realm_jax.text.tokenizer import SPECIAL_PIECES

SCRIPT = Path(__file__).parent / "reference.py"
PYTHON = Path(os.environ.get("REALM_JAX_PARITY_PYTHON") or SCRIPT.parents[2] / ".venv-parity" / "bin" / "python")
CLASSES = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "RealmEmbedder", "RealmScorer", "RealmScorer-untied",
           "RealmKnowledgeAugEncoder", "RealmReader", "RealmForOpenQA", "DPRQuestionEncoder", "DPRContextEncoder", "BartModel",
           "BartForConditionalGeneration", "RagModel", "RagSequenceForGeneration", "RagTokenForGeneration")  # fmt: skip
SIZES = [
    *(("tiny", kind) for kind in ("padded", "single", "one-candidate", "batch-1")),
    ("odd", "padded"), ("odd", "one-candidate"), ("wide", "padded"),
]  # fmt: skip
CASES = [f"{name}.{size}.{kind}" for name in CLASSES for size, kind in SIZES]

HARD = ["", " ", "\t\n", "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m", "e\u0301 combining", "\u65e5\u672c\u8a9e text", "\U0001f600!", "a\u200bb \u00adsoft", "\x00\x07 bell", "\ufffd",
        "x" * 101, "\u0130stanbul \u1e9e", "\u03a3\u03c3\u03c2", "don't-stop...\u2014\u201cquoted\u201d", "\uac00\ub098\ub2e4 \u0e01\u0e33", "\u2028line\u2029", "\u00bd \u2163 \ufb01"]  # fmt: skip


def run_reference(*arguments: str | Path) -> str:
    """Runs the script on the other side; fails, and does not skip, where there is none: these tests are asked for by name."""
    if not PYTHON.is_file():
        pytest.fail(
            f"no environment of the other side at {PYTHON}; `make parity` makes it, or set REALM_JAX_PARITY_PYTHON"
        )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(PYTHON), str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cases for every class, size and shape."""
    folder = tmp_path_factory.mktemp("reference")
    run_reference("models", folder)
    return folder


@pytest.fixture(scope="session")
def strings(shared_data: Path) -> list[str]:
    """Questions, answers and sentences of every question file, some long passages, and odd ones."""
    found = []
    for path in sorted((shared_data / "openqa").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == 400:
                    break
                record = json.loads(line)
                found += [record["question"], *record.get("answer", []), record.get("passage", "")[:1500]]
    kept = list(dict.fromkeys(text for text in found if isinstance(text, str)))
    assert len(kept) > 3000
    return [*HARD, *kept]


@pytest.fixture(scope="session")
def vocab(strings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frequent words, pieces of words and characters of the strings: some words whole, some cut, some unknown."""
    words = collections.Counter(re.findall(r"\w+|[^\w\s]", " ".join(strings).lower()))
    frequent = [word for word, _ in words.most_common(3000)]
    endings = collections.Counter(word[-n:] for word in frequent for n in (1, 2, 3) if len(word) > n)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    continuing = [f"##{ending}" for ending, _ in endings.most_common(800)]
    pieces = dict.fromkeys([*SPECIAL_PIECES, *letters, *frequent, *continuing, *(f"##{letter}" for letter in letters)])
    place = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    place.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return place


@pytest.fixture(scope="session")
def byte_level(strings: list[str]) -> ByteLevelTokenizer:
    """A BPE of 4000 pieces learnt from the strings, its special pieces where BART has them."""
    learnt = tokenizers.Tokenizer(tokenizers.models.BPE())
    learnt.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    learnt.train_from_iterator(strings, trainer)
    model = json.loads(learnt.to_str())["model"]
    pieces = [*BART_PIECES[:4], *sorted(model["vocab"], key=model["vocab"].__getitem__), BART_PIECES[4]]
    merges = [tuple(pair) for pair in model["merges"]]
    return ByteLevelTokenizer({piece: number for number, piece in enumerate(pieces)}, merges)
