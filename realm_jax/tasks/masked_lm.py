"""The reader's warm start: a masked LM that may look its answers up in the rest of the document.

It stands in for BERT where a run begins from random parameters: a reader that cannot use the right document gives the
retriever nothing to learn from. Only the corpus's own text is used.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from realm_jax import losses
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.data.own_document import Lesson, OwnDocumentBatch, OwnDocumentExamples
from realm_jax.losses import WeightedSum
from realm_jax.models import KnowledgeEncoder, TransformerConfig
from realm_jax.tasks.ict import check_vocabulary
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


def masked_lm_loss(
    params: Params, batch: OwnDocumentBatch, rng: jax.Array | None, *, reader: TransformerConfig
) -> tuple[WeightedSum, Metrics]:
    """−Σ log p(y_j | masked sentences, rest of the document), mean over masks (BERT's loss at the masks alone)."""
    logits = KnowledgeEncoder(reader).apply(
        {"params": params["knowledge_encoder"]},
        batch.joint.ids,
        batch.joint.segment_ids,
        batch.joint.ids != 0,
        batch.mask_positions,
        rng is None,
        rngs=dropout_rngs(rng, 0),
    )
    assert isinstance(logits, jax.Array)
    loss = losses.per_token_loss(losses.gold_log_probs(logits, batch.mask_targets), batch.mask_weights)
    right = (logits.argmax(axis=-1) == batch.mask_targets) * batch.mask_weights
    return loss, {"masked_accuracy": WeightedSum(right.sum(), loss.weight)}


@dataclasses.dataclass(frozen=True)
class MaskedLm:
    """Settings of the reader's warm start."""

    corpus: str
    reader: TransformerConfig
    lessons: tuple[Lesson, ...] = (Lesson(until_step=0, joint_len=384, max_sentences=3),)
    max_masks: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_masks < 1 or not self.lessons:
            raise ValueError("MaskedLm needs max_masks of at least 1 and at least one Lesson")

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        check_vocabulary(corpus, self.reader.vocab_size, "reader")
        examples = OwnDocumentExamples(corpus, lessons=self.lessons, max_masks=self.max_masks, seed=seed)
        return self.program(SpecialIds.of(corpus.tokenizer)).task(
            examples.batch, lambda batch: batch, data=fingerprints(corpus)
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it for the last lesson; the special pieces' ids make no difference."""
        joint_len, masks = self.lessons[-1].joint_len, self.max_masks

        def init(rng: jax.Array) -> Params:
            ids = jnp.ones((1, 8), jnp.int32)
            params = KnowledgeEncoder(self.reader).init(rng, ids, ids * 0, ids > 0, ids[:, :1])["params"]
            return {"knowledge_encoder": params}

        def batch_shapes(batch_size: int) -> OwnDocumentBatch:
            return OwnDocumentBatch(
                joint=input_shapes(batch_size, joint_len),
                mask_positions=array_shape(jnp.int32, batch_size, masks),
                mask_targets=array_shape(jnp.int32, batch_size, masks),
                mask_weights=array_shape(jnp.float32, batch_size, masks),
            )

        return Program(
            name="masked_lm",
            init=init,
            loss=functools.partial(masked_lm_loss, reader=self.reader),
            batch_shapes=batch_shapes,
            passes=(EncoderPass(self.reader, 1, joint_len),),
            tokens_per_example=joint_len,
            can_accumulate=True,
        )
