"""The command line: `python -m realm_jax JOB --run_dir=DIR [--gin_file=FILE …] [--gin.NAME.PARAM=VALUE …]`.

A job may have flags of its own, such as `predict --explain`; its help lists them.
Exit status: 0 done, 1 failed, 2 not understood, 130 interrupted, 143 a training that SIGTERM ended early, with a checkpoint
(the same command goes on). A user's mistake is told in a line or two; only a bug of ours shows a traceback (`--debug` shows
it always).
"""

import ctypes
import importlib.util
import inspect
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from realm_jax.jobs import JOBS, Job, Preempted

USAGE = "python -m realm_jax JOB --run_dir=DIR [--gin_file=FILE ...] [--gin.NAME.PARAM=VALUE ...]"
DONE, FAILED, NOT_UNDERSTOOD, INTERRUPTED, PREEMPTED = 0, 1, 2, 130, 143
M_ARENA_MAX = -8  # malloc.h
LIBRARIES = {
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "numpy": "numpy",
    "jaxtyping": "jaxtyping",
    "gin": "gin-config",
}
"""What every job needs, by the name to import; an interpreter without them is not of our environment."""


class UsageError(Exception):
    """The command line could not be understood."""


class CommandLine(NamedTuple):
    """A parsed command line. `job` is empty when only help was asked for."""

    job: str
    run_dir: str = ""
    gin_files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()
    help: bool = False
    debug: bool = False


def parse(arguments: Sequence[str], jobs: Mapping[str, Job] = JOBS) -> CommandLine:
    """Parses the arguments after `python -m realm_jax`. `--flag=value` and `--flag value` are the same.

    Raises:
      UsageError: for anything that is not a job or a flag.
    """
    rest = list(arguments)
    if not rest:
        raise UsageError(f"which job? one of: {', '.join(jobs)}")
    if rest[0] in ("--help", "-h", "help"):
        return CommandLine("", help=True)
    job = rest.pop(0)
    if job not in jobs:
        what = "the job comes first" if job.startswith("-") else f"there is no job '{job}'"
        raise UsageError(f"{what}; jobs: {', '.join(jobs)}")
    switches = [f"--{name}" for name in jobs[job].switches]
    run_dir, gin_files, bindings, debug = "", [], [], False
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag in ("--help", "-h"):
            return CommandLine(job, help=True)
        if flag == "--debug" and not equals:
            debug = True
            continue
        if flag in switches and not equals:
            bindings.append(f"{job}.{flag.removeprefix('--')}=True")
            continue
        if flag not in ("--run_dir", "--gin_file") and not flag.startswith("--gin."):
            flags = ", ".join(["--run_dir", "--gin_file", "--gin.NAME.PARAM", *switches, "--debug", "--help"])
            what = f"takes no value, got '{value}'" if flag in (*switches, "--debug") else f"is not a flag of {job}"
            raise UsageError(f"'{flag}' {what}; flags: {flags}")
        if not equals:
            if not rest:
                raise UsageError(f"{flag} needs a value: {flag}=VALUE")
            value = rest.pop(0)
        if flag == "--run_dir":
            run_dir = value
        elif flag == "--gin_file":
            gin_files.append(value)
        else:
            bindings.append(f"{flag.removeprefix('--gin.')}={value}")
    if not run_dir:
        raise UsageError(f"{job} needs a run directory: --run_dir=DIR")
    return CommandLine(job, run_dir, tuple(gin_files), tuple(bindings), debug=debug)


def jobs_help(jobs: Mapping[str, Job] = JOBS) -> str:
    """The text of `python -m realm_jax --help`. No job's module is imported for it."""
    width = max(map(len, jobs))
    return "\n".join(
        [
            f"usage: {USAGE}",
            "",
            "jobs:",
            *(f"  {name:{width}}  {job.summary}" for name, job in jobs.items()),
            "",
            "flags:",
            "  --run_dir=DIR             everything the run reads and writes lies here",
            "  --gin_file=FILE           a run file, by path or by name (runs/realm_tiny.gin); may be repeated",
            "  --gin.NAME.PARAM=VALUE    overrides a parameter; --gin.MACRO=VALUE a macro of a run file",
            "  --debug                   show a traceback for every failure",
            "",
            "python -m realm_jax JOB --help shows a job's parameters and its own flags.",
        ]
    )


