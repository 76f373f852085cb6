"""Files that arrays are appended to and that say what they hold: .npy, opened with numpy, hashed as they are written."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class ArrayWriter:
    """Appends to one .npy file and hashes what it writes; the header gets its length at the end.

    numpy leaves room in the header for the first dimension to grow to 21 digits.
    """

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...] = ()):
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._file = path.open("wb")
        self._length = 0
        self._hash = hashlib.sha256(repr((self._dtype.str, row_shape)).encode())
        self._write_header()
        self._header_len = self._file.tell()

    def __len__(self) -> int:
        return self._length

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self._dtype)
        self._file.write(data.data)
        self._hash.update(data.data)
        self._length += len(data)

    def close(self) -> str:
        """Finishes the file; the sha256 of its values."""
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._header_len
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


class RaggedWriter:
    """Appends rows to NAME.values.npy and NAME.offsets.npy."""

    def __init__(self, directory: Path, name: str, dtype: Any, row_shape: tuple[int, ...] = ()):
        self._name = name
        self._values = ArrayWriter(directory / f"{name}.values.npy", dtype, row_shape)
        self._offsets = ArrayWriter(directory / f"{name}.offsets.npy", np.int64)
        self._offsets.append(np.zeros(1, np.int64))

    @property
    def num_values(self) -> int:
        return len(self._values)

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self._offsets.append(len(self._values) + np.cumsum(lengths, dtype=np.int64))
        self._values.append(values)

    def append_bytes(self, rows: Sequence[bytes]) -> None:
        self.append(np.frombuffer(b"".join(rows), np.uint8), np.asarray([len(row) for row in rows], np.int64))

    def close(self) -> dict[str, str]:
        return {f"{self._name}.values": self._values.close(), f"{self._name}.offsets": self._offsets.close()}

    def abandon(self) -> None:
        self._values.abandon()
        self._offsets.abandon()
