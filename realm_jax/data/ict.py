"""Inverse Cloze Task examples: a sentence and the block it was taken from (ORQA, arXiv:1906.00300, section 4)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs, SpecialIds, pair_inputs, query_inputs
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng


class IctBatch(NamedTuple):
    """Some rows of an Inverse Cloze batch."""

    query: Inputs  # [CLS] sentence [SEP]
    document: Inputs  # [CLS] title [SEP] the block, mostly without the sentence [SEP]
    document_ids: Int32[np.ndarray, "batch"]


class IctExamples:
    """Draws a random sentence of a random block.

    The sentence is removed from its block with probability `removal_rate`, and left in otherwise so that word overlap is
    learned too; blocks of one sentence are never emptied.
    """

    def __init__(self, corpus: Corpus, *, query_len: int, document_len: int, removal_rate: float, seed: int):
        if not 0 <= removal_rate <= 1:
            raise ValueError(f"removal_rate must lie in [0, 1], got {removal_rate}")
        self.corpus = corpus
        self.special = SpecialIds.of(corpus.tokenizer)
        self.query_len, self.document_len = query_len, document_len
        self.removal_rate, self.seed = removal_rate, seed
        self.order = ExampleOrder(corpus.num_documents, seed)

    def batch(self, step: int, batch_size: int, rows: slice) -> IctBatch:
        """The given rows of the batch of a step: a pure function of (seed, step, row)."""
        positions = batch_positions(step, batch_size, rows)
        document_ids = self.order(positions)
        queries, titles, bodies = [], [], []
        for position, document_id in zip(positions, document_ids, strict=True):
            sentence, body = self._cloze(int(document_id), example_rng(self.seed, int(position)))
            queries.append(sentence)
            bodies.append(body)
            titles.append(np.asarray(self.corpus.titles[int(document_id)], np.int32))
        return IctBatch(
            query_inputs(queries, self.query_len, self.special),
            pair_inputs(titles, bodies, self.document_len, self.special),
            document_ids.astype(np.int32),
        )

    def _cloze(self, document_id: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        body = np.asarray(self.corpus.bodies[document_id], np.int32)
        ends = np.asarray(self.corpus.sentence_ends[document_id])
        number = int(rng.integers(max(1, len(ends))))
        remove = bool(rng.random() < self.removal_rate) and len(ends) > 1
        start, end = (int(ends[number - 1]) if number else 0), int(ends[number]) if len(ends) else len(body)
        sentence = body[start:end]
        return sentence, np.concatenate([body[:start], body[end:]]) if remove else body
