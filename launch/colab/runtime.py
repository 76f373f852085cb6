"""The machine under a notebook: its accelerator, the project in the kernel's own Python, and when the kernel must start anew.

Nothing here needs a package that is not yet installed, and nothing starts jax: a TPU belongs to the first process that does.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from hosts import has_gpu, has_tpu

Kind = Literal["TPU", "GPU", "CPU"]

PYTHONS = ((3, 11), (3, 14))  # from the first up to the second
CUDA13_DRIVER = 580  # the first NVIDIA driver that CUDA 13 runs with
CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")
CORES_TO_EMBED = 8  # with as many, a CPU embeds the corpora of a notebook while an accelerator trains
SHOWN = 12  # replaced packages that are named

_outdated: list[str] = []  # packages that were replaced while this process held them


class Stop(Exception):  # noqa: N818 - reads as what it says
    """Ends a cell, and the cells that wait after it, with a message in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Machine(NamedTuple):
    """What the notebook runs on."""

    kind: Kind
    num_cores: int

    def describe(self) -> str:
        return f"{self.kind}, {self.num_cores} CPU cores, Python {'.'.join(map(str, sys.version_info[:3]))}"


class Embedder(NamedTuple):
    """Who embeds the documents while the trainer trains, as `launch/local.py --embedder` names it."""

    name: str
    reason: str


def find_machine(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> Machine:
    """What is here, told by device files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return Machine("CPU", cores)
    return Machine("GPU" if has_gpu(devices) else "TPU" if has_tpu(devices) else "CPU", cores)


def choose_embedder(wanted: str, machine: Machine) -> Embedder:
    """`cpu` or `in_trainer`; of "automatic", the one that suits the machine."""
    if wanted != "automatic":
        return Embedder(wanted, "as chosen")
    if machine.kind == "CPU":
        return Embedder("cpu", "trainer and embed job each have half of the cores")
    if machine.num_cores >= CORES_TO_EMBED:
        return Embedder(
            "cpu", f"one process alone can use the {machine.kind}: it trains, and CPU cores embed beside it"
        )
    return Embedder(
        "in_trainer",
        f"{machine.num_cores} CPU cores would embed too slowly: the {machine.kind} does it between training steps",
    )


def install(root: Path, machine: Machine) -> str:
    """Installs the project into the kernel's Python, where it is not there yet; says what was done.

    Args:
      root: the checkout.
      machine: decides which jax.

    Raises:
      Stop: a Python that will not do, an installation that failed, or a kernel that must start anew because it holds
        modules of versions that were replaced.
    """
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        got = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Stop(f"expected Python 3.11, 3.12 or 3.13, got {got}; choose another runtime version")
    if _outdated:
        raise Stop(_restart())
    before = versions()
    if is_installed(machine, before):
        return f"{machine.describe()}: realm_jax is installed, with jax {before['jax']}"
    _pip("install", *requirements(root, machine, nvidia_driver()))
    stale = stale_plugins(versions())
    if stale:
        _pip("uninstall", "--yes", *stale)
    after = versions()
    changed = [name for name in after if before.get(name) != after[name]]
    replaced = [f"{name} {before[name]} → {after[name]}" for name in changed if name in before]
    more = f" and {len(replaced) - SHOWN} more" if len(replaced) > SHOWN else ""
    said = f"{machine.describe()}: {len(changed) - len(replaced)} packages installed"
    if replaced:
        said += f", {len(replaced)} replaced: {', '.join(replaced[:SHOWN])}{more}"
    _outdated.extend(name for name in changed if name in before and is_loaded(name))
    if _outdated:
        raise Stop(f"{said}\n\n{_restart()}")
    return said


def _restart() -> str:
    return (
        f"This session still holds the versions of {', '.join(_outdated)} from before. Choose Runtime > Restart session, "
        "then run this cell and the ones after it: nothing is installed a second time."
    )


def requirements(root: Path, machine: Machine, driver: int) -> list[str]:
    """Arguments of `pip install`: the project with the extra for the accelerator, at the versions that were tested.

    Args:
      root: the checkout.
      machine: decides the extra.
      driver: the NVIDIA driver's major version; 0 for none.
    """
    constraints = root / "constraints" / f"py{sys.version_info[0]}{sys.version_info[1]}.txt"
    extras = ["mediawiki", *{"TPU": ["tpu"], "GPU": ["cuda"] * (driver >= CUDA13_DRIVER), "CPU": []}[machine.kind]]
    wanted = ["-c", str(constraints)] if constraints.exists() else []
    wanted += ["-e", f"{root}[{','.join(extras)}]"]
    if machine.kind == "GPU" and driver < CUDA13_DRIVER:
        wanted.append("jax[cuda12]")
    if importlib.util.find_spec("matplotlib") is None:
        wanted.append("matplotlib")
    return wanted


def is_installed(machine: Machine, found: Mapping[str, str]) -> bool:
    """Whether the project and what jax needs for the accelerator are among the versions of packages."""
    if "realm-jax" not in found or "jax" not in found:
        return False
    if machine.kind == "GPU":
        return any(found.get(f"jax-cuda{major}-plugin") == found.get("jaxlib") for major in (12, 13))
    return machine.kind == "CPU" or "libtpu" in found


def stale_plugins(found: Mapping[str, str]) -> list[str]:
    """CUDA plugins of another jax, which this one would refuse at every start."""
    return [name for name in CUDA_PLUGINS if found.get(name, found["jaxlib"]) != found["jaxlib"]]


def versions() -> dict[str, str]:
    """The installed packages, by their names in small letters with dashes."""
    importlib.invalidate_caches()
    found = ((one.metadata["Name"], one.version) for one in importlib.metadata.distributions())
    return {name.lower().replace("_", "-"): version for name, version in sorted(found) if name}


def is_loaded(package: str) -> bool:
    """Whether this process has imported a module that the package installs."""
    modules = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    one = importlib.metadata.distribution(package)
    return any(str(one.locate_file(file)) in modules for file in one.files or ())


def nvidia_driver() -> int:
    """The NVIDIA driver's major version; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return int(said.split(".")[0]) if said[:1].isdigit() else 0


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "-q", "--disable-pip-version-check", *arguments[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Stop(f"{' '.join(['python', *command[1:]])} failed:\n{_end(done.stdout)}")


def _end(text: str, lines: int = 20) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])
