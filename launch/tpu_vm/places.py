"""Where the documents and the run of a TPU VM may lie, as its machines see them."""

import subprocess
from pathlib import Path

from supervisor import CHECKOUT, ROOT

STORE = "gs://"  # the object store whose client is installed there


def check_run_dir(run_dir: str, is_shared: bool) -> None:
    """Refuses a run directory that some machine would not see.

    Args:
      run_dir: as the machines will be told.
      is_shared: whether there are several of them.

    Raises:
      ValueError: with the remedy.
    """
    if "://" in run_dir and not run_dir.startswith(STORE):
        raise ValueError(
            f"--run_dir={run_dir}: TPU VMs have the client of Google's object store alone; gs://BUCKET/RUN"
        )
    if is_shared and not run_dir.startswith((STORE, "/")):
        raise ValueError(
            f"--run_dir={run_dir} lies on one machine of several; expected gs://BUCKET/RUN, or a folder that all of them mount"
        )


def corpus_there(source: str, run_dir: str) -> str:
    """How the machines name documents that are named here.

    Args:
      source: gs://…, tfds:…, a path relative to the checkout, which is sent there, or an absolute one of the machines.
      run_dir: where the run lies; absolute paths are of a file system that the machines mount, and so is it then.

    Raises:
      ValueError: a place that the machines do not see.
    """
    if source.startswith((STORE, "tfds:")):
        return source
    if "://" in source:
        raise ValueError(
            f"--corpus={source}: TPU VMs have the client of Google's object store alone; copy it to gs://BUCKET"
        )
    if source.startswith("/"):
        if run_dir.startswith("/"):
            return source
        raise ValueError(
            f"--corpus={source} is not seen by the TPU VM: only the checkout is sent there; copy it with `gcloud storage cp -r "
            f"{source} gs://BUCKET/` and give that, or put it into the checkout and give its path in there; where the machines "
            "mount a file system with it, --run_dir (RUN_DIR) must lie there too"
        )
    place = (ROOT / source).resolve()
    if not place.exists() or not place.is_relative_to(ROOT):
        raise ValueError(
            f"--corpus={source}: a relative path is one in the checkout {ROOT}, which is sent to the TPU VM, and it is not "
            "there; expected such a path, gs://BUCKET/… or tfds:NAME"
        )
    if is_left_out(place):
        raise ValueError(
            f"--corpus={source}: git ignores it, so it is not sent to the TPU VM; move it, or copy it with `gcloud storage cp -r "
            f"{source} gs://BUCKET/` and give that"
        )
    return f"{CHECKOUT}/{place.relative_to(ROOT).as_posix()}"


def is_left_out(place: Path) -> bool:
    """Whether git knows no file there; False where it cannot say."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", str(place)]
    try:
        listed = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return False
    return listed.returncode == 0 and not listed.stdout
