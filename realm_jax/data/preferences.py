"""Batches of a retriever's fine-tuning: queries, the documents found for them, and what a language model makes of each."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.group_order import GroupOrder
from realm_jax.data.inputs import Inputs, SpecialIds, document_inputs, query_inputs
from realm_jax.data.order import batch_positions


class PreferenceExamples(NamedTuple):
    """Some rows of a batch before they are joined with embeddings."""

    query: Inputs  # [CLS] query [SEP]
    documents: Int64[np.ndarray, "batch num_documents"]  # that were judged; -1: none
    log_likelihoods: Float32[np.ndarray, "batch num_documents"]  # log p_LM(y|c∘x); 0 where there is none
    num_tokens: Int32[np.ndarray, "batch"]  # of y


class PreferenceBatch(NamedTuple):
    """Queries joined with the documents that were judged, as the retriever ranked them then."""

    query: Inputs  # [batch, query_len]
    retrieved_embeds: Float32[np.ndarray, "batch num_documents embed"]  # of the index
    document_mask: Bool[np.ndarray, "batch num_documents"]
    log_likelihoods: Float32[np.ndarray, "batch num_documents"]
    num_tokens: Int32[np.ndarray, "batch"]
    documents: Inputs  # [batch, num_encoded, document_len], what the document encoder embeds afresh; may have no rows


class PreferenceGroup(NamedTuple):
    """Judged examples of one group."""

    query_pieces: list[Int32[np.ndarray, "_"]]
    documents: Int64[np.ndarray, "examples num_documents"]
    log_likelihoods: Float32[np.ndarray, "examples num_documents"]
    num_tokens: Int32[np.ndarray, "examples"]


class PreferenceQueries:
    """Judged examples, drawn from groups by their shares: a pure function of (seed, step, row)."""

    def __init__(
        self,
        groups: list[PreferenceGroup],
        shares: list[float],
        *,
        query_len: int,
        special: SpecialIds,
        seed: int,
    ):
        self._groups, self._query_len, self._special = groups, query_len, special
        self._order = GroupOrder([len(group.num_tokens) for group in groups], shares, seed)

    def batch(self, step: int, batch_size: int, rows: slice) -> PreferenceExamples:
        """The given rows of the batch of a step."""
        groups, numbers = self._order(batch_positions(step, batch_size, rows))
        chosen = [
            (self._groups[group], number) for group, number in zip(groups.tolist(), numbers.tolist(), strict=True)
        ]
        return PreferenceExamples(
            query_inputs([group.query_pieces[number] for group, number in chosen], self._query_len, self._special),
            np.stack([group.documents[number] for group, number in chosen]),
            np.stack([group.log_likelihoods[number] for group, number in chosen]),
            np.asarray([group.num_tokens[number] for group, number in chosen], np.int32),
        )


class PreferenceJoiner:
    """Joins queries with the embeddings of their documents, and with their pieces where the document side is trained."""

    def __init__(self, corpus: Corpus, *, document_len: int, encode_documents: bool):
        """Args:
        corpus: the knowledge corpus.
        document_len: pieces of `[CLS] title [SEP] body [SEP]`.
        encode_documents: whether documents are embedded afresh (a trained document side).
        """
        self._corpus, self._document_len, self._encode_documents = corpus, document_len, encode_documents
        self._special = SpecialIds.of(corpus.tokenizer)

    def __call__(
        self,
        examples: PreferenceExamples,
        document_ids: Int64[np.ndarray, "batch num_documents"],
        embeds: Float32[np.ndarray, "batch num_documents embed"],
    ) -> PreferenceBatch:
        """A negative id stands for none."""
        encoded = document_ids if self._encode_documents else document_ids[:, :0]
        documents = document_inputs(self._corpus, encoded.reshape(-1), self._document_len, self._special)
        shape = (*encoded.shape, self._document_len)
        return PreferenceBatch(
            query=examples.query,
            retrieved_embeds=embeds,
            document_mask=document_ids >= 0,
            log_likelihoods=examples.log_likelihoods,
            num_tokens=examples.num_tokens,
            documents=Inputs(documents.ids.reshape(shape), documents.segment_ids.reshape(shape)),
        )
