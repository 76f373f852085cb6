"""Taking the texts of a template out of a record of any source: JSON, parquet, or TFDS with its bytes and arrays."""

import dataclasses
import re
import string
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from realm_jax.corpus.sources.article import NOT_UTF8, clean_text
from realm_jax.data.question_formats.question import NOT_ENCODABLE, shortened
from realm_jax.typed import check_fields

MISSING_FIELD = "missing field"
WRONG_TYPE = "value of a wrong type"
UNKNOWN_LABEL = "label that the template does not name"
EMPTY_FIELD = "empty field"
NO_ANSWER = "no answer"
NO_CHOICES = "choices that cannot be told apart"

LETTERS = string.ascii_uppercase
_MAX_NESTING = 16
Path = tuple[str, ...]


class RecordError(ValueError):
    """A record that gives no example.

    Attributes:
      cause: what it is counted under.
    """

    def __init__(self, cause: str, detail: str):
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


@dataclasses.dataclass(frozen=True)
class Field:
    """Where a record holds a text, or several, and what is done to each.

    Attributes:
      name: of the placeholder.
      paths: keys one within the other; the first path that the record has counts. A key of a list is that of its elements.
      join: puts several texts together with this between them.
      labels: what stands for a number, a truth value or a string of the record: pairs of that, as JSON writes it without
        quotes, and a text.
      after: only what comes after the last occurrence of this; nothing where there is none.
      before: only what comes before the first occurrence of this; everything where there is none.
      braces: only what stands in braces behind the last occurrence of this, as "boxed" of "\\boxed{\\frac{1}{2}}".
      without: beginning and end of passages that are left out.
      nothing: texts that mean that there is none.
      default: the text where there is none; None: the record is dropped.
    """

    name: str
    paths: tuple[Path, ...]
    join: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    after: str = ""
    before: str = ""
    braces: str = ""
    without: tuple[str, str] | None = None
    nothing: tuple[str, ...] = ()
    default: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def spelled(self) -> str:
        """The paths as a template file writes them."""
        return " or ".join(".".join(path) for path in self.paths)

    def texts(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts that are not empty, in order, each once.

        Raises:
          RecordError: the field is missing, or holds something else than text.
        """
        found = [self.of(value) for value in flat(value_at(record, self.paths))]
        if self.join is not None:
            found = [self.join.join(text for text in found if text)]
        kept = tuple(dict.fromkeys(text for text in found if text and text not in self.nothing))
        return kept if kept or self.default is None else (self.default,)

    def of(self, value: Any) -> str:
        """The text of one value; "" where there is none.

        Raises:
          RecordError: it is no text, or none of the labels.
        """
        if self.labels:
            key = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool | int) else None
            labels = dict(self.labels)
            if key not in labels:
                raise RecordError(UNKNOWN_LABEL, f"{self.spelled} is {shortened(value, 80)}, not one of {list(labels)}")
            return labels[key]
        text = clean(value, self.spelled)
        if self.without:
            text = without_passages(text, *self.without)
        if self.after:
            _, found, text = text.rpartition(self.after)
            text = text if found else ""
        if self.before:
            text = text.partition(self.before)[0]
        if self.braces:
            text = within_braces(text, self.braces)
        return text.strip()


def value_at(record: Any, paths: tuple[Path, ...]) -> Any:
    """What lies at the first path that the record has.

    >>> value_at({"answers": [{"text": "Oslo"}, {"text": "Rome"}]}, (("answers", "text"),))
    ['Oslo', 'Rome']

    Raises:
      RecordError: it has none of them.
    """
    for path in paths:
        try:
            return _follow(record, path, 0)
        except KeyError:
            continue
    raise RecordError(MISSING_FIELD, " or ".join(".".join(path) for path in paths))


def _follow(value: Any, path: Path, depth: int) -> Any:
    if not path:
        return value
    if isinstance(value, Mapping):
        return _follow(value[path[0]], path[1:], depth)
    if isinstance(value, list) and depth < _MAX_NESTING:
        return [_follow(element, path, depth + 1) for element in value]
    raise KeyError(path[0])


def flat(value: Any, depth: int = 0) -> list[Any]:
    """A value as a list, lists within lists as one; nothing for None.

    Raises:
      RecordError: the lists are nested too deep.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        return [value]
    if depth >= _MAX_NESTING:
        raise RecordError(WRONG_TYPE, f"lists within each other, more than {_MAX_NESTING}")
    return [element for part in value for element in flat(part, depth + 1)]


def plain(value: Any, depth: int = 0) -> Any:
    """A record of TFDS or parquet as JSON would have it: strings for bytes, lists for arrays, numbers for scalars.

    Raises:
      RecordError: bytes that are not UTF-8, or values within each other without end.
    """
    if depth > 4 * _MAX_NESTING:
        raise RecordError(WRONG_TYPE, "values within each other without end")
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecordError(NOT_UTF8, str(error)) from error
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), depth + 1)
    if isinstance(value, Mapping):
        return {key: plain(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, depth + 1) for part in value]
    return value


