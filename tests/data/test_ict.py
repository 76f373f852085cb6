"""Inverse Cloze examples: what is removed, how often, and from what."""

import numpy as np
import pytest

from realm_jax.data.ict import IctExamples
from tests import tiny

TOKENIZER = tiny.tokenizer()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


def source(corpus, removal_rate=0.9, seed=0, query_len=100, document_len=200):
    return IctExamples(corpus, query_len=query_len, document_len=document_len, removal_rate=removal_rate, seed=seed)


def inside(ids):
    """The pieces between the special ones, split at [SEP]."""
    kept = ids[ids != 0].tolist()
    assert kept[0] == 2 and kept[-1] == 3
    parts, part = [], []
    for piece in kept[1:]:
        parts, part = ([*parts, part], []) if piece == 3 else (parts, [*part, piece])
    return parts


def test_the_sentence_comes_from_the_block_and_is_removed_at_the_rate(corpus):
    removed = kept = 0
    numbers = np.zeros(4, int)
    examples = source(corpus)
    for step in range(40):
        batch = examples.batch(step, 20, slice(None))
        for row, document in enumerate(batch.document_ids):
            body, ends = corpus.bodies[document].tolist(), corpus.sentence_ends[document].tolist()
            starts = [0, *ends[:-1]]
            sentences = [body[start:end] for start, end in zip(starts, ends, strict=True)]
            (sentence,) = inside(batch.query.ids[row])
            title, rest = inside(batch.document.ids[row])
            assert title == corpus.titles[document].tolist()
            assert sentence in sentences
            without = [body[:start] + body[end:] for start, end in zip(starts, ends, strict=True)]
            if len(ends) == 1:
                assert rest == body  # never emptied
            elif rest == body:
                kept += 1
            else:
                number = sentences.index(sentence)
                assert rest == without[number] and rest
                numbers[number] += 1
                removed += 1
    assert removed + kept > 700 and removed / (removed + kept) == pytest.approx(0.9, abs=0.035)
    assert numbers[0] > 150 and numbers[1] > 150 and numbers[3] > 20


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 1)])
def test_rates_at_the_ends(corpus, rate, expected):
    batch = source(corpus, removal_rate=rate).batch(0, 40, slice(None))
    for row, document in enumerate(batch.document_ids):
        if len(corpus.sentence_ends[document]) > 1:
            assert (inside(batch.document.ids[row])[1] != corpus.bodies[document].tolist()) == expected


def test_a_batch_is_a_function_of_seed_step_and_row(corpus):
    whole = source(corpus).batch(5, 8, slice(None))
    part = source(corpus).batch(5, 8, slice(2, 6))
    for left, right in zip(
        (part.query.ids, part.document.ids, part.document.segment_ids, part.document_ids),
        (whole.query.ids, whole.document.ids, whole.document.segment_ids, whole.document_ids),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right[2:6])
    assert not np.array_equal(source(corpus, seed=1).batch(5, 8, slice(None)).query.ids, whole.query.ids)


def test_long_sentences_and_blocks_are_cut(corpus):
    batch = source(corpus, query_len=8, document_len=12).batch(0, 40, slice(None))
    assert batch.query.ids.shape == (40, 8) and batch.document.ids.shape == (40, 12)
    for ids in (*batch.query.ids, *batch.document.ids):
        assert ids[0] == 2 and ids[np.flatnonzero(ids)[-1]] == 3


def test_a_rate_that_is_no_share(corpus):
    with pytest.raises(ValueError, match=r"removal_rate must lie in \[0, 1\], got 1.1"):
        source(corpus, removal_rate=1.1)
