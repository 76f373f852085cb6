"""Slurm on one machine, as far as launch/slurm/pretrain.sbatch goes: python stand_in_slurm.py srun|scontrol|squeue|task ...

Every node of a job is a process here. What was called is written down in $STAND_IN; `task` stands in for the Python of a node.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

COMMANDS = ("srun", "scontrol", "squeue", "task")
STATE = "state"  # in $STAND_IN: what squeue says of the job


def install(place: Path, python: str = sys.executable) -> Path:
    """Commands named as Slurm's, in a folder for PATH."""
    folder = place / "bin"
    folder.mkdir(parents=True)
    (place / STATE).write_text("RUNNING")
    for name in COMMANDS:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{python}" -S "{__file__}" {name} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return folder


def environment(place: Path, num_nodes: int = 2, **changes: str) -> dict[str, str]:
    """What Slurm tells a batch script."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_NUM_"))},
        "PATH": f"{install(place)}{os.pathsep}{os.environ['PATH']}",
        "STAND_IN": str(place),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": str(num_nodes),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_SUBMIT_DIR": root,
        "PYTHON": "task",
        **changes,
    }


def srun(place: Path, arguments: list[str]) -> int:
    """A task for every node; the greatest of their exit statuses."""
    options = []
    while arguments[0].startswith("--"):
        options.append(arguments.pop(0))
    total = int(os.environ["SLURM_JOB_NUM_NODES"])
    tasks = []
    for number in range(total):
        said = {
            "SLURM_PROCID": number, "SLURM_NTASKS": total, "SLURM_LOCALID": 0, "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": total, "SLURM_STEP_NUM_NODES": total,
        }  # fmt: skip
        tasks.append(
            subprocess.Popen(
                arguments,
                env=os.environ | {name: str(value) for name, value in said.items()},
                start_new_session=True,  # Slurm signals a task's processes, not srun's
            )
        )
    (place / "srun.json").write_text(json.dumps({"options": options, "tasks": [task.pid for task in tasks]}))
    signalled = False
    while None in [task.poll() for task in tasks]:
        if not signalled and "--kill-on-bad-exit=1" in options and any(task.returncode for task in tasks):
            signalled = True
            signal_tasks([task.pid for task in tasks if task.poll() is None])
        time.sleep(0.02)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


def signal_tasks(tasks: list[int]) -> None:
    """SIGTERM to all processes of each, as Slurm sends it."""
    for task in tasks:
        os.killpg(task, signal.SIGTERM)


def task(place: Path, arguments: list[str]) -> int:
    """Ends as $TASK_ENDS says for this node: with a status, or "term", with 143 after SIGTERM."""
    number = int(os.environ["SLURM_PROCID"])
    asked = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    said = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "JAX_"))}
    (place / f"task-{number}.writing").write_text(json.dumps({"arguments": arguments, "environment": said}))
    (place / f"task-{number}.writing").rename(place / f"task-{number}.json")
    end = os.environ.get("TASK_ENDS", "0 0").split()[number]
    if end != "term":
        while not all((place / f"task-{other}.json").exists() for other in range(int(os.environ["SLURM_NTASKS"]))):
            time.sleep(0.02)  # the others can take SIGTERM now, which this one's end may bring them
        return int(end)
    while not asked:
        time.sleep(0.02)
    time.sleep(0.3 * (number + 1))  # a checkpoint takes its time, and one host longer than the other
    (place / f"task-{number}.checkpoint").touch()
    return 128 + signal.SIGTERM


def main(command: str, arguments: list[str]) -> int:
    place = Path(os.environ["STAND_IN"])
    if command == "srun":
        return srun(place, arguments)
    if command == "task":
        return task(place, arguments)
    if command == "squeue":
        print((place / STATE).read_text())
        return 0
    with (place / "scontrol").open("a") as file:
        file.write(" ".join(arguments) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
