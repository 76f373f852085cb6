"""Reads templates from a TOML file: the one of this package, or a user's own."""

import functools
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path as FilePath
from typing import Any

from realm_jax.instructions.fields import ChoiceFields, Field, Path, check_mark
from realm_jax.instructions.pattern import names_of, parse_pattern
from realm_jax.instructions.templates import CHOICE_STYLE, USES, Markers, Template, Templates, Threads, Turns
from realm_jax.storage import fetch

OWN_FILE = FilePath(__file__).with_name("templates.toml")
_SET_KEYS = (
    *("title", "group", "used_by", "sources", "fields", "prompt", "answer", "query", "references"),
    *("choices", "turns", "threads", "keep", "id"),
)
_FIELD_KEYS = ("path", "join", "labels", "after", "before", "braces", "without", "nothing", "default")
_CHOICE_NAMES = ("choices", "correct_choice", "correct_text", "stem")
_TURN_NAMES = ("turn_question", "turn_answer")


@functools.cache
def own_templates() -> Templates:
    """The templates of this package: the sets of RA-DIT (arXiv:2310.01352, table 1), any questions, and plain text."""
    return read_templates(OWN_FILE)


def read_templates(path: str | FilePath) -> Templates:
    """Reads a template file, whose form docs/instructions.md describes.

    Raises:
      FileNotFoundError: no file lies there.
      ValueError: it is no TOML, or a table or a pattern of it is not as described; names file, set and key.
    """
    place = fetch(path)
    if not place.is_file():
        raise FileNotFoundError(f"expected a template file (TOML) at {path}, where none is")
    try:
        document = tomllib.loads(place.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}; see docs/instructions.md for the form of templates") from error
    _check_keys(document, ("markers", "sets"), str(path))
    markers = {
        name: _texts(values, f"{path}, marker {name}")
        for name, values in _table(document, "markers", str(path)).items()
    }
    for name, values in markers.items():
        if not values:
            raise ValueError(f"{path}, marker {name}: expected texts to draw from, got none")
    try:
        for mark in markers.get(CHOICE_STYLE, ()):
            check_mark(mark)
    except ValueError as error:
        raise ValueError(f"{path}, marker {CHOICE_STYLE}: {error}") from error
    sets = _table(document, "sets", str(path))
    if not sets:
        raise ValueError(f"{path}: expected tables [sets.NAME], got none")
    return Templates({name: _template(name, entry, markers, f"{path}, set {name}") for name, entry in sets.items()}, str(path))  # fmt: skip


