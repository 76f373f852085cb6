"""gin at the edge: turns run files and `--gin.` bindings into the typed keyword arguments of one job function.

Nothing outside this package imports gin. gin itself is silent about bindings that nothing uses, about misspelt macros
and scopes, and about values of a wrong type; here each of these is an error, found before anything is built.

A run file may serve several jobs (`loop.train.…`, `embed.embed.…`): a binding is used if any job uses it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gin import config as gin_config

from realm_jax import typed
from realm_jax.config.checking import check
from realm_jax.config.files import find_gin_file, gin_folders
from realm_jax.config.reading import ConfigError, Parsed, choices, first_part, is_registered
from realm_jax.jobs import JOBS, Job

__all__ = ["ConfigError", "bind", "choices", "find_gin_file", "gin_folders", "operative_config"]

_last_operative_config = ""


def bind(
    job: str,
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    jobs: Mapping[str, Job] = JOBS,
) -> dict[str, Any]:
    """Builds the keyword arguments of a job's function, all but `run_dir`, defaults included.

    Args:
      job: a name in `jobs`.
      gin_files: paths or names of gin files; later ones override earlier ones.
      bindings: `NAME.PARAM=VALUE` with a name as the gin files use it, or with a job's name alone
        (`train.num_steps=10`), or `MACRO=VALUE`. They override the files. A text needs no quotes here.
      jobs: the table of jobs.

    Returns:
      Arguments for `jobs[job].function()`, checked against its annotations. gin's state stays until the next call, so
      that references handed over unevaluated (`@f` without parentheses) keep their bindings.

    Raises:
      ValueError: for any mistake in a file or a binding, naming place and valid choices.
      FileNotFoundError: for a gin file that is nowhere.
    """
    if job not in jobs:
        raise ConfigError(f"unknown job '{job}'; {choices('jobs', job, jobs)}")
    paths = [find_gin_file(name) for name in gin_files]  # before the slow import of the job's module
    gin_config.clear_config()
    gin_config.enter_interactive_mode()  # a module may be reloaded, as notebooks and tests do
    function = jobs[job].function()
    parsed = Parsed(job, jobs)
    for path in paths:
        parsed.read_file(path)
    parsed.read_bindings(bindings)
    check(parsed, job, function)
    kwargs = _build(job, function)
    global _last_operative_config
    _last_operative_config = _operative_config(function)
    return kwargs


def operative_config() -> str:
    """The last bound configuration, defaults included, as the text of a gin file that binds to the same arguments."""
    return _last_operative_config


def _build(job: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        bound = gin_config.get_bindings(function) if is_registered(function) else {}
    except (ValueError, OSError) as error:
        raise ConfigError(first_part(error)) from error
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name != "run_dir"
    }
    kwargs = defaults | bound
    typed.check_arguments(job, function, bound)
    return kwargs


def _operative_config(function: Callable[..., Any]) -> str:
    # What gin recorded while building, and the job's own arguments: its function was not called through gin.
    operative = {key: dict(values) for key, values in gin_config._OPERATIVE_CONFIG.items()}
    if is_registered(function):
        selector = gin_config._inverse_lookup(function).selector
        defaults = gin_config._get_default_configurable_parameter_values(function, None, ["run_dir"])
        operative["", selector] = defaults | gin_config._CONFIG.get(("", selector), {})
    return gin_config._config_str(operative, max_line_length=110)
