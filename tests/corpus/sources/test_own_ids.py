"""Ids of several sources: settled in groups, in any order, they become what they become in one stream."""

import random
from collections import defaultdict

from realm_jax.corpus.sources import Article
from realm_jax.corpus.sources.own_ids import PlacedId, id_group, settle_ids, under_own_ids


def test_settled_by_hand():
    group = [
        PlacedId((1, 0), 2, "5"),  # "2:5" is taken, by source 1
        PlacedId((0, 0), 1, "5"),
        PlacedId((2, 3), 3, "5"),
        PlacedId((1, 2), 2, "2:2:5"),  # taken by the first of this source
        PlacedId((1, 1), 2, "5"),  # given before in its source
        PlacedId((0, 1), 1, "2:5"),
    ]
    expected = {(1, 0): "2:2:5", (1, 1): None, (1, 2): "2:2:2:5", (2, 3): "3:5"}
    assert settle_ids(group) == settle_ids(reversed(group)) == expected


def test_groups_hold_all_ids_that_can_meet():
    assert {id_group(i) for i in ("5", "2:5", "3:2:5", "12:2:5")} == {"5"}
    assert [id_group(i) for i in ("a:5", "2:a:5", "2-5", "2:", "")] == ["a:5", "a:5", "2-5", "", ""]


def test_settled_in_any_order_as_in_a_stream():
    rng = random.Random(0)
    num_dropped = num_renamed = 0
    for _ in range(300):
        sources = [
            ["".join(rng.choices(["2:", "3:"], k=rng.randrange(4))) + rng.choice("ab") for _ in range(rng.randrange(9))]
            for _ in range(3)
        ]
        # within a source the first of an id stays
        streams = [iter([Article(i, "", "") for i in dict.fromkeys(ids)]) for ids in sources]
        expected = [article.id for article in under_own_ids(streams, lambda old, new: None)]
        placed = [PlacedId((s, k), s + 1, i) for s, ids in enumerate(sources) for k, i in enumerate(ids)]
        groups = defaultdict(list)
        for entry in rng.sample(placed, len(placed)):
            groups[id_group(entry.id)].append(entry)
        changes = {place: new for group in groups.values() for place, new in settle_ids(group).items()}
        settled = [changes.get(entry.place, entry.id) for entry in placed]
        assert [i for i in settled if i is not None] == expected
        num_dropped += settled.count(None)
        num_renamed += len(changes) - settled.count(None)
    assert num_dropped > 300 and num_renamed > 300
