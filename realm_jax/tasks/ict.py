"""The Inverse Cloze Task: the retriever's warm start (ORQA, Lee, Chang and Toutanova 2019, arXiv:1906.00300)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from realm_jax.corpus.store import Corpus
from realm_jax.data.ict import IctBatch, IctExamples
from realm_jax.data.inputs import Inputs, SpecialIds
from realm_jax.losses import WeightedSum, inverse_cloze
from realm_jax.models import Retriever, RetrieverConfig
from realm_jax.tasks.task import (
    EncoderPass,
    Metrics,
    Params,
    Program,
    Task,
    array_shape,
    fingerprints,
    input_shapes,
)
from realm_jax.training.rng import dropout_rngs
from realm_jax.typed import check_fields


def ict_loss(
    params: Params, batch: IctBatch, rng: jax.Array | None, *, config: RetrieverConfig
) -> tuple[WeightedSum, Metrics]:
    """−log p(block of the sentence | sentence) over the blocks of the global batch."""
    retriever = Retriever(config)

    def embed(inputs: Inputs, method: str, stream: int) -> Any:
        return retriever.apply(
            {"params": params["retriever"]},
            inputs.ids,
            inputs.segment_ids,
            inputs.ids != 0,
            rng is None,
            method=method,
            rngs=dropout_rngs(rng, stream),
        )

    loss, hits = inverse_cloze(
        embed(batch.query, "embed_queries", 0), embed(batch.document, "embed_documents", 1), batch.document_ids
    )
    return loss, {"in_batch_accuracy": WeightedSum(hits.sum(), loss.weight)}


@dataclasses.dataclass(frozen=True)
class Ict:
    """Settings of ICT; the paper: batch 4096, query 64, block 288, removal rate 0.9, learning rate 1e-4."""

    corpus: str
    retriever: RetrieverConfig
    query_len: int = 64
    document_len: int = 288
    removal_rate: float = 0.9

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        check_vocabulary(corpus, self.retriever.encoder.vocab_size, "retriever")
        examples = IctExamples(
            corpus,
            query_len=self.query_len,
            document_len=self.document_len,
            removal_rate=self.removal_rate,
            seed=seed,
        )

        return self.program(SpecialIds.of(corpus.tokenizer)).task(
            examples.batch, lambda batch: batch, data=fingerprints(corpus)
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it; the special pieces' ids make no difference."""

        def init(rng: jax.Array) -> Params:
            ids = jnp.ones((1, self.query_len), jnp.int32)
            return {"retriever": Retriever(self.retriever).init(rng, ids, ids * 0, ids > 0)["params"]}

        def batch_shapes(batch_size: int) -> IctBatch:
            return IctBatch(
                query=input_shapes(batch_size, self.query_len),
                document=input_shapes(batch_size, self.document_len),
                document_ids=array_shape(jnp.int32, batch_size),
            )

        return Program(
            name="ict",
            init=init,
            loss=functools.partial(ict_loss, config=self.retriever),
            batch_shapes=batch_shapes,
            passes=(
                EncoderPass(self.retriever.encoder, 1, self.query_len),
                EncoderPass(self.retriever.encoder, 1, self.document_len),
            ),
            tokens_per_example=self.query_len + self.document_len,
            can_accumulate=False,
        )


def check_vocabulary(corpus: Corpus, vocab_size: int, learner: str) -> None:
    """Refuses a model whose embedding table is smaller than the corpus's vocabulary.

    Raises:
      ValueError: with both sizes and the remedy.
    """
    if vocab_size < corpus.tokenizer.vocab_size:
        raise ValueError(
            f"the {learner} has vocab_size={vocab_size}, but the corpus's tokenizer has {corpus.tokenizer.vocab_size} pieces; "
            "set vocab_size to at least that, or use the corpus that the model was made for"
        )
