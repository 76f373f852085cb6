import inspect
import logging
import os
import platform
import subprocess
import sys
import time
from types import SimpleNamespace

import orbax.checkpoint as ocp
import pytest

from realm_jax import __main__ as command_line
from realm_jax import config
from realm_jax.jobs import JOBS, Job

TABLE = {
    "train": Job(
        "tests.sample_jobs:teach", "trains nothing", "--run_dir=runs/tiny --gin.train.num_steps=10", ("verbose",)
    ),
    "embed": Job("tests.sample_jobs:watch", "watches"),
    "absent": Job("realm_jax.no_such_module:job", "is never imported"),
}
FILE = "from __gin__ import dynamic_registration\nfrom tests import sample_jobs\n" + (
    "sample_jobs.teach.corpus = 'wiki'\nsample_jobs.teach.encoder = @sample_jobs.Encoder()\n"
)


@pytest.fixture
def main(tmp_path, capsys):
    (tmp_path / "run.gin").write_text(FILE)

    def run_main(*arguments, job="train", run_dir=tmp_path / "run"):
        places = [f"--run_dir={run_dir}", f"--gin_file={tmp_path / 'run.gin'}"]
        status = command_line.main([job, *places, *arguments], TABLE)
        output = capsys.readouterr()
        return status, output.out, output.err

    return run_main


