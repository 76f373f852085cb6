"""The jobs: what `python -m realm_jax JOB` runs. A function is imported only when its job is asked for."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Preempted(Exception):  # noqa: N818 - reads as what it says
    """SIGTERM ended a job before its last step, with a checkpoint of what was done: the same command goes on."""


class Job(NamedTuple):
    """Where a job's function lives, as `module:function`; what it does in a line; arguments that run it, to imitate.

    `switches` are parameters, False by themselves, that the flag `--NAME` sets to True.
    """

    place: str
    summary: str
    example: str = "--run_dir=RUN"
    switches: tuple[str, ...] = ()

    @property
    def selector(self) -> str:
        """The function's full dotted name."""
        return self.place.replace(":", ".")

    @property
    def short_name(self) -> str:
        """The name that gin files use: the last part of the module and the function, `loop.train`."""
        return ".".join(self.selector.split(".")[-2:])

    def function(self) -> Callable[..., Any]:
        """Imports the job's module and returns its function."""
        module, name = self.place.split(":")
        return getattr(importlib.import_module(module), name)


_OWN_DOCUMENTS = "--run_dir=runs/mine --gin_file=runs/realm_documents.gin --gin.CORPUS=runs/mine/corpus"
_FINE_TUNED = (
    "--run_dir=runs/qa --gin_file=runs/open_qa_tiny.gin --gin.CORPUS=runs/pretrain/corpus "
    "--gin.QUESTIONS=runs/pretrain/corpus/questions_train.jsonl"
)

JOBS: Mapping[str, Job] = MappingProxyType(
    {
        "corpus": Job(
            "realm_jax.corpus.build:corpus",
            "cut texts into blocks, tag salient spans, tokenise",
            f"{_OWN_DOCUMENTS} --gin.SOURCE=my/documents",
        ),
        "train": Job(
            "realm_jax.training.loop:train",
            "pre-train (ICT, REALM) or fine-tune (open QA, a span tagger), swapping in new index versions",
            f"{_OWN_DOCUMENTS} --gin.train.num_steps=450",
        ),
        "embed": Job(
            "realm_jax.retrieval.embed:embed",
            "embed the corpus with each new snapshot, publish its index",
            f"{_OWN_DOCUMENTS} --gin.embed.once=True",
        ),
        "retrieve": Job(
            "realm_jax.instructions.retrieve:retrieve",
            "find documents for instruction examples, let a language model judge them (RA-DIT)",
            "--run_dir=runs/mine --gin_file=runs/ra_dit_lm_tiny.gin --gin.CORPUS=runs/mine/corpus --gin.SOURCES=questions.jsonl",
        ),
        "evaluate": Job(
            "realm_jax.evaluation.retrieval:evaluate",
            "measure retrieval with a checkpoint and an index",
            f"{_OWN_DOCUMENTS} --gin.evaluate.max_queries=200",
        ),
        "few_shot": Job(
            "realm_jax.evaluation.few_shot.job:few_shot",
            "ask a language model that retrieves MMLU, NQ and others, with demonstrations (RA-DIT)",
            "--run_dir=runs/ra_dit --gin_file=runs/ra_dit_tiny.gin --gin.CORPUS=runs/mine/corpus --gin.LANGUAGE_MODEL=runs/ra_dit_lm "
            "--gin.few_shot.questions=nq=dev.jsonl",
        ),
        "tagger": Job(
            "realm_jax.evaluation.tagging:tagger",
            "measure a trained salient-span tagger, write it for the corpus job",
            "--run_dir=runs/tagger --gin_file=runs/tagger_tiny.gin --gin.FILES=train.conll --gin.TEST_FILES=test.conll",
        ),
        "convert": Job(
            "realm_jax.convert.job:convert",
            "bring weights in from Hugging Face or TensorFlow, or take them out",
            "--run_dir=runs/bert --gin.convert.source=path/or/hub-id",
        ),
        "predict": Job(
            "realm_jax.answering.predict:predict",
            "answer questions with a fine-tuned run, in the form that official scorers read",
            f"{_FINE_TUNED} --gin.predict.questions='who wrote it?' --explain",
            switches=("explain",),
        ),
        "serve": Job(
            "realm_jax.serve.server:serve",
            "a page and an API to ask a fine-tuned run, to add and to remove documents",
            f"{_FINE_TUNED} --gin.serve.port=8000",
        ),
        "plan": Job(
            "realm_jax.plan:plan",
            "say whether a run fits on a TPU slice, and how fast it can be, without the TPU",
            "--run_dir=runs/plan --gin_file=runs/realm_paper.gin --gin.plan.topology=v4:4x4x4",
            switches=("analytical",),
        ),
        "report": Job(
            "realm_jax.report:report",
            "gather a run's figures into report.json and report.html",
            "--run_dir=runs/mine",
        ),
    }
)
