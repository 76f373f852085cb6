"""The generator's warm start: BART's text infilling on the corpus's own documents (Lewis et al. 2019, arXiv:1910.13461).

It stands in for BART where a run begins from random parameters: a generator that cannot copy from what it reads gives the
retriever nothing to learn from.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from realm_jax import losses
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.data.denoising import DenoisingBatch, DenoisingExamples
from realm_jax.data.inputs import SpecialIds
from realm_jax.losses import WeightedSum
from realm_jax.models import EncoderDecoder, EncoderDecoderConfig
from realm_jax.tasks.rag import init_params, open_generator_tokenizer
from realm_jax.tasks.task import EncoderPass, Logits, Metrics, Params, Program, Task, array_shape, fingerprints
from realm_jax.text.generator_tokenizer import mask_id_of
from realm_jax.training.rng import dropout_rngs
from realm_jax.typed import check_fields


def denoising_loss(
    params: Params, batch: DenoisingBatch, rng: jax.Array | None, *, generator: EncoderDecoderConfig
) -> tuple[WeightedSum, Metrics]:
    """−Σ log p(y_i | corrupted document, y_<i), mean over the document's tokens."""
    logits: Any = EncoderDecoder(generator).apply(
        {"params": params["generator"]},
        batch.source_ids,
        batch.source_ids != generator.pad_id,
        batch.target_inputs,
        rng is None,
        rngs=dropout_rngs(rng, 0),
    )
    loss = losses.token_cross_entropy(logits, jnp.where(batch.target_mask, batch.targets, -1))
    right = (logits.argmax(axis=-1) == batch.targets) & batch.target_mask
    return loss, {"token_accuracy": WeightedSum(right.sum().astype(jnp.float32), loss.weight)}


@dataclasses.dataclass(frozen=True)
class Denoising:
    """Settings of the generator's warm start; share and spans are BART's.

    Attributes:
      corpus: whose documents are read.
      generator: shape of the generator.
      generator_tokenizer: see `tasks.rag.Rag`.
      length: pieces of the corrupted document and of the whole one, special ones included.
      share: of a document's tokens that are hidden.
      mean_span: mean length of what one mask hides.
    """

    corpus: str
    generator: EncoderDecoderConfig
    generator_tokenizer: str = ""
    length: int = 128
    share: float = 0.3
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.share < 1 or not 0 < self.mean_span < float("inf"):
            raise ValueError(
                f"Denoising: share must lie between 0 and 1 and mean_span above 0, got {self.share} and {self.mean_span}"
            )
        if not 8 <= self.length <= self.generator.max_length:
            raise ValueError(
                f"Denoising.length must lie between 8 and the generator's max_length={self.generator.max_length}, "
                f"got {self.length}"
            )

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        tokenizer = open_generator_tokenizer(self.generator_tokenizer, corpus, self.generator, "Denoising")
        examples = DenoisingExamples(
            open_pieces(corpus, tokenizer),
            self.generator,
            mask_id_of(tokenizer),
            length=self.length,
            share=self.share,
            mean_span=self.mean_span,
            seed=seed,
        )
        return self.program(SpecialIds.of(corpus.tokenizer)).task(
            examples.batch,
            lambda batch: batch,
            data=fingerprints(corpus) | {"generator_tokenizer": tokenizer.fingerprint},
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it; the corpus's special pieces make no difference."""
        del special
        generator, length = self.generator, self.length

        def batch_shapes(batch_size: int) -> DenoisingBatch:
            ids = array_shape(jnp.int32, batch_size, length)
            return DenoisingBatch(ids, ids, ids, array_shape(jnp.bool_, batch_size, length))

        return Program(
            name="denoising",
            init=functools.partial(init_params, retriever=None, generator=generator),
            loss=functools.partial(denoising_loss, generator=generator),
            batch_shapes=batch_shapes,
            passes=(
                EncoderPass(generator.encoder, 1, length),
                EncoderPass(generator.decoder, 1, length, source_len=length),
            ),
            logits=Logits(length, generator.hidden_size, generator.vocab_size),
            tokens_per_example=2 * length,
            can_accumulate=True,
        )
