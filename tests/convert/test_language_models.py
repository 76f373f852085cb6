"""Llama folders through the convert job: a run that others start from, and a folder again."""

import dataclasses
import json
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from realm_jax.__main__ import main
from realm_jax.convert import Model, load_hugging_face, save_hugging_face
from realm_jax.convert.job import convert
from realm_jax.convert.run_files import read_run
from realm_jax.models import LanguageModel, RotaryConfig
from realm_jax.models.lora import LORA, LoraConfig
from realm_jax.run_dir import RunDir, write_text_atomically
from realm_jax.text.loading import load_generator_tokenizer
from realm_jax.training.checkpoint import NO_VERSION, Checkpoints, ResumeUnit, check_tokenizer, load_params
from realm_jax.training.state import TrainState
from tests.convert.made_llama import SMALL, llama_folder, random_params, with_ids
from tests.text.made_llama import write_llama2, write_llama3


def same(one, other):
    assert jax.tree.structure(dict(one)) == jax.tree.structure(dict(other))
    jax.tree.map(np.testing.assert_array_equal, dict(one), dict(other))


@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_in_and_out_again_is_exact(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder, run = llama_folder(tmp_path / "theirs", kind), RunDir.of(tmp_path / "run")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [323, 321]}')
    assert len(list(folder.glob("*.safetensors"))) > 3
    with caplog.at_level("INFO", logger="realm_jax"):
        assert main(["convert", f"--run_dir={run.path}", f"--gin.convert.source={folder}"]) == 0
    assert f"--gin.corpus.generator_tokenizer={run.weights / 'generator_tokenizer'}" in caplog.text
    assert f"--gin_file={run.weights / 'language_model.gin'} --gin.train.warm_start=\"('{run.path}',)\"" in caplog.text
    step, params = load_params(run)
    assert step == 0
    same(params, {"language_model": random_params(SMALL)})
    tokenizer = load_generator_tokenizer(run.weights / "generator_tokenizer")
    check_tokenizer(run, tokenizer.fingerprint, kind="generator_tokenizer")
    with pytest.raises(ValueError, match="was trained on the pieces of tokenizer"):
        check_tokenizer(run, "0" * 64, kind="generator_tokenizer")

    convert(run_dir=str(run.path), direction="out")
    out = run.path / "weights-out" / "LlamaForCausalLM"
    again = load_hugging_face(out)
    same(again.params, params)
    assert again.language_model == with_ids(kind)
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (out, folder))
    assert ours == theirs | {"torch_dtype": "float32"}  # the several ids that end a text, and no padding
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.6
    assert (out / "tokenizer.model").exists() == (kind == "llama2") and not (out / "settings.json").exists()


def test_the_gin_file_sets_the_configuration(tmp_path: Path):
    rope = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}  # fmt: skip
    folder, run = llama_folder(tmp_path / "theirs", "llama3", **rope), RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(folder))
    text = (run.weights / "language_model.gin").read_text()
    gin.clear_config()
    gin.parse_config(text)
    bound = gin.get_configurable("language_model.LanguageModelConfig")()
    gin.clear_config()
    rotary = RotaryConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_length=32)
    assert bound == dataclasses.replace(with_ids("llama3"), rotary=rotary) == read_run(run).language_model
    # how it runs, and what of it is trained, the run file says
    assert not any(line.strip().startswith(("dtype", "remat", "lora", "unroll_layers")) for line in text.split("\n"))


def test_weights_of_half_the_size(tmp_path: Path):
    folder, run = llama_folder(tmp_path / "theirs"), str(tmp_path / "run")
    convert(run_dir=run, source=str(folder))
    convert(run_dir=run, direction="out", destination=str(tmp_path / "half"), dtype="bfloat16")
    tensors = safetensors.numpy.load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {np.dtype(jnp.bfloat16)}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    table = random_params(SMALL)["token_embedding"]["embedding"]
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], table.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="dtype='bfloat16' is for LlamaForCausalLM; a BertModel is written in float32"):
        save_hugging_face(tmp_path / "bert", "BertModel", Model({}), dtype="bfloat16")


def test_a_tokenizer_of_other_pieces_is_refused(tmp_path: Path):
    folder, run = llama_folder(tmp_path / "theirs", vocab_size=344), str(tmp_path / "run")
    added = {str(number): {"content": f"<{number}>", "special": True} for number in range(340, 345)}
    larger = write_llama2(tmp_path / "larger", "model", added_tokens_decoder=added)
    with pytest.raises(
        ValueError,
        match=r"expected a tokenizer of at most 344 pieces, .* rows of embeddings; got one of 345: take .* or resize",
    ):
        convert(run_dir=run, source=str(folder), generator_tokenizer=str(larger))
    other = write_llama3(tmp_path / "other")
    with pytest.raises(ValueError, match=r"tokenizer has bos_id=320, config.json says 1; .* or correct bos_token_id"):
        convert(run_dir=run, source=str(folder), generator_tokenizer=str(other))
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink()
    with pytest.raises(
        ValueError, match=r"has no tokenizer.json and no tokenizer.model; name .*generator_tokenizer=FOLDER"
    ):
        convert(run_dir=run, source=str(folder))
    with pytest.raises(
        ValueError, match=r"tokenizer='x' is a retriever's, and .* is a generator; name generator_tokenizer"
    ):
        convert(
            run_dir=run,
            source=str(folder),
            tokenizer="x",
            generator_tokenizer=str(write_llama2(tmp_path / "own", "model")),
        )
    assert not Path(run).exists()
    convert(run_dir=run, source=str(folder), generator_tokenizer=str(tmp_path / "own"))
    assert (tmp_path / "run" / "weights" / "generator_tokenizer" / "tokenizer.model").is_file()


