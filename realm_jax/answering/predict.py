"""The predict job: answers questions with a fine-tuned run and writes them in the official formats."""

import itertools
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from realm_jax.answering.answer import Answer
from realm_jax.answering.asked import STANDARD_INPUT, Asked, asked
from realm_jax.answering.explaining import explained
from realm_jax.answering.loading import Answering, Loaded, load_answerer
from realm_jax.data.question_formats.question import shortened
from realm_jax.data.questions import Question
from realm_jax.retrieval.manifest import Backend
from realm_jax.run_dir import RunDir, check_can_write, write_text_atomically
from realm_jax.storage import Place, as_place

logger = logging.getLogger(__name__)

_AT_ONCE = 16

Form = Literal["jsonl", "squad"]


def predict(
    *,
    run_dir: str,
    task: Answering,
    questions: str | tuple[str, ...],
    output: str | None = None,
    form: Form = "jsonl",
    explain: bool = False,
    step: int | None = None,
    index_version: int | None = None,
    backend: Backend | None = None,
) -> dict[str, Any]:
    """Answers questions with a run that was fine-tuned on questions, in the form that official scorers read.

    Args:
      run_dir: the run.
      task: its settings, as it was trained with.
      questions: a file (every format of docs/evaluation.md), "a question", a tuple of questions, or - for standard
        input in UTF-8, one question or one {"question": …} a line.
      output: where to write, - for standard output; None writes the answers to a file of questions to
        RUN/predictions/NAME.jsonl (or .json), others to standard output.
      form: "jsonl", a line {"question", "prediction"} each, as for NQ-open and EfficientQA; "squad", one object of id
        and answer, as for SQuAD.
      explain: show the documents of each answer, p(z|x), spans and scores, readably: on standard output, or on standard
        error where the predictions go to standard output.
      step: which checkpoint; None for the newest.
      index_version: which index version; None for the one that the run serves, or its newest.
      backend: None for the one that the index was built for; "exact" searches all documents.

    Returns:
      "questions" (how many were answered), "output", "step", "index_version", "search_recall".

    Raises:
      FileNotFoundError: no such file of questions, or no checkpoint.
      ValueError: a run of another kind, nothing to answer, ids that are missing or repeated in the form "squad".
    """
    run = RunDir.of(run_dir)
    to_answer = asked(questions)
    if form == "squad":
        to_answer = to_answer._replace(questions=(listed := list(to_answer.questions)))
        _check_ids(listed)
    target = _target(run, to_answer, output, form)
    if target is not None:
        check_can_write(target.parent, "predict.output")
    loaded = load_answerer(run, task, step=step, index_version=index_version, backend=backend)
    logger.info("%s", loaded.describe())

    predictions: list[tuple[Question, Answer]] = []
    for question, answer in _answers(loaded, to_answer):
        if explain:
            _show(explained(answer) + "\n\n", to_errors=target is None)
        if target is None and form == "jsonl":  # each at once
            _show(_line(question, answer))
        predictions.append((question, answer))
    if target is not None:
        text = "".join(_line(*prediction) for prediction in predictions) if form == "jsonl" else _squad(predictions)
        write_text_atomically(target, text)
        logger.info("%d answers in %s", len(predictions), target)
    elif form == "squad":
        _show(_squad(predictions))
    cut = sum(answer.pieces_left_out > 0 for _, answer in predictions)
    if cut:
        were = "question was" if cut == 1 else "questions were"
        logger.warning("%d %s longer than query_len=%d pieces and cut", cut, were, task.query_len)
    return {
        "questions": len(predictions),
        "output": STANDARD_INPUT if target is None else str(target),
        "step": loaded.step,
        "index_version": loaded.manifest.version,
        "search_recall": loaded.manifest.search_recall,
    }


def _target(run: RunDir, to_answer: Asked, output: str | None, form: Form) -> Place | None:
    """The file to write; None for standard output."""
    if output == STANDARD_INPUT or (output is None and to_answer.name is None):
        return None
    return (
        as_place(output) if output is not None else run.predictions(f"{to_answer.name}.{form.replace('squad', 'json')}")
    )


def _check_ids(questions: Sequence[Question]) -> None:
    times = Counter(question.id for question in questions)
    repeated = [name for name, count in times.items() if name and count > 1]
    nameless = [question.text for question in questions if not question.id]
    wrong = []
    if repeated:
        wrong.append(f"{len(repeated)} repeated: {', '.join(repeated[:3])}")
    if nameless:
        wrong.append(f"{len(nameless)} without one: {shortened(nameless[0], 80)}")
    if wrong:
        raise ValueError(
            f"the form 'squad' names answers by the ids of their questions ({'; '.join(wrong)}); use the form 'jsonl'"
        )


def _answers(loaded: Loaded, to_answer: Asked) -> Iterator[tuple[Question, Answer]]:
    stream = iter(to_answer.questions)
    while some := list(itertools.islice(stream, 1 if to_answer.one_by_one else _AT_ONCE)):
        yield from zip(some, loaded.answerer.answer([question.text for question in some]), strict=True)


def _line(question: Question, answer: Answer) -> str:
    # scorers find a question by what their own file says
    return json.dumps({"question": question.as_written, "prediction": answer.text}, ensure_ascii=False) + "\n"


def _squad(predictions: list[tuple[Question, Answer]]) -> str:
    return json.dumps({question.id: answer.text for question, answer in predictions}, ensure_ascii=False) + "\n"


def _show(text: str, to_errors: bool = False) -> None:
    """Writes to standard output or error, also one that is not UTF-8: what it cannot show becomes a question mark."""
    stream = sys.stderr if to_errors else sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
