"""Every reader of untrusted input against a hundred changed inputs; `python -m tests.fuzz` runs 100 000 each. docs/reliability_fuzzing.md."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.changes import KINDS, Change, changed
from tests.fuzz.target import fault_of
from tests.fuzz.targets import TARGETS

_EXAMPLES = 30  # of one to six inputs: the changes one after the other
# What takes milliseconds each, or is compiled first, gets fewer.
_FEWER = {"cutting": 10, "page": 8, "corpus_arrays": 6, "weights_torch": 10, "weights_tensorflow": 6,
          "weights_config_llama": 8, "weights_index_llama": 8, "weights_shard_llama": 8}  # fmt: skip
_CHANGES = st.lists(
    st.builds(Change, st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Nothing but the documented errors, within time and memory, and nothing run or opened that the input named."""
    target = TARGETS[name]
    seeds = target.prepared(tmp_path)
    for seed in seeds:  # without limits: what is imported and compiled late
        with contextlib.suppress(*target.refuses):
            target.run(seed, tmp_path)

    @settings(
        max_examples=_FEWER.get(name, _EXAMPLES),
        derandomize=True,
        database=None,
        deadline=None,  # `fenced` has a limit of processor time
        phases=(Phase.generate,),  # an input is a few changes: nothing to shrink
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**16 - 1), _CHANGES)
    def check(chosen: int, changes: list[Change]) -> None:
        for number in range(1, len(changes) + 1):
            data = changed(seeds, chosen, changes[:number], target.words)
            fault = fault_of(target, data, tmp_path)
            assert fault is None, (fault, data[:500])

    check()
