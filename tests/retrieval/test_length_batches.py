"""Static lengths and batches: every document once, little padding."""

import itertools

import numpy as np
import pytest

from realm_jax.retrieval.length_batches import choose_lengths, input_lengths, length_batches, length_histogram
from tests.retrieval.made_index import make_corpus


def test_chosen_lengths_are_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(4.2, 0.5, size=2000).astype(int) + 3, 150)
    counts = np.bincount(lengths, minlength=151)
    places = [*range(16, 150, 16), 150]

    def padded(chosen: tuple[int, ...]) -> int:
        return int(np.asarray(chosen)[np.searchsorted(chosen, lengths)].sum())

    for num_lengths in (1, 2, 3, 4):
        best = min(padded((*some, 150)) for some in itertools.combinations(places[:-1], num_lengths - 1))
        chosen = choose_lengths(counts, num_lengths)
        assert chosen[-1] == 150 and len(chosen) == num_lengths
        assert padded(chosen) == best


def test_short_corpora_need_no_long_inputs():
    assert choose_lengths(np.bincount([10, 12, 30], minlength=289), 4) == (16, 32)
    assert choose_lengths(np.zeros(289, np.int64), 4) == (288,)
    with pytest.raises(ValueError, match=r"num_lengths must be at least 1"):
        choose_lengths(np.zeros(289, np.int64), 0)


def test_every_document_is_in_one_batch_and_only_the_last_is_padded():
    lengths = np.random.default_rng(1).integers(4, 49, size=103)
    batches = list(length_batches(lengths, (16, 32, 48), 4))
    assert sorted(np.concatenate([batch.documents for batch in batches]).tolist()) == list(range(103))
    assert [batch.num_rows for batch in batches if batch.length == 16] == [12] * sum(b.length == 16 for b in batches)
    for batch in batches:
        assert lengths[batch.documents].max() <= batch.length
        assert batch.num_rows % 4 == 0
    assert all(len(batch.documents) == batch.num_rows for batch in batches[:-1])
    assert len({(batch.length, batch.num_rows) for batch in batches}) <= 3


def test_lengths_count_title_body_and_special_pieces(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", 50)
    lengths = input_lengths(corpus, np.arange(50), 40)
    whole = [3 + len(corpus.titles[row]) + len(corpus.bodies[row]) for row in range(50)]
    assert lengths.tolist() == [min(length, 40) for length in whole]
    assert max(whole) > 40
    assert np.array_equal(length_histogram(corpus, 40, at_once=7), np.bincount(lengths, minlength=41))
