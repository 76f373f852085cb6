"""The notebook for Colab: kept clean in the repository, executed from top to bottom, and what its cells call."""

import ast
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import nbclient
import nbformat
import numpy as np
import pytest
from IPython.display import Image
from matplotlib.figure import Figure

from realm_jax import config
from realm_jax.__main__ import parse
from realm_jax.answering import Answer, Span, WeighedDocument
from realm_jax.corpus.world import WorldConfig, generate
from realm_jax.run_dir import RunDir, read_json
from realm_jax.training.metrics import read_metrics
from tests.answering import made_world
from tests.answering.made_run import make_run
from tests.launch.stub_stages import LAUNCH, load_launcher

if str(LAUNCH) not in sys.path:
    sys.path.insert(0, str(LAUNCH))  # as the notebook does

from colab import asking, corpora, curves, page, runtime, watching

ROOT = LAUNCH.parent
NOTEBOOK = LAUNCH / "colab" / "realm_tpu.ipynb"
FORM_FIELD = re.compile(r"^(\w+) = (.*?)  # @param(?: (.*))?$", re.MULTILINE)
RUN_FILES = [
    ("reader", ["CORPUS=c"]),
    ("ict", ["CORPUS=c"]),
    ("realm", ["CORPUS=c", "X_CORPUS=x", "HELDOUT=h"]),
]
DEFAULTS = {
    "REPOSITORY": "",
    "RUN_DIR": "runs/colab",
    "SAVE_TO_DRIVE": False,
    "CORPUS": "embedded corpus",
    "DOCUMENTS": "",
    "WIKIPEDIA": "simplewiki",
    "MAX_DOCUMENTS": 5000,
    "STEPS": 0,
    "RECIPE": "documents",
    "EMBEDDER": "automatic",
    "SETTINGS": "",
    "QUESTIONS": "",
    "QUESTION_STEPS": 300,
    "QUESTION": "",
}


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def with_parameters(notebook, parameters):
    """A copy with other values in its form fields."""
    copy, left = nbformat.from_dict(notebook), dict(parameters)

    def value(match):
        return f"{match[1]} = {left.pop(match[1])!r}" if match[1] in left else match[0]

    for cell in copy.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = FORM_FIELD.sub(value, cell.source)
    assert not left
    return copy


def executed(notebook, folder, parameters):
    """The code cells by id after a run in a folder that holds the checkout."""
    (folder / "realm_jax").symlink_to(ROOT)
    copy = with_parameters(notebook, parameters)
    nbclient.NotebookClient(
        copy, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return code_cells(copy)


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shown(cell, kind):
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def test_the_notebook_is_as_an_author_leaves_it(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"} and notebook.metadata.accelerator == "TPU"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"} and re.fullmatch("[a-z-]+", cell.id)
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            ast.parse(cell.source)
    assert NOTEBOOK.read_text() == json.dumps(json.loads(NOTEBOOK.read_text()), indent=1, ensure_ascii=False) + "\n"


def test_form_fields_have_the_defaults_that_the_texts_speak_of(notebook):
    fields = {}
    for cell in code_cells(notebook).values():
        found = FORM_FIELD.findall(cell.source)
        assert bool(found) == ("parameters" in cell.metadata.get("tags", ()))
        for name, value, kind in found:
            fields[name] = ast.literal_eval(value)
            choices = json.loads(kind)
            if isinstance(choices, list):
                assert fields[name] in choices
            else:
                assert {"string": str, "integer": int, "boolean": bool}[choices["type"]] is type(fields[name])
    assert fields == DEFAULTS
    assert f"CORPUS = {DEFAULTS['CORPUS']!r}".replace("'", '"') in code_cells(notebook)["corpus"].source
    assert json.dumps(list(corpora.CHOICES), separators=(",", ":")) in code_cells(notebook)["corpus"].source
    told = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert set(re.findall(r"`([A-Z_]{4,})`", told)) | set(re.findall(r"`([A-Z_]{4,}) = ", told)) <= set(fields)


def test_the_steps_that_the_form_speaks_of_are_those_of_the_run_files(notebook):
    source = code_cells(notebook)["scale"].source
    steps = [config.bind("train", [f"runs/{name}_tiny.gin"], bindings)["num_steps"] for name, bindings in RUN_FILES]
    assert "({}, {} and {} on the embedded corpus)".format(*steps) in source
    asked = config.bind("train", ["runs/open_qa_tiny.gin"], ["CORPUS=c", "QUESTIONS=q"])["num_steps"]
    assert f"The run file says {asked};" in code_cells(notebook)["questions"].source


def test_the_project_is_cloned_where_there_is_no_checkout(notebook, monkeypatch, tmp_path, capsys):
    def run(repository):
        values = {}
        exec(code_cells(with_parameters(notebook, {"REPOSITORY": str(repository)}))["install"].source, values)
        return values["ROOT"]

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "at").mkdir()
    monkeypatch.chdir(tmp_path / "at")
    with pytest.raises(
        Exception, match="REPOSITORY: expected the address to clone realm_jax from, got nothing"
    ) as stopped:
        run("")
    assert stopped.value._render_traceback_() == [str(stopped.value)]  # in place of a traceback
    with pytest.raises(Exception, match=r"git clone .*nowhere failed: .*nowhere' does not exist"):
        run(tmp_path / "nowhere")
    there = tmp_path / "there"
    (there / "launch").mkdir(parents=True)
    (there / "launch" / "local.py").touch()
    git = ["git", "-C", str(there), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*git, *command], check=True)
    cloned = tmp_path / "at" / "realm_jax"
    assert run(there.as_uri()) == cloned and (cloned / "launch" / "local.py").exists()
    assert sys.path[:2] == [str(cloned), str(cloned / "launch")]
    assert run("") == cloned and sys.path.count(str(cloned)) == 1  # it is there now
    assert capsys.readouterr().out.count("realm_jax is installed") == 2


