"""Texts of several candidates an example as one array: what RealmTokenizer.batch_encode_candidates gives."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from realm_jax.text.tokenizer import Tokenizer


class CandidateInputs(NamedTuple):
    """Token ids, segments and mask of `[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`, padded to one length."""

    ids: Int32[np.ndarray, "batch num_candidates max_length"]
    segment_ids: Int32[np.ndarray, "batch num_candidates max_length"]
    mask: Bool[np.ndarray, "batch num_candidates max_length"]


def encode_candidates(
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[str]],
    max_length: int,
    text_pairs: Sequence[Sequence[str]] | None = None,
) -> CandidateInputs:
    """Encodes texts [batch][num_candidates], each cut and padded to max_length.

    Of a pair that is too long the longer text loses its last piece, the second where both are as long, until it fits: as
    the slow tokenizers of Hugging Face do. (Their fast ones differ by a piece at times.)

    Args:
      tokenizer: gives the pieces; pads with 0.
      texts: rows of equally many candidates.
      max_length: pieces of a row, special ones included.
      text_pairs: second texts, shaped as the first.

    Raises:
      ValueError: rows of different lengths, pairs of another shape, or no room for the special pieces.
    """
    num_special = 2 if text_pairs is None else 3
    if max_length < num_special:
        raise ValueError(f"max_length={max_length} has no room for the {num_special} special pieces")
    shape = _shape(texts, "texts")
    if text_pairs is not None and _shape(text_pairs, "text_pairs") != shape:
        raise ValueError(
            f"texts are {list(shape)}, text_pairs {list(_shape(text_pairs, 'text_pairs'))}; expected the same"
        )
    firsts = tokenizer.encode_batch([text for row in texts for text in row])
    seconds = None if text_pairs is None else tokenizer.encode_batch([text for row in text_pairs for text in row])
    ids, segment_ids = np.zeros((2, len(firsts), max_length), np.int32)
    mask = np.zeros(ids.shape, bool)
    for number, first in enumerate(firsts):
        second = None if seconds is None else seconds[number].ids
        keep, keep_second = _kept(len(first.ids), 0 if second is None else len(second), max_length - num_special)
        row = [tokenizer.cls_id, *first.ids[:keep], tokenizer.sep_id]
        begin = len(row)
        if second is not None:
            row += [*second[:keep_second], tokenizer.sep_id]
        ids[number, : len(row)], mask[number, : len(row)] = row, True
        segment_ids[number, begin : len(row)] = 1
    return CandidateInputs(*(array.reshape(*shape, max_length) for array in (ids, segment_ids, mask)))


def _shape(texts: Sequence[Sequence[str]], what: str) -> tuple[int, int]:
    lengths = {len(row) for row in texts}
    if len(lengths) != 1:
        raise ValueError(f"{what} must have as many candidates in every row, got {sorted(lengths) or 'no rows'}")
    return len(texts), lengths.pop()


def _kept(first: int, second: int, room: int) -> tuple[int, int]:
    """How many pieces of each text are kept."""
    excess = max(first + second - room, 0)
    alone = min(excess, abs(first - second))  # the longer gives these before both are as long
    first, second = (first - alone, second) if first > second else (first, second - alone)
    both = excess - alone
    return first - both // 2, second - (both + 1) // 2
