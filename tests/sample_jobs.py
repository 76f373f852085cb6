"""Small jobs and configurations for the tests of config and of the command line."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from realm_jax import typed
from realm_jax.run_lock import InUse


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What a model's configuration looks like."""

    num_layers: int = 2
    dropout: float = 0.1
    norm: Literal["pre", "post"] = "post"
    buckets: tuple[int, ...] = (64, 288)
    name: str | None = None

    def __post_init__(self) -> None:
        typed.check_fields(self)
        if self.num_layers < 1:
            raise ValueError(f"Encoder.num_layers must be at least 1, got {self.num_layers}")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Holds other configurations; one of them has no default."""

    query: Encoder
    document: Encoder | None = None


def constant(value: float = 0.1) -> Callable[[int], float]:
    """A schedule, made by a factory."""
    return lambda step: value * (step + 1)


def teach(
    *,
    run_dir: str,
    corpus: str,
    encoder: Encoder,
    pair: Pair | None = None,
    num_steps: int = 10,
    learning_rate: float = 0.5,
    mode: Literal["asynchronous", "frozen"] = "frozen",
    buckets: tuple[int, int] = (1, 2),
    verbose: bool = False,
    schedule: Callable[[int], float] | None = None,
    limit: float | None = None,
) -> dict:
    """Trains nothing at all.

    More about it.

    Args:
      run_dir: where it would write.
      corpus: a folder of texts, which may need
        more than a line to explain.
      num_steps: how often nothing is done.

    Returns:
      num_steps: its arguments.
    """
    arguments = dict(locals())
    if corpus == "in use":  # another process writes there meanwhile
        (Path(run_dir) / "metrics.jsonl").write_text("another's")
        raise InUse("another trainer is at work")
    if corpus == "interrupt":
        raise KeyboardInterrupt
    if corpus == "mistake":
        raise ValueError("corpus has 3 documents but the index has 4; rebuild it with the embed job")
    if corpus in ("midway", "logs"):
        place = Path(run_dir) / {"midway": "metrics.jsonl", "logs": "logs/train.log"}[corpus]
        place.parent.mkdir(exist_ok=True)
        place.write_text("{}")
        raise ValueError("step 3: loss nan")
    if corpus == "missing":
        raise FileNotFoundError("no corpus at missing; build it with the corpus job")
    if corpus == "slow":
        raise TimeoutError("no snapshot after 5 s")
    if corpus == "bug":
        raise TypeError("our own mistake")
    if corpus == "library":
        int("not a number")
        return {}
    print(sorted(arguments))
    return arguments


def watch(*, run_dir: str, encoder: Encoder | None = None, poll_secs: float = 1.0, source: str = "") -> None:
    """Another job, which shares gin files with the first."""
