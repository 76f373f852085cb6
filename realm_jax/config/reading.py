"""Reads gin files and bindings into gin's tables, checking every name on the way."""

import difflib
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config as gin_config
from gin import config_parser

from realm_jax.config.files import find_gin_file
from realm_jax.jobs import Job

COMMAND_LINE = "--gin"
MACRO = "gin.macro"  # gin keeps a macro NAME as a configurable of this name in scope NAME


class ConfigError(ValueError):
    """A mistake in a gin file or a binding, told in a line or two."""


class Key(NamedTuple):
    """One bound parameter. A macro NAME is the parameter `value` of `gin.macro` in scope NAME."""

    scope: str
    selector: str
    parameter: str


def choices(what: str, got: str, valid: Iterable[str]) -> str:
    """Names the valid choices: `did you mean b? valid jobs: a, b`."""
    valid = sorted(valid)
    if not valid:
        return f"there are no {what}"
    similar = difflib.get_close_matches(got, valid, n=1, cutoff=0.6)
    return f"{f'did you mean {similar[0]}? ' if similar else ''}valid {what}: {', '.join(valid)}"


def first_part(error: Exception) -> str:
    """A message without what gin appends to it: the place in its words, or the chain of calls."""
    return str(error).split("\n  In ")[0]


def is_registered(function: Callable[..., Any]) -> bool:
    return gin_config._inverse_lookup(function) is not None