# Each module of the notebook.


@pytest.mark.parametrize(
    ("files", "platforms", "kind"),
    [
        ([], None, "CPU"),
        (["nvidia0"], None, "GPU"),
        (["accel0"], None, "TPU"),
        (["vfio/0"], "tpu,cpu", "TPU"),
        (["vfio/0"], "cpu", "CPU"),
    ],
)
def test_the_machine_is_told_by_its_device_files(tmp_path, files, platforms, kind):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    environment = {} if platforms is None else {"JAX_PLATFORMS": platforms}
    found = runtime.find_machine(tmp_path, environment)
    assert found.kind == kind and found.num_cores == len(os.sched_getaffinity(0))
    assert found.describe().startswith(f"{kind}, {found.num_cores} CPU cores, Python 3.")


@pytest.mark.parametrize(
    ("wanted", "kind", "cores", "name", "reason"),
    [
        ("automatic", "CPU", 2, "cpu", "trainer and embed job each have half of the cores"),
        ("automatic", "TPU", 24, "cpu", "one process alone can use the TPU"),
        ("automatic", "GPU", 2, "in_trainer", "2 CPU cores would embed too slowly: the GPU does it"),
        ("automatic", "TPU", 8, "cpu", "CPU cores embed beside it"),
        ("in_trainer", "CPU", 2, "in_trainer", "as chosen"),
    ],
)
def test_who_embeds(wanted, kind, cores, name, reason):
    found = runtime.choose_embedder(wanted, runtime.Machine(kind, cores))
    assert found.name == name and reason in found.reason


def test_what_is_installed_for_each_machine(monkeypatch, tmp_path):
    tested = ["-c", str(ROOT / "constraints" / f"py3{sys.version_info[1]}.txt"), "-e"]
    for kind, driver, extras, more in (
        ("CPU", 0, "mediawiki", []),
        ("TPU", 0, "mediawiki,tpu", []),
        ("GPU", 580, "mediawiki,cuda", []),
        ("GPU", 550, "mediawiki", ["jax[cuda12]"]),
    ):
        assert runtime.requirements(ROOT, runtime.Machine(kind, 2), driver) == [*tested, f"{ROOT}[{extras}]", *more]
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    assert runtime.requirements(tmp_path, runtime.Machine("CPU", 2), 0) == [
        "-e",
        f"{tmp_path}[mediawiki]",
        "matplotlib",
    ]


def test_what_is_there_is_not_installed_again():
    assert runtime.install(ROOT, runtime.Machine("CPU", 2)).endswith(
        f"realm_jax is installed, with jax {jax.__version__}"
    )
    there = {"realm-jax": "1", "jax": "0.12.0", "jaxlib": "0.12.0"}
    assert runtime.is_installed(runtime.Machine("CPU", 2), there)
    assert not runtime.is_installed(runtime.Machine("CPU", 2), {"jax": "0.12.0", "jaxlib": "0.12.0"})
    for kind, plugin, version, expected in (
        ("TPU", "libtpu", "0.0.50", True),
        ("TPU", "jax-cuda12-plugin", "0.12.0", False),
        ("GPU", "jax-cuda12-plugin", "0.12.0", True),
        ("GPU", "jax-cuda13-plugin", "0.12.0", True),
        ("GPU", "jax-cuda12-plugin", "0.7.2", False),
    ):
        assert runtime.is_installed(runtime.Machine(kind, 2), there | {plugin: version}) == expected
    assert runtime.stale_plugins(there | {"jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2"}) == [
        "jax-cuda12-plugin",
        "jax-cuda12-pjrt",
    ]
    assert runtime.stale_plugins(there | {"jax-cuda12-plugin": "0.12.0"}) == []


