"""A language model's next-token loss over packed rows, and its pre-training on a corpus's own documents.

It stands in for Llama where a run begins from random parameters; `tasks.instruction_tuning` goes on from either.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from realm_jax import losses
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.data.packing import PackedRows, PackedTexts, TextGroup
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.instructions.texts import DocumentTexts, RecallTexts
from realm_jax.losses import WeightedSum
from realm_jax.models import LanguageModel, LanguageModelConfig
from realm_jax.models.lora import LORA
from realm_jax.tasks.passes import LanguageModelPass, Logits
from realm_jax.tasks.rag import open_generator_tokenizer
from realm_jax.tasks.task import Metrics, Params, Program, Task, array_shape, fingerprints
from realm_jax.training.rng import dropout_rngs
from realm_jax.typed import check_fields


def language_model_variables(params: Params) -> dict[str, Any]:
    """The variables of `LanguageModel`: its parameters and, where there is one, its adapter, beside which they have no gradient."""
    if "adapter" not in params:
        return {"params": params["language_model"]}
    return {"params": jax.lax.stop_gradient(params["language_model"]), LORA: params["adapter"]}


def init_language_model(rng: jax.Array, *, language_model: LanguageModelConfig) -> Params:
    """Random parameters, and an adapter that changes nothing yet where the configuration has one."""
    ids = jnp.ones((1, 16), jnp.int32)
    variables = LanguageModel(language_model).init(rng, ids, ids)
    adapter = {"adapter": variables[LORA]} if language_model.lora is not None else {}
    return {"language_model": variables["params"], **adapter}


def packed_loss(
    params: Params, batch: PackedRows, rng: jax.Array | None, *, language_model: LanguageModelConfig
) -> tuple[WeightedSum, Metrics]:
    """−Σ log p(y_j | what stands before it in its text), mean over the tokens that count (RA-DIT, arXiv:2310.01352, section 2.3)."""
    logits: Any = LanguageModel(language_model).apply(
        language_model_variables(params), batch.ids, batch.segments, batch.positions, rngs=dropout_rngs(rng, 0)
    )
    loss = losses.token_cross_entropy(logits, batch.targets)
    counted = batch.targets >= 0
    right = (logits.argmax(axis=-1) == batch.targets) & counted
    places = jnp.float32(counted.size)
    return loss, {
        "token_accuracy": WeightedSum(right.sum().astype(jnp.float32), loss.weight),
        "row_used": WeightedSum((batch.segments > 0).sum().astype(jnp.float32), places),  # the rest is padding
        "row_learned": WeightedSum(loss.weight, places),
    }


def packed_program(name: str, language_model: LanguageModelConfig, length: int) -> Program:
    """What is compiled of a task over packed rows."""

    def batch_shapes(batch_size: int) -> PackedRows:
        ids = array_shape(jnp.int32, batch_size, length)
        return PackedRows(ids, ids, ids, ids)

    frozen = language_model.lora is not None
    return Program(
        name=name,
        init=functools.partial(init_language_model, language_model=language_model),
        loss=functools.partial(packed_loss, language_model=language_model),
        batch_shapes=batch_shapes,
        passes=(LanguageModelPass(language_model, 1, length),),
        logits=Logits(length, language_model.hidden_size, language_model.vocab_size, trained=not frozen, is_cut=True),
        tokens_per_example=length,
        can_accumulate=True,
        frozen=("language_model",) if frozen else (),
    )


def check_row_length(name: str, length: int, language_model: LanguageModelConfig) -> None:
    """Refuses rows that the model has no positions for.

    Raises:
      ValueError: naming both.
    """
    if not 16 <= length <= language_model.max_length:
        raise ValueError(
            f"{name}.length must lie between 16 and the language model's max_length={language_model.max_length}, got {length}"
        )


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Settings of a language model's pre-training.

    Attributes:
      corpus: whose documents are learned; with pieces of the language model's tokenizer, where that is another.
      language_model: its shape.
      tokenizer: directory of its tokenizer; empty: the corpus's.
      length: tokens of a row, into which several texts are packed; none sees another.
      recall_share: of texts that are an excerpt of a document after the document itself, see `instructions.texts.RecallTexts`.
    """

    name: ClassVar[str] = "language_modeling"

    corpus: str
    language_model: LanguageModelConfig
    tokenizer: str = ""
    length: int = 2048
    recall_share: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_row_length("LanguageModeling", self.length, self.language_model)
        if not 0 <= self.recall_share <= 1:
            raise ValueError(f"LanguageModeling.recall_share must lie between 0 and 1, got {self.recall_share}")

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        tokenizer = open_generator_tokenizer(
            self.tokenizer, corpus, self.language_model, "LanguageModeling", "language_model"
        )
        pieces, form = open_pieces(corpus, tokenizer), PromptFormat.of(tokenizer)
        groups: dict[TextGroup, float] = {DocumentTexts(pieces, form, self.length): 1.0 - self.recall_share}
        if self.recall_share:
            groups[RecallTexts(pieces, form, self.length, seed)] = self.recall_share
        rows = PackedTexts(
            list(groups), list(groups.values()), length=self.length, pad_id=self.language_model.pad_id, seed=seed
        )
        return self.program(SpecialIds.of(corpus.tokenizer)).task(
            rows.batch,
            lambda batch: batch,
            data=fingerprints(corpus) | {"generator_tokenizer": tokenizer.fingerprint},
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it; the corpus's special pieces make no difference."""
        del special
        return packed_program(self.name, self.language_model, self.length)
