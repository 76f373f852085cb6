"""Documents that are drawn at random: of a question always the same, whatever is asked beside it."""

import numpy as np

from realm_jax.answering.retrieving import random_documents


def test_a_question_has_its_own_documents():
    find = random_documents(1000, 7)
    one, other = find(["who?", "where?"], 5)
    np.testing.assert_array_equal(find(["where?"], 5), [other])  # in another batch, asked again
    np.testing.assert_array_equal(random_documents(1000, 7)(["who?"], 5), [one])
    assert not np.array_equal(one, other) and not np.array_equal(random_documents(1000, 8)(["who?"], 5), [one])
    many = find([f"question {number}" for number in range(2000)], 3)
    assert many.min() >= 0 and many.max() < 1000
    assert np.bincount(many.ravel() // 100, minlength=10).min() > 500  # of 600 expected in each tenth