def test_a_kernel_that_holds_what_was_replaced_must_start_anew(monkeypatch):
    assert runtime.is_loaded("numpy") and runtime.is_loaded("pytest") and not runtime.is_loaded("tensorboard")
    before = {"numpy": "2.0.2", "tensorboard": "2.19", "jax": "0.7.2", "jaxlib": "0.7.2", "jax-cuda12-plugin": "0.7.2"}
    after = before | {"numpy": "2.5.5", "tensorboard": "2.20", "gin-config": "0.5.0"}
    pip = []
    monkeypatch.setattr(runtime, "_outdated", [])
    monkeypatch.setattr(runtime, "_pip", lambda *arguments: pip.append(arguments[0]))
    states = iter([before, after, after])
    monkeypatch.setattr(runtime, "versions", lambda: next(states))
    with pytest.raises(runtime.Stop) as stopped:
        runtime.install(ROOT, runtime.Machine("CPU", 2))
    assert ": 1 packages installed, 2 replaced: numpy 2.0.2 → 2.5.5, tensorboard 2.19 → 2.20\n" in str(stopped.value)
    assert "still holds the versions of numpy from before" in str(stopped.value)
    with pytest.raises(runtime.Stop, match=r"^This session still holds the versions of numpy from before"):
        runtime.install(ROOT, runtime.Machine("CPU", 2))  # the cell once more, in the same session
    assert pip == ["install"]
    monkeypatch.setattr(runtime, "_outdated", [])
    states = iter([before, before | {"tensorboard": "2.20", "jaxlib": "0.12.0"}, before | {"tensorboard": "2.20"}])
    assert "installed, 1 replaced: tensorboard 2.19 → 2.20" in runtime.install(ROOT, runtime.Machine("CPU", 2))
    assert pip == ["install", "install", "uninstall"]


def test_errors_of_pip_are_shown(monkeypatch):
    monkeypatch.setattr(runtime, "requirements", lambda *arguments: ["--no-such-flag"])
    monkeypatch.setattr(runtime, "versions", lambda: {})
    with pytest.raises(runtime.Stop, match=r"(?s)^python -m pip install .*--no-such-flag failed:.*no such option"):
        runtime.install(ROOT, runtime.Machine("CPU", 2))
    monkeypatch.setattr(runtime.sys, "version_info", (3, 10, 1))
    with pytest.raises(runtime.Stop, match=r"expected Python 3\.11, 3\.12 or 3\.13, got 3\.10;"):
        runtime.install(ROOT, runtime.Machine("CPU", 2))
    assert runtime.Stop("told")._render_traceback_() == ["told"]


PAGE = (
    "<page><title>{}</title><ns>0</ns><id>{}</id><revision><id>1</id><text>{} is a town by a river.</text></revision>"
    "</page>"
)


