"""Packages of the optional extras: their tests are skipped without them, and `make convert-extras` lets none be skipped."""

import importlib.util
import os
from pathlib import Path

import pytest


def needs_package(module: str, install: str) -> Path:
    """The folder of an installed package, which is not imported.

    Without it the test is skipped, or fails where REALM_JAX_CONVERT_EXTRAS is set: there the package was to be there.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        (pytest.fail if os.environ.get("REALM_JAX_CONVERT_EXTRAS") else pytest.skip)(f"needs {module}: {install}")
    return Path(found.origin).parent
