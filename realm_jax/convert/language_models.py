"""Language models through the convert job: a Llama's folder with its tokenizer and its generation settings, in and out."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from realm_jax.convert.folder import CONFIG_FILE, GENERATION_FILE, read_settings
from realm_jax.convert.llama import ARCHITECTURE, LlamaFolder, language_model_settings, save_llama, shapes_of
from realm_jax.convert.model import Model, WeightsDtype
from realm_jax.convert.settings import Settings
from realm_jax.convert.tokenizer_files import write_generator_tokenizer
from realm_jax.models import LanguageModelConfig, RotaryConfig
from realm_jax.run_dir import write_json_atomically
from realm_jax.text.llama_tokenizer import LlamaTokenizer, is_llama_tokenizer
from realm_jax.training.sharding import MeshConfig, state_shardings


def is_language_model(path: Path, architecture: str) -> bool:
    """Whether a folder is to be read as a Llama: it is named one, or says so itself."""
    if architecture or not (path / CONFIG_FILE).is_file():
        return architecture == ARCHITECTURE
    named = read_settings(path / CONFIG_FILE).get("architectures")
    return named in (ARCHITECTURE, [ARCHITECTURE])


def read_language_model(path: Path, tokenizer: str = "") -> Model:
    """A folder's `language_model`, its matrices spread over all devices, each read into its place and none of them read twice.

    Args:
      path: of the folder.
      tokenizer: a folder of tokenizer.json or tokenizer.model; empty takes the model's own.

    Raises:
      FileNotFoundError, ValueError: see `LlamaFolder`, `LlamaTokenizer` and `with_ids_of`; there is no tokenizer.
    """
    if not tokenizer and not is_llama_tokenizer(path):
        raise ValueError(
            f"{path} has no tokenizer.json and no tokenizer.model; name the language model's tokenizer "
            "(--gin.convert.generator_tokenizer=FOLDER)"
        )
    chosen = LlamaTokenizer.from_folder(tokenizer or path)
    generation = read_settings(path / GENERATION_FILE) if (path / GENERATION_FILE).is_file() else {}
    with LlamaFolder(path) as folder:
        config = with_ids_of(chosen, folder.config, folder.settings)  # before anything large is read
        mesh = MeshConfig(data=1, fsdp=-1).build()
        params = folder.params(state_shardings(mesh, shapes_of(folder.config)))
    return Model(
        {"language_model": params},
        language_model=config,
        architecture=ARCHITECTURE,
        settings=folder.settings,
        generator_tokenizer=chosen,
        generation=generation,
    )


def with_ids_of(tokenizer: LlamaTokenizer, config: LanguageModelConfig, settings: Settings) -> LanguageModelConfig:
    """The configuration with the ids of a tokenizer. Of several pieces that may end a text (Llama 3), the one that the tokenizer names
    ends it here. Rows of the embeddings without a piece are padding.

    Raises:
      ValueError: the tokenizer has more pieces than the model has rows; config.json says other ids.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"expected a tokenizer of at most {config.vocab_size} pieces, as many as the language model has rows of embeddings; got "
            f"one of {tokenizer.vocab_size}: take the one that was saved with the weights, or resize the model's embeddings "
            "(resize_token_embeddings in transformers)"
        )
    for name in ("bos", "eos"):
        said, got = settings.get(f"{name}_token_id"), getattr(tokenizer, f"{name}_id")
        if said is not None and got not in (said if isinstance(said, list) else [said]):
            raise ValueError(
                f"the language model's tokenizer has {name}_id={got}, config.json says {said}; take the one that was saved with the "
                f"weights, or correct {name}_token_id in config.json"
            )
    return dataclasses.replace(config, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)


def write_language_model(path: Path, model: Model, dtype: WeightsDtype = "float32") -> None:
    """Writes a folder that LlamaForCausalLM.from_pretrained loads, with the tokenizer's files as they came.

    What the earlier config.json says beside sizes and numbers is kept, and generation_config.json as it was; without one transformers
    takes the ids from config.json.

    Args:
      path: a folder that is not there yet, or is empty.
      model: with a language model.
      dtype: of the weights.

    Raises:
      ValueError: it has no language model.
      FileExistsError: the folder holds something.
    """
    config = model.language_model
    if config is None:
        raise ValueError(f"{ARCHITECTURE} holds a language_model; this model has {', '.join(model.params) or 'none'}")
    save_llama(path, config, model.params["language_model"], dtype=jnp.dtype(dtype))
    said = language_model_settings(config)
    earlier = model.settings if model.settings.get("model_type") == "llama" else {}
    for name in ("eos_token_id", "pad_token_id"):  # several ids, and none, mean the same here
        if name in earlier and (earlier[name] is None or isinstance(earlier[name], list)):
            said[name] = earlier[name]
    write_json_atomically(path / CONFIG_FILE, {**earlier, **said, "torch_dtype": dtype})
    if model.generation and earlier:
        write_json_atomically(path / GENERATION_FILE, dict(model.generation))
    if model.generator_tokenizer is not None:
        write_generator_tokenizer(path, model.generator_tokenizer, config.max_length)


def language_model_of(record: Mapping[str, Any]) -> LanguageModelConfig:
    """The configuration that `dataclasses.asdict` made a record of."""
    return LanguageModelConfig(**{**record, "rotary": RotaryConfig(**record["rotary"])})
