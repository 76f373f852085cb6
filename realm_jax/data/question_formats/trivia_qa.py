"""TriviaQA as published."""

from collections.abc import Iterator
from typing import Any

from realm_jax.data.question_formats.question import Question, answers_of, listed, shortened


def read_trivia_qa(document: Any, where: str) -> Iterator[Question]:
    """TriviaQA (Joshi et al. 2017): {"Data": [{"Question", "QuestionId", "Answer": {"Value", "Aliases", …}}]}.

    Answers are the value, its aliases, those that people added, and the normalised aliases, which the official scorer
    compares with: it puts spaces for punctuation where `normalise_answer` deletes it, so both forms count. The published
    test part has no "Answer"; its questions come without answers.

    Raises:
      ValueError: for an object of another form, naming file and place.
    """
    records = document.get("Data") if isinstance(document, dict) else document
    for number, record in enumerate(listed(records, f'{where}, "Data"'), 1):
        try:
            text, answers = record["Question"], answers_of(record["Answer"]) if "Answer" in record else ()
            if not isinstance(text, str):
                raise TypeError
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f'{where}, record {number} of "Data": expected {{"Question": str, "Answer": {{"Value", "Aliases"}}}}, '
                f"got {shortened(record)}"
            ) from error
        yield Question(text, answers, False, None, str(record.get("QuestionId", number)))
