"""A reader of untrusted input, what it may raise, and whether an input shows a fault of it."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.fence import Hang, fenced


class Target(NamedTuple):
    """What is fuzzed.

    Attributes:
      name: by which the long run chooses it.
      seeds: valid inputs; or makes them, and what `run` finds in the folder.
      run: gives an input to the reader; may write in the folder.
      refuses: the documented errors. All others are faults.
      words: put into inputs, of the format.
      secs: of processor time that an input may take.
      mib: of memory that an input may take.
    """

    name: str
    seeds: Sequence[bytes] | Callable[[Path], Sequence[bytes]]
    run: Callable[[bytes, Path], None]
    refuses: tuple[type[BaseException], ...] = (ValueError, FileNotFoundError)
    words: tuple[bytes, ...] = ()
    secs: float = 10.0
    mib: int = 192

    def prepared(self, folder: Path) -> Sequence[bytes]:
        """The seeds, once the folder holds what is needed."""
        return self.seeds(folder) if callable(self.seeds) else self.seeds


class Fault(NamedTuple):
    """What an input did that it must not, and where: two in the same place are one finding."""

    what: str
    where: str


def fault_of(target: Target, data: bytes, folder: Path) -> Fault | None:
    """Runs an input; what was wrong with it, if something was."""
    seen: list[str] = []
    try:
        with fenced(folder, target.secs, target.mib << 20) as seen:
            target.run(data, folder)
    except target.refuses:
        pass
    except Hang as error:
        return Fault(f"more than {target.secs:g} s", _place(error))
    except (Exception, RecursionError) as error:
        return Fault(f"{type(error).__name__}: {str(error)[:200]}", _place(error))
    return Fault(seen[0], "") if seen else None


def _place(error: BaseException) -> str:
    """The innermost line of realm_jax, or else of anything."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/realm_jax/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"
