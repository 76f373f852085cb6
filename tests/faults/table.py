"""One table of what was injected and what came of it."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

HEADER = ("fault", "injected", "survived", "lost", "seconds to recover")


class Row(NamedTuple):
    """A kind of fault.

    Attributes:
      fault: what was done.
      injected: how often.
      survived: after how many of these the run was as it should be.
      lost: what had to be done again, or is gone.
      recovery_secs: of each fault after which something had to come back, how long that took.
      notes: where the faults hit, what was measured.
      failures: what went wrong, one text for every fault that was not survived.
    """

    fault: str
    injected: int
    survived: int
    lost: str
    recovery_secs: Sequence[float] = ()
    notes: str = ""
    failures: Sequence[str] = ()

    @property
    def recovery(self) -> str:
        """Median and longest.

        >>> Row("", 3, 3, "", [4.0, 2.0, 9.0]).recovery
        '4.0, at most 9.0'
        """
        secs = self.recovery_secs
        if len(secs) < 2:
            return f"{secs[0]:.1f}" if secs else "–"
        return f"{statistics.median(secs):.1f}, at most {max(secs):.1f}"


def markdown(rows: Sequence[Row]) -> str:
    """The table, then the notes and failures of each row."""
    cells = [HEADER, *((row.fault, str(row.injected), str(row.survived), row.lost, row.recovery) for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    lines.insert(1, "|---|---:|---:|---|---|")
    for row in rows:
        if row.notes or row.failures:
            lines += ["", f"- **{row.fault}**: {row.notes}".rstrip(": ")]
            lines += [f"  - not survived: {failure}" for failure in row.failures]
    return "\n".join(lines) + "\n"
