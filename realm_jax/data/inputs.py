"""Model inputs from pieces: `[CLS] x [SEP]`, `[CLS] title [SEP] body [SEP]`, `[CLS] x [SEP] body [SEP]`.

All arrays are integers made on the host; the mask of an input is `ids != 0`, since every tokenizer pads with 0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.text.tokenizer import Tokenizer

NULL_DOCUMENT = -1  # the empty document, candidate 0 of every example
NO_CANDIDATE = -2  # an empty slot: too few documents were left after exclusion


class Inputs(NamedTuple):
    """Token ids and segments, padded with zeros."""

    ids: Int32[np.ndarray, "*rows length"]
    segment_ids: Int32[np.ndarray, "*rows length"]


class SpecialIds(NamedTuple):
    """The tokenizer's special pieces."""

    cls: int
    sep: int
    mask: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialIds":
        if tokenizer.pad_id != 0:
            raise ValueError(
                f"the tokenizer pads with id {tokenizer.pad_id}; expected 0, since inputs are masked by ids != 0"
            )
        return cls(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)


def query_inputs(pieces: list[np.ndarray], query_len: int, special: SpecialIds) -> Inputs:
    """`[CLS] x [SEP]` for each x, cut to query_len."""
    ids = np.zeros((len(pieces), query_len), np.int32)
    for row, piece_ids in enumerate(pieces):
        body = piece_ids[: query_len - 2]
        ids[row, 0] = special.cls
        ids[row, 1 : 1 + len(body)] = body
        ids[row, 1 + len(body)] = special.sep
    return Inputs(ids, np.zeros_like(ids))


def pair_inputs(firsts: list[np.ndarray], seconds: list[np.ndarray], length: int, special: SpecialIds) -> Inputs:
    """`[CLS] first [SEP] second [SEP]` for each pair, the second cut so that the row fits; segments 0 and 1."""
    ids, segment_ids = np.zeros((2, len(firsts), length), np.int32)
    for row, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        first = first[: length - 3]
        second = second[: length - 3 - len(first)]
        body = 2 + len(first)
        ids[row, 0] = special.cls
        ids[row, 1 : body - 1] = first
        ids[row, body - 1] = special.sep
        ids[row, body : body + len(second)] = second
        ids[row, body + len(second)] = special.sep
        segment_ids[row, body : body + len(second) + 1] = 1
    return Inputs(ids, segment_ids)


def place_rows(
    out: Int32[np.ndarray, "rows length"],
    starts: Int64[np.ndarray, "rows"],
    values: Int32[np.ndarray, "rows width"],
    lengths: Int64[np.ndarray, "rows"],
) -> None:
    """Writes the first lengths[r] values of each row r into out[r] from starts[r] on."""
    columns = np.arange(values.shape[1])
    rows, cols = np.nonzero(columns[None, :] < lengths[:, None])
    out[rows, starts[rows] + cols] = values[rows, cols]


def document_inputs(
    corpus: Corpus, document_ids: Int64[np.ndarray, "rows"], document_len: int, special: SpecialIds
) -> Inputs:
    """`[CLS] title [SEP] body [SEP]`, the body cut so that the row fits; segment 0 up to the first [SEP], then 1.

    Args:
      corpus: the knowledge corpus.
      document_ids: rows of the corpus; negative ones (`NULL_DOCUMENT`, `NO_CANDIDATE`) have an empty title and body.
      document_len: width of the result.
      special: the tokenizer's special pieces.
    """
    title_lens = np.minimum(corpus.titles.lengths(document_ids), document_len - 3)
    body_lens = np.minimum(corpus.bodies.lengths(document_ids), document_len - 3 - title_lens)
    titles = corpus.titles.gather(document_ids, int(title_lens.max(initial=0)))
    bodies = corpus.bodies.gather(document_ids, int(body_lens.max(initial=0)))
    ids = np.zeros((len(document_ids), document_len), np.int32)
    every = np.arange(len(document_ids))
    ids[:, 0] = special.cls
    place_rows(ids, np.ones_like(title_lens), titles, title_lens)
    ids[every, 1 + title_lens] = special.sep
    place_rows(ids, 2 + title_lens, bodies, body_lens)
    ids[every, 2 + title_lens + body_lens] = special.sep
    positions = np.arange(document_len)[None, :]
    in_body = (positions >= (2 + title_lens)[:, None]) & (positions <= (2 + title_lens + body_lens)[:, None])
    return Inputs(ids, in_body.astype(np.int32))


def joint_inputs(
    query_ids: Int32[np.ndarray, "batch query_len"],
    corpus: Corpus,
    document_ids: Int64[np.ndarray, "batch num_candidates"],
    joint_len: int,
    special: SpecialIds,
) -> Inputs:
    """`[CLS] x [SEP] body [SEP]` for every candidate: the reader sees no title, as in the released code.

    The body follows x's own [SEP] at once, so a mask keeps its position; it is cut so that the row fits.

    Returns:
      Inputs of shape [batch, num_candidates, joint_len].
    """
    batch, num_candidates = document_ids.shape
    query_len = query_ids.shape[1]
    if joint_len <= query_len:
        raise ValueError(f"joint_len={joint_len} leaves no room for a document after query_len={query_len} pieces")
    flat = document_ids.reshape(-1)
    query_lens = np.repeat((query_ids != 0).sum(axis=1), num_candidates)
    body_lens = np.minimum(corpus.bodies.lengths(flat), joint_len - query_lens - 1)
    bodies = corpus.bodies.gather(flat, int(body_lens.max(initial=0)))
    ids = np.zeros((len(flat), joint_len), np.int32)
    ids[:, :query_len] = np.repeat(query_ids, num_candidates, axis=0)
    place_rows(ids, query_lens, bodies, body_lens)
    ids[np.arange(len(flat)), query_lens + body_lens] = special.sep
    positions = np.arange(joint_len)[None, :]
    in_body = (positions >= query_lens[:, None]) & (positions <= (query_lens + body_lens)[:, None])
    shape = (batch, num_candidates, joint_len)
    return Inputs(ids.reshape(shape), in_body.astype(np.int32).reshape(shape))
