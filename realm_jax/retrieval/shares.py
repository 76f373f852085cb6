"""Several builders of the same index versions: each builds its share of the shards, builder 0 publishes all of them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Share:
    """Which of the builders this is.

    Attributes:
      number: of this builder; 0 publishes.
      count: of all builders, each of which builds every count-th shard.
      timeout_secs: how long the others may take after this one has done its share.
      poll_secs: pause between two looks at what they have done.
    """

    number: int = 0
    count: int = 1
    timeout_secs: float = 3600.0
    poll_secs: float = 1.0

    def part_of(self, numbers: Sequence[int]) -> list[int]:
        """Those of the shards that are this builder's.

        >>> Share(1, 3).part_of([0, 2, 3, 5, 8])
        [2, 8]
        """
        return list(numbers[self.number :: self.count])

    def wait_for(self, look: Callable[[], T | None], missing: str, check_going_on: Callable[[], None]) -> T:
        """What another builder makes.

        Args:
          look: gives it once it is there.
          missing: what is said of it when it does not come.
          check_going_on: called between two looks; raises to stop waiting.

        Raises:
          TimeoutError: beginning with `missing`.
        """
        deadline = time.monotonic() + self.timeout_secs
        while (found := look()) is None:
            check_going_on()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{missing} within {self.timeout_secs:.0f} s; look at that embed job, and start it again with the "
                    "same settings: finished shards are kept"
                )
            time.sleep(self.poll_secs)
        return found


ALONE = Share()
