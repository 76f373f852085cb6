import re
import sys
from pathlib import Path

import gin
import pytest

from realm_jax import config
from realm_jax.jobs import JOBS, Job
from tests import sample_jobs
from tests.sample_jobs import Encoder, Pair

TABLE = {
    "train": Job("tests.sample_jobs:teach", "trains nothing"),
    "embed": Job("tests.sample_jobs:watch", "watches"),
    "absent": Job("realm_jax.no_such_module:job", "never imported"),
}
HEAD = "from __gin__ import dynamic_registration\nfrom tests import sample_jobs\n"
GOOD = (
    HEAD
    + """
NUM_STEPS = 20
CORPUS = "wiki"
sample_jobs.teach.corpus = %CORPUS
sample_jobs.teach.num_steps = %NUM_STEPS
sample_jobs.teach.encoder = @sample_jobs.Encoder()
sample_jobs.teach.buckets = (3, 4)
sample_jobs.Encoder.num_layers = 3
sample_jobs.watch.encoder = @sample_jobs.Encoder()
"""
)


@pytest.fixture
def bind(tmp_path):
    def bind_text(text, *bindings, job="train"):
        path = tmp_path / "run.gin"
        path.write_text(text)
        return config.bind(job, [str(path)], bindings, TABLE)

    return bind_text


def message(excinfo) -> str:
    text = str(excinfo.value)
    assert len(text.splitlines()) <= 2, text
    return text


def test_bind_builds_all_arguments_but_run_dir(bind):
    assert bind(GOOD) == {
        "corpus": "wiki",
        "encoder": Encoder(num_layers=3),
        "pair": None,
        "num_steps": 20,
        "learning_rate": 0.5,
        "mode": "frozen",
        "buckets": (3, 4),
        "verbose": False,
        "schedule": None,
        "limit": None,
    }
    assert type(bind(GOOD)["encoder"]) is Encoder


def test_one_file_serves_two_jobs(bind):
    assert bind(GOOD, job="embed") == {"encoder": Encoder(num_layers=3), "poll_secs": 1.0, "source": ""}


def test_a_required_value_of_another_job_may_stay_open(bind):
    text = GOOD + "SOURCE = %gin.REQUIRED\nsample_jobs.watch.source = %SOURCE\n"
    assert bind(text)["num_steps"] == 20
    with pytest.raises(ValueError, match=r"run\.gin:12: SOURCE is required; set it with --gin\.SOURCE=VALUE$"):
        bind(text, job="embed")
    assert bind(text, "SOURCE=wiki", job="embed")["source"] == "wiki"


def test_required_values_are_named_at_once_with_what_may_be_one_misspelt(bind):
    text = GOOD.replace("NUM_STEPS = 20", "NUM_STEPS = %gin.REQUIRED") + "CORPUS = %gin.REQUIRED\n"
    both = r"run\.gin:\d+: CORPUS and NUM_STEPS are required; set them with --gin\.CORPUS=VALUE --gin\.NUM_STEPS=VALUE$"
    with pytest.raises(ValueError, match=rf"^\S*{both}"):
        bind(text)
    open_buckets = "sample_jobs.teach.buckets = %gin.REQUIRED\n"
    with pytest.raises(ValueError, match=r": CORPUS, NUM_STEPS and sample_jobs\.teach\.buckets are required; set them"):
        bind(text + open_buckets)
    with pytest.raises(ValueError) as excinfo:
        bind(text + "OTHER = 3\n", "CORPSU=x", "NUM_STEPS=3")
    first, second, third = str(excinfo.value).splitlines()
    assert re.search(r"run\.gin:\d+: macro OTHER is used by nothing; leave it out$", first)
    assert second == "--gin.CORPSU is used by nothing; did you mean CORPUS?"
    assert re.search(r"CORPUS is required; set it with --gin\.CORPUS=VALUE$", third)


def test_bindings_override_files_under_each_of_their_names(bind):
    for name in ("NUM_STEPS", "train.num_steps", "sample_jobs.teach.num_steps"):
        text = GOOD if name == "NUM_STEPS" else GOOD.replace("%NUM_STEPS", "5").replace("NUM_STEPS = 20\n", "")
        assert bind(text, f"{name}=7")["num_steps"] == 7
    assert bind(GOOD, "sample_jobs.Encoder.num_layers=9")["encoder"] == Encoder(num_layers=9)


