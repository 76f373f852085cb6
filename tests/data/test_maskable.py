"""Spans that can be masked: against a loop over documents, sentences and spans."""

import numpy as np

from realm_jax.corpus.blocks import PieceRows
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import CorpusWriter
from realm_jax.data.maskable import is_maskable, maskable_documents
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
