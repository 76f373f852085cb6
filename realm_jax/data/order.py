"""Which example a run draws at which position, and with which randomness."""

import grain
import numpy as np
from jaxtyping import Int64


class ExampleOrder:
    """Shuffled epochs over `num_examples` examples, each epoch in another order.

    Position `p = step · batch_size + row` is all the state there is: nothing depends on the number of hosts, and there is
    no iterator to save or restore.
    """

    def __init__(self, num_examples: int, seed: int):
        if num_examples < 1:
            raise ValueError("there is no example to draw from: the corpus (or what is left of it) is empty")
        self._order = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()

    def __call__(self, positions: Int64[np.ndarray, "batch"]) -> Int64[np.ndarray, "batch"]:
        """The examples at the given positions of the endless sequence."""
        return np.array([self._order[int(position)] for position in positions], dtype=np.int64)


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one example: the same wherever and whenever it is made."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], dtype=np.uint64)))


def batch_positions(step: int, batch_size: int, rows: slice) -> Int64[np.ndarray, "batch"]:
    """Positions of the given rows of the global batch of a step."""
    return step * batch_size + np.arange(batch_size, dtype=np.int64)[rows]