def _template(name: str, entry: Any, markers: Markers, where: str) -> Template:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected a table, got {entry!r}")
    _check_keys(entry, _SET_KEYS, where)
    for key in ("group", "prompt", "answer", "query"):
        if key not in entry:
            raise ValueError(f"{where}: expected the key {key!r}, got only {sorted(entry)}")
    fields = tuple(_field(key, said, where) for key, said in _table(entry, "fields", where).items())
    choices = _choices(entry["choices"], f"{where}, choices") if "choices" in entry else None
    turns = _turns(entry["turns"], markers, f"{where}, turns") if "turns" in entry else None
    texts = [field.name for field in fields]
    texts += _CHOICE_NAMES if choices else ()
    texts += (*_TURN_NAMES, "turns") if turns else ()
    twice = sorted({key for key in [*texts, *markers] if [*texts, *markers].count(key) > 1})
    if twice:
        raise ValueError(
            f"{where}: expected names that are neither marker nor given twice, got {twice}; rename the fields"
        )
    patterns = {key: parse_pattern(_text(entry[key], f"{where}, {key}"), [*texts, *markers], f"{where}, {key}") for key in ("prompt", "answer", "query")}  # fmt: skip
    for key, pattern in patterns.items():
        if not set(names_of(pattern)) & set(texts):
            raise ValueError(f"{where}, {key}: expected at least one of {sorted(texts)} in it, got {entry[key]!r}")
    references = tuple(
        parse_pattern(text, [*texts, *markers], f"{where}, references")
        for text in _texts(entry.get("references", []), f"{where}, references")
    )
    used = {key for pattern in (*patterns.values(), *references) for key in names_of(pattern)}
    used |= set(names_of(turns.earlier)) if turns else set()
    used |= {CHOICE_STYLE} if choices else set()
    if choices and CHOICE_STYLE not in markers:
        raise ValueError(f'{where}: expected [markers] to have {CHOICE_STYLE} for the choices, such as ["A. ", "(A) "]')
    try:
        return Template(
            name, _text(entry.get("title", name), f"{where}, title"), _text(entry["group"], f"{where}, group"),
            _texts(entry.get("used_by", list(USES)), f"{where}, used_by"),
            _texts(entry.get("sources", []), f"{where}, sources"), fields, patterns["prompt"], patterns["answer"],
            patterns["query"], references, choices, turns,
            _threads(entry["threads"], f"{where}, threads") if "threads" in entry else None,
            _keep(_table(entry, "keep", where), f"{where}, keep"), _paths(entry.get("id", []), f"{where}, id"),
            {key: values for key, values in markers.items() if key in used},
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _field(name: str, said: Any, where: str) -> Field:
    where = f"{where}, field {name}"
    if isinstance(said, str | list):
        said = {"path": said}
    if not isinstance(said, Mapping):
        raise ValueError(f"{where}: expected a path, or a table with one, got {said!r}")
    _check_keys(said, _FIELD_KEYS, where)
    labels = said.get("labels", {})
    without = _texts(said.get("without", []), f"{where}, without")
    if len(without) not in (0, 2) or not all(without):
        raise ValueError(f"{where}, without: expected a beginning and an end, got {list(without)}")
    if not isinstance(labels, Mapping):
        raise ValueError(f"{where}, labels: expected a table, got {labels!r}")
    paths = _paths(said.get("path", []), f"{where}, path")
    if not paths:
        raise ValueError(f"{where}: expected a path, got none")
    return Field(
        name,
        paths,
        join=None if "join" not in said else _text(said["join"], f"{where}, join"),
        labels=tuple((key, _text(value, f"{where}, labels")) for key, value in labels.items()),
        after=_text(said.get("after", ""), f"{where}, after"),
        before=_text(said.get("before", ""), f"{where}, before"),
        braces=_text(said.get("braces", ""), f"{where}, braces"),
        without=(without[0], without[1]) if without else None,
        nothing=_texts(said.get("nothing", []), f"{where}, nothing"),
        default=None if "default" not in said else _text(said["default"], f"{where}, default"),
    )


def _choices(said: Any, where: str) -> ChoiceFields:
    _check_keys(said, ("texts", "each", "correct", "correct_is", "marks"), where)
    _require(said, ("correct", "correct_is"), where)
    try:
        return ChoiceFields(
            _paths(said.get("texts", []), f"{where}, texts"), _paths(said["correct"], f"{where}, correct"),
            _text(said["correct_is"], f"{where}, correct_is"), _text(said.get("marks", ""), f"{where}, marks"),
            _paths(said.get("each", []), f"{where}, each"),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _turns(said: Any, markers: Markers, where: str) -> Turns:
    _check_keys(said, ("questions", "answers", "earlier", "each"), where)
    _require(said, ("questions", "answers", "earlier"), where)
    each = said.get("each", True)
    if not isinstance(each, bool):
        raise ValueError(f"{where}, each: expected true or false, got {each!r}")
    earlier = parse_pattern(_text(said["earlier"], f"{where}, earlier"), [*_TURN_NAMES, *markers], f"{where}, earlier")
    return Turns(
        _field("questions", said["questions"], where), _field("answers", said["answers"], where), earlier, each
    )


def _threads(said: Any, where: str) -> Threads:
    keys = ("message", "parent", "role", "text", "rank", "asks", "answers")
    _check_keys(said, keys, where)
    _require(said, keys, where)
    texts = {key: _text(said[key], f"{where}, {key}") for key in keys}
    paths = {key: _path(texts[key], f"{where}, {key}") for key in keys[:5]}
    return Threads(**paths, asks=texts["asks"], answers=texts["answers"])


def _keep(said: Mapping[str, Any], where: str) -> tuple[tuple[Path, tuple[Any, ...]], ...]:
    for path, values in said.items():
        if not isinstance(values, list) or not all(isinstance(value, str | int | bool) for value in values):
            raise ValueError(f"{where}, {path}: expected a list of the values to keep, got {values!r}")
    return tuple((_path(path, where), tuple(values)) for path, values in said.items())


def _paths(said: Any, where: str) -> tuple[Path, ...]:
    return tuple(_path(text, where) for text in _texts([said] if isinstance(said, str) else said, where))


def _path(text: str, where: str) -> Path:
    keys = tuple(text.split("."))
    if not all(keys):
        raise ValueError(f'{where}: expected keys with dots between, such as "answers.text", got {text!r}')
    return keys


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a string, got {value!r}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where}: expected a list of strings, got {value!r}")
    return tuple(value)


def _table(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}, {key}: expected a table, got {value!r}")
    return value


def _require(said: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    lacking = [key for key in keys if key not in said]
    if lacking:
        raise ValueError(f"{where}: expected the keys {list(keys)}, got none of {lacking}")


def _check_keys(said: Any, valid: Collection[str], where: str) -> None:
    if not isinstance(said, Mapping):
        raise ValueError(f"{where}: expected a table, got {said!r}")
    unknown = sorted(set(said) - set(valid))
    if unknown:
        raise ValueError(f"{where}: expected keys among {list(valid)}, got {unknown}")
