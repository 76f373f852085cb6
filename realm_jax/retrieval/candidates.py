"""From search results to candidates: the null document first, trivial retrievals left out."""

import numpy as np
from jaxtyping import Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import NO_CANDIDATE, NULL_DOCUMENT
from realm_jax.retrieval.index import SearchResult


def contains(body: np.ndarray, sentence: np.ndarray) -> bool:
    """Says whether the pieces of `sentence` occur in a row in `body`."""
    count = len(body) - len(sentence) + 1
    if len(sentence) == 0 or count < 1:
        return False
    starts = np.flatnonzero(body[:count] == sentence[0])
    return any(np.array_equal(body[start : start + len(sentence)], sentence) for start in starts)


def select_candidates(
    results: SearchResult,
    num_candidates: int,
    *,
    corpus: Corpus,
    source_documents: Int64[np.ndarray, "batch"],
    sentences: list[np.ndarray],
    null_document: bool = True,
) -> Int64[np.ndarray, "batch num_candidates"]:
    """The documents an example is trained on, best first after the null document.

    Left out are the document that x came from and every document that contains x unmasked (the released code drops the
    former alone, by a hash of its text; near-duplicates then still leak the answer). Ask the index for more results than
    candidates, so that exclusions leave enough. A document found twice is taken once.

    Args:
      results: of the search for each example's query.
      num_candidates: including the null document.
      corpus: the knowledge corpus.
      source_documents: the document of x, or -1.
      sentences: the pieces of x, unmasked.
      null_document: false leaves the null document out (an ablation), and one more document in.

    Returns:
      Document ids; column 0 is `NULL_DOCUMENT` (if wanted), slots that could not be filled are `NO_CANDIDATE`.
    """
    candidates = np.full((len(sentences), num_candidates), NO_CANDIDATE, np.int64)
    first = int(null_document)
    if null_document:
        candidates[:, 0] = NULL_DOCUMENT
    for row, sentence in enumerate(sentences):
        column = first
        for document_id in results.ids[row]:
            if column == num_candidates:
                break
            if document_id < 0 or document_id == source_documents[row] or document_id in candidates[row, first:column]:
                continue
            if contains(np.asarray(corpus.bodies[int(document_id)]), sentence):
                continue
            candidates[row, column] = document_id
            column += 1
    return candidates
