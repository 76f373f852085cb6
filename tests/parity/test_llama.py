"""The language model against transformers' Llama on the same random weights: logits close, greedy and beam search identical."""

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.convert.llama import LlamaFolder
from realm_jax.models import LanguageModel, empty_continuation
from tests.parity.conftest import PYTHON

pytestmark = pytest.mark.parity

SCRIPT = Path(__file__).parent / "llama_reference.py"
CASES = ("llama2", "grouped", "linear", "tied")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert PYTHON.is_file(), f"no environment of the other side at {PYTHON}; `make parity` makes it"
    place = tmp_path_factory.mktemp("llama")
    done = subprocess.run([str(PYTHON), str(SCRIPT), str(place)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_search(name: str, folder: Path):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with LlamaFolder(folder / name) as opened:
        config, params = opened.config, opened.params(here)
    theirs = np.load(folder / f"{name}.npz")
    ids = jnp.asarray(theirs["ids"], jnp.int32)
    model = LanguageModel(config)
    logits = model.apply({"params": params}, ids, jnp.ones_like(ids))
    assert np.abs(theirs["logits"]).max() > 3
    np.testing.assert_allclose(logits, theirs["logits"], atol=1e-4)

    steps = theirs["generated"].shape[1] - ids.shape[1]
    prompt = model.apply({"params": params}, ids[:, :-1], jnp.ones_like(ids[:, :-1], bool), method="read_prompts")
    cache, tokens, found = empty_continuation(config, len(ids), 1, steps), ids[:, -1:], []
    step = jax.jit(lambda *arrays: model.apply({"params": params}, *arrays, method="step"))
    ended = np.zeros(len(ids), bool)
    for position in range(steps):
        logits, cache = step(tokens, jnp.int32(position), prompt, cache)
        tokens = logits.argmax(axis=-1).astype(jnp.int32)
        found.append(np.where(ended, 0, np.asarray(tokens[:, 0])))
        ended |= found[-1] == config.eos_id
    np.testing.assert_array_equal(np.stack(found, axis=1), theirs["generated"][:, ids.shape[1] :])