COUNT_ARENAS = """
import ctypes, sys, threading
from realm_jax.__main__ import keep_one_arena

keep_one_arena()
assert "jax" not in sys.modules
barrier = threading.Barrier(4)

def allocate():
    barrier.wait()
    held = [bytearray(30_000) for _ in range(50)]
    barrier.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
file = libc.fopen(sys.argv[1].encode(), b"w")
assert libc.malloc_info(0, file) == 0 and libc.fclose(file) == 0
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
@pytest.mark.parametrize(
    ("set_by_user", "most"),
    [({}, 1), ({"MALLOC_ARENA_MAX": "3"}, 3), ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, 2)],
)
def test_all_threads_allocate_from_one_arena(tmp_path, set_by_user, most):
    mine = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    done = python("-c", COUNT_ARENAS, str(tmp_path / "info.xml"), env=mine | set_by_user)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "info.xml").read_text().count("<heap nr=") == most


def test_other_c_libraries_are_left_alone(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    musl, glibc = (
        SimpleNamespace(),
        SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda *call: calls.append(call)),
    )
    monkeypatch.setattr(sys, "platform", "linux")
    for libc, expected in ((musl, []), (glibc, [(-8, 1)])):
        monkeypatch.setattr(command_line.ctypes, "CDLL", lambda name, libc=libc: libc)
        command_line.keep_one_arena()
        assert calls == expected
    monkeypatch.setattr(sys, "platform", "darwin")
    command_line.keep_one_arena()
    assert len(calls) == 1


def python(*arguments, timeout=60, **kwargs):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, **kwargs)


def test_a_job_runs_and_its_configuration_is_saved(main, tmp_path):
    status, out, err = main("--gin.train.num_steps=7")
    assert (status, err) == (0, "")
    assert "num_steps" in out
    saved = tmp_path / "run" / "config-train.gin"
    again = config.bind("train", [str(saved)], [], TABLE)
    assert again == config.bind("train", [str(tmp_path / "run.gin")], ["train.num_steps=7"], TABLE)
    assert again["num_steps"] == 7


def test_the_configuration_is_saved_before_the_work(main, tmp_path):
    assert main("--gin.train.corpus=interrupt")[0] == 130
    assert "corpus = 'interrupt'" in (tmp_path / "run" / "config-train.gin").read_text()


def texts(folder):
    return {path.name: path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_earlier_configuration_is_kept_with_its_time(main, tmp_path):
    run = tmp_path / "run"
    for num_steps in (7, 7, 8, 8, 9):
        assert main(f"--gin.train.num_steps={num_steps}")[0] == 0
        if num_steps == 7:
            os.utime(run / "config-train.gin", (1e9, 1e9))
    names = ["config-train.1.gin", "config-train.2.gin", "config-train.gin"]
    assert [path.name for path in sorted(run.iterdir())] == names
    for name, num_steps in zip(names, (7, 8, 9), strict=True):
        assert f"num_steps = {num_steps}\n" in (run / name).read_text()
    assert (run / names[0]).stat().st_mtime == 1e9


@pytest.mark.parametrize("corpus", ["mistake", "missing", "slow"])
def test_a_job_that_refuses_leaves_the_run_as_it_was(main, tmp_path, corpus):
    assert main()[0] == 0
    (tmp_path / "run" / "logs").mkdir()
    os.utime(tmp_path / "run" / "config-train.gin", (1e9, 1e9))
    before = texts(tmp_path / "run")
    assert main(f"--gin.train.corpus={corpus}")[0] == 1
    assert texts(tmp_path / "run") == before
    assert (tmp_path / "run" / "config-train.gin").stat().st_mtime == 1e9


def test_a_job_refused_for_another_at_work_leaves_that_ones_configuration(main, tmp_path):
    assert main("--gin.train.num_steps=7")[0] == 0
    before = texts(tmp_path / "run")
    assert main("--gin.train.corpus='in use'")[0] == 1
    assert texts(tmp_path / "run") == before | {"metrics.jsonl": "another's"}


def test_a_misspelt_run_dir_is_not_made(main, tmp_path):
    assert main("--gin.train.corpus=mistake", run_dir=tmp_path / "rnu" / "deep")[0] == 1
    assert not (tmp_path / "rnu").exists()


@pytest.mark.parametrize("had_configuration", [True, False])
def test_a_job_that_fails_after_it_has_written_keeps_its_configuration(main, tmp_path, had_configuration):
    run = tmp_path / "run"
    if had_configuration:
        assert main()[0] == 0
    assert main("--gin.train.corpus=midway")[0] == 1
    assert "corpus = 'midway'" in (run / "config-train.gin").read_text()
    assert (run / "config-train.1.gin").exists() == had_configuration
    (run / "metrics.jsonl").unlink()
    assert main("--gin.train.corpus=logs")[0] == 1  # what a process says of itself is no work
    assert "corpus = 'midway'" in (run / "config-train.gin").read_text()


def test_nothing_is_written_for_a_refused_configuration(main, tmp_path):
    assert main("--gin.train.num_stebs=7")[0] == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        ("mistake", "realm_jax train: corpus has 3 documents but the index has 4; rebuild it with the embed job\n"),
        ("missing", "realm_jax train: no corpus at missing; build it with the corpus job\n"),
        ("slow", "realm_jax train: no snapshot after 5 s\n"),
    ],
)
def test_a_mistake_is_a_line_and_status_1(main, monkeypatch, corpus, expected):
    monkeypatch.setattr(command_line, "__file__", __file__)  # the sample jobs lie with the tests
    status, _, err = main(f"--gin.train.corpus={corpus}")
    assert (status, err) == (1, expected)


def test_an_error_out_of_a_library_says_where_it_came_up(main):
    status, _, err = main("--gin.train.corpus=library")
    assert status == 1
    assert "invalid literal for int()" in err
    assert "--debug shows the traceback" in err
    assert len(err.splitlines()) == 2
    assert "Traceback" not in err
    assert "Traceback" in main("--gin.train.corpus=library", "--debug")[2]


def test_a_bug_shows_its_traceback(main):
    with pytest.raises(TypeError, match="our own mistake"):
        main("--gin.train.corpus=bug")


def test_an_interrupt_is_status_130_without_traceback(main):
    status, _, err = main("--gin.train.corpus=interrupt")
    assert (status, err) == (130, "\nrealm_jax train: interrupted\n")


def test_a_run_dir_that_is_a_file(main, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = main(run_dir=tmp_path / "file")
    assert status == 1
    assert (
        f"--run_dir: expected a folder, got {tmp_path / 'file'}, where {tmp_path / 'file'} is a file; name another"
        in err
    )
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "which job? one of: train, embed, absent"),
        (["trian"], "there is no job 'trian'; jobs: train, embed, absent"),
        (["--run_dir=x"], "the job comes first; jobs: train, embed, absent"),
        (["train"], "train needs a run directory: --run_dir=DIR"),
        (["train", "--run_dir="], "train needs a run directory: --run_dir=DIR"),
        (["train", "--run_dir"], "--run_dir needs a value: --run_dir=VALUE"),
        (["train", "--rundir=x"], "'--rundir' is not a flag of train; flags: --run_dir, --gin_file, --gin.NAME.PARAM"),
        (["train", "x"], "'x' is not a flag of train"),
        (
            ["train", "--verb"],
            "'--verb' is not a flag of train; flags: --run_dir, --gin_file, --gin.NAME.PARAM, --verbose",
        ),
        (["train", "--verbose=1"], "'--verbose' takes no value, got '1'; flags: "),
        (["train", "--debug=1"], "'--debug' takes no value, got '1'; flags: "),
    ],
)
def test_a_command_line_not_understood_is_status_2(capsys, arguments, expected):
    assert command_line.main(arguments, TABLE) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 2


def test_flags_take_their_value_with_or_without_equals():
    with_equals = ["train", "--run_dir=a=b", "--gin_file=x", "--gin_file=y", "--gin.A=1", "--gin.b.c=d=e", "--debug"]
    without = ["train", "--run_dir", "a=b", "--gin_file", "x", "--gin_file", "y", "--gin.A", "1", "--gin.b.c=d=e"]
    command = command_line.parse(with_equals, TABLE)
    assert command == command_line.CommandLine("train", "a=b", ("x", "y"), ("A=1", "b.c=d=e"), debug=True)
    assert command_line.parse([*without, "--debug"], TABLE) == command


def test_a_switch_sets_its_parameter_and_the_later_of_two_settings_counts(main, tmp_path):
    for arguments, expected in (
        ([], False),
        (["--verbose"], True),
        (["--gin.train.verbose=False", "--verbose"], True),
        (["--verbose", "--gin.train.verbose=False"], False),
    ):
        assert main(*arguments)[0] == 0
        saved = (tmp_path / "run" / "config-train.gin").read_text()
        assert f"verbose = {expected}\n" in saved
    with pytest.raises(command_line.UsageError, match="'--verbose' is not a flag of embed"):
        command_line.parse(["embed", "--run_dir=x", "--verbose"], TABLE)


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if job.switches])
def test_switches_are_parameters_that_are_false_by_themselves(job):
    parameters = inspect.signature(JOBS[job].function()).parameters
    for switch in JOBS[job].switches:
        assert (parameters[switch].annotation, parameters[switch].default) == (bool, False)
        assert f"[--{switch}]" in command_line.job_help(job).splitlines()[0]
        assert f"  {switch}: bool  = False  (--{switch} for True)\n" in command_line.job_help(job)


def test_predict_explains_when_told_so_by_a_flag():
    command = command_line.parse(["predict", "--run_dir=x", "--explain", "--gin.predict.questions=who?"])
    assert command.bindings == ("predict.explain=True", "predict.questions=who?")


def test_help_lists_every_job(capsys):
    assert command_line.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, job in JOBS.items():
        assert f"  {name}" in text
        assert job.summary in text


def test_help_of_a_job(capsys):
    assert command_line.main(["train", "--help"], TABLE) == 0
    text = capsys.readouterr().out
    assert "Trains nothing at all." in text
    assert "More about it" not in text
    assert "run_dir:" not in text
    assert "  corpus: str  required\n      a folder of texts, which may need more than a line to explain.\n" in text
    assert "its arguments" not in text
    assert "  num_steps: int  = 10" in text
    assert "  mode: 'asynchronous' or 'frozen'  = 'frozen'" in text
    assert text.endswith("example: python -m realm_jax train --run_dir=runs/tiny --gin.train.num_steps=10\n")


def test_help_is_quick_and_imports_nothing_heavy():
    program = (
        "import sys, runpy; sys.argv = ['realm_jax', '--help']\n"
        "try: runpy.run_module('realm_jax', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'jax', 'numpy', 'gin', 'scann', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.monotonic()
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 5.0  # 0.1 s alone; the bound is for a loaded machine


@pytest.mark.parametrize("arguments", [["train", "--help"], ["report", "--run_dir=x"]])
def test_an_interpreter_without_the_libraries_is_told_what_to_do(repository, arguments):
    """-S leaves out installed packages; the checkout's folder gin/ is there and passes for an empty package."""
    done = python("-S", "-m", "realm_jax", *arguments, cwd=repository)
    lacks, remedy = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout
    assert lacks == f"realm_jax: {sys.executable} lacks {', '.join(command_line.LIBRARIES.values())}"
    assert remedy.strip().startswith("use the environment that `make install` makes: `. .venv/bin/activate` once")
    assert python("-S", "-m", "realm_jax", "--help", cwd=repository).returncode == 0


