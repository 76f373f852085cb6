"""Training and development questions where a data set is published without the latter.

The sizes in use since ORQA (arXiv:1906.00300) are 79168/8757/3610 questions of NQ-open, 3417/361/2032 of WebQuestions and
1353/133/694 of CuratedTREC. Its test parts are published parts (NQ-open's dev, the others' test); its development parts
were drawn from the training parts once, at random:

- NQ-open: those 8757 questions are public (DPR's development questions); `without(train, dev)` gives the 79168.
- WebQuestions: `hold_out(train, 361)` gives parts of those sizes. Which 361 ORQA drew is not to be had from the data set.
- CuratedTREC: those 1486 training and 694 test questions are DrQA's choice (arXiv:1704.00051) out of the 2470 published
  ones. Of DrQA's training file `hold_out(train, 133)` gives parts of those sizes; of the files as published it gives a
  part of 133 and a larger rest.
"""

import logging
from hashlib import blake2b
from typing import NamedTuple

from realm_jax.data.questions import Question, QuestionSet, read_questions

logger = logging.getLogger(__name__)

HELD_OUT, ALSO_HELD_OUT = "held out", "asked in the held-out questions too"


class Split(NamedTuple):
    """Questions to train with, and questions held out of them."""

    train: QuestionSet
    held_out: QuestionSet


def hold_out(questions: QuestionSet, num_held_out: int, seed: int = 0) -> Split:
    """Holds out a number of questions, chosen by a hash of each question's text and the seed.

    The choice does not depend on the order of the file, and hardly on its other questions. No question of the rest reads
    like one held out: a question that stands in the file twice may cost the rest a few more, counted in its `dropped`.

    Raises:
      ValueError: when fewer or no questions would be left.
    """
    if not 0 < num_held_out < len(questions.questions):
        raise ValueError(
            f"expected to hold out between 1 and {len(questions.questions) - 1} of the {len(questions.questions)} "
            f"questions of {questions.source}, got {num_held_out}"
        )
    places = sorted(
        range(len(questions.questions)), key=lambda place: (_hash(questions.questions[place], seed), place)
    )[:num_held_out]
    chosen = set(places)
    held_out = questions._replace(
        questions=tuple(questions.questions[place] for place in sorted(chosen)),
        dropped={},
        noted={},
        source=f"{questions.source} ({num_held_out} held out)",
    )
    rest = tuple(question for place, question in enumerate(questions.questions) if place not in chosen)
    train = questions._replace(
        questions=rest,
        dropped=questions.dropped | {HELD_OUT: num_held_out},
        source=f"{questions.source} (without {num_held_out} held out)",
    )
    return Split(without(train, held_out), held_out)


def without(questions: QuestionSet, held_out: QuestionSet) -> QuestionSet:
    """The questions that are not asked in `held_out` too; the others are counted in `dropped`.

    Two questions are the same when they read the same but for case, white space and a question mark at the end.
    """
    asked = {_reading(question) for question in held_out.questions}
    kept = tuple(question for question in questions.questions if _reading(question) not in asked)
    lost = len(questions.questions) - len(kept)
    return questions._replace(questions=kept, dropped=questions.dropped | ({ALSO_HELD_OUT: lost} if lost else {}))


def training_questions(
    sources: str | tuple[str, ...],
    held_out: str | tuple[str, ...] = (),
    num_held_out: int = 0,
    *,
    answers_are_regex: bool | None = None,
    first_answer: bool = False,
) -> tuple[Question, ...]:
    """The questions of all files, but for those held out and those without an answer; logs how many are left out, and why.

    Args:
      sources: files, see `read_questions`.
      held_out: files of questions that are left out wherever they are asked.
      num_held_out: of each source, chosen by `hold_out`, left out too.
      answers_are_regex: see `read_questions`.
      first_answer: keep only the first answer of each.

    Raises:
      ValueError: when none is left.
    """
    files = (sources,) if isinstance(sources, str) else sources
    others = [read_questions(source) for source in ((held_out,) if isinstance(held_out, str) else held_out)]
    questions: list[Question] = []
    for source in files:
        found = read_questions(source, answers_are_regex=answers_are_regex)
        if num_held_out:
            found = hold_out(found, num_held_out).train
        for other in others:
            found = without(found, other)
        answered = [question for question in found.questions if question.answers]
        causes = found.dropped | found.noted | {"no answer": len(found.questions) - len(answered)}
        told = "; ".join(f"{cause}: {count}" for cause, count in causes.items() if count)
        logger.info("%s: %d questions to train with%s", found.source, len(answered), f" ({told})" if told else "")
        questions += answered
    if not questions:
        raise ValueError(f"{', '.join(files) or 'no file'} gives no question with an answer")
    if first_answer:
        questions = [question._replace(answers=question.answers[:1]) for question in questions]
    return tuple(questions)


def _reading(question: Question) -> str:
    return " ".join(question.text.lower().split()).rstrip("? ")


def _hash(question: Question, seed: int) -> bytes:
    return blake2b(f"{seed}\0{_reading(question)}".encode(), digest_size=16).digest()
