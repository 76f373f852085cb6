"""WebQuestions: the objects of the original files and of those republished with ids."""

import re
from collections.abc import Iterator
from typing import Any

from realm_jax.data.question_formats.question import Question, answers_of, listed, shortened

# (list (description "Jazmyn Bieber") (description Oslo)): a word, or a text in quotes with \" and \\ inside.
_DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"\s][^()]*?))\)')
_LIST = re.compile(rf"\(list(?: {_DESCRIPTION.pattern})*\)")


def read_web_questions(document: Any, where: str) -> Iterator[Question]:
    """WebQuestions (Berant et al. 2013): a list of {"url", "targetValue", "utterance"}, or of {"qId", "answers", "qText"}.

    Raises:
      ValueError: for a document of another form, naming file and place.
    """
    for number, record in enumerate(listed(document, where), 1):
        try:
            if "utterance" in record:
                text, answers, question_id = record["utterance"], target_values(record["targetValue"]), str(number)
            else:
                text, answers, question_id = record["qText"], answers_of(record["answers"]), str(record["qId"])
            if not isinstance(text, str):
                raise TypeError
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(
                f'{where}, record {number}: expected {{"utterance", "targetValue": "(list (description …) …)"}} or '
                f'{{"qId", "qText", "answers"}}, got {shortened(record)}'
            ) from error
        yield Question(text, answers, False, None, question_id)


def target_values(text: str) -> tuple[str, ...]:
    r"""The answers in the s-expression of a "targetValue".

    >>> target_values('(list (description "Jaxon \\"J\\" Bieber") (description Oslo))')
    ('Jaxon "J" Bieber', 'Oslo')

    Raises:
      ValueError: for another expression.
    """
    if not _LIST.fullmatch(text):
        raise ValueError(f"expected (list (description …) …), got {text!r}")
    found = (re.sub(r"\\(.)", r"\1", quoted) if quoted else word for quoted, word in _DESCRIPTION.findall(text))
    return tuple(dict.fromkeys(found))
