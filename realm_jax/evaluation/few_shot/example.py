"""One question of an evaluation, whatever its data set, and how a source of them is told."""

from collections.abc import Mapping
from typing import NamedTuple


class Example(NamedTuple):
    """A question with its right answers.

    Attributes:
      fields: what the markers of a template stand for, by name (`templates.MARKERS`).
      references: right answers; the first one is written where the example is a demonstration.
      options: all that may be answered, the references among them; empty where an answer is written freely.
      is_regex: the references are regular expressions (CuratedTREC).
      subject: examples of one subject are averaged, and demonstrated, among themselves; empty for none.
      id: the record's own, or its place in the source, from 1.
    """

    fields: Mapping[str, str]
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    is_regex: bool = False
    subject: str = ""
    id: str = ""


class ExampleSet(NamedTuple):
    """Examples, where they come from, and what was left out or is odd, by cause."""

    examples: tuple[Example, ...]
    source: str
    dropped: dict[str, int]  # records that cannot be asked
    noted: dict[str, int]  # what is odd about records that are kept
