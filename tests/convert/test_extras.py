"""What `make convert-extras` asks for is tested, and not skipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.convert.extras import needs_package


def test_what_is_not_there_is_skipped_or_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REALM_JAX_CONVERT_EXTRAS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs nowhere_at_all: pip install it"):
        needs_package("nowhere_at_all", "pip install it")
    monkeypatch.setenv("REALM_JAX_CONVERT_EXTRAS", "1")
    with pytest.raises(pytest.fail.Exception, match="needs nowhere_at_all: pip install it"):
        needs_package("nowhere_at_all", "pip install it")
    assert (needs_package("jax", "") / "numpy").is_dir()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_target_runs_every_file_that_needs_a_package(repository: Path):
    # this test runs under make itself, whose flags must not reach the one that is asked
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "-n", "convert-extras"]
    done = subprocess.run(command, cwd=repository, env=clean, capture_output=True, text=True, timeout=60)
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("REALM_JAX_CONVERT_EXTRAS=1 ")
    files = [path for path in (repository / "tests").rglob("test_*.py") if "needs_package(" in path.read_text()]
    named = {path.relative_to(repository).as_posix() for path in files}
    assert len(named) == 4 and named <= set(last.split())