def test_documents_of_every_choice(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "sources"
    assert corpora.choose(corpora.EMBEDDED, "", "", 5, folder) == [] and not folder.exists()
    own = tmp_path / "own"
    own.mkdir()
    for name in ("one", "two", "three"):
        (own / f"{name}.txt").write_text(f"The text of {name}.")
    assert corpora.choose(corpora.PLACE, str(own), "", 0, folder) == [f"--corpus={own}"]
    (flag,) = corpora.choose(corpora.PLACE, str(own), "", 2, folder)
    place = folder / "own-first-2.jsonl"
    assert flag == f"--corpus={place}"
    records = [json.loads(line) for line in place.read_text().splitlines()]
    assert [record["text"] for record in records] == ["The text of one.", "The text of three."]
    assert f"2 documents in {place}\n" == capsys.readouterr().out
    (own / "four.txt").write_text("Comes too late.")
    assert corpora.choose(corpora.PLACE, str(own), "", 2, folder) == [flag] and not capsys.readouterr().out
    assert corpora.choose(corpora.PLACE, "tfds:any?split=train", "", 0, folder) == ["--corpus=tfds:any?split=train"]

    dump = tmp_path / "towns.xml"
    pages = [PAGE.format(town, number, town) for number, town in enumerate(("Oslo", "Bern", "Cork"))]
    pages.insert(1, '<page><title>O</title><ns>0</ns><id>9</id><redirect title="Oslo"/></page>')
    dump.write_text(f"<mediawiki>{''.join(pages)}</mediawiki>")
    (flag,) = corpora.choose(corpora.WIKIPEDIA, "", dump.as_uri(), 2, folder)
    assert flag == f"--corpus={folder / 'towns.xml-first-2.jsonl'}"
    records = [json.loads(line) for line in (folder / "towns.xml-first-2.jsonl").read_text().splitlines()]
    assert [(record["id"], record["title"]) for record in records] == [("0", "Oslo"), ("1", "Bern")]
    assert "2 documents in" in (said := capsys.readouterr().out) and said.endswith(
        "left out on the way: 1 × redirect\n"
    )
    dump.unlink()  # what was downloaded is not asked for again
    assert corpora.choose(corpora.WIKIPEDIA, "", dump.as_uri(), 0, folder) == [f"--corpus={folder / 'towns.xml'}"]

    monkeypatch.setattr(corpora, "DUMP", tmp_path.as_uri() + "/{0}.of.{0}")
    dump.with_name("cities.of.cities").write_text(f"<mediawiki>{pages[0]}</mediawiki>")
    (flag,) = corpora.choose(corpora.WIKIPEDIA, "", "cities", 9, folder)
    assert flag == f"--corpus={folder / 'cities.of.cities-first-9.jsonl'}"

    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    for choice, documents, wikipedia, count, message in (
        ("books", "", "", 0, "CORPUS: expected one of embedded corpus, upload, .*, got 'books'"),
        (corpora.PLACE, "", "", -1, "MAX_DOCUMENTS: expected a number of documents, or 0 for all, got -1"),
        (corpora.PLACE, str(tmp_path / "no"), "", 5, "DOCUMENTS: expected a folder .*, got '.*no', which is not there"),
        (corpora.PLACE, str(tmp_path / "empty.jsonl"), "", 5, "holds no document that can be used .*empty text"),
        (corpora.UPLOAD, "", "", 5, "CORPUS: 'upload' needs Colab; choose 'folder or file'"),
        (corpora.WIKIPEDIA, "", "simplwiki!", 5, "WIKIPEDIA: expected a name such as simplewiki, .*, got 'simplwiki!'"),
        (corpora.WIKIPEDIA, "", "htp://nowhere/x.xml", 5, "htp://nowhere/x.xml did not come: .*unknown url type: htp"),
        (corpora.WIKIPEDIA, "", "://x.xml", 5, "://x.xml did not come: unknown url type"),
        (corpora.WIKIPEDIA, "", dump.with_name("gone.xml").as_uri(), 5, "gone.xml did not come: .*; run the cell"),
    ):
        with pytest.raises(runtime.Stop, match=message):
            corpora.choose(choice, documents, wikipedia, count, folder)
    with pytest.raises(runtime.Stop, match="SAVE_TO_DRIVE needs Colab"):
        corpora.mount_drive()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(("gone", "empty"))) == [
        "empty.jsonl-first-5.jsonl.part"
    ]


def test_uploads_are_kept_and_unpacked(tmp_path, monkeypatch, capsys):
    asked = []

    def upload():
        asked.append(1)
        (tmp_path / "a.txt").write_text("A copy that Colab leaves.")
        return {"a.txt": b"One.", "more.zip": (tmp_path / "more.zip").read_bytes()}

    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "b.txt").write_text("Two.")
    shutil.make_archive(str(tmp_path / "more"), "zip", tmp_path / "inside")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setitem(sys.modules, "google.colab.files", SimpleNamespace(upload=upload))
    folder = tmp_path / "sources"
    for _ in range(2):
        assert corpora.choose(corpora.UPLOAD, "", "", 0, folder) == [f"--corpus={folder / 'uploaded'}"]
    files = {path.name: path.read_text() for path in (folder / "uploaded").iterdir()}
    assert files == {"a.txt": "One.", "b.txt": "Two."} and asked == [1] and not (tmp_path / "a.txt").exists()


def entries(steps, **changes):
    """What a trainer writes: a line a step, the index of step 0 until step 30, of step 20 from then on."""
    return [
        {
            "step": step,
            "loss": 6.0 - step / 20,
            "retrieval_utility": step / 50,
            "null_document_prob": 0.5,
            "index_version": 0.0 if step < 30 else 20.0,
            "index_age_steps": float(step if step < 30 else step - 20),
        }
        | ({"heldout_recall_at_1": 0.1, "heldout_recall_at_5": 0.4} if step % 20 == 0 else {})
        | changes
        for step in range(1, steps + 1)
    ]


def drawn(panels, lines):
    figure = Figure()
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    swaps = curves.swapped_at(lines)
    for one, panel in zip(axes, panels, strict=True):
        curves.draw(one, panel, lines, swaps if panel.swaps else swaps[:0])
    return {one.get_title(loc="left"): one for one in axes}


def test_what_the_curves_show():
    panels = drawn(curves.PRETRAINING, entries(40))
    assert list(panels) == [
        "Loss", "Retrieval utility", "Recall", "Staleness of the index", "Where the probability goes"
    ]  # fmt: skip
    for axes in panels.values():
        assert axes.get_xlabel() == "training step" and axes.get_ylabel() and axes.get_xlim()[0] == 0
    legends = {title: [text.get_text() for text in axes.get_legend().get_texts()] for title, axes in panels.items()}
    assert legends["Recall"] == ["hot swap", "recall@1", "recall@5"]
    assert legends["Loss"] == ["hot swap", "REALM, smoothed"]
    assert legends["Where the probability goes"] == ["hot swap", "null document, smoothed"]
    swap, age = panels["Staleness of the index"].get_lines()
    assert list(swap.get_xdata()) == [30, 30]
    assert age.get_xdata().tolist() == list(range(1, 41))
    assert age.get_ydata().tolist() == [*range(1, 30), *range(10, 21)]
    recall = panels["Recall"].get_lines()[2]
    assert recall.get_xdata().tolist() == [20, 40] and recall.get_ydata().tolist() == [0.4, 0.4]
    assert panels["Recall"].get_ylim()[0] == 0 and panels["Loss"].get_ylim()[0] > 3