def test_bindings_alone_are_enough():
    kwargs = config.bind(
        "train", [], ["train.corpus=a/b.txt", "train.encoder=@sample_jobs.Encoder()", "train.num_steps=3"], TABLE
    )
    assert kwargs["corpus"] == "a/b.txt"
    assert kwargs["num_steps"] == 3
    assert kwargs["encoder"] == Encoder()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("wiki", "wiki"),
        ("'wiki'", "wiki"),
        ('"a b"', "a b"),
        ("/some/place.txt", "/some/place.txt"),
        ("../data", "../data"),
        ("2018-12-20", "2018-12-20"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_a_text_needs_no_quotes_on_the_command_line(bind, written, value):
    assert bind(GOOD, f"CORPUS={written}")["corpus"] == value


def test_later_files_override_earlier_ones_and_files_include_by_name(tmp_path):
    (tmp_path / "base.gin").write_text(GOOD)
    (tmp_path / "more.gin").write_text("include 'base.gin'\n" + HEAD + "sample_jobs.teach.num_steps = 1\nNUM_STEPS=2")
    (tmp_path / "last.gin").write_text(HEAD + "sample_jobs.teach.num_steps = %NUM_STEPS\nNUM_STEPS = 4")
    files = [str(tmp_path / "more.gin"), str(tmp_path / "last.gin")]
    assert config.bind("train", files, [], TABLE)["num_steps"] == 4


def test_an_included_file_may_offer_what_a_run_does_not_build(tmp_path, bind):
    model = HEAD + "SIZE = 2.0\nsample_jobs.constant.value = %SIZE\n"
    (tmp_path / "model.gin").write_text(model)
    assert bind("include 'model.gin'\n" + GOOD)["num_steps"] == 20
    (tmp_path / "model.gin").write_text(model + "SIZZE = 3.0\n")
    with pytest.raises(ValueError, match=r"model\.gin:5: macro SIZZE is used by nothing; did you mean SIZE\?"):
        bind("include 'model.gin'\n" + GOOD)


def test_scopes_and_singletons(bind):
    text = GOOD + (
        "sample_jobs.teach.pair = @sample_jobs.Pair()\n"
        "sample_jobs.Pair.query = @small/sample_jobs.Encoder()\n"
        "sample_jobs.Pair.document = @ONE/gin.singleton()\n"
        "ONE/gin.singleton.constructor = @sample_jobs.Encoder\n"
        "small/sample_jobs.Encoder.name = 'small'\n"
        "sample_jobs.watch.encoder = @ONE/gin.singleton()\n"
    )
    small = Encoder(num_layers=3, name="small")
    assert bind(text)["pair"] == Pair(query=small, document=Encoder(num_layers=3))


def test_unevaluated_references_keep_their_bindings(bind):
    text = GOOD + "sample_jobs.teach.schedule = @sample_jobs.constant()\nsample_jobs.constant.value = 2.0\n"
    assert bind(text)["schedule"](2) == 6.0


def test_what_is_saved_binds_to_the_same_arguments(bind, tmp_path):
    text = GOOD + (
        "sample_jobs.teach.pair = @sample_jobs.Pair()\n"
        "sample_jobs.Pair.query = @small/sample_jobs.Encoder()\n"
        "small/sample_jobs.Encoder.name = 'small'\n"
        "sample_jobs.Pair.document = @ONE/gin.singleton()\n"
        "ONE/gin.singleton.constructor = @sample_jobs.Encoder\n"
    )
    kwargs = bind(text, "train.learning_rate=0.25", "NUM_STEPS=33")
    saved = tmp_path / "config-train.gin"
    saved.write_text(config.operative_config())
    assert config.bind("train", [str(saved)], [], TABLE) == kwargs
    assert "mode = 'frozen'" in saved.read_text()  # a default that nobody bound
    assert "watch" not in saved.read_text()  # another job's
    assert config.operative_config() == saved.read_text()


def test_nothing_of_one_binding_leaks_into_the_next(bind):
    bind(GOOD, "train.learning_rate=0.25")
    assert bind(GOOD)["learning_rate"] == 0.5


REFUSED = {
    "misspelt parameter": (
        "sample_jobs.Encoder.num_leyers = 3",
        r"run\.gin:12: sample_jobs\.Encoder has no parameter 'num_leyers'; did you mean num_layers\? "
        r"valid parameters: buckets, dropout, name, norm, num_layers$",
    ),
    "misspelt parameter of the job": (
        "sample_jobs.teach.num_stebs = 3",
        r"run\.gin:12: .* did you mean num_steps\? valid parameters: buckets, corpus, (?!.*run_dir)",
    ),
    "misspelt macro where it is set": (
        "NUM_STEPZ = 3",
        r"run\.gin:12: macro NUM_STEPZ is used by nothing; did you mean NUM_STEPS\? valid macros: CORPUS, NUM_STEPS$",
    ),
    "misspelt macro where it is used": (
        "sample_jobs.Encoder.dropout = %DROP",
        r"run\.gin:12: macro DROP is not defined; valid macros: CORPUS, NUM_STEPS$",
    ),
    "undefined macro deep inside": (
        "sample_jobs.Encoder.buckets = (1, (2, %NUM_STEP))",
        r"run\.gin:12: macro NUM_STEP is not defined; did you mean NUM_STEPS\?",
    ),
    "unused binding": (
        "sample_jobs.constant.value = 2.0",
        r"run\.gin:12: sample_jobs\.constant\.value is used by nothing; .*valid names: .*sample_jobs\.Encoder",
    ),
    "misspelt scope": (
        "sample_jobs.teach.pair = @sample_jobs.Pair()\nsample_jobs.Pair.query = @small/sample_jobs.Encoder()\n"
        "small/sample_jobs.Encoder.norm = 'pre'\nsmal/sample_jobs.Encoder.name = 'x'",
        r"run\.gin:15: nothing is built in scope 'smal'; did you mean small\? valid scopes: small$",
    ),
    "misspelt name": (
        "sample_jobs.Enkoder.num_layers = 3",
        r"run\.gin:12: there is no 'Enkoder' in sample_jobs\.Enkoder; did you mean Encoder\?",
    ),
    "misspelt reference": (
        "sample_jobs.teach.pair = @sample_jobs.Bair()",
        r"run\.gin:12: there is no 'Bair' in sample_jobs\.Bair; did you mean Pair\?",
    ),
    "name not imported": (
        "loop.train.num_steps = 3",
        r"run\.gin:12: 'loop' is not imported; valid names: sample_jobs$",
    ),
    "import of nothing": (
        "import no_such_module",
        r"run\.gin:12: cannot import: No module named 'no_such_module'$",
    ),
    "module instead of a class": ("sample_jobs.teach.pair = @sample_jobs", r"sample_jobs is a module, not a function"),
    "text for an int": (
        "sample_jobs.Encoder.num_layers = 'three'",
        r"run\.gin:12: sample_jobs\.Encoder\.num_layers must be int, got 'three' \(str\)$",
    ),
    "float for an int": ("sample_jobs.teach.num_steps = 1.5", r"num_steps must be int, got 1\.5 \(float\)$"),
    "bool for an int": ("sample_jobs.teach.num_steps = True", r"num_steps must be int, got True \(bool\)$"),
    "text for a float": (
        "sample_jobs.teach.learning_rate = '1e-3'",
        r"learning_rate must be float, got '1e-3' \(str\)$",
    ),
    "int for a text": ("sample_jobs.teach.corpus = 3", r"corpus must be str, got 3 \(int\)$"),
    "int for a bool": ("sample_jobs.teach.verbose = 1", r"verbose must be bool, got 1 \(int\)$"),
    "list for a tuple": (
        "sample_jobs.Encoder.buckets = [1, 2]",
        r"buckets must be tuple\[int, \.\.\.\], got \[1, 2\] \(list\)$",
    ),
    "tuple of the wrong length": ("sample_jobs.teach.buckets = (1,)", r"buckets must be tuple\[int, int\], got \(1,\)"),
    "tuple of the wrong type": ("sample_jobs.teach.buckets = (1, '2')", r"buckets must be tuple\[int, int\]"),
    "wrong choice": (
        "sample_jobs.Encoder.norm = 'prae'",
        r"norm must be 'pre' or 'post', got 'prae' \(str\)$",
    ),
    "wrong type behind a macro": ("CORPUS = 4", r"corpus must be str, got 4 \(int\)$"),
    "wrong optional": ("sample_jobs.teach.limit = 'no'", r"limit must be float or None, got 'no' \(str\)$"),
    "value instead of a configuration": (
        "sample_jobs.teach.encoder = 'big'",
        r"encoder must be Encoder, got 'big' \(str\)$",
    ),
    "another configuration": (
        "sample_jobs.teach.encoder = @sample_jobs.Pair()\nsample_jobs.Pair.query = @sample_jobs.Encoder()",
        r"train\.encoder must be Encoder, got Pair\(.*\(Pair\)$",
    ),
    "forgotten parentheses": (
        "sample_jobs.teach.encoder = @sample_jobs.Encoder",
        r"run\.gin:12: .*encoder must be Encoder, got the class Encoder itself; write @sample_jobs\.Encoder\(\)$",
    ),
    "value refused by the configuration": (
        "sample_jobs.Encoder.num_layers = 0",
        r"^Encoder\.num_layers must be at least 1, got 0$",
    ),
    "configuration with an open value": (
        "sample_jobs.teach.pair = @sample_jobs.Pair()",
        r"sample_jobs\.Pair\.query \(Encoder\) has no value; it is a configuration: name a run file that sets it, --gin_file=FILE",
    ),
    "required macro left open": (
        "NUM_STEPS = %gin.REQUIRED",
        r"run\.gin:12: NUM_STEPS is required; set it with --gin\.NUM_STEPS=VALUE$",
    ),
    "run_dir in a file": ("sample_jobs.teach.run_dir = 'x'", r"run_dir is given as --run_dir=DIR, not in gin$"),
    "syntax": ("sample_jobs.teach.num_steps = = 3", r"run\.gin:12: .*num_steps = = 3$"),
    "macro of itself": ("CORPUS = %CORPUS", r"CORPUS.* refers to itself$"),
}


@pytest.mark.parametrize("line, expected", REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_a_file(bind, line, expected):
    with pytest.raises(ValueError) as excinfo:
        bind(GOOD + line + "\n")
    assert re.search(expected, message(excinfo)), message(excinfo)


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("train.num_stebs=3", r"--gin\.train\.num_stebs = 3: .*did you mean num_steps\?"),
        ("NUM_STEPZ=3", r"--gin\.NUM_STEPZ = 3: macro NUM_STEPZ is used by nothing; did you mean NUM_STEPS\?"),
        ("trian.num_steps=3", r"--gin\.trian\.num_steps = 3: 'trian' is not imported; did you mean train\?"),
        ("train.num_steps=many", r"must be int, got 'many' \(str\)"),
        ("train.verbose=Ture", r"verbose must be bool, got 'Ture' \(str\)"),
        ("train.num_steps", r"--gin\.train\.num_steps: expected --gin\.NAME\.PARAM=VALUE"),
        ("train.encoder=@Enc", r"'Enc' is not imported"),
        ("train.buckets=(1,", r"--gin: .*train\.buckets = \(1,"),
        ("bad name=3", r"--gin\.bad name=3: expected --gin\.NAME\.PARAM=VALUE"),
    ],
)
def test_refused_on_the_command_line(bind, binding, expected):
    with pytest.raises(ValueError) as excinfo:
        bind(GOOD, binding)
    assert re.search(expected, message(excinfo)), message(excinfo)