def test_damaged_folders_are_refused_by_name(tmp_path: Path):
    folder, run = llama_folder(tmp_path / "theirs"), str(tmp_path / "run")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=rf"{first.name} is damaged, cut short or no safetensors file .*fetch it again"
    ):
        convert(run_dir=run, source=str(folder))
    first.write_bytes(whole)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=rf"names {second.name}, not in .*fetch the folder again"):
        convert(run_dir=run, source=str(folder))
    assert not Path(run).exists()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights; expected model.safetensors"):
        convert(run_dir=run, source=str(folder))
    with pytest.raises(ValueError, match=r"names MistralForCausalLM under architectures; say which class"):
        convert(run_dir=run, source=str(llama_folder(tmp_path / "other", architectures=["MistralForCausalLM"])))


def test_no_language_model_goes_out_of_a_retriever(tmp_path: Path):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM holds a language_model; this model has retriever"):
        save_hugging_face(tmp_path / "out", "LlamaForCausalLM", Model({"retriever": {}}))


RUN_FILE = """from __gin__ import dynamic_registration
from realm_jax.models import language_model
from realm_jax.models import lora
from realm_jax.tasks import language_modeling
from realm_jax.training import loop
from realm_jax.training import optimizer

loop.train:
  task = @language_modeling.LanguageModeling()
  optimizer = @optimizer.OptimizerConfig()
  num_steps = 3
  batch_size = 8
language_modeling.LanguageModeling:
  corpus = 'nowhere'
  language_model = @language_model.LanguageModelConfig()
  tokenizer = '{tokenizer}'
  length = 32
language_model.LanguageModelConfig:
  lora = @lora.LoraConfig()
lora.LoraConfig:
  rank = 2
  alpha = 4.0
  products = ('query', 'wo')
"""


def test_a_trained_run_goes_out_with_its_adapter_added(tmp_path: Path):
    small = dataclasses.replace(with_ids("llama3"), num_layers=1)
    adapted = dataclasses.replace(small, lora=LoraConfig(rank=2, alpha=4.0, products=("query", "wo")))
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(LanguageModel(adapted).init, jax.random.key(0), ids, ids)
    rng = np.random.default_rng(1)
    made = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), dict(shapes))
    run, tokenizer = RunDir.of(tmp_path / "run"), write_llama3(tmp_path / "tokenizer")
    run.path.mkdir()
    fields = [field.name for field in dataclasses.fields(small) if field.name not in ("rotary", "lora")]
    bound = "".join(f"language_model.LanguageModelConfig.{name} = {getattr(small, name)!r}\n" for name in fields)
    write_text_atomically(run.config_file("train"), RUN_FILE.format(tokenizer=tokenizer) + bound)
    zero = jnp.zeros((), jnp.int32)
    for step, learners in ((3, {"adapter": made[LORA]}), (4, {})):
        checkpoints = Checkpoints(run, identity={})
        params = {"language_model": made["params"], **learners}
        checkpoints.save(step, ResumeUnit(TrainState(zero, params, {}, zero), NO_VERSION, None))
        checkpoints.close()

    out = tmp_path / "out"
    convert(run_dir=str(run.path), direction="out", architecture="LlamaForCausalLM", destination=str(out), step=3)
    again = load_hugging_face(out)
    assert again.language_model == small and again.generator_tokenizer.vocab_size == 324
    got, before = again.params["language_model"], made["params"]
    for part, name in (("attention", "query"), ("feed_forward", "wo")):
        matrices = made[LORA]["layers"][part][name]
        added = 2.0 * matrices["lora_a"] @ matrices["lora_b"]  # alpha / rank
        expected = before["layers"][part][name]["kernel"] + added
        np.testing.assert_allclose(got["layers"][part][name]["kernel"], expected, atol=1e-5)
        assert np.abs(added).max() > 1
    np.testing.assert_array_equal(
        got["layers"]["attention"]["key"]["kernel"], before["layers"]["attention"]["key"]["kernel"]
    )
    with pytest.raises(ValueError, match=r"with an adapter .* its checkpoint holds language_model; expected adapter"):
        convert(run_dir=str(run.path), direction="out", architecture="LlamaForCausalLM")
