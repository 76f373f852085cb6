"""The other side: an environment with transformers and torch, in which tests/parity/reference.py runs."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "reference.py"
PYTHON = Path(os.environ.get("REALM_JAX_PARITY_PYTHON") or SCRIPT.parents[2] / ".venv-parity" / "bin" / "python")
CLASSES = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "RealmEmbedder", "RealmScorer", "RealmScorer-untied",
           "RealmKnowledgeAugEncoder", "RealmReader", "RealmForOpenQA")  # fmt: skip
SIZES = [
    *(("tiny", kind) for kind in ("padded", "single", "one-candidate", "batch-1")),
    ("odd", "padded"), ("odd", "one-candidate"), ("wide", "padded"),
]  # fmt: skip
CASES = [f"{name}.{size}.{kind}" for name in CLASSES for size, kind in SIZES]


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
