"""Prompts with demonstrations, cut to what a model has room for."""

import bisect
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from realm_jax.evaluation.few_shot.example import Example, ExampleSet
from realm_jax.evaluation.few_shot.model import AugmentedModel
from realm_jax.evaluation.few_shot.templates import Template


class Prompt(NamedTuple):
    """What a model reads, and how many demonstrations had to go."""

    text: str
    demonstrations: int
    left_out: int


class Demonstrations:
    """The examples that stand before a question: the same ones for all questions of a subject.

    Drawn by a hash of each example and the seed, so that neither the order of the source nor its other examples matter; or,
    where the template says so, the first ones of the subject. The question itself never is one of them.

    Args:
      template: of the data set.
      pool: what to draw from; None where none is needed.
      seed: of the draw.
    """

    def __init__(self, template: Template, pool: ExampleSet | None, seed: int):
        self._source = pool.source if pool else "no source"
        self._template = template
        self._by_subject: dict[str, dict[str, Example]] = {}  # by subject and prompt: a source may ask a question twice
        for example in pool.examples if pool else ():
            self._by_subject.setdefault(example.subject, {}).setdefault(template.question(example), example)
        if template.demonstrations == "drawn":
            for subject, known in self._by_subject.items():
                self._by_subject[subject] = {
                    text: known[text] for text in sorted(known, key=lambda text: _hash(text, seed))
                }

    def check(self, subjects: Sequence[str], number: int) -> None:
        """Refuses a number of demonstrations that a subject does not have.

        Raises:
          ValueError: naming subject and source.
        """
        for subject in sorted(set(subjects)) if number else ():
            known = len(self._by_subject.get(subject, ()))
            if known < number:
                raise ValueError(
                    f"expected at least {number} examples{f' of {subject}' if subject else ''} to demonstrate "
                    f"{self._template.name} with, got {known} in {self._source}; name a training or development part, or "
                    "ask for fewer shots"
                )

    def of(self, example: Example, number: int) -> tuple[Example, ...]:
        """The demonstrations of a question, the first to be read first; one fewer if the source has none to replace itself."""
        asked = self._template.question(example)
        others = (known for text, known in self._by_subject.get(example.subject, {}).items() if text != asked)
        return tuple(known for known, _ in zip(others, range(number), strict=False))


def build_prompt(
    template: Template, example: Example, demonstrations: Sequence[Example], fits: Callable[[str], bool]
) -> Prompt | None:
    """The header, the demonstrations and the question; the demonstrations furthest from the question go where they do not fit.

    Args:
      template: of the data set.
      example: the question.
      demonstrations: the first one is read first, and goes first.
      fits: whether a model has room for a prompt and its answer. The background that is put in front of it is the model's
        affair, which cuts it first.

    Returns:
      None if the question does not fit even alone.
    """
    shown = [template.question_and_answer(known) for known in demonstrations]
    parts = [template.question(example)]

    def text(left_out: int) -> str:
        header = [template.header] if template.header else []
        return template.separator.join(
            [*(part.format_map(example.fields) for part in header), *shown[left_out:], *parts]
        )

    left_out = bisect.bisect_left(range(len(shown) + 1), True, key=lambda number: fits(text(number)))
    if left_out > len(shown):
        return None
    return Prompt(text(left_out), len(shown) - left_out, left_out)


def room_for(model: AugmentedModel, template: Template, example: Example) -> Callable[[str], bool]:
    """Whether a model has room for a prompt of a question: its pieces, the token at the beginning, and the answer.

    A written answer takes `template.max_tokens`, an option what the longest one does.
    """

    def fits(prompt: str) -> bool:
        if template.answers == "text":
            return _length(model, prompt) + template.max_tokens <= model.max_length
        return max(_length(model, f"{prompt} {option}") for option in example.options) <= model.max_length

    return fits


def _length(model: AugmentedModel, text: str) -> int:
    return 1 + len(model.tokenizer.encode(text).ids)


def _hash(text: str, seed: int) -> bytes:
    return blake2b(f"{seed}\0{text}".encode(), digest_size=16).digest()
