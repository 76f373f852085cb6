"""The language model against transformers' Llama on the same random weights: logits close, what greedy and beam
search write identical, the scores of beams close."""

import dataclasses
import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.convert.llama import LlamaFolder
from realm_jax.generation import GenerationConfig
from realm_jax.generation.generator import generate
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


@pytest.mark.parametrize("name", CASES)
def test_beam_search(name: str, folder: Path):
    """All hypotheses of every prompt, under several length penalties and rules of stopping; without a least length, which is 0 there."""
    with LlamaFolder(folder / name) as opened:
        config, params = opened.config, opened.params(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    made = json.loads((folder / f"{name}.json").read_text())
    config = dataclasses.replace(config, eos_id=made["eos"])
    ids = jnp.asarray(np.load(folder / f"{name}.npz")["ids"], jnp.int32)
    lengths = []
    for key, settings in made["settings"].items():
        search = GenerationConfig(max_length=13, min_length=0, num_hypotheses=settings["num_beams"], **settings)
        found = generate(params, ids, jnp.ones_like(ids, bool), config=config, generation=search)
        ours = [
            [tokens[:length].tolist() for tokens, length in zip(*row, strict=True)]
            for row in zip(np.asarray(found.ids), np.asarray(found.lengths), strict=True)
        ]
        theirs = made["beams"][key]
        assert ours == [[tokens for tokens, _ in row] for row in theirs], key
        scores = [[score for _, score in row] for row in theirs]
        np.testing.assert_allclose(found.scores, scores, atol=1e-4, err_msg=key)
        lengths += np.asarray(found.lengths).ravel().tolist()
    assert len(set(lengths)) >= 5 and min(lengths) < 12 == max(lengths)  # some end by themselves, and some do not
