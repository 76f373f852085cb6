"""What of a generator the searches know: a step over beams, and its empty caches. The one place that tells its kinds apart."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int32

from realm_jax.generation import language_model_stepping, stepping
from realm_jax.generation.language_model_scoring import read_with_prompts
from realm_jax.generation.scoring import read_with_documents
from realm_jax.generation.settings import GenerationConfig, TokenIds
from realm_jax.generation.stepping import Caches, Params, Step
from realm_jax.models import EncoderDecoderConfig, LanguageModelConfig

GeneratorConfig = EncoderDecoderConfig | LanguageModelConfig


Score = Callable[
    [Int32[Array, "batch hypotheses target_len"], Int32[Array, "batch hypotheses"], Int32[Array, ""]],
    Float[Array, "batch hypotheses num_documents"],
]


class Ready(NamedTuple):
    """A generator that has read its sources, a row of beams for each."""

    step: Step
    caches: Caches  # before the first step
    score: Score | None = None  # finished hypotheses; see `scoring.read_with_documents`


def read_sources(
    params: Params,
    config: GeneratorConfig,
    ids: Int32[Array, "sources source_len"],
    mask: Bool[Array, "sources source_len"],
    generation: GenerationConfig,
) -> Ready:
    """The generator ready to write after its sources: what an encoder reads, or the prompts that a language model continues."""
    shape = (len(ids), generation.num_found, generation.target_len)
    if isinstance(config, LanguageModelConfig):
        prompt, last = language_model_stepping.read_prompts(params, config, ids, mask)
        return Ready(
            language_model_stepping.stepper(params, config, prompt, last),
            language_model_stepping.empty_caches(config, *shape),
            functools.partial(read_with_prompts, params, config, prompt, last),
        )
    sources = stepping.encoded(params, config, ids, mask)
    step, empty = stepping.stepper(params, config, sources), stepping.empty_caches(config, *shape)
    return Ready(step, empty, functools.partial(read_with_documents, step, empty, tokens=token_ids(config)))


def token_ids(config: GeneratorConfig) -> TokenIds:
    """The ids that mean something to the model. A language model is made to write none."""
    if isinstance(config, LanguageModelConfig):
        return TokenIds(config.pad_id, config.bos_id, config.eos_id, config.bos_id, None, None)
    return TokenIds(
        pad=config.pad_id,
        bos=config.bos_id,
        eos=config.eos_id,
        decoder_start=config.decoder_start_id,
        forced_bos=config.forced_bos_id,
        forced_eos=config.forced_eos_id,
    )


def check_lengths(config: GeneratorConfig, generation: GenerationConfig, source_len: int = 1) -> None:
    """Refuses to generate beyond the model's positions, of which a language model's sources take theirs.

    Raises:
      ValueError: naming both.
    """
    taken = source_len - 1 if isinstance(config, LanguageModelConfig) else 0  # the last token is the first step's
    if generation.target_len > config.max_length - taken:
        beside = f", {taken} of them the prompt's" if taken else ""
        raise ValueError(
            f"GenerationConfig.max_length: expected at most {config.max_length - taken + 1}, since the model has {config.max_length} "
            f"positions{beside}, got {generation.max_length}; generate less{' or shorten the prompt' if taken else ''}"
        )
