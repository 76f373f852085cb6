"""Templates: how a record of a data set becomes a prompt and an answer. They are data, in templates.toml; docs/instructions.md
says how to write one."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from realm_jax.instructions.example import GROUPS, InstructionExample
from realm_jax.instructions.fields import (
    EMPTY_FIELD,
    NO_ANSWER,
    WRONG_TYPE,
    ChoiceFields,
    Field,
    Path,
    RecordError,
    clean,
    flat,
    marked,
    plain,
    value_at,
)
from realm_jax.instructions.pattern import Pattern, names_of, render
from realm_jax.typed import check_fields

LEFT_OUT = "left out by the template's keep"
EMPTY_PROMPT = "empty prompt"
CHOICE_STYLE = "choice"  # the marker that stands before each choice
USES = ("language_model", "retriever")
Markers = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Turns:
    """A record that is a conversation.

    Attributes:
      questions, answers: lists of the same length.
      earlier: how an earlier question and its answer are written.
      each: whether every answer gives an example, with the turns before it in the prompt; else the last one alone.
    """

    questions: Field
    answers: Field
    earlier: Pattern
    each: bool

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Threads:
    """A data set whose records are messages, each with the message that it answers.

    Attributes:
      message, parent: the id of a message, and that of the one before it (none for the first).
      role, asks, answers: who wrote it, and what stands there for who asks and who answers.
      text: what was written.
      rank: of several answers the one with the lowest number is the best, so that it is taken.
    """

    message: Path
    parent: Path
    role: Path
    text: Path
    rank: Path
    asks: str
    answers: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Template:
    """How the records of one data set become examples.

    Attributes:
      name: of the table in the template file.
      title: the data set's own.
      group: one of `GROUPS`.
      used_by: which of `USES` RA-DIT trains on it (table 1).
      sources: where the set is to be had, `tfds:…` and `hf:…`; the first is read where no other is named.
      fields: the texts of a record.
      prompt, answer, query: the patterns. A field of the answer that holds several texts gives several answers, of which
        the first is written.
      references: further patterns of correct answers.
      choices: of a multiple-choice question: {choices}, {correct_choice}, {correct_text}, {stem}.
      turns: of a conversation: {turns}, {turn_question}, {turn_answer}.
      threads: of a set of single messages, which are made into conversations.
      keep: fields that must hold one of some values; other records are left out and are no defect.
      id: where a record holds its id; none: the id is a hash of what the template reads.
      markers: what a marker of the patterns is drawn from.
    """

    name: str
    title: str
    group: str
    used_by: tuple[str, ...]
    sources: tuple[str, ...]
    fields: tuple[Field, ...]
    prompt: Pattern
    answer: Pattern
    query: Pattern
    references: tuple[Pattern, ...] = ()
    choices: ChoiceFields | None = None
    turns: Turns | None = None
    threads: Threads | None = None
    keep: tuple[tuple[Path, tuple[Any, ...]], ...] = ()
    id: tuple[Path, ...] = ()
    markers: Markers = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.group not in GROUPS:
            raise ValueError(f"{self.name}: expected a group among {list(GROUPS)}, got {self.group!r}")
        if not set(self.used_by) <= set(USES):
            raise ValueError(f"{self.name}: expected used_by among {list(USES)}, got {list(self.used_by)}")

    @property
    def expected(self) -> str:
        """The fields of a record in a line, for messages."""
        wanted = [field.spelled for field in self.fields]
        if self.choices:
            found = self.choices.each or self.choices.texts
            wanted += [" or ".join(map(".".join, found)), " or ".join(map(".".join, self.choices.correct))]
        if self.threads:
            wanted = [".".join(path) for path in (self.threads.message, self.threads.parent, self.threads.role)]
        elif self.turns:
            wanted += [self.turns.questions.spelled, self.turns.answers.spelled]
        return ", ".join(dict.fromkeys(wanted))

    def is_kept(self, record: Mapping[str, Any]) -> bool:
        """Whether `keep` lets a record through.

        Raises:
          RecordError: it lacks a field that `keep` names.
        """
        values = ((plain(value_at(record, (path,))), allowed) for path, allowed in self.keep)
        return all(any(type(value) is type(one) and value == one for one in allowed) for value, allowed in values)

    def examples(self, record: Mapping[str, Any], seed: int) -> list[InstructionExample]:
        """The examples of a record: one, or of a conversation one for each answer. A pure function of its arguments.

        Args:
          record: as it was read.
          seed: of the draw of the markers, which depends on it and on what the template reads of the record.

        Raises:
          RecordError: the record cannot be used, with the cause.
        """
        record = plain(record)
        texts = {field.name: field.texts(record) for field in self.fields}
        rows: list[tuple[dict[str, tuple[str, ...]], str]] = [(texts, "")]
        if self.turns is not None:
            rows = [({**texts, **found}, suffix) for found, suffix in self._turns_of(record, self.turns)]
        return [self._example(record, found, suffix, seed) for found, suffix in rows]

    def _turns_of(self, record: Mapping[str, Any], turns: Turns) -> Iterator[tuple[dict[str, tuple[str, ...]], str]]:
        """For each answer the turns so far, (questions, answers) alternating, and a suffix of the id."""
        questions, answers = _each_text(turns.questions, record), _each_text(turns.answers, record)
        if not questions:
            raise RecordError(EMPTY_PROMPT, "a conversation of no turns")
        if len(questions) != len(answers):
            raise RecordError(WRONG_TYPE, f"{len(questions)} questions, but {len(answers)} answers")
        for last in range(0 if turns.each else len(questions) - 1, len(questions)):
            said = [text for pair in zip(questions[:last], answers[:last], strict=True) for text in pair]
            found = {"turn_question": (questions[last],), "turn_answer": (answers[last],), "turns": tuple(said)}
            yield found, f"#{last}" if turns.each else ""

    def _example(
        self, record: Mapping[str, Any], texts: dict[str, tuple[str, ...]], suffix: str, seed: int
    ) -> InstructionExample:
        chosen = self.choices.read(record) if self.choices is not None else None
        content = json.dumps([self.name, sorted(texts.items()), chosen]).encode()
        marks = {name: _drawn(seed, content, name, values) for name, values in self.markers.items()}
        single = dict(marks)
        if chosen is not None:
            lines = [f"{marked(marks[CHOICE_STYLE], place)}{text}" for place, text in enumerate(chosen.texts)]
            single |= {"choices": "\n".join(lines), "stem": chosen.stem}
            single |= {"correct_choice": lines[chosen.correct], "correct_text": chosen.texts[chosen.correct]}
        if self.turns is not None:
            said = texts.pop("turns")
            single["turns"] = "".join(
                render(self.turns.earlier, {**marks, "turn_question": said[i], "turn_answer": said[i + 1]})
                for i in range(0, len(said), 2)
            )
        answers = _filled(self.answer, single, texts, NO_ANSWER)
        further = [text for pattern in self.references for text in _filled(pattern, single, texts, NO_ANSWER)]
        prompt, query = (_one(pattern, single, texts) for pattern in (self.prompt, self.query))
        if not answers:
            raise RecordError(NO_ANSWER, "the answer is empty")
        return InstructionExample(
            self.name, self.group, prompt, answers[0], query, tuple(dict.fromkeys([*answers, *further])),
            self._id_of(record, content) + suffix,
        )  # fmt: skip

    def _id_of(self, record: Mapping[str, Any], content: bytes) -> str:
        try:
            value = value_at(record, self.id) if self.id else None
            found = str(value) if isinstance(value, int) else clean(value, "the id")
        except RecordError:  # a record needs no id
            found = ""
        return found or blake2b(content, digest_size=8).hexdigest()


class Templates(NamedTuple):
    """The templates of a file, by name."""

    by_name: dict[str, Template]
    source: str

    def get(self, name: str) -> Template:
        """Raises ValueError for a name that there is not, listing those that there are."""
        if name not in self.by_name:
            raise ValueError(f"expected a template of {self.source} among {sorted(self.by_name)}, got {name!r}")
        return self.by_name[name]


def _each_text(field: Field, record: Mapping[str, Any]) -> list[str]:
    """All texts of a field, none left out: their places count."""
    texts = [field.of(value) for value in flat(value_at(record, field.paths))]
    if not all(texts):
        raise RecordError(EMPTY_FIELD, f"an empty turn in {field.spelled}")
    return texts


def _filled(pattern: Pattern, single: Mapping[str, str], texts: Mapping[str, tuple[str, ...]], cause: str) -> list[str]:
    """A pattern once for each text of the one field in it that may hold several; empty ones are left out."""
    names = [name for name in names_of(pattern) if name in texts]
    for name in names:
        if not texts[name]:
            raise RecordError(cause, f"{name} is empty")
    several = [name for name in dict.fromkeys(names) if len(texts[name]) > 1]
    if len(several) > 1:
        raise RecordError(WRONG_TYPE, f"several texts in {' and '.join(several)}; an answer may have one such field")
    values = {name: texts[name][0] for name in names} | dict(single)
    rows = [{**values, several[0]: text} for text in texts[several[0]]] if several else [values]
    return [found for row in rows if (found := render(pattern, row).strip())]


def _one(pattern: Pattern, single: Mapping[str, str], texts: Mapping[str, tuple[str, ...]]) -> str:
    found = _filled(pattern, single, texts, EMPTY_FIELD)
    if len(found) > 1:
        raise RecordError(WRONG_TYPE, "several texts where the template puts one")
    if not found:
        raise RecordError(EMPTY_PROMPT, "nothing is left of the prompt or the query")
    return found[0]


def _drawn(seed: int, content: bytes, name: str, values: tuple[str, ...]) -> str:
    digest = blake2b(f"{seed} {name} ".encode() + content, digest_size=8).digest()
    return values[int.from_bytes(digest, "little") % len(values)]
