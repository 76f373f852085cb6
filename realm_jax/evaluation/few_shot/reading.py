"""Sources of examples: multiple choice, and every form of question that `realm_jax.data.questions` reads."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from realm_jax.data.question_formats.question import one_line
from realm_jax.data.questions import Question, read_questions
from realm_jax.evaluation.few_shot.example import Example, ExampleSet
from realm_jax.evaluation.few_shot.metrics import check_references
from realm_jax.evaluation.few_shot.multiple_choice import read_multiple_choice
from realm_jax.evaluation.few_shot.templates import Template

NO_ANSWER, OTHER_LABEL = "no answer to compare with", "label that the template has no word for"

_MENTION_WORDS = 32  # on each side: what a retriever of short queries can read
_MENTION = re.compile(r"\[START_ENT\].*?\[END_ENT\]", re.DOTALL)


def read_examples(template: Template, source: str | Path) -> ExampleSet:
    """All examples of a source, in its order.

    Args:
      template: a template of choices without labels reads multiple choice (`read_multiple_choice`), any other one questions
        (`read_questions`: NQ-open, TriviaQA, HotpotQA, FEVER, KILT's tasks and others, told apart by their content).
      source: file, folder of MMLU, or `tfds:NAME?split=…`.

    Returns:
      The examples that have an answer; what was left out, and what is odd, by cause.

    Raises:
      FileNotFoundError: nothing lies at the path.
      ValueError: a record is not what its format says (naming file and line), or no example is left.
    """
    dropped: Counter[str] = Counter()
    noted: dict[str, int] = {}

    def on_drop(cause: str) -> None:
        dropped[cause] += 1

    if template.answers == "choice" and not template.labels:
        examples = tuple(read_multiple_choice(source, on_drop))
    else:
        found = read_questions(source)
        dropped.update(found.dropped)
        noted = found.noted
        examples = tuple(filter(None, (_asked(question, template.labels, dropped) for question in found.questions)))
    if not examples:
        causes = "; ".join(f"{cause}: {count}" for cause, count in dropped.items())
        raise ValueError(f"expected questions with answers in {source}, got none ({causes or 'it holds no question'})")
    check_references(template.metrics, examples, str(source))
    return ExampleSet(examples, str(source), dict(dropped), noted)


def _asked(question: Question, labels: Mapping[str, str], dropped: Counter[str]) -> Example | None:
    references = tuple(dict.fromkeys(labels.get(answer, answer) for answer in question.answers))
    if not references:
        dropped[NO_ANSWER] += 1
        return None
    if labels and not set(references) <= set(labels.values()):
        dropped[OTHER_LABEL] += 1
        return None
    fields = {
        "question": question.text,
        "choices": "",
        "subject": "",
        "dialogue": dialogue(question.as_written),
        "mention": mention(question.text),
    }
    return Example(fields, references, tuple(labels.values()), question.is_regex, id=question.id)


def dialogue(text: str) -> str:
    """The lines of a text as turns of two who ask and answer.

    >>> print(dialogue("Hi!\\nHello.\\n\\nDo you ski?"))
    Q: Hi!
    A: Hello.
    Q: Do you ski?
    """
    turns = [turn for turn in map(one_line, text.split("\n")) if turn]
    return "\n".join(f"{'QA'[place % 2]}: {turn}" for place, turn in enumerate(turns))


def mention(text: str, num_words: int = _MENTION_WORDS) -> str:
    """The marked mention of a text with the words on both sides of it; the text itself without marks.

    >>> mention("a b c [START_ENT] Oslo [END_ENT] d e f", num_words=2)
    'b c [START_ENT] Oslo [END_ENT] d e'
    """
    marked = _MENTION.search(text)
    if marked is None:
        return text
    before, after = text[: marked.start()].split()[-num_words:], text[marked.end() :].split()[:num_words]
    return " ".join([*before, marked[0], *after])
