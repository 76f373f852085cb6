"""The launcher with small programs in place of its stages; run by itself, it launches trainers that wait for SIGTERM."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).resolve().parent.parent.parent / "launch"

WAITS = """
import pathlib, signal, sys, time
name, place = {name!r}, pathlib.Path({place!r})
def end(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (place / (name + ".asked")).touch()
    for _ in range(3000):  # a minute: the launcher's patience
        awaited = place / {ends_after!r}
        if awaited.exists() and (awaited.name == "may_end" or awaited.stat().st_size):  # a file is there before its text
            break
        time.sleep(0.02)
    with (place / "ended").open("a") as file:
        file.write(name + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
(place / (name + ".ready")).touch()
time.sleep(120)
"""


def load_launcher(script: str = "local") -> Any:
    """launch/SCRIPT.py, which is a script and no module of a package."""
    if str(LAUNCH) not in sys.path:
        sys.path.insert(0, str(LAUNCH))  # as Python does for a script
    specification = importlib.util.spec_from_file_location(f"launch_{script}", LAUNCH / f"{script}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[f"launch_{script}"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


SAYS = """
import json, pathlib
status = pathlib.Path({run_dir!r}, "status", "trainer-00000.json")
status.parent.mkdir(parents=True, exist_ok=True)
status.write_text(json.dumps(dict(state={state!r}, step={step!r}, num_steps=320)))
"""


STOPPED = """
print("realm_jax train: stopped by SIGTERM at step 120 of 320; the same command goes on")
raise SystemExit(143)
"""


def says(run_dir: str, state: str = "finished", step: int = 320) -> str:
    """A program that says of itself what a trainer says at its end."""
    return SAYS.format(run_dir=run_dir, state=state, step=step)


def stub_stages(
    patch: Callable[[Any, str, Any], None], scripts: dict[str, str], stopped: tuple[str, ...] = ()
) -> list[tuple[str, list[str]]]:
    """Makes every stage run scripts[name], by default nothing; returns what will be the names and true commands.

    Trainers say at their end that they have finished; those in `stopped` end as after SIGTERM at step 120 of 320.
    """
    commands: list[tuple[str, list[str]]] = []
    launcher = sys.modules["launcher"]
    original = launcher.Child

    class Stub(original):
        def __init__(self, name: str, command: list[str], log: Path, cores: Any, environment: dict[str, str]):
            commands.append((name, list(command)))
            script = scripts.get(name, "")
            if name in ("train", "reader", "ict"):
                run_dir = command[4].removeprefix("--run_dir=")
                script += "\n" + (says(run_dir, "failed", 120) + STOPPED if name in stopped else says(run_dir))
            super().__init__(name, [sys.executable, "-S", "-c", script], log, (), environment)

    patch(launcher, "Child", Stub)
    return commands


if __name__ == "__main__":
    local = load_launcher()
    after = {"train": "may_end", "embed": "ended"}  # files in the place
    waiting = {name: WAITS.format(name=name, place=os.environ["STUB_PLACE"], ends_after=after[name]) for name in after}
    stub_stages(setattr, waiting)
    sys.exit(local.main(sys.argv[1:]))
