"""A trained language model, ready to be used: its newest checkpoint, an adapter merged into it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from realm_jax.models import LanguageModelConfig, check_heads, merge_lora
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import check_tokenizer, learners, load_params


def load_language_model(
    run_dir: str, config: LanguageModelConfig, tokenizer: str, step: int | None = None, mesh: Mesh | None = None
) -> tuple[int, LanguageModelConfig, dict[str, Any]]:
    """Parameters of a run's language model.

    Args:
      run_dir: trained with `language_modeling` or `instruction_tuning`, or converted.
      config: its shape; with an adapter, where the run has trained one.
      tokenizer: fingerprint of the tokenizer that texts will be read with.
      step: which checkpoint; None for the newest.
      mesh: where they shall lie, see `load_params`.

    Returns:
      (step, the shape without adapter, parameters).

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: a run without a language model, with another tokenizer, or with an adapter where none is expected or the other way
        around; a mesh whose tensor axis does not divide the heads.
    """
    run = RunDir.of(run_dir)
    if mesh is not None:
        check_heads(config, mesh.shape["tensor"])
    check_language_model(run, config, tokenizer, step)
    found, params = load_params(run, step, mesh)
    return found, dataclasses.replace(config, lora=None), merged(params, config)


def check_language_model(run: RunDir, config: LanguageModelConfig, tokenizer: str, step: int | None = None) -> None:
    """Refuses what `load_language_model` does, before anything large is read."""
    trained = learners(run, step)
    wanted = ("language_model",) if config.lora is None else ("language_model", "adapter")
    if not set(wanted) <= set(trained):
        raise ValueError(
            f"{run.path} has trained {', '.join(trained)}, expected a {' and an '.join(wanted)}; name a run of a language model, "
            "and set LanguageModelConfig.lora as it was trained"
        )
    if config.lora is None and "adapter" in trained:
        raise ValueError(
            f"{run.path} has trained an adapter, which LanguageModelConfig.lora=None would leave out; set it as it was trained, in the "
            "run files by the macro LORA and lora.LoraConfig"
        )
    check_tokenizer(run, tokenizer, step, kind="generator_tokenizer")


def merged(params: Mapping[str, Any], config: LanguageModelConfig) -> dict[str, Any]:
    """The language model's parameters out of a checkpoint's, an adapter merged into them; where they lie on a mesh, they stay there."""
    own = dict(params["language_model"])
    if config.lora is None:
        return own
    whole: dict[str, Any] = jax.tree.map(
        lambda leaf, before: jax.device_put(leaf, before.sharding) if isinstance(before, jax.Array) else leaf,
        merge_lora(own, params["adapter"], config.lora),
        own,
    )
    return whole