def test_a_panel_without_figures_says_so():
    without = [{"step": 1, "loss": float("nan")}]
    panels = drawn(curves.PRETRAINING, without)
    assert {axes.texts[0].get_text().replace("\n", " ") for axes in panels.values()} == {
        "no figures yet", "no held-out sentences, or no figures yet"
    }  # fmt: skip
    assert curves.smoothed(np.array([np.nan, 1.0, np.nan, 3.0])).tolist()[1:] == [1.0, 1.0, pytest.approx(7 / 3)]


def test_pictures_of_runs_at_any_time(tmp_path):
    run = RunDir.of(tmp_path)
    sizes = [(curves.pretraining(run)), curves.questions(run)]
    assert curves.pretraining_files(run)[-1] == run.metrics_jsonl and len(curves.pretraining_files(run)) == 3
    for place, lines in ((run, entries(40)), (run.stage("ict"), [{"step": 10, "loss": 4.0}])):
        place.metrics.mkdir(parents=True)
        place.metrics_jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "lo')
    sizes.append(curves.pretraining(run))
    for picture in sizes:
        assert picture.startswith(b"\x89PNG")
    widths = [int.from_bytes(picture[16:20], "big") for picture in sizes]
    assert widths == [1386, 924, 1386] and sizes[2] != sizes[0]


# What the long cells do.


@pytest.fixture
def notes(monkeypatch):
    """What the notebook's line of progress said, with pictures as "picture"."""
    said = []

    class Handle:
        def update(self, shown):
            said.append("picture" if isinstance(shown, Image) else re.sub(r"</?pre>|\[\d\d:\d\d\] ", "", shown.data))

    monkeypatch.setattr(watching, "display", lambda shown, display_id: Handle())
    monkeypatch.setattr(watching, "EVERY_SECS", 0.05)
    return said


PNG = b"\x89PNG\r\n\x1a\n"
WRITES = """
import pathlib, sys, time
place = pathlib.Path(sys.argv[1])
for step in range(3):
    print("step", step, "<of 3>", flush=True)
    with place.open("a") as file:
        file.write("line")
    while place.stat().st_size < 8 * (step + 1):  # until it has been drawn
        time.sleep(0.01)
sys.exit(int(sys.argv[2]))
"""


def watched(tmp_path, status=0, script=WRITES):
    figures = tmp_path / "figures"

    def draw():
        if figures.exists():
            with figures.open("a") as file:
                file.write("seen")
        return PNG

    command = [sys.executable, "-S", "-c", script, str(figures), str(status)]
    watching.watch(command, tmp_path / "logs" / "log", [figures], draw)


def test_a_command_is_watched_to_its_end(tmp_path, notes):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "log").write_text("of an earlier start\n")
    watched(tmp_path)
    assert notes[0] == "starting" and notes[-1] == "done" and notes[-2] == "picture"
    assert "step 2 &lt;of 3&gt;" in notes and 4 <= notes.count("picture") <= 8
    assert (tmp_path / "logs" / "log").read_text().splitlines()[:2] == ["of an earlier start", "step 0 <of 3>"]


def test_a_command_that_fails_shows_the_end_of_its_log(tmp_path, notes):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "log").write_text("of an earlier start\n")
    with pytest.raises(runtime.Stop) as stopped:
        watched(tmp_path, status=3)
    log = tmp_path / "logs" / "log"
    assert str(stopped.value) == (
        f"It ended with exit status 3; the end of {log}:\n\nstep 0 <of 3>\nstep 1 <of 3>\nstep 2 <of 3>"
    )
    assert notes[-1] == "failed"
    with pytest.raises(runtime.Stop, match=r"^Stopped"):
        watched(tmp_path / "again", status=143)


