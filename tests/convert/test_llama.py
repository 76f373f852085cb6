"""Llama folders: written and read back, in parts, on eight devices, and whatever may be wrong with them."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from realm_jax.convert import llama
from realm_jax.convert.llama import LlamaFolder, language_model_config, language_model_settings, save_llama, shapes_of
from realm_jax.models import LanguageModelConfig, RotaryConfig
from realm_jax.training.sharding import MeshConfig, state_shardings

CONFIG = LanguageModelConfig(
    vocab_size=24, hidden_size=16, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=24, max_length=64
)
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def made(config=CONFIG):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes_of(config))


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "changes", [{}, {"tied_output": True, "attention_bias": True, "head_dim": 6}], ids=["plain", "odd"]
)
def test_out_and_in_again(changes, tmp_path: Path):
    config = dataclasses.replace(CONFIG, **changes)
    params = made(config)
    save_llama(tmp_path / "whole", config, params)
    save_llama(tmp_path / "shards", config, params, max_shard_bytes=4000)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["config.json", "model.safetensors"]
    shards = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = [
        sum(value.nbytes for value in safetensors.numpy.load_file(tmp_path / "shards" / name).values())
        for name in shards
    ]
    assert max(sizes) <= 4000
    for folder in ("whole", "shards"):
        with LlamaFolder(tmp_path / folder) as opened:
            assert opened.config == config
            same(opened.params(HERE), params)


def test_every_device_reads_its_own_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No array that is read is larger than what a device holds of it."""
    params = made()
    save_llama(tmp_path / "model", CONFIG, params)
    mesh = MeshConfig(data=1, fsdp=4, tensor=2).build()
    shardings = state_shardings(mesh, shapes_of(CONFIG))
    read, original = {}, LlamaFolder.read

    def counted(self, path, index, dtype=np.float32):
        found = original(self, path, index, dtype)
        read.setdefault(path, []).append(found.size)
        return found

    monkeypatch.setattr(LlamaFolder, "read", counted)
    with LlamaFolder(tmp_path / "model") as opened:
        placed = opened.params(shardings)
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    kernel = placed["layers"]["attention"]["query"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert max(read["layers/attention/query/kernel"]) == kernel.size // 8
    assert max(read["output"]) == placed["output"].size // 8
    assert placed["layers"]["feed_forward"]["wo"]["kernel"].addressable_shards[0].data.size == 4 * 24 * 16 // 8


def test_a_model_that_only_reads_is_bfloat16(tmp_path: Path):
    save_llama(tmp_path / "model", CONFIG, made())
    with LlamaFolder(tmp_path / "model") as opened:
        half = opened.params(HERE, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    save_llama(tmp_path / "half", CONFIG, half)
    with LlamaFolder(tmp_path / "half") as opened:
        same(opened.params(HERE, jnp.bfloat16), half)


@pytest.mark.parametrize(
    "rotary",
    [
        RotaryConfig(theta=5e5),
        RotaryConfig(scaling="linear", factor=2.0),
        RotaryConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_length=8192),
    ],
    ids=["plain", "linear", "llama3"],
)
def test_settings_there_and_back(rotary):
    config = dataclasses.replace(CONFIG, rotary=rotary, bos_id=3, eos_id=4, pad_id=5)
    assert language_model_config(language_model_settings(config)) == config
    newer = language_model_settings(config)
    newer["rope_parameters"] = {
        "rope_theta": newer.pop("rope_theta"),
        **(newer.pop("rope_scaling") or {"rope_type": "default"}),
    }
    assert language_model_config(newer) == config


def test_what_llama_folders_say_and_leave_out():
    least = {
        "vocab_size": 24,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 8,
    }
    found = language_model_config(least)
    assert (found.num_kv_heads, found.max_length, found.rms_norm_eps) == (4, 2048, 1e-6)
    assert (found.bos_id, found.eos_id, found.pad_id) == (1, 2, 0)
    found = language_model_config(least | {"eos_token_id": [7, 8], "pad_token_id": -1, "num_key_value_heads": 2})
    assert (found.eos_id, found.pad_id, found.num_kv_heads) == (7, 0, 2)
    for wrong, message in (
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only 'silu'"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0, expected a whole number above 0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "of the kind 'dynamic'; only default, linear, llama3"),
        ({"rope_scaling": [1]}, "no object"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor='2', expected a number"),
        ({"bos_token_id": "1"}, "bos_token_id='1', expected a token id"),
        ({"vocab_size": None}, "no whole number above 0 for vocab_size"),
    ):
        with pytest.raises(ValueError, match=message):
            language_model_config(least | wrong)


def test_damaged_folders_are_refused_by_name(tmp_path: Path):
    save_llama(tmp_path / "model", CONFIG, made(), max_shard_bytes=4000)
    first = sorted((tmp_path / "model").glob("*.safetensors"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{first.name} is damaged, cut short"):
        LlamaFolder(tmp_path / "model")
    content = safetensors.numpy.load(whole)
    for change, message in (
        ({"model.embed_tokens.weight": None}, "model.embed_tokens.weight is missing"),
        (
            {"model.embed_tokens.weight": np.zeros((3, 16), np.float32)},
            r"model.embed_tokens.weight is \[3, 16\], expected \[24, 16\]",
        ),
        ({"score.weight": np.zeros((1, 16), np.float32)}, "score.weight has no place in the model"),
    ):
        changed = {name: value for name, value in (content | change).items() if value is not None}
        safetensors.numpy.save_file(changed, first)
        with pytest.raises(ValueError, match=message):
            LlamaFolder(tmp_path / "model")
    safetensors.numpy.save_file(
        content | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)}, first
    )
    LlamaFolder(tmp_path / "model").__exit__()  # constants of older files
    first.unlink()
    with pytest.raises(FileNotFoundError, match=f"names {first.name}, not in"):
        LlamaFolder(tmp_path / "model")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "config.json").write_text(json.dumps(language_model_settings(CONFIG)))
    (tmp_path / "torch" / "pytorch_model.bin").write_bytes(b"0")
    with pytest.raises(ValueError, match="torch file, which cannot be read in parts"):
        LlamaFolder(tmp_path / "torch")
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        LlamaFolder(tmp_path)
    with pytest.raises(FileExistsError, match="holds something"):
        save_llama(tmp_path / "torch", CONFIG, made())


def test_every_parameter_has_a_name():
    for config in (CONFIG, dataclasses.replace(CONFIG, tied_output=True, attention_bias=True)):
        found = llama._wanted(config)
        assert sum(int(np.prod(one.shape)) for one in found.values()) == sum(
            leaf.size for leaf in jax.tree.leaves(shapes_of(config))
        )
