"""Masked sentences x with their targets y: what REALM pre-training reads (arXiv:2002.08909, section 3.4)."""

import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, query_inputs
from realm_jax.data.maskable import is_maskable, listed, maskable_documents
from realm_jax.data.masking import MaskingConfig, Sentence, choose_masks
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng

logger = logging.getLogger(__name__)


class MaskedBatch(NamedTuple):
    """Masked sentences of some rows of a batch."""

    query: Inputs  # [CLS] x [SEP], masked
    mask_positions: Int32[np.ndarray, "batch num_masks"]  # in the query input (and in the joint input alike)
    mask_targets: Int32[np.ndarray, "batch num_masks"]
    mask_weights: Float32[np.ndarray, "batch num_masks"]  # 1 for a mask, 0 for an unused slot
    source_documents: Int64[np.ndarray, "batch"]  # document that x was taken from, -1 if x is of another corpus
    gold_documents: Int64[np.ndarray, "batch"]  # document that states the answer, -1 if unknown; only ever measured
    sentences: list[np.ndarray]  # x unmasked, in pieces


class MaskedSentences:
    """Draws masked sentences from a corpus.

    Every sentence drawn has a mask. "salient" masking draws from documents with a salient span that lies within one
    sentence and has at most `max_masks` pieces; the others have none that could be masked whole.

    Attributes:
      usable: the documents drawn from, ascending.
      left_out: how many of the corpus's documents are not, by cause.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        query_len: int,
        masking: MaskingConfig,
        seed: int,
        is_knowledge_corpus: bool,
    ):
        """Args:
        corpus: where x comes from.
        query_len: width of `[CLS] x [SEP]`; of a longer sentence a window is taken.
        masking: what is masked.
        seed: of order and masks.
        is_knowledge_corpus: X = Z, so that a row of `corpus` is a document that must not be retrieved for itself.
        """
        self.corpus = corpus
        self.special = SpecialIds.of(corpus.tokenizer)
        self.query_len, self.masking, self.seed = query_len, masking, seed
        self.is_knowledge_corpus = is_knowledge_corpus
        self._longest = min(masking.max_masks, query_len - 2)
        if masking.kind == "salient":
            self.usable, self.left_out = maskable_documents(corpus, self._longest)
        else:
            self.usable = np.flatnonzero(corpus.bodies.lengths() > 0)
            empty = corpus.num_documents - len(self.usable)
            self.left_out = {"no text": empty} if empty else {}
        if not len(self.usable):
            raise ValueError(
                f"no document of the corpus has anything to mask ({listed(self.left_out)}); give the corpus job another "
                "tagger, or the task a greater MaskingConfig.max_masks or another kind"
            )
        if self.left_out:
            logger.info("%s: nothing is masked in %s", corpus.directory, listed(self.left_out))
        self.order = ExampleOrder(len(self.usable), seed)

    def batch(self, step: int, batch_size: int, rows: slice) -> MaskedBatch:
        """The given rows of the batch of a step: a pure function of (seed, step, row)."""
        positions = batch_positions(step, batch_size, rows)
        return self.mask(self.usable[self.order(positions)], [example_rng(self.seed, int(p)) for p in positions])

    def mask(self, document_ids: Int64[np.ndarray, "batch"], rngs: list[np.random.Generator]) -> MaskedBatch:
        """Masks one sentence of each given document."""
        sentences = [self._sentence(int(i), rng) for i, rng in zip(document_ids, rngs, strict=True)]
        masks = [choose_masks(s, self.masking, rng) for s, rng in zip(sentences, rngs, strict=True)]
        gold = self.corpus.gold_documents
        return masked_batch(
            [sentence.pieces for sentence in sentences],
            masks,
            source_documents=document_ids if self.is_knowledge_corpus else np.full(len(masks), -1, np.int64),
            gold_documents=np.full(len(masks), -1, np.int64) if gold is None else np.asarray(gold[document_ids]),
            query_len=self.query_len,
            max_masks=self.masking.max_masks,
            special=self.special,
        )

    def _sentence(self, document_id: int, rng: np.random.Generator) -> Sentence:
        """A sentence of the document: of "salient" masking one that holds a randomly drawn span, which stays in a window."""
        body = np.asarray(self.corpus.bodies[document_id], np.int32)
        ends = np.asarray(self.corpus.sentence_ends[document_id])
        spans = np.asarray(self.corpus.salient_spans[document_id], np.int32).reshape(-1, 2)
        anchor = None
        if self.masking.kind == "salient":
            maskable = spans[is_maskable(spans, ends, self._longest)]
            if not len(maskable):
                raise ValueError(f"document {document_id} has no salient span to mask; draw from `usable`")
            anchor, anchor_end = maskable[int(rng.integers(len(maskable)))].tolist()
            number = int(np.searchsorted(ends, anchor, side="right"))
        else:
            not_empty = np.flatnonzero(np.diff(ends, prepend=0))
            number = int(not_empty[rng.integers(len(not_empty))])
        start, end = (int(ends[number - 1]) if number else 0), int(ends[number])
        room = self.query_len - 2
        if end - start > room:  # a window around the anchor, else anywhere
            latest = end - room
            if anchor is None:
                start = int(rng.integers(start, latest + 1))
            else:
                start = min(max(anchor - room // 2, anchor_end - room, start), latest)
            end = start + room
        inside = spans[(spans[:, 0] >= start) & (spans[:, 1] <= end)] - start
        return Sentence(body[start:end], inside.astype(np.int32))


def masked_batch(
    pieces: list[np.ndarray],
    masks: list[np.ndarray],
    *,
    source_documents: Int64[np.ndarray, "batch"],
    gold_documents: Int64[np.ndarray, "batch"],
    query_len: int,
    max_masks: int,
    special: SpecialIds,
) -> MaskedBatch:
    """Replaces pieces[r][masks[r]] by [MASK] and lays the rows out; the first piece sits at position 1, after [CLS]."""
    batch = len(pieces)
    positions, targets = np.zeros((2, batch, max_masks), np.int32)
    weights = np.zeros((batch, max_masks), np.float32)
    masked = []
    for row, (sentence, where) in enumerate(zip(pieces, masks, strict=True)):
        where = where[(where < query_len - 2)][:max_masks]
        count = len(where)
        positions[row, :count] = where + 1
        targets[row, :count] = sentence[where]
        weights[row, :count] = 1.0
        replaced = sentence.copy()
        replaced[where] = special.mask
        masked.append(replaced)
    return MaskedBatch(
        query_inputs(masked, query_len, special), positions, targets, weights, source_documents, gold_documents, pieces
    )