class Parsed:
    """Reads gin statements into gin's tables, checks every name on the way, and remembers where each stood."""

    def __init__(self, job: str, jobs: Mapping[str, Job]):
        self.job, self.jobs = job, jobs
        self.places: dict[Key, str] = {}
        self.macro_uses: list[tuple[str, str]] = []  # (name, place)
        self.reading: list[Path] = []
        self.offered: set[str] = set()  # what included files configure: a run need not build all of it

    def read_file(self, path: Path) -> None:
        if path in self.reading:
            raise ConfigError(f"{path} includes itself, through {' and '.join(map(str, self.reading))}")
        self.reading.append(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a text in UTF-8: {error}") from error
        self._read(text, str(path))
        self.reading.pop()

    def read_bindings(self, bindings: Sequence[str]) -> None:
        for binding in bindings:
            name, equals, value = binding.partition("=")
            if not equals or not re.fullmatch(r"[\w./]+", name.strip()):
                raise ConfigError(f"{COMMAND_LINE}.{binding}: expected {COMMAND_LINE}.NAME.PARAM=VALUE")
            statement = f"{name.strip()} = {_as_gin_value(value.strip())}"
            if _is_several(statement):  # an import, say: a value brings along no code
                raise ConfigError(f"{COMMAND_LINE}.{binding}: expected one value, got further statements behind it")
            lines = [*self._imports(), statement]
            self._read("\n".join(lines), COMMAND_LINE)

    def _imports(self) -> list[str]:
        """Import lines that give bindings the names of all files read, and of the job's own module."""
        lines = {_import_statement(self.jobs[self.job]).format()}
        lines |= {statement.format() for statement in gin_config._IMPORTS}
        dynamic = "from __gin__ import dynamic_registration"
        return [dynamic, *sorted(lines - {dynamic})]

    def _read(self, text: str, source: str) -> None:
        with gin_config._parse_scope() as context:
            delegate = _Delegate(self, context)
            try:
                parser = config_parser.ConfigParser(io.StringIO(text), delegate)  # reads the first token
                delegate.place = lambda: _place(source, parser._current_location().line_num)
                for statement in parser:
                    self._take(statement, context, source)
            except ConfigError as error:
                raise ConfigError(first_part(error)) from error
            except RecursionError as error:
                raise ConfigError(f"{source}: brackets within brackets, more than can be followed") from error
            except tokenize.TokenError as error:
                raise ConfigError(f"{source}: {error.args[0]} in: {text.splitlines()[-1][:200]}") from error
            except SyntaxError as error:
                place = _place(source, error.lineno or 0)
                raise ConfigError(f"{place}: {error.msg}: {(error.text or '').strip()}") from error
            gin_config._IMPORTS.update(context.imports)

    def _take(self, statement: Any, context: Any, source: str) -> None:
        place = _place(source, statement.location.line_num, statement.location.line_content)
        if isinstance(statement, config_parser.ImportStatement):
            try:
                context.process_import(statement)
            except ImportError as error:
                raise ConfigError(f"{place}: cannot import: {error}") from error
        elif isinstance(statement, config_parser.IncludeStatement):
            try:
                included = find_gin_file(statement.filename, beside=self.reading[-1])
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{place}: {error}") from error
            self.read_file(included)
        elif isinstance(statement, config_parser.BlockDeclaration):
            self.resolve(statement.selector, context, place)
        else:
            self._bind(statement, context, place)

    def _bind(self, statement: Any, context: Any, place: str) -> None:
        scope, selector, parameter, value, _ = statement
        if not parameter:  # a macro
            scope, selector, parameter = "/".join(filter(None, [scope, selector])), MACRO, "value"
            gin_config.bind_parameter((scope, selector, parameter), value)
        else:
            configurable = self.resolve(selector, context, place)
            if parameter == "run_dir" and configurable.selector in {job.selector for job in self.jobs.values()}:
                raise ConfigError(f"{place}: run_dir is given as --run_dir=DIR, not in gin")
            valid = parameters_of(configurable.wrapped)
            if valid is not None and parameter not in valid:
                raise ConfigError(
                    f"{place}: {selector} has no parameter '{parameter}'; "
                    f"{choices('parameters', parameter, [name for name in valid if name != 'run_dir'])}"
                )
            selector = configurable.selector
            gin_config._CONFIG.setdefault((scope, selector), {})[parameter] = value
            if len(self.reading) > 1 and not scope:
                self.offered.add(selector)
        self.places[Key(scope, selector, parameter)] = place

    def resolve(self, selector: str, context: Any, place: str) -> Any:
        """The registered configurable that a name in a gin file stands for."""
        first, _, rest = selector.partition(".")
        if not rest and selector in self.jobs and place.startswith(COMMAND_LINE):
            return _register_job(self.jobs[selector])
        if not context._dynamic_registration:
            raise ConfigError(f"{place}: a gin file begins with `from __gin__ import dynamic_registration`")
        imported = [name for name in context._symbol_table if name != "gin"]
        if first not in context._symbol_table:
            shorts = {job.short_name: job for job in self.jobs.values()}
            if selector in shorts:
                return _register_job(shorts[selector])
            raise ConfigError(
                f"{place}: '{first}' is not imported; {choices('names', first, self._names(imported, place))}"
            )
        value = context._symbol_table[first]
        for name in rest.split(".") if rest else []:
            if not hasattr(value, name):
                found = [n for n, v in getattr(value, "__dict__", {}).items() if callable(v) and not n.startswith("_")]
                raise ConfigError(f"{place}: there is no '{name}' in {selector}; {choices('names', name, found)}")
            value = getattr(value, name)
        if not callable(value):
            raise ConfigError(f"{place}: {selector} is a {type(value).__name__}, not a function or class")
        return context.get_configurable(selector)

    def _names(self, imported: Iterable[str], place: str) -> set[str]:
        return {*imported, *(self.jobs if place.startswith(COMMAND_LINE) else ())}


class _Delegate(gin_config.ParserDelegate):
    """Checks references while gin parses values."""

    def __init__(self, parsed: Parsed, context: Any):
        super().__init__()
        self.parsed, self.context = parsed, context
        self.place: Callable[[], str] = lambda: ""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        self.parsed.resolve(scoped_selector.rsplit("/", 1)[-1], self.context, self.place())
        return super().configurable_reference(scoped_selector, evaluate)

    def macro(self, name: str) -> Any:
        if not gin_config._CONSTANTS.matching_selectors(name):
            self.parsed.macro_uses.append((name, self.place()))
        return super().macro(name)


def _import_statement(job: Job) -> config_parser.ImportStatement:
    module = job.place.split(":")[0]
    nowhere = config_parser.Location(None, 0, None, "")
    return config_parser.ImportStatement(module=module, is_from="." in module, alias=None, location=nowhere)


def _register_job(job: Job) -> Any:
    function = job.function()
    if not is_registered(function):
        module, name = job.place.split(":")
        source = (_import_statement(job), name)
        gin_config._make_configurable(function, name=name, module=module, import_source=source)
    return gin_config._inverse_lookup(function)


def parameters_of(function_or_class: Any) -> list[str] | None:
    """Names of the parameters that can be bound; None if it takes any keyword."""
    parameters = inspect.signature(function_or_class).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]


def _place(source: str, line: int, content: str = "") -> str:
    if source == COMMAND_LINE:
        return f"{COMMAND_LINE}.{content.strip()}" if content else COMMAND_LINE
    return f"{source}:{line}"


def _as_gin_value(text: str) -> str:
    """A text without quotes, such as a path, becomes a quoted one; what gin can parse stays as it is."""
    if not text:
        return "''"
    if re.match(r"""[@%(\[{'"]""", text):
        return text
    try:
        list(config_parser.ConfigParser(f"value = {text}", _Placeholders()))
    except (SyntaxError, tokenize.TokenError, RecursionError):
        return repr(text)
    return text


def _is_several(text: str) -> bool:
    """Whether a further statement follows the first; nothing is looked up or imported for it."""
    try:
        return any(number > 0 for number, _ in enumerate(config_parser.ConfigParser(text, _Placeholders())))
    except (SyntaxError, tokenize.TokenError, RecursionError):
        return False


class _Placeholders(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        return None

    def macro(self, name: str) -> Any:
        return None
