"""Few-shot evaluation of a retrieval-augmented language model, as RA-DIT does it (arXiv:2310.01352, appendices B and D)."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tqdm import tqdm

from realm_jax.evaluation.few_shot.example import Example, ExampleSet
from realm_jax.evaluation.few_shot.metrics import METRICS, as_json, check_metrics, mean, over_subjects
from realm_jax.evaluation.few_shot.model import AugmentedModel
from realm_jax.evaluation.few_shot.prompts import Demonstrations, Prompt, build_prompt, room_for
from realm_jax.evaluation.few_shot.reading import read_examples
from realm_jax.evaluation.few_shot.table import few_shot_table
from realm_jax.evaluation.few_shot.templates import Template, template
from realm_jax.run_dir import RunDir, write_json_atomically

logger = logging.getLogger(__name__)

_QUESTIONS_AT_ONCE = 64  # enough for a model to put prompts of like length together
FEWER, NOT_ASKED = "prompts with fewer demonstrations", "questions too long to ask, counted as wrong"
LEFT_OUT = "demonstrations left out"
NOT_JUDGED = "references too long to be judged"


class FewShotTask(NamedTuple):
    """Questions, how they are put, and what demonstrations are drawn from (None: zero-shot alone)."""

    template: Template
    examples: ExampleSet
    pool: ExampleSet | None = None


class Prediction(NamedTuple):
    """What the model answered; `log_probs` of the options where it chose. None where it was not asked."""

    text: str
    log_probs: tuple[float, ...] = ()


def few_shot_task(
    name: str, source: str, demonstrations: str | None = None, templates: str | Path | None = None
) -> FewShotTask:
    """Reads a task by the name of its template.

    Args:
      name: of a template: `mmlu`, `nq`, `trivia_qa`, `hotpot_qa`, `fever`, `eli5`, `aida`, `zsre`, `trex`, `wow`, or one of
        `templates`.
      source: of the questions; see `read_examples`.
      demonstrations: a training or development part; MMLU's folder `dev`.
      templates: a TOML file instead of the package's.

    Raises:
      FileNotFoundError: nothing lies at a path.
      ValueError: an unknown name, or a source that is not what the template reads.
    """
    known = template(name, templates)
    pool = None if demonstrations is None else read_examples(known, demonstrations)
    return FewShotTask(known, read_examples(known, source), pool)


def draw(examples: ExampleSet, max_examples: int | None, seed: int) -> ExampleSet:
    """At most so many of the examples, in their order, drawn by a hash of each one's place and the seed; None for all."""
    if max_examples is None or max_examples >= len(examples.examples):
        return examples
    places = sorted(range(len(examples.examples)), key=lambda place: blake2b(f"{seed}\0{place}".encode()).digest())
    kept = tuple(examples.examples[place] for place in sorted(places[:max_examples]))
    return examples._replace(examples=kept)


