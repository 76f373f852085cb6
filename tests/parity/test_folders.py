"""DRAGON, Contriever and Llama through the convert job: the same embeddings as torch's, and folders that the Auto classes load."""

import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.convert.job import convert
from realm_jax.convert.run_files import read_run
from realm_jax.models import LanguageModel, Retriever
from realm_jax.run_dir import RunDir
from realm_jax.text.loading import load_generator_tokenizer
from tests.convert.made_llama import llama_folder
from tests.parity.conftest import PYTHON

pytestmark = pytest.mark.parity

SCRIPT = Path(__file__).parent / "folders_reference.py"
IDS = jnp.array(
    [[2, 7, 9, 11, 30, 3, 0, 0], [2, 5, 3, 0, 0, 0, 0, 0], [2, 8, 8, 12, 20, 21, 22, 3]], jnp.int32
)  # of the script


def run(command: str, folder: Path) -> str:
    assert PYTHON.is_file(), f"no environment of the other side at {PYTHON}; `make parity` makes it"
    done = subprocess.run([str(PYTHON), str(SCRIPT), command, str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def embeds(place: RunDir, side: str) -> np.ndarray:
    model = read_run(place)
    params = {"params": model.params["retriever"]}
    embed = jax.jit(
        lambda ids: Retriever(model.retriever).apply(params, ids, ids * 0, ids != 0, method=f"embed_{side}")
    )
    return np.asarray(embed(IDS))


def test_retrievers(tmp_path: Path):
    run("make", tmp_path)
    dragon, contriever = RunDir.of(tmp_path / "dragon"), RunDir.of(tmp_path / "contriever-run")
    convert(
        run_dir=str(dragon.path),
        source=str(tmp_path / "dragon-query"),
        document_embedder=str(tmp_path / "dragon-context"),
    )
    convert(run_dir=str(contriever.path), source=str(tmp_path / "contriever"))
    for place, side, name in (
        (dragon, "queries", "dragon-query"),
        (dragon, "documents", "dragon-context"),
        (contriever, "queries", "contriever"),
        (contriever, "documents", "contriever"),
    ):
        theirs = np.load(tmp_path / f"{name}.npy")
        assert np.abs(theirs).max() > 1
        np.testing.assert_allclose(embeds(place, side), theirs, atol=1e-5 * np.abs(theirs).max(), err_msg=name)
    for place, side, name in (
        (dragon, "query", "dragon-query"),
        (dragon, "document", "dragon-context"),
        (contriever, "query", "contriever"),
    ):
        out = tmp_path / f"{name}-out"
        convert(run_dir=str(place.path), direction="out", side=side, destination=str(out))
        said = json.loads(run("embed", out))
        assert said == {"missing": [], "unexpected": [], "ids": [2, 5, 6, 30, 3]}
        np.testing.assert_array_equal(np.load(out / "embeds.npy"), np.load(tmp_path / f"{name}.npy"))


@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_a_language_model_goes_out(kind: str, tmp_path: Path):
    folder, place = llama_folder(tmp_path / "theirs", kind), RunDir.of(tmp_path / "run")
    convert(run_dir=str(place.path), source=str(folder))
    convert(run_dir=str(place.path), direction="out", destination=str(tmp_path / "out"))
    said = json.loads(run("generate", tmp_path / "out"))
    assert (said["class"], said["missing"], said["unexpected"]) == ("LlamaForCausalLM", [], [])
    model = read_run(place)
    tokenizer = load_generator_tokenizer(place.weights / "generator_tokenizer")
    begin = [tokenizer.bos_id] if kind == "llama2" else []  # the other class puts it there only as tokenizer.json says
    ids = [*begin, *tokenizer.encode("The lower river was").ids.tolist()]
    assert ids == said["ids"]
    rows = jnp.asarray([ids], jnp.int32)
    apply = jax.jit(
        lambda rows: LanguageModel(model.language_model).apply(
            {"params": model.params["language_model"]}, rows, rows * 0 + 1
        )
    )
    np.testing.assert_allclose(apply(rows), np.load(tmp_path / "out" / "logits.npy"), atol=1e-4)
    assert tokenizer.decode(said["generated"]) == said["text"]