WAITS = """
import pathlib, signal, sys, time
def end(number, frame):
    print("asked to end", flush=True)
    time.sleep(0.3)
    print("checkpoint written", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, lambda *_: print("an interrupt came here", flush=True))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.mark.faults
def test_an_interrupted_cell_stops_its_command_in_order(tmp_path, notes, monkeypatch):
    """The command ends by SIGTERM alone, and a second interrupt does not leave it behind."""
    ready = threading.Thread(target=lambda: interrupt_twice(tmp_path / "figures", notes))
    ready.start()
    with pytest.raises(runtime.Stop, match=r"^Stopped\. Run the cell again to go on from the last checkpoint"):
        watched(tmp_path, script=WAITS)
    ready.join()
    assert (tmp_path / "logs" / "log").read_text().splitlines() == ["asked to end", "checkpoint written"]
    assert notes[-1] == "stopped" and notes[-2].startswith("stopping: trainings finish their step")


def interrupt_twice(begun, notes):
    while not begun.exists():
        time.sleep(0.02)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.15)


def test_commands_are_understood(tmp_path):
    run = RunDir.of(tmp_path / "run")
    command = watching.launcher_command(run, [f"--corpus={tmp_path}"], ["--embedder=in_trainer", "--recipe=documents"])
    assert command[:2] == [sys.executable, str(LAUNCH / "local.py")]
    settings = load_launcher().parse(command[2:])
    assert (settings.run, settings.documents, settings.embedder) == (run, (str(tmp_path),), "in_trainer")

    with pytest.raises(runtime.Stop, match="run has not been trained; run the cells above first"):
        asking.training_command(run, run, tmp_path / "questions.jsonl", 0)
    made_world.corpus(tmp_path / "run" / "corpus")
    for run_file, bindings, lengths in (
        ("realm_tiny", ["X_CORPUS=x", "HELDOUT=h"], (2048, 40, 104, 128)),
        ("realm_documents", [], (8192, 64, 160, 200)),
    ):
        config.bind("train", [f"runs/{run_file}.gin"], [f"CORPUS={run.corpus}", *bindings])
        run.config_file("train").write_text(config.operative_config())
        command = asking.training_command(run, RunDir.of(tmp_path / "asked"), tmp_path / "questions.jsonl", 7)
        assert command[:3] == [sys.executable, "-m", "realm_jax"]
        line = parse(command[3:])
        bound = config.bind(line.job, line.gin_files, line.bindings)
        task = bound["task"]
        assert line.run_dir == str(tmp_path / "asked") and task.corpus == str(run.corpus)
        assert (bound["num_steps"], bound["warm_start"]) == (7, (str(run.path),))
        assert task.questions == str(tmp_path / "questions.jsonl")
        found = task.retriever.encoder.vocab_size, task.query_len, task.document_len, task.joint_len
        assert task.num_retrieved == len(made_world.TEXTS)  # of the run file's 100 there are no more
        assert found == lengths and task.reader.encoder.vocab_size == lengths[0]
    command = asking.training_command(run, run, tmp_path / "questions.jsonl", 0)
    assert not any("num_steps" in argument for argument in command)


def test_where_questions_come_from(tmp_path):
    run = RunDir.of(tmp_path)
    assert asking.question_files(run, "") is None
    run.corpus.mkdir()
    trained, heldout = run.corpus / "questions_train.jsonl", run.corpus / "questions_heldout.jsonl"
    trained.touch()
    heldout.write_text('{"question": "Who?", "answer": ["Ada", "A."]}\n{"question": "Why?"}\n{"question": "When?"}\n')
    assert asking.question_files(run, "") == (trained, heldout)
    first = asking.first_questions(heldout, 2)
    assert [(one.text, one.answers) for one in first] == [("Who?", ("Ada", "A.")), ("Why?", ())]
    assert asking.question_files(run, str(heldout)) == (heldout, None)
    with pytest.raises(runtime.Stop, match="QUESTIONS: expected a file of questions with answers, got 'no'"):
        asking.question_files(run, "no")
    with pytest.raises(runtime.Stop, match=r"report\.html is not there yet"):
        page.report_html(run)
    run.report_html.write_text('<p class="a">')
    assert 'srcdoc="&lt;p class=&quot;a&quot;&gt;" style="width:100%;height:800px' in page.report_html(run)


TRAINED = """
from realm_jax.training import loop
from realm_jax.training import optimizer

loop.train:
  task = @open_qa.OpenQa()
  optimizer = @optimizer.OptimizerConfig()
  num_steps = 600
  batch_size = 4
