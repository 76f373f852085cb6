"""Refuses undefined macros, unused bindings, open required values and values of a wrong type.

The parsed configuration is walked as a graph: from the job functions along the references in their bindings.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gin import config as gin_config

from realm_jax import typed
from realm_jax.config.reading import COMMAND_LINE, MACRO, ConfigError, Key, Parsed, choices, is_registered

CONSTANT, REQUIRED, SINGLETON = "gin.constant", "gin.REQUIRED", "gin.singleton"


def check(parsed: Parsed, job: str, function: Callable[..., Any]) -> None:
    """Refuses undefined macros, unused bindings, open required values and values of a wrong type."""
    macros = [scope for scope, selector in gin_config._CONFIG if selector == MACRO]
    for name, place in parsed.macro_uses:
        if name not in macros:
            raise ConfigError(f"{place}: macro {name} is not defined; {choices('macros', name, macros)}")
    used: set[Key] = set()
    lacking: list[Key] = []
    for name, entry in parsed.jobs.items():
        if name == job:
            lacking = _check_job(parsed, name, function, used)
        elif any(selector == entry.selector for _, selector in gin_config._CONFIG):
            _Walk(parsed, used, strict=False).visit(entry.selector, ())
    for selector in parsed.offered:
        _Walk(parsed, used, strict=False).visit(selector, ())
    if lacking:
        raise ConfigError(_required(parsed, lacking, [key for key in parsed.places if key not in used]))
    for key, place in parsed.places.items():
        if key not in used:
            raise ConfigError(f"{place}: {_why_unused(key, used)}")


def _check_job(parsed: Parsed, job: str, function: Callable[..., Any], used: set[Key]) -> list[Key]:
    """Returns the required values that are open."""
    selector = parsed.jobs[job].selector
    if is_registered(function):
        selector = gin_config._inverse_lookup(function).selector
        walk = _Walk(parsed, used, strict=True)
        walk.visit(selector, ())
        if walk.lacking:
            return list(walk.lacking)
    bound = gin_config._CONFIG.get(("", selector), {})
    for parameter in open_parameters(function):
        if parameter.name not in bound and parameter.name != "run_dir":
            raise ConfigError(_no_value(f"{job}.{parameter.name}", parameter.annotation))
    return []


def _required(parsed: Parsed, lacking: list[Key], unused: list[Key]) -> str:
    """What to say of open required values; a macro that nothing uses may be one of them, misspelt."""
    names = [_name(key) for key in lacking]
    said = []
    for key in unused:
        if key.selector == MACRO:
            similar = difflib.get_close_matches(key.scope, names, n=1, cutoff=0.6)
            place = parsed.places[key]
            what = f"{COMMAND_LINE}.{key.scope}" if place.startswith(COMMAND_LINE) else f"{place}: macro {key.scope}"
            said.append(f"{what} is used by nothing; {f'did you mean {similar[0]}?' if similar else 'leave it out'}\n")
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    remedy = " ".join(f"{COMMAND_LINE}.{name}=VALUE" for name in names)
    said.append(f"{parsed.places[lacking[0]]}: {listed} {are} required; set {them} with {remedy}")
    return "".join(said)


class _Walk:
    """Follows references from a job's function, as gin will when it builds; marks what is used.

    gin's rules: a reference with a scope replaces the current scope, one without keeps it; in scope `a/b` the bindings
    of the empty scope, of `a` and of `a/b` hold, the later the stronger.
    """

    def __init__(self, parsed: Parsed, used: set[Key], strict: bool):
        self.parsed, self.used, self.strict = parsed, used, strict
        self.path: list[tuple[str, tuple[str, ...]]] = []
        self.lacking: dict[Key, None] = {}  # required values that are open, in the order of their use

    def visit(self, selector: str, scope: tuple[str, ...], called: bool = False) -> None:
        if (selector, scope) in self.path:
            raise ConfigError(f"{'/'.join(scope)}: the macro or binding refers to itself")
        self.path.append((selector, scope))
        bound: dict[str, tuple[Any, Key]] = {}
        for depth in range(len(scope) + 1):
            partial = "/".join(scope[:depth])
            for parameter, value in gin_config._CONFIG.get((partial, selector), {}).items():
                key = Key(partial, selector, parameter)
                self.used.add(key)
                bound[parameter] = (value, key)
        for value, key in bound.values():
            for reference in gin_config.iterate_references([value]):
                if reference.configurable.selector == CONSTANT:
                    if self.strict and "/".join(reference.scopes) == REQUIRED:
                        self.lacking[key] = None
                else:
                    called_there = reference.evaluate or selector == SINGLETON
                    self.visit(reference.configurable.selector, tuple(reference.scopes) or scope, called_there)
        if self.strict and selector not in (MACRO, SINGLETON):
            self._check_values(selector, bound)
            if called:
                self._check_complete(selector, scope, bound)
        self.path.pop()

    def _check_values(self, selector: str, bound: Mapping[str, tuple[Any, Key]]) -> None:
        annotations = typed.resolved_annotations(gin_config._REGISTRY[selector].wrapped)
        for parameter, (value, key) in bound.items():
            self._check_parentheses(value, annotations.get(parameter, Any), key)
            for literal in _literal(value):
                if not typed.conforms(literal, annotations.get(parameter, Any)):
                    said = typed.mismatch(literal, annotations[parameter])
                    raise ConfigError(f"{self.parsed.places[key]}: {_name(key)} {said}")

    def _check_parentheses(self, value: Any, annotation: Any, key: Key) -> None:
        if not isinstance(value, gin_config.ConfigurableReference) or value.evaluate:
            return
        wrapped = value.configurable.wrapped
        if inspect.isclass(wrapped) and not typed.conforms(wrapped, annotation):
            raise ConfigError(
                f"{self.parsed.places[key]}: {_name(key)} must be {typed.describe(annotation)}, got the class "
                f"{wrapped.__name__} itself; write @{value.scoped_selector}()"
            )

    def _check_complete(self, selector: str, scope: tuple[str, ...], bound: Mapping[str, Any]) -> None:
        name = "/".join([*scope, ".".join(selector.split(".")[-2:])])
        for parameter in open_parameters(gin_config._REGISTRY[selector].wrapped):
            if parameter.name not in bound:
                raise ConfigError(_no_value(f"{name}.{parameter.name}", parameter.annotation))


def open_parameters(function_or_class: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters without a default."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter
        for parameter in inspect.signature(function_or_class).parameters.values()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variable
    ]


def _no_value(name: str, annotation: Any) -> str:
    """What to say of an open parameter: nobody types a configuration, a class of ours, on the command line."""
    remedy = f"set it with {COMMAND_LINE}.{name}=VALUE"
    if inspect.isclass(annotation) and annotation.__module__ != "builtins":
        remedy = "it is a configuration: name a run file that sets it, --gin_file=FILE (gin/runs/ has some)"
    return f"{name} ({typed.describe(annotation)}) has no value; {remedy}"


def _literal(value: Any) -> Iterator[Any]:
    """Yields the value with its macros replaced, or nothing if only building it can tell."""
    try:
        yield _without_macros(value)
    except LookupError:
        return


def _without_macros(value: Any) -> Any:
    if isinstance(value, gin_config.ConfigurableReference):
        if value.configurable.selector != MACRO:
            raise LookupError
        return _without_macros(gin_config._CONFIG["/".join(value.scopes), MACRO]["value"])
    if isinstance(value, dict):
        return {key: _without_macros(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_without_macros, value))
    return value


def _name(key: Key) -> str:
    """A bound parameter as the gin files write it."""
    if key.selector == MACRO:
        return key.scope
    selector = ".".join(key.selector.split(".")[-2:])
    return f"{key.scope + '/' if key.scope else ''}{selector}.{key.parameter}"


def _why_unused(key: Key, used: set[Key]) -> str:
    if key.selector == MACRO:
        macros = [other.scope for other in used if other.selector == MACRO]
        return f"macro {key.scope} is used by nothing; {choices('macros', key.scope, macros)}"
    if key.scope:
        scopes = {other.scope for other in used if other.scope and other.selector == key.selector}
        scopes |= {other.scope for other in used if other.scope and other.selector != MACRO}
        return f"nothing is built in scope '{key.scope}'; {choices('scopes', key.scope, scopes)}"
    names = {_name(other).rpartition(".")[0] for other in used if other.selector != MACRO}
    return f"{_name(key)} is used by nothing; {choices('names', _name(key).rpartition('.')[0], names)}"
