"""Instruction examples of a source: a data set of the templates by its name, TFDS, the Hugging Face hub, or local files."""

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from realm_jax.corpus.source_text import listed
from realm_jax.data.question_formats.question import shortened
from realm_jax.data.questions import read_questions
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.fields import RecordError
from realm_jax.instructions.records import OnDefect, Place, Record, read_records
from realm_jax.instructions.templates import LEFT_OUT, Template, Templates
from realm_jax.instructions.threads import NO_REPLY, conversations

MAX_EXAMPLES = 7500  # of each set, as published (arXiv:2310.01352)
QUESTIONS = "questions"  # the template of questions of any source
PATTERN_ANSWER = "answer that is a regular expression"
_NO_DEFECTS = frozenset({LEFT_OUT, NO_REPLY})
_NAMED = re.compile(r"([A-Za-z0-9_]+)=(.+)", re.DOTALL)


class ExampleSet(NamedTuple):
    """Examples of one data set.

    Attributes:
      examples: in an order that depends on their content and the seed alone.
      dropped: records that gave none, by cause.
      source: where they were read.
      num_found: usable examples, of which `examples` are a draw.
    """

    examples: tuple[InstructionExample, ...]
    dropped: dict[str, int]
    source: str
    num_found: int


def read_examples(
    source: str,
    *,
    templates: Templates,
    max_examples: int | None = MAX_EXAMPLES,
    seed: int = 0,
    max_dropped_share: float = 0.5,
) -> ExampleSet:
    """Reads the examples of a source.

    Args:
      source: NAME of a template (its own first source is read), or NAME=PLACE, or a place alone. A place is
        `tfds:NAME?split=…`, `hf:OWNER/NAME?config=…&split=…` (a template that names this set is found by it) or a file; a
        file alone is one of questions in any of the formats of `realm_jax.data.questions`.
      templates: how records become examples.
      max_examples: at most so many are drawn, by a hash of each: the draw depends on the seed, but not on the order of the
        records. None takes all.
      seed: of that draw, and of the markers.
      max_dropped_share: how much of the records may be defective. Those that the template leaves out are no defect.

    Returns:
      The examples and what was dropped.

    Raises:
      FileNotFoundError: no file lies there, or the hub cannot be reached.
      ValueError: no template or set of this name; no example was found; or too many records cannot be used, naming the
        first of them and the fields that the template expects.
    """
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"expected max_examples of at least 1, or None for all, got {max_examples}")
    template, place = resolve(source, templates)
    dropped: Counter[str] = Counter()
    first_bad: list[str] = []

    def on_defect(where: str, cause: str) -> None:
        dropped[cause] += 1
        if not first_bad and cause not in _NO_DEFECTS:
            first_bad.append(f"{where}: {cause}")

    records = _question_records(place, on_defect) if template.name == QUESTIONS else read_records(place, on_defect)
    if template.threads is not None:
        records = conversations(records, template, template.threads, on_defect)
    drawn = _Draw(max_examples, seed)
    for example in _examples(records, template, seed, on_defect, first_bad):
        drawn.add(example)
    num_defects = sum(count for cause, count in dropped.items() if cause not in _NO_DEFECTS)
    if not drawn.num_found or num_defects > max_dropped_share * (drawn.num_found + num_defects):
        raise ValueError(
            f"{source}: {num_defects} of {drawn.num_found + num_defects} records cannot be used ({listed(dropped) or 'none'}), "
            f"more than {max_dropped_share:.0%} or all; {first_bad[0] if first_bad else 'there is no record'}; the template "
            f"{template.name} expects {template.expected}; repair the records, or name the template as NAME=PLACE"
        )
    return ExampleSet(drawn.examples(), dict(dropped), source, drawn.num_found)


def resolve(source: str, templates: Templates) -> tuple[Template, Place]:
    """The template and the place that a source names.

    Raises:
      ValueError: there is no such template.
    """
    named = _NAMED.fullmatch(source)
    if named and (named[1] in templates.by_name or not Path(source).exists()):
        return _placed(templates.get(named[1]), named[2])
    if source in templates.by_name:
        template = templates.get(source)
        if not template.sources:
            raise ValueError(f"the template {source} names no source of its own; write {source}=PATH")
        return template, Place.parse(template.sources[0])
    place = Place.parse(source)
    if place.kind == "file":
        if re.fullmatch(r"\w+", source) and not Path(source).exists():
            templates.get(source)  # says which there are
        return templates.get(QUESTIONS), place
    for template in templates.by_name.values():
        if any(_same_set(place, Place.parse(own)) for own in template.sources):
            return _placed(template, source)
    if place.kind == "tfds" and QUESTIONS in templates.by_name:
        return templates.get(QUESTIONS), place
    raise ValueError(
        f"no template of {templates.source} is of {source}; write NAME={source} with one of {sorted(templates.by_name)}"
    )


def _placed(template: Template, spec: str) -> tuple[Template, Place]:
    """The place with the parameters that the template knows for this set where it has none of its own."""
    place = Place.parse(spec)
    for own in map(Place.parse, template.sources):
        if _same_set(place, own) and "files" not in place.parameters:
            return template, place._replace(parameters={**own.parameters, **place.parameters})
    return template, place


def _same_set(one: Place, other: Place) -> bool:
    return one.kind == other.kind and one.set_name == other.set_name


def _question_records(place: Place, on_defect: OnDefect) -> Iterator[tuple[str, Record]]:
    """Questions of any of the formats of `realm_jax.data.questions`; of the hub and of parquet by their own fields."""
    if place.kind == "hf" or place.name.endswith(".parquet"):
        yield from read_records(place, on_defect)
        return
    spec = place.name
    if place.kind == "tfds":
        spec = f"tfds:{place.name}?{'&'.join(f'{key}={value}' for key, value in place.parameters.items())}".rstrip("?")
    found = read_questions(spec)
    for cause, count in found.dropped.items():
        for _ in range(count):
            on_defect(place.name, cause)
    for number, question in enumerate(found.questions, 1):
        if question.is_regex:
            on_defect(f"question {number}", PATTERN_ANSWER)
        else:
            yield f"question {number}", {"id": question.id, "question": question.text, "answers": [*question.answers]}


def _examples(
    records: Iterable[tuple[str, Record]], template: Template, seed: int, on_defect: OnDefect, first_bad: list[str]
) -> Iterator[InstructionExample]:
    for where, record in records:
        try:
            if template.threads is None and not template.is_kept(record):
                on_defect(where, LEFT_OUT)
                continue
            examples = template.examples(record, seed)
        except RecordError as error:
            is_first = not first_bad
            on_defect(where, error.cause)
            if is_first and first_bad:
                first_bad[0] = f"{where}: {error} in {shortened(dict(record))}"
        else:
            yield from examples


class _Draw:
    """The `size` examples with the smallest hashes of those that were added, or all: no more than these are held."""

    def __init__(self, size: int | None, seed: int):
        self._size, self._seed = size, seed
        self._heap: list[tuple[int, InstructionExample]] = []
        self.num_found = 0

    def add(self, example: InstructionExample) -> None:
        self.num_found += 1
        content = "\0".join([str(self._seed), example.dataset, example.id, example.query, *example.references])
        digest = blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "little"), example)
        if self._size is None or len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def examples(self) -> tuple[InstructionExample, ...]:
        return tuple(example for _, example in sorted(self._heap, reverse=True))
