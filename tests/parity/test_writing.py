"""What realm_jax writes, loaded by the Hugging Face classes: nothing missing, nothing unexpected, every value the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors

from realm_jax.convert import load_hugging_face, save_hugging_face
from tests.parity.conftest import CLASSES, run_reference

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", CLASSES)
def test_from_pretrained_takes_it(name: str, reference: Path, tmp_path: Path):
    model = load_hugging_face(reference / f"{name}.odd.padded" / "model")
    save_hugging_face(tmp_path / "ours", model.architecture, model)
    run_reference("load", tmp_path / "ours", tmp_path / "loaded.safetensors")
    with safetensors.safe_open(tmp_path / "loaded.safetensors", framework="numpy") as file:
        said = {key: json.loads(value) for key, value in file.metadata().items()}
        loaded = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert said["missing_keys"] == said["unexpected_keys"] == said["mismatched_keys"] == []
    with safetensors.safe_open(tmp_path / "ours" / "model.safetensors", framework="numpy") as file:
        written = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert len(written) > 20 and set(written) <= set(loaded)
    for key, value in written.items():
        np.testing.assert_array_equal(loaded[key], value, err_msg=key)
