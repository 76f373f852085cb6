"""An index and its documents with some added and some taken away: what is asked while documents come and go.

Nothing here is ever changed in place. Who adds or removes a document makes new views; who is reading keeps the old ones.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from realm_jax.answering.documents import Documents, Text, aligned_offsets, trimmed
from realm_jax.data.inputs import Inputs, SpecialIds
from realm_jax.retrieval.exact import brute_force
from realm_jax.retrieval.index import Index, SearchResult, check_queries, merge_results
from realm_jax.text.tokenizer import Tokenizer


class AddedDocument(NamedTuple):
    """A document that is not in the corpus."""

    document: int  # its id: at least the number of documents of the corpus
    text: Text
    pieces: Int32[np.ndarray, "num_pieces"]  # of the text, without the title
    embed: Float32[np.ndarray, "embed"]


class LiveIndex:
    """An index without some of its documents and with others beside it, which are searched exactly."""

    def __init__(self, base: Index, removed: frozenset[int], added: Sequence[AddedDocument]):
        """Args:
        base: documents 0, 1, …
        removed: ids of the base that are not found any more.
        added: with ids beyond the base, ascending.
        """
        self._base = base
        self._removed = np.sort(np.fromiter(removed, np.int64, len(removed)))
        self._added_ids = np.array([document.document for document in added], np.int64)
        self._added = np.array([document.embed for document in added], np.float32).reshape(-1, base.embed_dim)

    @property
    def num_documents(self) -> int:
        return self._base.num_documents - len(self._removed) + len(self._added)

    @property
    def embed_dim(self) -> int:
        return self._base.embed_dim

    def search(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> SearchResult:
        """The best documents of those that are there now. The base is asked for more, since some of it does not count.

        Raises:
          ValueError: as the base does.
        """
        check_queries(queries, self.embed_dim, num_results)
        # a power of two more: few programs are compiled however many documents are removed
        extra = 1 << (len(self._removed) - 1).bit_length() if len(self._removed) else 0
        found = self._base.search(queries, num_results + extra)
        gone = np.isin(found.ids, self._removed)
        kept = SearchResult(np.where(gone, -1, found.ids), np.where(gone, np.float32(-np.inf), found.scores))
        if not len(self._added):
            return merge_results([kept], num_results)
        added = brute_force(queries, self._added, num_results)
        ids = np.where(added.ids >= 0, self._added_ids[added.ids], -1)
        return merge_results([kept, SearchResult(ids, added.scores)], num_results)

    def embeddings(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings of documents of the base and of added ones; zeros for id -1.

        Raises:
          ValueError: for a document that is in neither.
        """
        is_added = np.isin(document_ids, self._added_ids)
        embeds = self._base.embeddings(np.where(is_added, -1, document_ids))
        if is_added.any():
            embeds[is_added] = self._added[np.searchsorted(self._added_ids, document_ids[is_added])]
        return embeds


class LiveDocuments:
    """The documents of an index with added ones beside them."""

    def __init__(self, base: Documents, added: Sequence[AddedDocument]):
        self._base = base
        self._added = {document.document: document for document in added}
        self._offsets = functools.cache(
            lambda document: aligned_offsets(
                self._added[document].pieces, self.tokenizer.encode(self._added[document].text.text)
            )
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self._base.tokenizer

    def text(self, document: int) -> Text:
        return self._added[document].text if document in self._added else self._base.text(document)

    def joint(
        self,
        query_ids: Int32[np.ndarray, "batch query_len"],
        document_ids: Int64[np.ndarray, "batch num_read"],
        joint_len: int,
        special: SpecialIds,
    ) -> Inputs:
        is_added = np.isin(document_ids, np.fromiter(self._added, np.int64, len(self._added)))
        joint = self._base.joint(query_ids, np.where(is_added, -1, document_ids), joint_len, special)
        for row, column in np.argwhere(is_added).tolist():
            start = int((query_ids[row] != 0).sum())
            body = self._added[int(document_ids[row, column])].pieces[: joint_len - start - 1]
            end = start + len(body)
            joint.ids[row, column, start:end] = body
            joint.ids[row, column, end] = special.sep
            joint.segment_ids[row, column, start : end + 1] = 1
        return joint

    def characters(self, document: int, first: int, last: int) -> tuple[int, int]:
        if document not in self._added:
            return self._base.characters(document, first, last)
        return trimmed(self._added[document].text.text, self._offsets(document), first, last)