"""


def test_without_questions_and_without_a_training_nothing_is_promised(notebook, tmp_path, capsys):
    values = {"run": RunDir.of(tmp_path / "run")}
    with pytest.raises(runtime.Stop, match="run has not been trained; run the cells above first"):
        exec(code_cells(notebook)["questions"].source, values)
    values["run"] = make_run(tmp_path / "trained", made_world.params(), made_world.corpus(tmp_path / "corpus"))
    with values["run"].config_file("train").open("a") as file:
        file.write(TRAINED)
    exec(code_cells(notebook)["questions"].source, values)
    assert capsys.readouterr().out == "No questions: the next step shows the documents that are found.\n"


def test_what_a_notebook_in_the_checkout_leaves_is_not_sent_on():
    """Neither with `git add`, nor to a TPU VM, nor into an image."""
    left = ["launch/colab/runs/colab/corpus.json", "runs/a", "logs/a/train.log"]
    command = ["git", "-C", str(ROOT), "check-ignore", *left, "gin/runs/a.gin", "launch/colab/a.py"]
    ignored = subprocess.run(command, capture_output=True, text=True)
    if "not a git repository" in ignored.stderr:
        pytest.skip("no checkout")
    assert ignored.stdout.splitlines() == left
    order = (ROOT / ".dockerignore").read_text().splitlines()
    assert order.index("launch/colab/runs") > order.index("!launch") and "!logs" not in order


def fine_tuned(place, corpus):
    """A run that answers where somebody was born."""
    run = make_run(place, made_world.params(), corpus)
    with run.config_file("train").open("a") as file:
        file.write(TRAINED)
    return run


def test_answers_are_shown_with_their_documents():
    born = WeighedDocument(4, "Ada <Brook>", "Ada was born in Oslo.", 3.0, 0.7, Span(16, 20, "Oslo", 5.0, 0.6))
    other = WeighedDocument(2, "Cleo Dahl", "Cleo & Rome.", 2.0, 0.2, Span(7, 11, "Rome", 4.0, 0.2))
    null = WeighedDocument(-1, "", "", 1.0, 0.1, None)
    shown_html = asking.answer_html(Answer("Where <else>?", "Oslo", 0.6, (born, other, null)), ("Oslo & <b>", "Bern"))
    assert "<b>Where &lt;else&gt;?</b><br>→ <b>Oslo</b>, p = 0.60" in shown_html
    assert "(the file says: Oslo &amp; &lt;b&gt; or Bern)" in shown_html
    first, second, last = re.findall(r"<tr><td.*?</tr>", shown_html)
    assert ">0.700<" in first and "<b>Ada &lt;Brook&gt;</b>" in first and "Ada was born in <mark>Oslo</mark>." in first
    assert ">0.200<" in second and ">Cleo Dahl<" in second and "Cleo &amp; <mark>Rome</mark>." in second
    assert ">0.100<" in last and ">∅ null document<" in last and "<mark>" not in last
    assert "→ <b>(none)</b>, p = 0.00" in asking.answer_html(Answer("Why?", "", 0.0, (null,)))


# From top to bottom.


PRETRAINS = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
for place, count in ((run / "stages" / "ict", 5), (run, 40)):
    (place / "metrics").mkdir(parents=True)
    for step in range(1, count + 1):
        with (place / "metrics" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(dict(step=step, loss=6 - step / 20, retrieval_utility=step / 50)) + chr(10))
(run / "report.html").write_text("<h1>The report</h1>")
print("[00:01] REALM: train 40/40 loss 4.000", flush=True)
time.sleep(0.1)
"""
ASKS_FOR = """
import sys
from colab import asking, watching

PREPARED, PROGRAM = {prepared!r}, {program!r}
watching.launcher_command = lambda run, corpus, settings: [sys.executable, "-c", PROGRAM, str(run.path), *settings]
copies = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)"
asking.training_command = lambda run, asked_run, *_: [sys.executable, "-c", copies, PREPARED, str(asked_run.path)]
"""


