"""Each test that SECURITY.md names is there."""

import re
from pathlib import Path


def test_the_tests_that_it_names_are_there(repository: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (repository / "SECURITY.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^def {test}\(", (repository / file).read_text(), re.MULTILINE), f"{file}::{test}"
