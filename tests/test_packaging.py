import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import realm_jax

# What a module is called, where that differs from the package that brings it.
PACKAGE_OF = {
    "gin": "gin-config",
    "orbax": "orbax-checkpoint",
    "tensorflow": "tensorflow-cpu",
    "tensorflow_datasets": "tensorflow-datasets",
}


@pytest.fixture(scope="session")
def sources(repository, tmp_path_factory):
    """A copy of what is packaged, with one more gin file, so that nothing is left in the checkout."""
    place = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, place)
    for name in ("realm_jax", "gin"):
        if (repository / name).exists():
            shutil.copytree(repository / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "gin" / "runs").mkdir(parents=True, exist_ok=True)
    (place / "gin" / "runs" / "probe.gin").write_text("from __gin__ import dynamic_registration\n")
    return place


@pytest.fixture(scope="session")
def wheel(sources, tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*build, "-w", str(place), str(sources)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(place.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    return target


def test_the_wheel_holds_the_package_and_the_gin_files(wheel, sources):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (sources / "realm_jax").rglob("*"):
        if path.is_file():
            assert path.relative_to(sources).as_posix() in names
    for path in (sources / "gin").rglob("*.gin"):
        assert f"realm_jax/{path.relative_to(sources).as_posix()}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"realm_jax"}
    assert any(name.endswith("/LICENSE") for name in names)


def run_installed(installed, directory, program):
    """Runs a program in another directory, with the wheel's package before any other."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_gin_files_are_found_by_name_from_an_installed_wheel(installed, sources, tmp_path):
    names = sorted(path.relative_to(sources / "gin").as_posix() for path in (sources / "gin").rglob("*.gin"))
    program = f"from realm_jax import config\nfor name in {names}: print(config.find_gin_file(name))"
    expected = [str(installed / "realm_jax" / "gin" / name) for name in names]
    assert "runs/probe.gin" in names
    assert run_installed(installed, tmp_path, program) == expected


def test_a_run_file_binds_from_an_installed_wheel(installed, tmp_path):
    program = (
        "import realm_jax; from realm_jax import config, jobs; print(realm_jax.__file__);"
        "table = {'read': jobs.Job('realm_jax.run_dir:read_json', 'reads')};"
        "print(config.bind('read', ['runs/probe.gin'], ['read.path=a'], table)['path'])"
    )
    assert run_installed(installed, tmp_path, program) == [str(installed / "realm_jax" / "__init__.py"), "a"]


def test_version_is_the_installed_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", realm_jax.__version__)


def requirements(repository) -> dict[str, list[str]]:
    """What setup.py declares: required packages under '', others under their extra."""
    tree = ast.parse((repository / "setup.py").read_text())
    values = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign)}
    names: dict[str, object] = {}
    for name in [name for name, value in values.items() if isinstance(value, ast.List | ast.Dict)]:
        names[name] = eval(compile(ast.Expression(values[name]), "setup.py", "eval"), {}, dict(names))
    return {"": names["REQUIREMENTS"], **names["EXTRAS"]}


def imported_modules(folder) -> dict[str, list[str]]:
    """Top-level modules imported anywhere under a folder, and where."""
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.split(".")[0], []).append(str(path))
    return found


def normalised(name: str) -> str:
    return re.split(r"[ \[<>=!~;]", name)[0].lower().replace("_", "-")


def test_every_import_is_declared(repository):
    declared = {normalised(line) for lines in requirements(repository).values() for line in lines}
    for module, places in imported_modules(repository / "realm_jax").items():
        if module in sys.stdlib_module_names or module == "realm_jax":
            continue
        assert normalised(PACKAGE_OF.get(module, module)) in declared, f"{module} in {places}"


def test_every_requirement_is_imported(repository):
    used = {normalised(PACKAGE_OF.get(module, module)) for module in imported_modules(repository / "realm_jax")}
    used |= {"importlib-resources", "array-record"}  # TFDS imports the first undeclared, the second to read a block
    for line in requirements(repository)[""]:
        assert normalised(line) in used, line


def test_tensorflow_and_torch_are_imported_where_their_files_are_read_alone(repository):
    """Nothing else needs them; scann lives with one version of TensorFlow only."""
    imported = imported_modules(repository / "realm_jax")
    convert = repository / "realm_jax" / "convert"
    assert imported["tensorflow"] == [str(convert / "tensorflow.py")]
    assert imported["torch"] == [str(convert / "folder.py")]


@pytest.mark.parametrize("version", ["311", "312", "313"])
def test_constraints_allow_what_setup_asks_for(repository, version):
    from packaging.requirements import Requirement

    lines = (repository / "constraints" / f"py{version}.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    locked = {normalised(name): text for name, text in locked.items()}
    wanted = requirements(repository)
    for line in wanted[""] + wanted["dev"]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(locked[normalised(line)]), line
    assert locked["jax"].startswith("0.10.2" if version == "311" else "0.12.")


def test_this_environment_is_one_that_setup_allows(repository):
    from packaging.requirements import Requirement

    for line in requirements(repository)[""]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), line
