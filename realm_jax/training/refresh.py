"""How often and in which way a run's index follows its retriever."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from realm_jax.retrieval.build_version import DEFAULT_BATCHES, DEFAULT_INDEX, BatchSettings, IndexSettings
from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class RefreshConfig:
    """The life of the index during a run.

    Modes:
      asynchronous: the trainer never waits; it serves the newest version that the embed job has published. The paper's.
      synchronous: at each multiple of `snapshot_every_steps` the trainer waits for the index of that very snapshot.
        Reproducible: a run equals itself bit for bit, also after a kill and a resume.
      frozen: the first index is served to the end (an ablation).
      replay: swaps happen at the steps, and to the versions, that `replay_file` (another run's metrics/swaps.jsonl)
        recorded: an asynchronous run done again. The embed job must build every snapshot (`every_snapshot=True`).
    """

    mode: Literal["asynchronous", "synchronous", "frozen", "replay"] = "asynchronous"
    embedder: Literal["separate", "in_trainer"] = (
        "separate"  # in_trainer: embeds between steps, for one-device machines
    )
    snapshot_every_steps: int = 500
    swap_every_steps: int = 1  # a loaded version waits for the next multiple
    max_index_age_steps: int | None = None  # none: any age will do
    when_too_old: Literal["wait", "stop"] = "wait"
    timeout_secs: float = 3600.0  # for what a step cannot do without, and for other hosts
    poll_secs: float = 0.5
    replay_file: str | None = None
    index: IndexSettings = DEFAULT_INDEX  # of the embedder inside the trainer; the embed job has its own argument
    batches: BatchSettings = DEFAULT_BATCHES  # likewise

    def __post_init__(self) -> None:
        check_fields(self)
        if self.snapshot_every_steps < 1 or self.swap_every_steps < 1:
            raise ValueError("RefreshConfig.snapshot_every_steps and swap_every_steps must be at least 1")
        if self.embedder == "in_trainer" and self.mode == "asynchronous":
            raise ValueError(
                "RefreshConfig: an embedder inside the trainer cannot be asynchronous; "
                "set mode='synchronous', or embedder='separate' and start the embed job"
            )
        if (self.mode == "replay") != (self.replay_file is not None):
            raise ValueError("RefreshConfig.replay_file goes with mode='replay', and only with it")

    def snapshot_due(self, step: int) -> bool:
        """Whether a snapshot is written before `step`. The first index always needs one."""
        return step == 0 if self.mode == "frozen" else step % self.snapshot_every_steps == 0

    def read_replay(self) -> dict[int, int]:
        """Step to version of the recorded swaps."""
        if self.replay_file is None:
            return {}
        lines = Path(self.replay_file).read_text().splitlines()
        swaps = [json.loads(line) for line in lines]
        return {int(swap["step"]): int(swap["version"]) for swap in swaps}

    def must_serve(self, step: int, replay: dict[int, int]) -> int | None:
        """The version that must be served from `step` on, if the mode says so."""
        if self.mode == "synchronous" and self.snapshot_due(step):
            return step
        return replay.get(step)
