"""The few_shot job: asks RA-DIT's pair, or its language model alone, questions with demonstrations before them."""

import logging
from typing import Any, Literal

from realm_jax.answering.loading import load_augmented
from realm_jax.evaluation.few_shot.evaluation import evaluate_few_shot, few_shot_task, plan
from realm_jax.retrieval.manifest import Backend
from realm_jax.run_dir import RunDir
from realm_jax.tasks.ra_dit import RaDit

logger = logging.getLogger(__name__)

_OF_DOCUMENTS = frozenset(
    {"index_version", "search_recall", "num_documents", "marginal"}
)  # said where documents are read


def few_shot(
    *,
    run_dir: str,
    task: RaDit,
    questions: str | tuple[str, ...],
    demonstrations: str | tuple[str, ...] = (),
    shots: tuple[int, ...] = (0,),
    name: str = "",
    documents: Literal["retrieved", "random", "none"] = "retrieved",
    reference_nll: bool = False,
    templates: str | None = None,
    max_questions: int | None = None,
    seed: int = 0,
    step: int | None = None,
    index_version: int | None = None,
    backend: Backend | None = None,
    tokens_at_once: int = 16384,
) -> dict[str, Any]:
    """Asks the questions of several data sets with several numbers of demonstrations, and prints a table.

    The figures go to RUN/evaluation/NAME-few_shot.json, every prediction among them.

    Args:
      run_dir: the retriever's run, with an index.
      task: which language model belongs to it, and how many documents it reads.
      questions: TEMPLATE=PLACE of each data set, such as "mmlu=mmlu/test"; templates and what they read: docs/evaluation.md.
      demonstrations: TEMPLATE=PLACE of what demonstrations are drawn from, for shots above 0.
      shots: numbers of demonstrations, a row each, such as (0, 5).
      name: of the evaluation; by default what is read: MARGINAL-NUM_DOCUMENTS, the same with -random, or alone.
      documents: that are read: what the retriever finds; such as are drawn at random, to see what harm they do; or none, for the language
        model alone.
      reference_nll: say, too, how unlikely the first reference of each written answer is, see `evaluate_few_shot`.
      templates: a file of templates instead of the package's.
      max_questions: of each data set, drawn by the seed; None for all.
      seed: of the draws.
      step: of the retriever's checkpoint; None for the newest.
      index_version: which version; None for the one that the run serves, or its newest.
      backend: None for the one that the index was built for; "exact" searches all documents.
      tokens_at_once: of one program.

    Returns:
      The figures.

    Raises:
      FileNotFoundError: no such file or checkpoint.
      ValueError: parts that do not fit each other, or questions that are not what their template reads.
    """
    asked = _places("questions", questions)
    shown = _places("demonstrations", demonstrations)
    unknown = sorted(set(shown) - set(asked))
    if unknown or not asked:
        raise ValueError(
            f"few_shot.demonstrations are of {', '.join(unknown)}, of which there are no questions; name those, too"
            if unknown
            else "few_shot.questions names nothing; expected TEMPLATE=PLACE, such as nq=dev.jsonl"
        )
    tasks = [few_shot_task(known, place, shown.get(known), templates) for known, place in asked.items()]
    plan(tasks, shots, max_questions, seed)  # what cannot be asked is told before the models are loaded
    run = RunDir.of(run_dir)
    model, made_of = load_augmented(
        run,
        task,
        step=step,
        index_version=index_version,
        backend=backend,
        random_seed=seed if documents == "random" else None,
        tokens_at_once=tokens_at_once,
    )
    made_of["documents"] = documents
    if documents == "none":
        made_of = {key: value for key, value in made_of.items() if key not in _OF_DOCUMENTS}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in made_of.items()))
    of_documents = f"{task.marginal}-{task.num_documents}{'-random' if documents == 'random' else ''}"
    return evaluate_few_shot(
        model,
        tasks,
        shots,
        run_dir=run,
        name=name or ("alone" if documents == "none" else of_documents),
        retrieve=documents != "none",
        documents=documents,
        reference_nll=reference_nll,
        max_questions=max_questions,
        seed=seed,
        made_of=made_of,
    )


def _places(setting: str, said: str | tuple[str, ...]) -> dict[str, str]:
    """The place of each template's data."""
    found: dict[str, str] = {}
    for entry in (said,) if isinstance(said, str) else said:
        name, equals, place = entry.partition("=")
        if not equals or not name or not place or name in found:
            raise ValueError(f"few_shot.{setting}: expected TEMPLATE=PLACE, each template once, got {entry!r}")
        found[name] = place
    return found
