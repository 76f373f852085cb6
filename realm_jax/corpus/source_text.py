"""The text that a corpus is built from: sources read as one stream, what they drop, and a sample to learn from."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from realm_jax.corpus.sample import TextSample, sample_texts
from realm_jax.corpus.sources import ORDINARY_CAUSES, Article, OpenSource, open_source, read_sources
from realm_jax.corpus.sources.files import list_files

logger = logging.getLogger(__name__)

TOO_SHORT = "too short"
DUPLICATE = "exact duplicate block"
RENAMED = "renamed_ids"
_NO_DEFECTS = frozenset({*ORDINARY_CAUSES, TOO_SHORT, DUPLICATE})


class SourceText(NamedTuple):
    """The sources of a corpus.

    Attributes:
      paths: files, folders or `tfds:NAME`.
      source_format: of all of them, or "auto".
      max_dropped_share: how much of the records may be defective.
      leave_out: folders that the run writes to: they are no part of a source that they lie in.
    """

    paths: tuple[str, ...]
    source_format: str
    max_dropped_share: float
    leave_out: tuple[Path, ...] = ()

    def read(self, dropped: Counter[str], renamed: Counter[str] | None = None) -> Iterator[Article]:
        """The articles; what is dropped is counted by cause, ids that had to be renamed under `RENAMED`."""

        def on_drop(cause: str) -> None:
            dropped[cause] += 1

        def on_rename(old_id: str, new_id: str) -> None:
            if renamed is None:
                return
            if not renamed:
                warn_of_renaming(old_id, new_id)
            renamed[RENAMED] += 1

        return read_sources(self.paths, self.source_format, on_drop, on_rename, self.leave_out)

    def open(self, dropped: Counter[str]) -> list[OpenSource]:
        """The sources with their files listed; files that are left out are counted by cause."""

        def on_drop(cause: str) -> None:
            dropped[cause] += 1

        return [open_source(path, self.source_format, on_drop, self.leave_out) for path in self.paths]

    def sample(self, num_chars: int, seed: int) -> TextSample:
        """Texts to learn from; a source read whole for it is checked at once, before the slow work.

        Raises:
          ValueError: too much of the source is defective.
        """
        dropped: Counter[str] = Counter()
        sample = sample_texts((article.text for article in self.read(dropped)), num_chars, seed)
        if sample.is_whole:
            self.check_dropped(dropped, sample.num_read)
        return sample

    def check_dropped(self, dropped: Mapping[str, int], num_used: int) -> None:
        """Raises ValueError if more than `max_dropped_share` of the records are defective."""
        defects = {cause: count for cause, count in dropped.items() if cause not in _NO_DEFECTS}
        num_defects = sum(defects.values())
        if num_defects > self.max_dropped_share * (num_used + num_defects):
            raise ValueError(
                f"{num_defects} of {num_used + num_defects} records of {', '.join(self.paths)} cannot be used "
                f"({listed(defects)}), more than max_dropped_share={self.max_dropped_share}; "
                "repair the text or raise the share"
            )

    def stamp(self) -> str:
        """A fingerprint of names and sizes of the files, so that a changed source is noticed unread."""
        files = []
        for source in self.paths:
            if not source.startswith("tfds:"):
                path = Path(source)
                found = list_files(path, lambda cause: None, self.leave_out)
                files.append([(str(f.relative_to(path)) if f != path else "", f.stat().st_size) for f in found])
        return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def warn_of_renaming(old_id: str, new_id: str) -> None:
    """Tells of the first id that had to be renamed."""
    logger.warning("id %r is in more than one source; there it becomes %r, and others likewise", old_id, new_id)


def listed(counts: Mapping[str, int]) -> str:
    """Counts by cause in a line, most frequent first."""
    return ", ".join(f"{count} {cause}" for cause, count in Counter(counts).most_common() if count)
