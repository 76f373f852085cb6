"""Zero- and few-shot evaluation of language models that retrieve: formats, prompts, scores (RA-DIT, arXiv:2310.01352)."""

from realm_jax.evaluation.few_shot.evaluation import FewShotTask, evaluate_few_shot, few_shot_task
from realm_jax.evaluation.few_shot.example import Example, ExampleSet
from realm_jax.evaluation.few_shot.model import AugmentedModel, ScoredContinuation
from realm_jax.evaluation.few_shot.reading import read_examples
from realm_jax.evaluation.few_shot.templates import Template, load_templates

__all__ = [
    "AugmentedModel",
    "Example",
    "ExampleSet",
    "FewShotTask",
    "ScoredContinuation",
    "Template",
    "evaluate_few_shot",
    "few_shot_task",
    "load_templates",
    "read_examples",
]
