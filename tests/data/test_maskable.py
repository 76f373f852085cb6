"""Spans that can be masked: against a loop over documents, sentences and spans."""

import numpy as np

from realm_jax.corpus.blocks import PieceRows
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import CorpusWriter
from realm_jax.data.maskable import is_maskable, maskable_documents, repeats_elsewhere
from tests import tiny


def random_corpus(directory, num_documents, rng):
    """Documents of 1 to 40 pieces with 1 to 4 sentences (some of no piece) and up to 3 disjoint spans."""
    body_lengths = rng.integers(1, 41, num_documents)
    ends = [np.append(np.sort(rng.integers(0, n + 1, rng.integers(0, 4))), n) for n in body_lengths]
    spans = []
    for n in body_lengths:
        cuts = np.unique(rng.integers(0, n + 1, 2 * rng.integers(0, 4)))
        spans.append(cuts[: len(cuts) // 2 * 2].reshape(-1, 2))
    rows = PieceRows(
        titles=np.zeros(0, np.int32),
        title_lengths=np.zeros(num_documents, np.int64),
        bodies=np.full(body_lengths.sum(), 5, np.int32),
        body_lengths=body_lengths,
        sentence_ends=np.concatenate(ends).astype(np.int32),
        sentence_counts=np.array([len(row) for row in ends]),
        salient_spans=np.concatenate(spans).astype(np.int32),
        span_counts=np.array([len(row) for row in spans]),
    )
    with CorpusWriter(directory, tiny.tokenizer(), block_len=40) as writer:
        writer.add(rows, [str(number) for number in range(num_documents)])
        writer.finish()
    return Corpus.open(directory), ends, spans


def by_hand(ends, spans, longest):
    starts = [0, *ends[:-1]]
    return [
        end - start <= longest and any(s <= start and end <= e for s, e in zip(starts, ends, strict=True))
        for start, end in spans.tolist()
    ]


def test_against_a_loop(tmp_path):
    corpus, ends, spans = random_corpus(tmp_path, 300, np.random.default_rng(0))
    for longest, min_sentences in ((3, 1), (8, 2), (40, 1)):
        expected = [by_hand(e, s, longest) for e, s in zip(ends, spans, strict=True)]
        for document in range(300):
            found = is_maskable(corpus.salient_spans[document], corpus.sentence_ends[document], longest)
            assert found.tolist() == expected[document]
        found = maskable_documents(corpus, longest, min_sentences, at_once=37)
        enough = [len(row) >= min_sentences for row in ends]
        usable = [document for document in range(300) if any(expected[document]) and enough[document]]
        assert found.ids.tolist() == usable and 20 < len(usable) < 300
        none = sum(not len(row) for row in spans)
        few = sum(len(row) > 0 and not more for row, more in zip(spans, enough, strict=True))
        causes = {
            "no salient span": none,
            f"fewer than {min_sentences} sentences": few,
            f"no salient span of at most {longest} pieces within a sentence": 300 - len(usable) - none - few,
        }
        assert found.left_out == {cause: count for cause, count in causes.items() if count}
        assert found.ids.tolist() == maskable_documents(corpus, longest, min_sentences).ids.tolist()


def test_a_corpus_without_documents_has_none(tmp_path):
    rows = maskable_documents(random_corpus(tmp_path, 1, np.random.default_rng(3))[0], 40, min_sentences=9)
    assert rows.ids.tolist() == [] and sum(rows.left_out.values()) == 1


def test_repeated_spans_against_a_loop():
    """Random spans over three kinds of pieces, so that many are the same, in one sentence or in several."""
    rng = np.random.default_rng(3)
    pieces = rng.integers(5, 8, 6000)
    starts = np.sort(rng.choice(5990, 1500, replace=False))
    spans = np.stack([starts, starts + rng.integers(1, 7, 1500)], axis=1)
    documents, sentences = starts // 60, starts // 15
    keys = [(d, tuple(pieces[s:e])) for d, (s, e) in zip(documents.tolist(), spans.tolist(), strict=True)]
    expected = [
        any(other == key and sentences[j] != sentences[i] for j, other in enumerate(keys)) for i, key in enumerate(keys)
    ]
    assert 100 < sum(expected) < 1200
    order = rng.permutation(1500)  # spans in any order
    found = repeats_elsewhere(spans[order], documents[order], sentences[order], pieces)
    assert found.tolist() == [expected[i] for i in order]
    assert repeats_elsewhere(spans[:0], documents[:0], sentences[:0], pieces).tolist() == []


def test_documents_that_repeat_no_span_are_counted(tmp_path):
    corpus, ends, _ = random_corpus(tmp_path / "corpus", 200, np.random.default_rng(0))
    all_of_them = maskable_documents(corpus, 6, min_sentences=2)
    some = maskable_documents(corpus, 6, min_sentences=2, repeated=True, at_once=64)
    assert 0 < len(some.ids) < len(all_of_them.ids) and set(some.ids) <= set(all_of_them.ids)
    missing = len(all_of_them.ids) - len(some.ids)
    assert some.left_out["no salient span that another sentence repeats"] == missing
    for document in some.ids.tolist():  # all pieces are alike there: equal lengths are equal spans
        spans = corpus.salient_spans[document]
        spans = spans[is_maskable(spans, ends[document], 6)]
        places = {(e - s, int(np.searchsorted(ends[document], s, side="right"))) for s, e in spans.tolist()}
        lengths = [length for length, _ in places]
        assert len(set(lengths)) < len(lengths)
