"""Ragged arrays on disk: rows of different lengths as flat values and offsets, memory-mapped, read by row.

NAME.values.npy holds the values of all rows one after the other, NAME.offsets.npy where each row begins.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, Integer

DAMAGED = "the offsets of an array are damaged: they point outside of its values; build the corpus again"


class Ragged:
    """Rows of different lengths: flat values and int64 offsets, usually memory-mapped.

    Values may be pairs (salient spans): then a row is [n, 2].
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self._values = np.asarray(values)
        self._offsets = np.asarray(offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int | np.integer) -> Int32[np.ndarray, "length *pair"]:
        """One row as int32 (a copy: the files hold unsigned 16-bit values, which must not be subtracted from)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
        if not 0 <= start <= stop <= self.num_values:
            raise ValueError(DAMAGED)
        return self._values[start:stop].astype(np.int32)

    def values_of(self, first: int, stop: int) -> Int64[np.ndarray, "num_values *pair"]:
        """The values of rows first to stop - 1 one after the other; `lengths` tells where each row ends."""
        return self._values[self._offsets[first] : self._offsets[stop]].astype(np.int64)

    @property
    def num_values(self) -> int:
        """Values of all rows together."""
        return len(self._values)

    def lengths(self, ids: Integer[np.ndarray, "*rows"] | None = None) -> Int64[np.ndarray, "*rows"]:
        """Lengths of rows; of all rows without `ids`. A negative id has length 0."""
        if ids is None:
            return np.diff(self._offsets)
        return self._starts_and_lengths(ids)[1]

    def gather(
        self, ids: Integer[np.ndarray, "*rows"], max_len: int, pad: int = 0
    ) -> Int32[np.ndarray, "*rows max_len"] | Int32[np.ndarray, "*rows max_len 2"]:
        """Copies rows into one array, cut to `max_len` and padded; no Python loop over rows.

        Args:
          ids: rows, any shape. A negative id (no hit, the null document) gives an empty row.
          max_len: length of every row of the result.
          pad: value after a row's end.

        Raises:
          ValueError: an id beyond the last row.
        """
        starts, lengths = self._starts_and_lengths(ids)
        positions = np.arange(max_len)
        present = positions < np.minimum(lengths, max_len)[..., None]  # [*rows, max_len]
        result = np.full((*starts.shape, max_len, *self._values.shape[1:]), pad, np.int32)
        result[present] = self._values[(starts[..., None] + positions)[present]]
        return result

    def _starts_and_lengths(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(ids)
        if ids.size and ids.max() >= len(self):
            raise ValueError(f"expected document ids below {len(self)}, got {ids.max()}")
        safe = np.maximum(ids, 0).astype(np.int64)
        starts = self._offsets[safe] if len(self) else np.zeros(safe.shape, np.int64)
        ends = self._offsets[safe + 1] if len(self) else starts
        lengths = ends - starts
        if ids.size and (starts.min() < 0 or lengths.min() < 0 or ends.max() > self.num_values):
            raise ValueError(DAMAGED)
        return starts, np.where(ids >= 0, lengths, 0)


def open_array(path: Path, length: int | None = None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; build the corpus again") from error
    except Exception as error:  # of a damaged header numpy raises whatever its parser raises
        raise ValueError(f"{path} is damaged or cut short ({error}); build the corpus again") from error
    if array.ndim == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: expected whole numbers in rows, got {array.dtype} {array.shape}; build the corpus again"
        )
    if length is not None and len(array) != length:
        raise ValueError(f"{path}: expected {length} rows, got {len(array)}; build the corpus again")
    return array.view(np.ndarray)


def open_ragged(directory: Path, name: str, num_rows: int) -> Ragged:
    offsets = open_array(directory / f"{name}.offsets.npy", num_rows + 1)
    if offsets.ndim != 1 or not len(offsets) or offsets.dtype.kind != "i":  # unsigned ones become floats when added to
        raise ValueError(
            f"{directory / name}.offsets.npy: expected a row of offsets, got {offsets.dtype} {list(offsets.shape)}; build the corpus again"
        )
    values = open_array(directory / f"{name}.values.npy", int(offsets[-1]))
    return Ragged(values, offsets)
