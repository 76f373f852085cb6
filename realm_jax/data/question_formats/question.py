"""The record that every format of questions gives, and what every record must pass before it is one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

OnCause = Callable[[str], None]

EMPTY_QUESTION = "empty question"
NOT_ENCODABLE = "text that is no Unicode (half a surrogate pair)"
EMPTY_ANSWER = "empty answer left out"

# Where the published data sets keep the strings of an answer that is an object: TriviaQA's own files, TriviaQA and
# SQuAD in TFDS. The normalised aliases count too: the official scorer of TriviaQA compares with them.
_ANSWER_KEYS = (
    *("Value", "Aliases", "HumanAnswers", "NormalizedAliases"),
    *("value", "aliases", "human_answers", "normalized_aliases", "text"),
)


class Passage(NamedTuple):
    """A passage that answers a question, where the file of the questions holds it."""

    title: str
    text: str


class Question(NamedTuple):
    """A question and what answers it."""

    text: str  # as models see it, once it has passed `QuestionFilter`
    answers: tuple[str, ...] = ()  # each is right; empty if unknown
    is_regex: bool = False  # the answers are regular expressions (CuratedTREC)
    gold_passage: str | None = None  # id of a passage that answers it, if the file names one
    id: str = ""  # the record's own, or its line or place in the file, from 1
    passage: Passage | None = None  # the passage itself, if the file holds it
    original: str = ""  # the text as the source has it, where that is another

    @property
    def as_written(self) -> str:
        """The text as the source has it: what scorers know a question by."""
        return self.original or self.text


class QuestionFilter:
    """Makes questions out of raw records, or counts why not: the checks that hold for every format.

    The text of a question becomes one line, so that training, evaluation, `predict` and the page ask the same.

    Args:
      on_drop: called with the cause of each record left out.
      on_note: called with what is odd about a record that is kept.
    """

    def __init__(self, on_drop: OnCause, on_note: OnCause):
        self._on_drop, self._on_note = on_drop, on_note

    def question(self, question: Question) -> Question | None:
        """The question; None, once its cause has been reported, if it cannot be used."""
        text = one_line(question.text)
        if not text:
            return self._on_drop(EMPTY_QUESTION)
        if not all(_is_encodable(part) for part in (question.text, question.id, *question.answers)):
            return self._on_drop(NOT_ENCODABLE)
        answers = tuple(answer for answer in question.answers if answer.strip())
        for _ in range(len(question.answers) - len(answers)):
            self._on_note(EMPTY_ANSWER)
        original = "" if text == question.text else question.text
        return question._replace(text=text, answers=answers, original=original)


def one_line(text: str) -> str:
    """A text on one line, without control characters, its words a space apart.

    >>> one_line(" who\\n wrote\\x00  it? ")
    'who wrote it?'
    """
    # not at the top: that package reads files in SQuAD's form by means of this one
    from realm_jax.corpus.sources.article import clean_text

    return " ".join(clean_text(text).split())


def answers_of(value: Any) -> tuple[str, ...]:
    """The distinct answers of a record's value, in order: one string, several, or TriviaQA's or SQuAD's object.

    >>> answers_of({"Value": "Oslo", "Aliases": ["Oslo", "Christiania"], "NormalizedAliases": ["oslo"]})
    ('Oslo', 'Christiania', 'oslo')

    Raises:
      TypeError: for anything else.
      UnicodeDecodeError: for bytes that are not UTF-8.
    """
    if isinstance(value, str | bytes):
        return (as_text(value),)
    if isinstance(value, Mapping):
        known = [value[key] for key in _ANSWER_KEYS if key in value]
        if not known:
            raise TypeError(f"no answer among {sorted(value)}")
        return tuple(dict.fromkeys(answer for part in known for answer in answers_of(part)))
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        return tuple(dict.fromkeys(as_text(answer) for answer in value))
    raise TypeError(f"no answers: {value!r}")


def as_text(value: Any) -> str:
    """A string, or the bytes of one.

    Raises:
      TypeError: for anything else.
      UnicodeDecodeError: for bytes that are not UTF-8.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    raise TypeError(f"no text: {value!r}")


def listed(value: Any, where: str) -> list[Any]:
    """The value, which is a list.

    Raises:
      ValueError: when it is not, beginning with `where`.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list of questions, got {shortened(value)}")
    return value


def shortened(value: Any, length: int = 200) -> str:
    """A value as an error message shows it."""
    try:
        shown = repr(value)
    except RecursionError:
        shown = f"a {type(value).__name__} of very many within each other"
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