def evaluate_few_shot(
    model: AugmentedModel,
    tasks: Sequence[FewShotTask],
    shots: Sequence[int] = (0, 5),
    *,
    run_dir: str | RunDir | None = None,
    name: str = "model",
    retrieve: bool = True,
    documents: str = "retrieved",
    reference_nll: bool = False,
    max_questions: int | None = None,
    seed: int = 0,
    made_of: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Asks a model the questions of every task with every number of demonstrations, and prints a table.

    A choice is the option of the highest log p, over all documents (section 2.1 of the paper), after the prompt and a space. A
    written answer is scored without white space at its ends. A prompt that is too long loses its first demonstrations; a
    question that does not fit even alone is not asked, and counts as wrong. Both are counted, and so is what the source
    left out.

    Args:
      model: that is asked.
      tasks: see `few_shot_task`.
      shots: numbers of demonstrations, a row each.
      run_dir: the figures, every prediction among them, go to RUN/evaluation/NAME-few_shot.json; None writes nothing.
      name: of the evaluation.
      retrieve: whether the model gets documents; False for the language model alone.
      documents: how those that it gets are called in the table.
      reference_nll: of answers that are written, say also −log p of the first reference after a space, in nats, by which models compare
        that write few answers right.
      max_questions: of each task, drawn by the seed (the paper draws 2500 of each development part); None for all.
      seed: of this draw and of that of demonstrations.
      made_of: what is said of the model beside the figures.

    Returns:
      What is written, without the predictions: "rows" holds one object a task and number of shots. Of "mean", the first
      metric is the data set's own; "macro" is the mean over subjects where there are several.

    Raises:
      ValueError: before anything is asked, for tasks without enough to demonstrate with, two tasks of one name, or a missing
        package; or when the model gives no number for a likelihood.
    """
    plans = plan(tasks, shots, max_questions, seed)
    rows: dict[str, dict[str, Any]] = {}
    predictions: dict[str, list[dict[str, Any]]] = {}
    for task, demonstrations in plans:
        for number in shots:
            row = f"{task.template.name} {number}-shot"
            prompts = _prompts(model, task, demonstrations, number)
            before = Counter(model.counts)
            found = _ask(model, task, prompts, retrieve, row)
            cut_by_model = Counter(model.counts) - before
            values = {metric: _values(metric, task, found) for metric in task.template.metrics}
            nlls: list[float | None] = [None] * len(prompts)
            if reference_nll:
                nlls, too_long = _reference_nlls(model, task, prompts, retrieve)
                cut_by_model += Counter({NOT_JUDGED: too_long})
            rows[row] = _figures(task, number, prompts, values, cut_by_model)
            if known := [nll for nll in nlls if nll is not None]:
                rows[row]["reference_nll"] = as_json(mean(known))
            predictions[row] = [
                _record(
                    example, prompt, prediction, {metric: part[place] for metric, part in values.items()}, nlls[place]
                )
                for place, (example, prompt, prediction) in enumerate(
                    zip(task.examples.examples, prompts, found, strict=True)
                )
            ]
    figures = {"name": name, "seed": seed, "retrieve": retrieve, "model": dict(made_of), "rows": rows}
    if run_dir is not None:
        place = RunDir.of(run_dir).evaluation(f"{name}-few_shot")
        write_json_atomically(place, {**figures, "predictions": predictions})
    print(few_shot_table(rows, f"with {documents} documents" if retrieve else "without documents"))
    if run_dir is not None:
        logger.info("figures and every prediction: %s", place)
    return figures


def plan(
    tasks: Sequence[FewShotTask], shots: Sequence[int], max_questions: int | None, seed: int
) -> list[tuple[FewShotTask, Demonstrations]]:
    """The tasks with the questions that are drawn, and their demonstrations.

    Raises:
      ValueError: what `evaluate_few_shot` cannot ask.
    """
    names = [task.template.name for task in tasks]
    if not tasks or not shots or len(set(names)) < len(names) or len(set(shots)) < len(shots) or min(shots) < 0:
        raise ValueError(
            f"expected tasks of different names and different numbers of shots, got {names} and {list(shots)}; give each task "
            "once, and another name to a template that is used twice"
        )
    if max_questions is not None and max_questions < 1:
        raise ValueError(f"expected max_questions of at least 1, or None for all, got {max_questions}")
    plans = []
    for task in tasks:
        check_metrics(task.template.metrics)
        task = task._replace(examples=draw(task.examples, max_questions, seed))
        demonstrations = Demonstrations(task.template, task.pool, seed)
        demonstrations.check([example.subject for example in task.examples.examples], max(shots))
        plans.append((task, demonstrations))
    return plans


def _prompts(
    model: AugmentedModel, task: FewShotTask, demonstrations: Demonstrations, number: int
) -> list[Prompt | None]:
    return [
        build_prompt(
            task.template, example, demonstrations.of(example, number), room_for(model, task.template, example)
        )
        for example in task.examples.examples
    ]


def _ask(
    model: AugmentedModel, task: FewShotTask, prompts: Sequence[Prompt | None], retrieve: bool, row: str
) -> list[Prediction | None]:
    """The predictions, in order; None for questions without a prompt."""
    found: list[Prediction | None] = [None] * len(prompts)
    asked = [(place, prompt.text) for place, prompt in enumerate(prompts) if prompt is not None]
    with tqdm(total=len(asked), desc=row, unit=" questions", mininterval=1.0) as bar:
        for first in range(0, len(asked), _QUESTIONS_AT_ONCE):
            part = asked[first : first + _QUESTIONS_AT_ONCE]
            examples = [task.examples.examples[place] for place, _ in part]
            texts = [text for _, text in part]
            queries = [task.template.query.format_map(example.fields) for example in examples] if retrieve else None
            answers = (_choose if task.template.answers == "choice" else _write)(
                model, task.template, texts, examples, queries
            )
            for (place, _), answer in zip(part, answers, strict=True):
                found[place] = answer
            bar.update(len(part))
    return found


def _choose(
    model: AugmentedModel,
    template: Template,
    prompts: Sequence[str],
    examples: Sequence[Example],
    queries: Sequence[str] | None,
) -> list[Prediction]:
    counts = [len(example.options) for example in examples]
    places = [place for place, count in enumerate(counts) for _ in range(count)]
    scored = model.log_likelihoods(
        [prompts[place] for place in places],
        [f" {option}" for example in examples for option in example.options],
        None if queries is None else [queries[place] for place in places],
    )
    log_probs = [float(score.log_prob) for score in scored]
    if len(log_probs) != len(places) or not all(map(math.isfinite, log_probs)):
        raise ValueError(
            f"expected {len(places)} log-likelihoods of {template.name}, got {len(log_probs)}, of which "
            f"{sum(map(math.isfinite, log_probs))} are numbers; the model's weights may be damaged"
        )
    found, first = [], 0
    for example, count in zip(examples, counts, strict=True):
        own = tuple(log_probs[first : first + count])
        found.append(Prediction(example.options[own.index(max(own))], own))
        first += count
    return found


def _write(
    model: AugmentedModel,
    template: Template,
    prompts: Sequence[str],
    examples: Sequence[Example],
    queries: Sequence[str] | None,
) -> list[Prediction]:
    texts = model.generate(prompts, queries, max_tokens=template.max_tokens, stop=template.stop)
    return [Prediction(text.strip()) for text in texts]


def _reference_nlls(
    model: AugmentedModel, task: FewShotTask, prompts: Sequence[Prompt | None], retrieve: bool
) -> tuple[list[float | None], int]:
    """−log p of each first reference, None of questions without a prompt, of choices and of regular expressions; and how many had no room
    after their prompt, of which it is None, too."""
    nlls: list[float | None] = [None] * len(prompts)
    asked = [
        (place, prompt.text, example)
        for place, (prompt, example) in enumerate(zip(prompts, task.examples.examples, strict=True))
        if prompt is not None and task.template.answers == "text" and not example.is_regex
    ]
    whole = model.tokenizer.encode_batch([f"{text} {example.references[0]}" for _, text, example in asked])
    fits = [len(encoding.ids) < model.max_length for encoding in whole]
    too_long = fits.count(False)
    asked = [one for one, own in zip(asked, fits, strict=True) if own]
    for first in range(0, len(asked), _QUESTIONS_AT_ONCE):
        places, texts, examples = zip(*asked[first : first + _QUESTIONS_AT_ONCE], strict=True)
        scored = model.log_likelihoods(
            texts,
            [f" {example.references[0]}" for example in examples],
            [task.template.query.format_map(example.fields) for example in examples] if retrieve else None,
        )
        for place, score in zip(places, scored, strict=True):
            nlls[place] = -float(score.log_prob)
    return nlls, too_long


def _values(metric: str, task: FewShotTask, found: Sequence[Prediction | None]) -> list[float]:
    measure = METRICS[task.template.answers][metric]
    return [
        0.0 if prediction is None else measure(prediction.text, example)
        for example, prediction in zip(task.examples.examples, found, strict=True)
    ]


def _figures(
    task: FewShotTask,
    number: int,
    prompts: Sequence[Prompt | None],
    values: Mapping[str, Sequence[float]],
    cut_by_model: Mapping[str, int],
) -> dict[str, Any]:
    subjects = [example.subject for example in task.examples.examples]
    row: dict[str, Any] = {
        "task": task.template.name,
        "shots": number,
        "questions": len(prompts),
        "mean": {metric: as_json(mean(part)) for metric, part in values.items()},
    }
    if len(set(subjects)) > 1:
        parts = {metric: over_subjects(part, subjects) for metric, part in values.items()}
        row["macro"] = {metric: as_json(average) for metric, (_, average) in parts.items()}
        row["subjects"] = {
            metric: {subject: as_json(known) for subject, known in means.items()}
            for metric, (means, _) in parts.items()
        }
    left_out = [prompt.left_out for prompt in prompts if prompt is not None]
    counts = {FEWER: sum(map(bool, left_out)), LEFT_OUT: sum(left_out), NOT_ASKED: prompts.count(None)}
    row["cut"] = {cause: count for cause, count in counts.items() if count} | dict(cut_by_model)
    row["dropped"] = dict(Counter(task.examples.dropped))
    row["noted"] = dict(task.examples.noted)
    return row


def _record(
    example: Example,
    prompt: Prompt | None,
    prediction: Prediction | None,
    values: Mapping[str, float],
    nll: float | None,
) -> dict[str, Any]:
    """A prediction as it is written down."""
    record: dict[str, Any] = {"id": example.id, "question": example.fields["question"]}
    if example.subject:
        record["subject"] = example.subject
    record |= {"answer": list(example.references), "prediction": None if prediction is None else prediction.text}
    if prediction is not None and prediction.log_probs:
        record["log_probs"] = dict(zip(example.options, prediction.log_probs, strict=True))
    if nll is not None:
        record["reference_nll"] = nll
    return record | {"demonstrations": 0 if prompt is None else prompt.demonstrations, **values}