@pytest.mark.parametrize(
    "value",
    [
        "20\nimport antigravity",
        "20\nfrom turtledemo import clock",
        "20\ninclude '/etc/passwd'",
        "20\nsample_jobs.teach.corpus = 'x'",
        "(1)\nimport antigravity",
        "'a'\nimport antigravity\n)",
        "@sample_jobs.Encoder()\nimport antigravity",
        "20\rimport antigravity",
        "20\x0cimport antigravity",
    ],
)
def test_a_value_brings_along_no_statement(bind, value):
    """--gin.NAME=VALUE is one value: nothing is imported or read for what stands behind it."""
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"^--gin\.train\.num_steps"):
        bind(GOOD, f"train.num_steps={value}")
    assert not {"antigravity", "turtledemo", "turtledemo.clock"} & (set(sys.modules) - before)


def test_brackets_that_cannot_be_followed(bind):
    for value in ("(" * 5000 + ")" * 5000, "[" * 5000):
        with pytest.raises(ValueError, match=r"--gin"):
            bind(GOOD, f"train.num_steps={value}")
    with pytest.raises(ValueError, match=r"run\.gin: brackets within brackets, more than can be followed"):
        bind(GOOD + "sample_jobs.teach.limit = " + "(" * 5000 + ")" * 5000 + "\n")


