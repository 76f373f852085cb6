"""A Llama with `llama3` rotary scaling, grouped queries and a head_dim of its own, against transformers' logits of the same weights.

tests/parity/llama3.npz is written by tests/parity/llama3_reference.py, which draws the weights, too, and says with which versions.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.convert.llama import LlamaFolder
from realm_jax.models import LanguageModel
from tests.parity.llama3_reference import ROTARY, SETTINGS, write_folder

GOLDEN = Path(__file__).parents[1] / "parity" / "llama3.npz"
NEWER = {  # as transformers 5 writes it
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": {"rope_theta": SETTINGS["rope_theta"], "rope_type": "llama3", **ROTARY},
}


def logits_of(folder: Path, ids: np.ndarray) -> np.ndarray:
    with LlamaFolder(folder) as opened:
        config, params = opened.config, opened.params(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    read = jax.jit(LanguageModel(config).apply)
    return np.asarray(read({"params": params}, jnp.asarray(ids), jnp.ones_like(ids)))


@pytest.mark.parametrize("changes", [{}, NEWER], ids=["rope_scaling", "rope_parameters"])
def test_logits_are_those_of_transformers(changes, tmp_path: Path):
    golden = np.load(GOLDEN)
    ids = write_folder(tmp_path, **changes)
    np.testing.assert_array_equal(ids, golden["ids"])  # the last of what is drawn: the weights are those, too
    assert ids.shape[1] == 2 * ROTARY["original_max_position_embeddings"] and np.abs(golden["logits"]).max() > 5
    np.testing.assert_allclose(logits_of(tmp_path, ids), golden["logits"], atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"factor": 4.0}, {"low_freq_factor": 1.5}, {"high_freq_factor": 3.0}, {"original_max_position_embeddings": 32}],
    ids=lambda changes: next(iter(changes)),
)
def test_every_number_of_the_scaling_moves_them(changes, tmp_path: Path):
    """So far that the comparison above would tell: a thousand times its tolerance."""
    ids = write_folder(tmp_path, rope_scaling={"rope_type": "llama3", **ROTARY, **changes})
    assert np.abs(logits_of(tmp_path, ids) - np.load(GOLDEN)["logits"]).max() > 0.1
