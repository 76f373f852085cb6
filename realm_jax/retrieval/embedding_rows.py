"""The embeddings of consecutive documents in several blocks, usually memory-mapped, read by range or by document."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64


class EmbeddingRows:
    """Blocks of embeddings of documents `first_document`, `first_document + 1`, …"""

    def __init__(self, blocks: Sequence[Float32[np.ndarray, "..."]], first_document: int = 0):
        self._blocks, self._first_document = blocks, first_document
        self._ends = np.cumsum([len(block) for block in blocks])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, count: int) -> Float32[np.ndarray, "rows embed"]:
        """Rows start to start + count - 1, counted from the first one here; fewer at the end."""
        parts = []
        stop = min(start + count, len(self))
        block = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[block]) - len(self._blocks[block])
            until = min(stop, int(self._ends[block]))
            parts.append(np.asarray(self._blocks[block][start - first : until - first]))
            start, block = until, block + 1
        return np.concatenate(parts) if parts else np.zeros((0, self._blocks[0].shape[1]), np.float32)

    def take(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings of documents; zeros for a negative id (no hit).

        Raises:
          ValueError: for a document that lies elsewhere.
        """
        flat = document_ids.reshape(-1) - self._first_document
        hits = np.flatnonzero(document_ids.reshape(-1) >= 0)
        wrong = hits[(flat[hits] < 0) | (flat[hits] >= len(self))]
        if len(wrong):
            raise ValueError(
                f"expected documents {self._first_document} to {self._first_document + len(self) - 1}, "
                f"got {document_ids.reshape(-1)[wrong[0]]}"
            )
        result = np.zeros((len(flat), self._blocks[0].shape[1]), np.float32)
        block_of = np.searchsorted(self._ends, flat[hits], side="right")
        for block in np.unique(block_of):
            rows = hits[block_of == block]
            first = int(self._ends[block]) - len(self._blocks[block])
            result[rows] = self._blocks[block][flat[rows] - first]
        return result.reshape(*document_ids.shape, result.shape[1])