@pytest.mark.parametrize("value", ["@os.system('true')", "@os.getpid()", "@os.getpid", "@sample_jobs.os.getpid()"])
def test_a_value_names_only_what_the_files_import(bind, value):
    with pytest.raises(ValueError, match=r"'os' is not imported|there is no 'os' in sample_jobs|--gin"):
        bind(GOOD, f"train.schedule={value}")


def test_a_value_may_name_what_those_modules_hold(bind):
    """Also what they import: --gin is for whoever may run code here, as SECURITY.md says."""
    assert bind(GOOD, "train.schedule=@sample_jobs.typed.describe")["schedule"](int) == "int"


def test_a_job_parameter_without_a_value_is_named(bind):
    with pytest.raises(
        ValueError, match=r"^train\.corpus \(str\) has no value; set it with --gin\.train\.corpus=VALUE$"
    ):
        config.bind("train", [], [], TABLE)


def test_a_file_without_dynamic_registration_is_told_what_to_begin_with(bind):
    with pytest.raises(ValueError, match=r"run\.gin:1: a gin file begins with `from __gin__ import dynamic_regist"):
        bind("sample_jobs.teach.num_steps = 3\n")


def test_a_file_that_includes_itself(tmp_path):
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    with pytest.raises(ValueError, match="includes itself"):
        config.bind("train", [str(tmp_path / "a.gin")], [], TABLE)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "a.gin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.gin is not a text in UTF-8"):
        config.bind("train", [str(tmp_path / "a.gin")], [], TABLE)


