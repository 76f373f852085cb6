"""A retriever's judged examples: each row's parts belong together, and groups are drawn by their shares."""

import numpy as np

from realm_jax.data.inputs import SpecialIds
from realm_jax.data.preferences import PreferenceGroup, PreferenceQueries

SPECIAL = SpecialIds(2, 3, 4)


def group(base, size):
    """Everything of example i says `base + i`."""
    names = base + np.arange(size)
    return PreferenceGroup(
        [np.asarray([name], np.int32) for name in names],
        np.stack([names, names + 1], axis=1).astype(np.int64),
        -np.stack([names, names + 2], axis=1).astype(np.float32),
        names.astype(np.int32),
    )


def test_rows_hold_one_example_each_and_groups_come_by_their_shares():
    queries = PreferenceQueries([group(100, 40), group(1000, 7)], [0.95, 0.05], query_len=4, special=SPECIAL, seed=0)
    batch = queries.batch(3, 4000, slice(None))
    names = batch.num_tokens
    np.testing.assert_array_equal(batch.query.ids, np.stack([np.full(4000, 2), names, np.full(4000, 3), 0 * names], 1))
    np.testing.assert_array_equal(batch.documents, np.stack([names, names + 1], axis=1))
    np.testing.assert_array_equal(batch.log_likelihoods, -np.stack([names, names + 2], axis=1))
    assert abs(np.mean(names < 1000) - 0.95) < 0.015  # of 4000 draws
    part = queries.batch(3, 4000, slice(1000, 1010))
    np.testing.assert_array_equal(part.num_tokens, names[1000:1010])
