"""How a question of each data set is put to a language model: templates are data, in templates.toml or a file like it."""

import dataclasses
import string
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from realm_jax.evaluation.few_shot.example import Example
from realm_jax.evaluation.few_shot.metrics import METRICS
from realm_jax.typed import check_arguments, check_fields

MARKERS = {
    "question": "the question, claim or input, on one line",
    "choices": "the choices of a question that has some, a line each, such as `A. Oslo`",
    "subject": "what it is about, in words; empty if unknown",
    "dialogue": "the turns of the input, a line each, `Q:` and `A:` in turn",
    "mention": "the words around what stands between [START_ENT] and [END_ENT]; without these, the question",
}
"""The fields of an example that a template may name."""

_FILE = "templates.toml"
_REQUIRED = ("prompt", "query", "answers", "metrics")


@dataclasses.dataclass(frozen=True)
class Template:
    """A data set's prompts; templates.toml says what each field means."""

    name: str
    prompt: str
    query: str
    answers: Literal["choice", "text"]
    metrics: tuple[str, ...]
    shots: tuple[int, ...] = ()
    demonstrations: Literal["first", "drawn"] = "drawn"
    header: str = ""
    separator: str = "\n\n"
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)

    def __post_init__(self) -> None:
        check_fields(self)
        known = METRICS[self.answers]
        if not self.metrics or not set(self.metrics) <= set(known):
            self._refuse("metrics", f"some of {list(known)}, since answers = {self.answers!r}", list(self.metrics))
        for field in ("prompt", "query", "header"):
            try:
                named = {name for _, name, _, _ in string.Formatter().parse(getattr(self, field)) if name is not None}
            except ValueError as error:
                self._refuse(
                    field, f"a text with {{markers}} ({error}; a brace is written twice)", getattr(self, field)
                )
            if not named <= set(MARKERS):
                self._refuse(field, f"markers among {list(MARKERS)}", sorted(named - set(MARKERS)))
        if not self.prompt.strip() or self.prompt != self.prompt.rstrip():
            self._refuse("prompt", "a text without white space at its end: the answer brings its own", self.prompt)
        if self.max_tokens < 1:
            self._refuse("max_tokens", "at least 1", self.max_tokens)
        if any(number < 0 for number in self.shots):
            self._refuse("shots", "numbers of demonstrations", list(self.shots))
        if len(set(self.labels.values())) < len(self.labels):
            self._refuse("labels", "another word for each", dict(self.labels))

    def question(self, example: Example) -> str:
        """The prompt of an example, without its answer."""
        return self.prompt.format_map(example.fields)

    def question_and_answer(self, example: Example) -> str:
        """The example as a demonstration."""
        return f"{self.question(example)} {example.references[0]}"

    def _refuse(self, field: str, expected: str, got: Any) -> None:
        raise ValueError(f"template {self.name}, {field}: expected {expected}, got {got!r}")


def load_templates(path: str | Path | None = None) -> dict[str, Template]:
    """The templates of a TOML file by name; those of the package unless a file is named.

    Raises:
      FileNotFoundError: no file lies at the path.
      ValueError: it is not TOML, or a template is not what `Template` expects, naming both.
    """
    where = str(path or f"the package's {_FILE}")
    text = (resources.files(__package__) / _FILE if path is None else Path(path)).read_text(encoding="utf-8")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not TOML: {error}") from error
    return {name: _template(name, table, where) for name, table in tables.items()}


def template(name: str, path: str | Path | None = None) -> Template:
    """One template by its name; see `load_templates`.

    Raises:
      ValueError: there is none of this name.
    """
    known = load_templates(path)
    if name not in known:
        raise ValueError(
            f"expected a template among {sorted(known)}, got {name!r}; write one in a TOML file of your own"
        )
    return known[name]


def _template(name: str, table: Any, where: str) -> Template:
    fields = [field.name for field in dataclasses.fields(Template) if field.name != "name"]
    if not isinstance(table, dict) or not set(_REQUIRED) <= set(table) <= set(fields):
        got = sorted(table) if isinstance(table, dict) else repr(table)
        raise ValueError(
            f"{where}, {name}: expected a table with {list(_REQUIRED)} and no keys but {fields}, got {got}"
        )
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    try:
        check_arguments(f"template {name}", Template, values)
        return Template(name=name, **values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
