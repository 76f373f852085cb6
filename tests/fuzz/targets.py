"""All targets by name."""

from tests.fuzz import (
    config_targets,
    corpus_targets,
    index_targets,
    instruction_targets,
    page_target,
    question_targets,
    weights_targets,
)

_MODULES = (
    corpus_targets,
    question_targets,
    index_targets,
    config_targets,
    weights_targets,
    instruction_targets,
    page_target,
)
TARGETS = {target.name: target for module in _MODULES for target in module.TARGETS}
