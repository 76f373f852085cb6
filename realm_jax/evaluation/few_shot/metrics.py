"""The figures of an answer, and their means: over questions, and over subjects."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from realm_jax.evaluation.answer_scores import f1, is_correct
from realm_jax.evaluation.answers import normalise_answer
from realm_jax.evaluation.few_shot.example import Example
from realm_jax.evaluation.text_scores import check_packages, rouge_l

_CLOSED_ANSWERS = ("yes", "no", "noanswer")

Metric = Callable[[str, Example], float]


class Mean(NamedTuple):
    """A mean with its standard error: the sample deviation over √n; None of a single value."""

    mean: float
    standard_error: float | None
    questions: int


def accuracy(prediction: str, example: Example) -> float:
    """1 where the chosen option is right."""
    return float(prediction in example.references)


def exact_match(prediction: str, example: Example) -> float:
    """`answer_scores.is_correct`: equal to a reference, both normalised, or matched by one that is a regular expression."""
    return float(is_correct(prediction, example.references, example.is_regex))


def token_f1(prediction: str, example: Example) -> float:
    """`answer_scores.f1`."""
    return f1(prediction, example.references)


def hotpot_f1(prediction: str, example: Example) -> float:
    """F1 as HotpotQA's scorer has it (arXiv:1809.09600): "yes" and "no" are right as a whole or not at all.

    >>> hotpot_f1("yes it is", Example({}, ("yes",))), hotpot_f1("the Oslo fjord", Example({}, ("Oslo fjord",)))
    (0.0, 1.0)
    """
    normal = normalise_answer(prediction)

    def one(reference: str) -> float:
        known = normalise_answer(reference)
        if normal != known and (normal in _CLOSED_ANSWERS or known in _CLOSED_ANSWERS):
            return 0.0
        return f1(prediction, [reference])

    return max(map(one, example.references))


def rouge(prediction: str, example: Example) -> float:
    """ROUGE-L's F-measure, the best over the references (`text_scores`)."""
    return rouge_l([prediction], [example.references])[0]


METRICS: Mapping[str, Mapping[str, Metric]] = {
    "choice": {"accuracy": accuracy},
    "text": {"exact_match": exact_match, "f1": token_f1, "hotpot_f1": hotpot_f1, "rouge_l": rouge},
}
"""What can be measured of an option that was chosen, and of a text that was written, each between 0 and 1."""


def check_metrics(names: Sequence[str]) -> None:
    """Refuses to begin without the packages that a metric needs.

    Raises:
      ValueError: naming what is missing.
    """
    if "rouge_l" in names:
        check_packages()


def check_references(metrics: Sequence[str], examples: Sequence[Example], source: str) -> None:
    """Refuses regular expressions where words are compared.

    Raises:
      ValueError: naming source and metrics.
    """
    compared = [name for name in metrics if name != "exact_match"]
    if compared and any(example.is_regex for example in examples):
        raise ValueError(
            f"{source} has regular expressions for answers, which {' and '.join(compared)} cannot compare with; use a "
            "template with metrics = ['exact_match']"
        )


def mean(values: Sequence[float]) -> Mean:
    """The mean of some values.

    >>> mean([1.0, 0.0, 0.0, 1.0])
    Mean(mean=0.5, standard_error=0.288..., questions=4)

    Raises:
      ValueError: without a value.
    """
    if not values:
        raise ValueError("no questions to average over")
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(float(np.mean(values)), error, len(values))


def over_subjects(values: Sequence[float], subjects: Sequence[str]) -> tuple[dict[str, Mean], Mean]:
    """The mean of each subject, in alphabetical order, and the mean of these means, in which every subject counts alike.

    The standard error of the latter is √(Σ_s e_s²) / S, None if a subject has a single question.
    """
    parts: dict[str, list[float]] = {subject: [] for subject in sorted(set(subjects))}
    for value, subject in zip(values, subjects, strict=True):
        parts[subject].append(value)
    means = {subject: mean(part) for subject, part in parts.items()}
    errors = [known.standard_error for known in means.values() if known.standard_error is not None]
    error = math.sqrt(sum(error**2 for error in errors)) / len(means) if len(errors) == len(means) else None
    return means, Mean(float(np.mean([known.mean for known in means.values()])), error, len(values))


def as_json(value: Mean) -> dict[str, Any]:
    """The mean as written to files."""
    return value._asdict()
