"""A torch file's pickles, looked through before torch reads them: nothing of them is run, here or there.

Where torch refuses a name it searches its own message for words, in time that grows with the square of the name's length: a megabyte
would keep it for hours.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LONGEST_TEXT = 4096
"""Characters of a text in a pickle. The names of tensors and of their types are far below."""

_LEGACY_PICKLES = 4  # of a file that is no zip archive: magic number, protocol, system, state; storages follow


def check_texts(path: Path) -> None:
    """Refuses a file whose pickles hold a long text.

    Raises:
      ValueError: naming what was found, or where a pickle is damaged.
    """
    try:
        for pickle in _pickles(path):
            for _, argument, place in pickletools.genops(pickle):
                if isinstance(argument, str | bytes) and len(argument) > LONGEST_TEXT:
                    raise ValueError(
                        f"a text of {len(argument)} characters at byte {place}, expected at most {LONGEST_TEXT}"
                    )
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"a pickle that cannot be read: {error}") from error


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(_LEGACY_PICKLES):
                yield file  # each is read to its end before the next
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".pkl"):
                continue
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed, which torch never does")
            with archive.open(info) as file:
                yield file
