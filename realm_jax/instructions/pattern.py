"""The little language of templates: text with {names} in it. Nothing in it is ever evaluated."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

_PARTS = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Part(NamedTuple):
    """A piece of a pattern: text as it is, or the name of a text to be put in."""

    text: str
    is_name: bool


Pattern = tuple[Part, ...]


def parse_pattern(text: str, names: Collection[str], where: str) -> Pattern:
    """A pattern in parts. "{name}" is a name, "{{" and "}}" are braces.

    >>> parse_pattern("{question} {{A}}", ["question"], "example")[0]
    Part(text='question', is_name=True)

    Args:
      text: the pattern.
      names: those that may occur.
      where: names the pattern in messages.

    Raises:
      ValueError: a brace stands alone, or a name is not one of `names`; attributes, indices, conversions and format
        specifications, which str.format has, are no names.
    """
    parts = []
    for found in _PARTS.findall(text):
        if found in ("{{", "}}"):
            parts.append(Part(found[0], False))
        elif found in ("{", "}"):
            raise ValueError(f"{where}: a single {found!r} in {text!r}; write {found * 2!r} for a brace")
        elif found.startswith("{"):
            name = found[1:-1]
            if not _NAME.fullmatch(name) or name not in names:
                raise ValueError(
                    f"{where}: expected a name among {sorted(names)} in braces, got {found!r}; there are no attributes, "
                    "indices or formats"
                )
            parts.append(Part(name, True))
        else:
            parts.append(Part(found, False))
    return tuple(parts)


def names_of(pattern: Pattern) -> list[str]:
    """The names in a pattern, in order."""
    return [part.text for part in pattern if part.is_name]


def render(pattern: Pattern, texts: Mapping[str, str]) -> str:
    """The pattern with texts for its names. What is put in is not looked at again: braces in it are braces."""
    return "".join(texts[part.text] if part.is_name else part.text for part in pattern)
