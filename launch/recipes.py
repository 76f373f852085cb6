"""The sets of run files that a whole pre-training takes; nothing that must be installed is needed to know them."""

from pathlib import Path

STAGES = ("reader", "ict", "realm")
RUN_FILES = Path(__file__).resolve().parent.parent / "gin" / "runs"


def recipes() -> tuple[str, ...]:
    """Names for which there is a run file of every stage: gin/runs/{reader,ict,realm}_NAME.gin."""
    named = [{file.stem.removeprefix(f"{stage}_") for file in RUN_FILES.glob(f"{stage}_*.gin")} for stage in STAGES]
    return tuple(sorted(set.intersection(*named)))
