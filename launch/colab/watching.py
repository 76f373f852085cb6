"""Runs a command in a process of its own, with its curves and one line of where it is, until it ends or the cell is interrupted."""

import atexit
import contextlib
import html
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from IPython.display import HTML, Image, display

from colab.runtime import Stop
from realm_jax.run_dir import RunDir

ROOT = Path(__file__).resolve().parent.parent.parent
EVERY_SECS = 5.0  # between two looks
GRACE_SECS = 120.0  # the launcher gives its jobs a minute to write checkpoints
LAST_LINES = 25
STOPPED = (130, 143)  # exit statuses after Ctrl-C and SIGTERM


def launcher_command(run: RunDir, corpus: Sequence[str], settings: Sequence[str]) -> list[str]:
    """`launch/local.py` with the flags that name the documents and the ones that say how."""
    return [sys.executable, str(ROOT / "launch" / "local.py"), f"--run_dir={run.path}", *corpus, *settings]


def watch(command: Sequence[str], log: Path, figures: Sequence[Path], draw: Callable[[], bytes]) -> None:
    """Starts a command and shows how it goes on, until it has ended.

    An interrupted cell ends it with SIGTERM: trainers write a checkpoint, and the same command goes on from there.

    Args:
      command: the program and its arguments.
      log: gets what it prints.
      figures: files of metrics; nothing is drawn anew before one of them has changed.
      draw: the curves so far, as PNG.

    Raises:
      Stop: it was interrupted, or failed: then with the end of what it printed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started, begun_at = time.monotonic(), log.stat().st_size if log.exists() else 0
    line, picture = display(HTML(""), display_id=True), display(HTML(""), display_id=True)
    with log.open("ab") as output:
        # in a session of its own: an interrupt of the notebook reaches this process alone
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    atexit.register(process.terminate)  # the kernel may be restarted meanwhile

    def show(state: str) -> None:
        line.update(HTML(f"<pre>{html.escape(f'[{_clock(time.monotonic() - started)}] {state}')}</pre>"))

    interrupted, drawn = False, None
    try:
        while process.poll() is None:
            show(_last_lines(log, begun_at, 1) or "starting")
            if drawn != (now := [file.stat().st_mtime_ns for file in figures if file.exists()]):
                picture.update(Image(draw()))
                drawn = now
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(EVERY_SECS)
    except KeyboardInterrupt:
        interrupted = True
        show("stopping: trainings finish their step and write a checkpoint, which may take a minute")
    finally:
        _end(process)
        atexit.unregister(process.terminate)
    status = process.returncode
    if interrupted or status in STOPPED:
        show("stopped")
        raise Stop("Stopped. Run the cell again to go on from the last checkpoint.")
    picture.update(Image(draw()))
    show("done" if status == 0 else "failed")
    if status:
        raise Stop(f"It ended with exit status {status}; the end of {log}:\n\n{_last_lines(log, begun_at, LAST_LINES)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to what still runs, and waits for it: a second interrupt must not leave its jobs behind."""
    deadline = time.monotonic() + GRACE_SECS
    if process.poll() is None:
        process.terminate()
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(1.0)
    if process.poll() is None:
        process.kill()
        process.wait()


def _last_lines(log: Path, begun_at: int, count: int) -> str:
    """The last lines of what was written to a log from a place on."""
    with log.open("rb") as file:
        file.seek(max(begun_at, log.stat().st_size - 50_000))
        text = file.read().decode(errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def _clock(secs: float) -> str:
    minutes, seconds = divmod(int(secs), 60)
    return f"{minutes:02d}:{seconds:02d}"
