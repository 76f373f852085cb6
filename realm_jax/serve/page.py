"""The page as HTML: an answer and its documents laid out for the template, which escapes every text."""

import functools
from collections.abc import Mapping
from typing import Any

import jinja2

from realm_jax.answering.answer import Span
from realm_jax.answering.explaining import excerpt

_AROUND = 110  # characters shown at either side of a candidate's span


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("realm_jax.serve", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def render(
    status: Mapping[str, Any],
    documents: Mapping[str, Any],
    answer: Mapping[str, Any] | None = None,
    *,
    question: str = "",
    title: str = "",
    text: str = "",
    error: str = "",
) -> str:
    """The page.

    Args:
      status, documents, answer: as `Service` gives them.
      question, title, text: what stands in the fields.
      error: shown above all.
    """
    return _template().render(
        status=status,
        age=age(status["index"]["age_secs"]),
        documents=documents,
        answer=answer,
        best=None if answer is None else _best(answer),
        generated=answer is not None
        and bool(answer["answer"])
        and not any(found["span"] for found in answer["documents"]),
        tokens=[] if answer is None else [_token(token) for token in answer["tokens"]],
        candidates=[] if answer is None else [_candidate(found) for found in answer["documents"]],
        question=question,
        title=title,
        text=text,
        error=error,
    )


def _best(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that answered, whole, in three parts; the span is the second."""
    for found in answer["documents"]:
        if found["is_answer"]:
            span, text = found["span"] or {"start": 0, "end": 0}, found["text"]
            parts = (text[: span["start"]], text[span["start"] : span["end"]], text[span["end"] :])
            return {**found, "parts": parts}
    return None


def _candidate(found: Mapping[str, Any]) -> dict[str, Any]:
    span = None if found["span"] is None else Span(**found["span"])
    return {**found, "parts": excerpt(found["text"], span, _AROUND)}


def _token(token: Mapping[str, Any]) -> dict[str, Any]:
    """A piece of a generated answer with the rank, from 1, of the document that it leaned on most."""
    shares = token["posteriors"]
    rank = max(range(len(shares)), key=lambda place: (shares[place], -place))
    return {"text": token["text"], "rank": rank + 1, "share": shares[rank]}


def age(secs: float) -> str:
    """A time in words.

    >>> age(40.0), age(3_700.0), age(200_000.0)
    ('40 seconds', '61 minutes', '55 hours')
    """
    for unit, size, until in (("second", 1, 120), ("minute", 60, 7200), ("hour", 3600, 259_200), ("day", 86_400, 0)):
        if secs < until or not until:
            count = int(max(secs, 0) // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    raise AssertionError("the last unit has no end")