def test_the_libraries_are_those_of_the_package(repository):
    assert command_line.missing_libraries() == []
    for distribution in command_line.LIBRARIES.values():
        assert f'    "{distribution}>=' in (repository / "setup.py").read_text()


def test_exit_statuses_of_the_real_command(tmp_path):
    assert python("-m", "realm_jax", "--help").returncode == 0
    nonsense = python("-m", "realm_jax", "fly")
    assert nonsense.returncode == 2
    assert "there is no job 'fly'" in nonsense.stderr
    missing = python("-m", "realm_jax", "report", f"--run_dir={tmp_path}", "--gin_file=nowhere.gin", cwd=tmp_path)
    assert missing.returncode == 1
    assert missing.stderr.startswith("realm_jax report: no gin file nowhere.gin")
    assert "Traceback" not in missing.stderr


def test_reading_a_checkpoint_is_not_warned_of(main, caplog, tmp_path):
    assert main()[0] == 0
    logger = logging.getLogger("absl")
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        assert manager.latest_step() is None
    logger.warning("CheckpointManager lost a step")
    assert [record.getMessage() for record in caplog.records] == ["CheckpointManager lost a step"]


@pytest.mark.parametrize("name", JOBS)
def test_every_job_of_the_table_exists_and_takes_a_run_dir_first(name):
    parameters = list(inspect.signature(JOBS[name].function()).parameters.values())
    assert parameters[0].name == "run_dir"
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)
    assert f"--gin.{name}.PARAM=VALUE" in command_line.job_help(name)


def test_what_the_jobs_import_leaves_the_devices_alone():
    """A process joins a run before anything asks jax for a device, and a run file imports more than its job."""
    code = (
        "from jax._src import xla_bridge; from realm_jax.jobs import JOBS\n"
        "for job in JOBS.values(): job.function()\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
