"""The arguments of other jobs, as the files and bindings that were bound last have them: a run file serves several jobs."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from realm_jax import typed
from realm_jax.config import ConfigError, gin_config
from realm_jax.config.checking import CONSTANT, REQUIRED
from realm_jax.config.reading import first_part
from realm_jax.jobs import JOBS, Job

LEFT_OPEN = "(left open)"
"""Stands for what a run file leaves open (`%gin.REQUIRED`), such as the corpus: whoever asks here does not open it."""


def arguments_of(job: str, jobs: Mapping[str, Job] = JOBS) -> dict[str, Any]:
    """Builds the arguments that the last `config.bind` read for another job than its own; {} where it read none.

    Raises:
      ValueError: for a value that the job, or a configuration in it, does not take.
    """
    function, selector = jobs[job].function(), jobs[job].selector
    if not any(bound == selector for _, bound in gin_config._CONFIG):
        return {}
    with _open_values_filled():
        try:
            bound = dict(gin_config.get_bindings(function))
        except (ValueError, OSError) as error:
            raise ConfigError(first_part(error)) from error
    typed.check_arguments(job, function, bound)
    return bound


@contextlib.contextmanager
def _open_values_filled() -> Iterator[None]:
    left_open = [
        (values, parameter, value)
        for values in gin_config._CONFIG.values()
        for parameter, value in values.items()
        if isinstance(value, gin_config.ConfigurableReference)
        and value.configurable.selector == CONSTANT
        and "/".join(value.scopes) == REQUIRED
    ]
    for values, parameter, _ in left_open:
        values[parameter] = LEFT_OPEN
    try:
        yield
    finally:
        for values, parameter, value in left_open:
            values[parameter] = value
