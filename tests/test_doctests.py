"""The examples in the docstrings say what is so."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import realm_jax

ROOT = Path(realm_jax.__file__).parent
MODULES = sorted(
    ".".join(("realm_jax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if re.search(r"^\s+>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)
OPTIONAL = {"realm_jax.evaluation.lm_eval_adapter": "lm_eval"}
"""Modules that need a package which the tests do without, and that package."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    ran = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert ran.attempted > 0 and ran.failed == 0
