"""Where gin files are found by name."""

import difflib
from pathlib import Path

from realm_jax.storage import fetch, is_remote

PACKAGE = Path(__file__).resolve().parent.parent


def gin_folders() -> list[Path]:
    """The folders in which gin files are found by name: the checkout's, then the installed package's."""
    return [folder for folder in (PACKAGE.parent / "gin", PACKAGE / "gin") if folder.is_dir()]


def find_gin_file(name: str, beside: Path | None = None) -> Path:
    """Finds a gin file: as given, relative to the working directory, else by name in the project's gin folders.

    Args:
      name: a path, also on an object store, or a name such as `runs/realm_tiny.gin`.
      beside: a file whose folder is searched last (for `include`).

    Raises:
      FileNotFoundError: naming the places searched, and a similar file if there is one.
    """
    if is_remote(name):
        return fetch(name)
    by_name = name.removeprefix("gin/")
    places = [Path(name).absolute(), *(folder / by_name for folder in gin_folders())]
    if beside is not None:
        places.append(beside.parent / name)
    for place in places:
        if place.is_file():
            return place
    known = [path.relative_to(folder).as_posix() for folder in gin_folders() for path in folder.rglob("*.gin")]
    similar = difflib.get_close_matches(by_name, known, n=1, cutoff=0.5)
    raise FileNotFoundError(
        f"no gin file {name}{f' (did you mean {similar[0]}?)' if similar else ''}; "
        f"looked for {', '.join(map(str, places))}"
    )