def job_help(name: str, jobs: Mapping[str, Job] = JOBS) -> str:
    """The text of `python -m realm_jax JOB --help`: the job function's first paragraph and its parameters."""
    from realm_jax import typed

    job = jobs[name]
    function = job.function()
    annotations = typed.resolved_annotations(function)
    doc = inspect.getdoc(function) or job.summary
    meanings = parameter_meanings(doc)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "run_dir"]
    rows = []
    for parameter in parameters:
        default = "required" if parameter.default is inspect.Parameter.empty else f"= {parameter.default!r}"
        default += f"  (--{parameter.name} for True)" if parameter.name in job.switches else ""
        row = f"{parameter.name}: {typed.describe(annotations.get(parameter.name, Any))}  {default}"
        rows.append(f"  {row if len(row) <= 116 else row[:112] + ' ...'}")
        rows += textwrap.wrap(meanings.get(parameter.name, ""), 116, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(
        [
            " ".join([f"usage: {USAGE.replace('JOB', name)}", *(f"[--{switch}]" for switch in job.switches)]),
            "",
            doc.split("\n\n")[0],
            "",
            f"parameters, set as --gin.{name}.PARAM=VALUE, or as {job.short_name}.PARAM = VALUE in a gin file:",
            *rows,
            "",
            f"example: python -m realm_jax {name} {job.example}",
        ]
    )


def parameter_meanings(doc: str) -> dict[str, str]:
    """What the `Args:` part of a docstring says of each parameter."""
    section = re.search(r"^Args:\n((?:[ \t].*\n?|\n)*)", doc, re.MULTILINE)
    meanings: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(section[1]).splitlines() if section else []:
        entry = re.match(r"(\w+): *(.*)", line)
        if entry:
            name = entry[1]
        text = entry[2] if entry else line.strip()
        meanings[name] = f"{meanings.get(name, '')} {text}".strip()
    return meanings


def run(command: CommandLine, jobs: Mapping[str, Job] = JOBS) -> Any:
    """Binds the configuration, saves it in the run directory and runs the job; returns what the job returns."""
    from realm_jax import config
    from realm_jax.config.saving import saved
    from realm_jax.run_dir import RunDir, check_can_write

    check_can_write(command.run_dir, "--run_dir")
    kwargs = config.bind(command.job, command.gin_files, command.bindings, jobs)
    with saved(RunDir.of(command.run_dir), command.job, config.operative_config()):
        return jobs[command.job].function()(run_dir=command.run_dir, **kwargs)


def missing_libraries() -> list[str]:
    """Those of `LIBRARIES` that this interpreter lacks; nothing is imported for it.

    A folder without Python in it, such as the checkout's own gin/, passes for an empty package, which has no origin.
    """
    specs = {distribution: importlib.util.find_spec(name) for name, distribution in LIBRARIES.items()}
    return [distribution for distribution, spec in specs.items() if spec is None or spec.origin is None]


def wrong_environment() -> str:
    """What to say where this interpreter lacks what every job needs; empty where it does not."""
    missing = missing_libraries()
    if not missing:
        return ""
    return (
        f"{sys.executable} lacks {', '.join(missing)}\n"
        "  use the environment that `make install` makes: `. .venv/bin/activate` once, or .venv/bin/python for python"
    )


def describe_error(error: BaseException) -> str:
    """An error in at most two lines. One raised outside this package (by a library) says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    frames = traceback.extract_tb(error.__traceback__)
    package = os.path.dirname(os.path.abspath(__file__)) + os.sep  # noqa: PTH100, PTH120 (a prefix of frame names)
    if isinstance(error, ValueError) and frames and not frames[-1].filename.startswith(package):
        ours = next((frame for frame in reversed(frames) if frame.filename.startswith(package)), frames[-1])
        place = f"{ours.filename.removeprefix(package)}:{ours.lineno}"
        return f"{' '.join(lines[:3])}\n  ({type(error).__name__} at {place}; --debug shows the traceback)"
    return "\n  ".join(lines[:2])


def _not_about_reading(record: logging.LogRecord) -> bool:
    """False for what Orbax warns of at every checkpoint that is only read: that it is only read."""
    said = ("CheckpointManagerOptions.read_only=True", "Given directory is read only=", "Metadata file does not exist:")
    return not record.getMessage().startswith(said)


def main(arguments: Sequence[str], jobs: Mapping[str, Job] = JOBS) -> int:
    """Runs a command line and returns its exit status."""
    try:
        command = parse(arguments, jobs)
    except UsageError as error:
        print(f"realm_jax: {error}\nusage: {USAGE}", file=sys.stderr)
        return NOT_UNDERSTOOD
    if command.help and not command.job:
        print(jobs_help(jobs))
        return DONE
    if said := wrong_environment():
        print(f"realm_jax: {said}", file=sys.stderr)
        return FAILED
    if command.help:
        print(job_help(command.job, jobs))
        return DONE
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("realm_jax").setLevel(logging.DEBUG if command.debug else logging.INFO)
    logging.getLogger("absl").addFilter(_not_about_reading)
    return _guarded(lambda: run(command, jobs), command)


def _guarded(work: Callable[[], Any], command: CommandLine) -> int:
    try:
        work()
    except KeyboardInterrupt:
        print(f"\nrealm_jax {command.job}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Preempted as stopped:
        print(f"realm_jax {command.job}: {stopped}", file=sys.stderr)
        return PREEMPTED
    except (ValueError, OSError) as error:  # TimeoutError and FileNotFoundError are OSErrors
        if command.debug:
            traceback.print_exc()
        print(f"realm_jax {command.job}: {describe_error(error)}", file=sys.stderr)
        return FAILED
    return DONE


def keep_one_arena() -> None:
    """Lets all threads allocate from one arena of glibc, unless the user has set its allocator; elsewhere nothing.

    With one a thread, as is glibc's way, each keeps what is free in it: a trainer that swaps its index often grew by 78 MiB an
    hour. To be called before other threads are started.
    """
    if not sys.platform.startswith("linux") or {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"} & os.environ.keys():
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt"):  # musl has neither
        libc.mallopt(M_ARENA_MAX, 1)


if __name__ == "__main__":
    keep_one_arena()
    sys.exit(main(sys.argv[1:]))
