"""Packing: every token of every text where it belongs, rows that no host or order of asking changes."""

import numpy as np
import pytest

from realm_jax.data.packing import NO_TARGET, PackedTexts, Text, packed

LENGTH = 12


class Group:
    """Texts that say which they are: `base + number`, so many times as they are long."""

    def __init__(self, base, lengths, num_read=0):
        self.base, self.lengths, self.num_read = base, np.asarray(lengths, np.int64), num_read

    def text(self, number):
        return Text(np.full(self.lengths[number], self.base + number, np.int32), self.num_read)


def texts_of(rows):
    """(token, length) of each text of each row, in order."""
    found = []
    for ids, segments in zip(rows.ids, rows.segments, strict=True):
        for number in range(1, segments.max() + 1):
            own = ids[segments == number]
            assert (own == own[0]).all()
            found.append((int(own[0]), len(own)))
    return found


def test_targets_are_the_scored_tokens_alone():
    rows = packed([[Text(np.arange(10, 15, dtype=np.int32), 3), Text(np.arange(20, 23, dtype=np.int32), 0)]], 10, 0)
    assert rows.ids[0].tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 0, 0]
    assert rows.targets[0].tolist() == [-1, -1, 13, 14, -1, 21, 22, -1, -1, -1]
    assert rows.segments[0].tolist() == [1] * 5 + [2] * 3 + [0] * 2
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 0]
    assert (rows.targets[rows.segments == 0] == NO_TARGET).all()


def test_every_text_comes_once_an_epoch_and_rows_are_filled_as_far_as_they_go():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, LENGTH + 1, 500)
    stream = PackedTexts([Group(100, lengths)], [1.0], length=LENGTH, pad_id=0, seed=3)
    rows = stream.batch(0, 600, slice(None))
    found = texts_of(rows)
    first_epoch = found[: len(lengths)]
    assert sorted(token - 100 for token, _ in first_epoch) == list(range(500))
    assert all(length == lengths[token - 100] for token, length in first_epoch)
    used = (rows.segments > 0).sum(axis=1)
    firsts = [int((row == 1).sum()) for row in rows.segments]
    assert (used <= LENGTH).all()
    assert all(used[row] + firsts[row + 1] > LENGTH for row in range(len(firsts) - 1))  # the next text did not fit


def test_rows_do_not_depend_on_who_asks_or_when():
    def stream():
        return PackedTexts(
            [Group(100, [5, 7, 3, 12, 2]), Group(200, [4] * 9)], [1.0, 2.0], length=LENGTH, pad_id=0, seed=1
        )

    whole = stream().batch(2, 64, slice(None))
    late = stream()
    late.batch(900, 64, slice(None))  # beyond the first draws
    parts = [late.batch(2, 64, slice(32, 64)), late.batch(2, 64, slice(0, 32))]
    np.testing.assert_array_equal(whole.ids, np.concatenate([parts[1].ids, parts[0].ids]))
    again = stream().batch(4, 32, slice(None))  # row 128 on, as step 2 of 64
    np.testing.assert_array_equal(whole.targets[:32], again.targets)
    other = PackedTexts(
        [Group(100, [5, 7, 3, 12, 2]), Group(200, [4] * 9)], [1.0, 2.0], length=LENGTH, pad_id=0, seed=2
    )
    assert (other.batch(2, 64, slice(None)).ids != whole.ids).any()


def test_groups_are_drawn_by_their_shares():
    groups = [Group(1000, [2] * 10), Group(2000, [2] * 1000), Group(3000, [2] * 5), Group(4000, [])]
    stream = PackedTexts(groups, [0.1, 0.85, 0.05, 0.5], length=LENGTH, pad_id=0, seed=0)
    tokens = np.asarray([token for token, _ in texts_of(stream.batch(0, 2000, slice(None)))])
    shares = [np.mean(tokens // 1000 == group) for group in (1, 2, 3)]
    np.testing.assert_allclose(shares, [0.1, 0.85, 0.05], atol=0.01)  # of 12 000 draws


def test_nothing_to_pack():
    with pytest.raises(ValueError, match="nothing to draw from"):
        PackedTexts([Group(1, []), Group(2, [3])], [1.0, 0.0], length=LENGTH, pad_id=0, seed=0)