def test_the_notebook_with_prepared_runs_in_place_of_its_jobs(notebook, tmp_path, monkeypatch):
    """All cells in a kernel of their own; the jobs are small programs that leave what the true ones would."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    prepared = fine_tuned(tmp_path / "prepared", made_world.corpus(tmp_path / "corpus"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Where was Ada Brook born?", "answer": ["Oslo"]}\n')
    patched = nbformat.from_dict(notebook)
    places = [cell.id for cell in patched.cells].index("place")
    patch = nbformat.v4.new_code_cell(ASKS_FOR.format(prepared=str(prepared.path), program=PRETRAINS))
    patched.cells.insert(places, patch)
    finds = "print(asking.found_html(asked_run, 'the soprano Elin Frost & the opera'))"
    patched.cells.append(nbformat.v4.new_code_cell(finds, id="find"))
    parameters = {"RUN_DIR": "mine", "QUESTIONS": str(questions), "QUESTION": "Where was Cleo Dahl born?", "STEPS": 3}
    cells = executed(patched, tmp_path, parameters)
    assert f"the run: {tmp_path / 'mine'}\n" in printed(cells["place"])
    assert printed(cells["scale"]).endswith("embedded by cpu: trainer and embed job each have half of the cores.\n")
    for name in ("pretrain", "questions"):
        line, picture = cells[name].outputs
        assert re.fullmatch(r"<pre>\[00:\d\d\] done</pre>", line.data["text/html"])
        assert picture.data["image/png"].startswith("iVBOR")
    for shown_html, place in zip(shown(cells["ask"], "text/html") + shown(cells["your-question"], "text/html"),
                                 ("Oslo", "Rome"), strict=True):  # fmt: skip
        assert f"→ <b>{place}</b>" in shown_html and f"<mark>{place}</mark>" in shown_html
    assert "checkpoint 600, index version 500 (exact, 7 documents" in printed(cells["ask"])
    (report,) = shown(cells["report"], "text/html")
    assert 'srcdoc="&lt;h1&gt;The report' in report
    assert printed(cells["report"]) == f"{tmp_path / 'mine' / 'report.html'}\n"
    found = printed(cells["find"])
    rows = re.findall(r"<tr><td.*?</tr>", found)
    assert len(rows) == 5 and ">Elin Frost<" in rows[0] and "The soprano Elin Frost sang" in rows[0]
    probs = [float(re.search(r">(\d\.\d+)<div", row)[1]) for row in rows]
    assert sum(probs) == pytest.approx(1.0, abs=3e-3) and probs == sorted(probs, reverse=True)
    assert "<b>the soprano Elin Frost &amp; the opera</b>" in found
    assert not any(output.name == "stderr" for cell in cells.values() for output in cell.outputs if "name" in output)


def test_a_cell_that_stops_shows_its_message_alone(notebook, tmp_path, monkeypatch):
    cut = nbformat.from_dict(notebook)
    cut.cells = [cell for cell in cut.cells if cell.id in ("install", "place", "corpus")]
    with pytest.raises(nbclient.exceptions.CellExecutionError) as failed:
        executed(cut, tmp_path, {"CORPUS": "folder or file", "DOCUMENTS": "nowhere"})
    shown_after_the_cell = failed.value.traceback.rpartition("------------------\n")[2].strip()
    assert shown_after_the_cell.startswith(
        "DOCUMENTS: expected a folder or file of documents, or tfds:NAME, got 'nowhere'"
    )
    assert len(shown_after_the_cell.splitlines()) == 1


def shrink(folder):
    """The embedded corpus and its models, small, under the names by which the run files include them."""
    for name, changes in (
        ("data/world.gin", {"  paraphrases": "  num_articles = 60\n  paraphrases"}),
        ("models/tiny.gin", {"size = 128": "size = 32", "size = 512": "size = 64", "layers = 2": "layers = 1"}),
    ):
        text = (ROOT / "gin" / name).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("choice", ["embedded corpus", "folder or file"])
def test_the_notebook_from_top_to_bottom(notebook, tmp_path, monkeypatch, choice):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    shrink(tmp_path)
    parameters = {
        "STEPS": 6,
        "QUESTION_STEPS": 4,
        "SETTINGS": "--gin.VOCAB_SIZE=256 --gin.evaluate.max_queries=16 --gin.evaluate.num_masked_sentences=8",
    }
    documents = None
    if choice == "folder or file":
        world = generate(WorldConfig(num_articles=60))
        documents = tmp_path / "articles.jsonl"
        documents.write_text(
            "".join(json.dumps({"text": one.text, "title": one.title}) + "\n" for one in world.articles)
        )
        (tmp_path / "q.jsonl").write_text(
            "".join(json.dumps({"question": one.question, "answer": [one.answer]}) + "\n" for one in world.questions)
        )
        parameters |= {
            "CORPUS": choice,
            "DOCUMENTS": str(documents),
            "MAX_DOCUMENTS": 50,
            "EMBEDDER": "in_trainer",
            "QUESTIONS": str(tmp_path / "q.jsonl"),
        }
        parameters["SETTINGS"] = "--gin.VOCAB_SIZE=256 --gin.evaluate.max_queries=16"
    cells = executed(notebook, tmp_path, parameters)
    run = RunDir.of(tmp_path / "runs" / "colab")
    asked_run = RunDir.of(f"{run.path}-questions")
    for place, steps in ((run.stage("reader"), 6), (run.stage("ict"), 6), (run, 6), (asked_run, 4)):
        assert max(entry["step"] for entry in read_metrics(place)) == steps
    for name in ("pretrain", "questions"):
        assert "] done</pre>" in cells[name].outputs[0].data["text/html"]
        assert cells[name].outputs[1].data["image/png"].startswith("iVBOR")
    answers = shown(cells["ask"], "text/html")
    assert len(answers) == 3
    for answer in answers:
        said = html.unescape(re.search(r"→ <b>(.*?)</b>", answer)[1])
        assert said in html.unescape(re.sub(r"</?mark>", "", answer.partition("<table")[2]))
    assert shown(cells["your-question"], "text/html")[0].partition("<table")[2] == answers[-1].partition("<table")[2]
    assert printed(cells["report"]) == f"{run.report_html}\n"
    assert 'srcdoc="&lt;!doctype html&gt;' in shown(cells["report"], "text/html")[0]
    if documents is not None:
        assert read_json(run.corpus / "corpus.json")["counts"]["articles"] == 50