def test_unknown_job_lists_the_jobs():
    with pytest.raises(
        ValueError, match=r"unknown job 'trian'; did you mean train\? valid jobs: absent, embed, train$"
    ):
        config.bind("trian", [], [], TABLE)


def test_a_missing_file_lists_the_places_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as excinfo:
        config.bind("train", ["runs/nowhere.gin"], [], TABLE)
    assert "no gin file runs/nowhere.gin" in message(excinfo)
    assert str(tmp_path / "runs" / "nowhere.gin") in message(excinfo)
    for folder in config.gin_folders():
        assert str(folder / "runs" / "nowhere.gin") in message(excinfo)


def test_a_missing_include_names_the_including_line(tmp_path):
    (tmp_path / "a.gin").write_text("\ninclude 'nowhere.gin'\n")
    with pytest.raises(FileNotFoundError, match=r"a\.gin:2: no gin file nowhere\.gin"):
        config.bind("train", [str(tmp_path / "a.gin")], [], TABLE)


def test_gin_files_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    folder = tmp_path / "gin"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "tiny.gin").write_text(GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr("realm_jax.config.files.gin_folders", lambda: [folder])
    assert config.find_gin_file("runs/tiny.gin") == folder / "runs" / "tiny.gin"
    assert config.find_gin_file("gin/runs/tiny.gin") == folder / "runs" / "tiny.gin"
    with pytest.raises(FileNotFoundError, match=r"did you mean runs/tiny\.gin\?"):
        config.find_gin_file("runs/tinny.gin")
    (elsewhere / "runs").mkdir()
    (elsewhere / "runs" / "tiny.gin").write_text("")
    assert config.find_gin_file("runs/tiny.gin") == elsewhere / "runs" / "tiny.gin"  # as given comes first


def test_only_the_config_package_imports_gin(repository):
    importing = re.compile(r"^\s*(import gin\b|from gin\b)", re.MULTILINE)
    users = [p for p in (repository / "realm_jax").rglob("*.py") if importing.search(p.read_text())]
    assert {path.parent for path in users} == {repository / "realm_jax" / "config"}


def test_the_folder_gin_holds_no_python(repository):
    assert not list((repository / "gin").rglob("*.py"))
    assert Path(gin.__file__).parent != repository / "gin"


def test_sample_module_is_untouched_by_gin():
    assert sample_jobs.teach.__module__ == "tests.sample_jobs"
    assert {"corpus", "train", "embed", "evaluate", "report"} < set(JOBS)


def test_a_text_that_begins_and_never_ends_is_refused(tmp_path):
    (tmp_path / "run.gin").write_text("'''once upon a time")
    with pytest.raises(config.ConfigError, match=r"run\.gin: EOF in multi-line string in: '''once"):
        config.bind("train", [str(tmp_path / "run.gin")], [])


def test_a_name_behind_a_number_is_refused(bind):
    with pytest.raises(ValueError, match=r"there is no 'odd' in sample_jobs\.Encoder\.dropout\.odd"):
        bind(GOOD + "sample_jobs.Encoder.dropout.odd.dropout = 1\n")
