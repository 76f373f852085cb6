"""Lines of a file of questions, which may be compressed; unlike a corpus, a damaged file is refused."""

from collections.abc import Iterator
from pathlib import Path

from realm_jax.corpus.sources.files import read_lines
from realm_jax.corpus.sources.json_document import refuse_damage
from realm_jax.data.question_formats.question import OnCause

_MAX_LINE_BYTES = 1 << 30


def question_lines(path: Path, on_drop: OnCause) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) that are not blank; those that are not UTF-8 are counted and left out.

    Raises:
      ValueError: when the file is cut short or damaged: figures on a part of it would be compared with the whole.
    """

    def on_cause(cause: str) -> None:
        refuse_damage(path, cause)
        on_drop(cause)

    for number, line in read_lines(path, on_cause, _MAX_LINE_BYTES):
        if line.strip():
            yield number, line