def clean(value: Any, where: str) -> str:
    """A text without control characters and without white space at its ends.

    Raises:
      RecordError: the value is no text, or no Unicode.
    """
    if not isinstance(value, str):
        raise RecordError(WRONG_TYPE, f"{where} is {shortened(value, 80)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(NOT_ENCODABLE, where) from error
    return clean_text(value).strip()


def without_passages(text: str, begin: str, end: str) -> str:
    """The text without what stands between `begin` and the next `end`, and without these.

    >>> without_passages("48/2 = <<48/2=24>>24 clips", "<<", ">>")
    '48/2 = 24 clips'
    """
    kept, rest = [], text
    while rest:
        before, found, behind = rest.partition(begin)
        kept.append(before)
        if not found:
            break
        _, closed, rest = behind.partition(end)
        if not closed:  # never closed: it is text
            kept.append(found + behind)
            break
    return "".join(kept)


def within_braces(text: str, command: str) -> str:
    """What the braces behind the last `command` hold, braces within them included; "" where there are none.

    >>> within_braces("so $\\\\boxed{\\\\frac{1}{2}}$.", "boxed")
    '\\\\frac{1}{2}'
    """
    _, found, rest = text.rpartition(command)
    if not found or not rest.startswith("{"):
        return ""
    depth = 0
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place]
    return ""


class Choices(NamedTuple):
    """Choices of a question, the place of the right one, and the text that stood in front of them, if any did."""

    texts: tuple[str, ...]
    correct: int
    stem: str


@dataclasses.dataclass(frozen=True)
class ChoiceFields:
    """Where a record holds choices.

    Attributes:
      texts: a list of choices, or a text that holds them all; or several fields with a choice each.
      correct: where it says which is right.
      correct_is: how: "letter" (A, b, …), "index" (from 0) or "text".
      marks: what stands before each choice, with A or a for its letter: "A)", "a ) ". "": nothing.
      each: the fields with a choice each.
    """

    texts: tuple[Path, ...]
    correct: tuple[Path, ...]
    correct_is: str
    marks: str = ""
    each: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.correct_is not in ("letter", "index", "text"):
            raise ValueError(f'expected correct_is = "letter", "index" or "text", got {self.correct_is!r}')
        if self.marks:
            check_mark(self.marks)
        if bool(self.texts) == bool(self.each):
            raise ValueError("expected either texts or each, the fields with a choice each")

    def read(self, record: Mapping[str, Any]) -> Choices:
        """The choices of a record.

        Raises:
          RecordError: there are fewer than two, or none of them is said to be right.
        """
        stem = ""
        if self.each:
            found = [value_at(record, (path,)) for path in self.each]
        else:
            value = value_at(record, self.texts)
            if isinstance(value, str) and self.marks:
                stem, found = cut_at_marks(clean(value, "choices"), self.marks)
            else:
                found = flat(value)
        texts = tuple(self._unmarked(clean(text, "a choice"), place) for place, text in enumerate(found))
        if not 2 <= len(texts) <= len(LETTERS) or not all(texts):
            raise RecordError(NO_CHOICES, f"{len(texts)} choices, of them {texts.count('')} empty")
        return Choices(texts, self._correct(record, texts), stem)

    def _unmarked(self, text: str, place: int) -> str:
        mark = marked(self.marks, place).strip()
        return text.removeprefix(mark).strip() if mark else text

    def _correct(self, record: Mapping[str, Any], texts: tuple[str, ...]) -> int:
        value = value_at(record, self.correct)
        if value in (None, ""):
            raise RecordError(NO_ANSWER, "no choice is said to be right")
        if self.correct_is == "index":
            right = value if isinstance(value, int) and not isinstance(value, bool) else -1
        elif self.correct_is == "letter":
            letter = value.strip().upper() if isinstance(value, str) else ""
            right = LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS else -1
        else:
            wanted = clean(value, "the right choice")
            right = texts.index(wanted) if wanted in texts else -1
        if not 0 <= right < len(texts):
            raise RecordError(NO_ANSWER, f"{shortened(value, 80)} is none of {len(texts)} choices")
        return right


def marked(marks: str, place: int) -> str:
    """What stands before a choice.

    >>> marked("(A) ", 1), marked("a )", 2), marked("", 0)
    ('(B) ', 'c )', '')
    """
    return marks.replace("A", LETTERS[place]).replace("a", LETTERS[place].lower()) if place < len(LETTERS) else ""


def check_mark(mark: str) -> None:
    """Raises ValueError for what cannot stand before choices: it needs one letter, A or a, to be replaced by that of the choice."""
    if not re.fullmatch(r"[^A-Za-z]*[Aa][^A-Za-z]*", mark):
        raise ValueError(f'expected a mark of choices with A or a as its only letter, such as "A. ", got {mark!r}')


def cut_at_marks(text: str, marks: str) -> tuple[str, list[str]]:
    """(what comes before the choices, the choices) of a text that holds both.

    >>> cut_at_marks("Which is faster? (A) ice (B) sand", "(A)")
    ('Which is faster?', ['ice', 'sand'])
    """
    stem, found, rest = text.partition(marked(marks, 0))
    choices: list[str] = []
    while found:
        choice, found, rest = rest.partition(marked(marks, len(choices) + 1) or "\0")
        choices.append(choice.strip(" ,\n"))
    return stem.strip(), choices
