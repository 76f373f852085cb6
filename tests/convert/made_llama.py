"""Small Llama folders of weights, with their tokenizers."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from realm_jax.convert.folder import read_settings
from realm_jax.convert.llama import save_llama, shapes_of
from realm_jax.models import LanguageModelConfig
from tests.text.made_llama import write_json, write_llama2, write_llama3

SMALL = LanguageModelConfig(
    vocab_size=344, hidden_size=16, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=24, max_length=64
)


def random_params(config: LanguageModelConfig) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, shapes_of(config))


def llama_folder(place: Path, kind: str = "llama2", max_shard_bytes: int = 20_000, **changes: Any) -> Path:
    """A folder of several shards; `kind`: llama2 (tokenizer.json and tokenizer.model), llama3; `changes` of config.json."""
    save_llama(place, SMALL, random_params(SMALL), max_shard_bytes=max_shard_bytes)
    (write_llama2 if kind == "llama2" else write_llama3)(place)
    ids = {"pad_token_id": None}
    if kind == "llama3":
        ids |= {"bos_token_id": 320, "eos_token_id": [323, 321]}
    write_json(place / "config.json", read_settings(place / "config.json") | ids | changes)
    return place


def with_ids(kind: str) -> LanguageModelConfig:
    """The configuration with the ids of the tokenizer."""
    ids = {"bos_id": 1, "eos_id": 2, "pad_id": 0} if kind == "llama2" else {"bos_id": 320, "eos_id": 321, "pad_id": 321}
    return dataclasses.replace(SMALL, **ids)
