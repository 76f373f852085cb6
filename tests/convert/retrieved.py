"""What RealmRetriever does with the documents of a question, done by the functions that fine-tuning uses here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realm_jax.convert.block_corpus import write_block_corpus
from realm_jax.convert.block_records import write_block_records
from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_spans import AnswerFinder
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.data.open_qa import DocumentJoiner, OpenQaBatch, QuestionExamples
from realm_jax.data.questions import Question
from realm_jax.models import span_bounds
from realm_jax.text.word_piece import WordPieceTokenizer


def corpus_of(place: Path, texts: Sequence[str], tokenizer: WordPieceTokenizer) -> Corpus:
    """A corpus of a text a document, as the convert job makes one of RealmRetriever's records."""
    place.mkdir(parents=True, exist_ok=True)
    write_block_records(place / "block_records.jsonl", texts)
    return write_block_corpus(place / "corpus", place / "block_records.jsonl", tokenizer)


def join(
    corpus: Corpus,
    questions: Sequence[Question],
    document_ids: np.ndarray,
    embeds: np.ndarray,
    *,
    query_len: int,
    num_read: int,
    joint_len: int,
    max_span_width: int,
    whole_words: bool = False,
) -> OpenQaBatch:
    """The batch that a step of open QA would learn from, with answers inside longer words, as the port takes them."""
    pieces = [encoding.ids for encoding in corpus.tokenizer.encode_batch([question.text for question in questions])]
    assert max(map(len, pieces)) + 2 <= query_len
    query = query_inputs(pieces, query_len, SpecialIds.of(corpus.tokenizer))
    joiner = DocumentJoiner(
        corpus,
        AnswerFinder(corpus, whole_words=whole_words),
        num_read=num_read,
        joint_len=joint_len,
        max_span_width=max_span_width,
        document_len=joint_len,
        encode_read=False,
        num_hard_negatives=0,
    )
    return joiner(QuestionExamples(query, tuple(questions)), document_ids, embeds)


def check_retrieved(said: dict[str, Any], place: Path) -> dict[str, int]:
    """Compares the port's layout, answers and spans with ours.

    Args:
      said: what tests/parity/reference.py was asked, and beside each question what RealmRetriever made of it.
      place: for a corpus.

    Returns:
      How many documents, and of them how many hold an answer, hold one inside a longer word alone, hold one wider than
      a span, were cut, and hold an answer beyond the cut.
    """
    corpus = corpus_of(place, said["blocks"], WordPieceTokenizer(said["vocab"]))
    questions = [Question(one["question"], tuple(one["answers"])) for one in said["asked"]]
    documents = np.array([one["documents"] for one in said["asked"]], np.int64)
    length, width = said["max_length"], said["max_span_width"]
    shape = {"query_len": length - 1, "num_read": documents.shape[1], "joint_len": length, "max_span_width": width}
    embeds = np.zeros((*documents.shape, 1), np.float32)
    batch = join(corpus, questions, documents, embeds, **shape)
    whole_words = join(corpus, questions, documents, embeds, **shape, whole_words=True)
    starts, ends = span_bounds(length, width)
    query_lens = (batch.query.ids != 0).sum(axis=1)
    counts = dict.fromkeys(("documents", "answers", "inside_words", "too_wide", "cut", "beyond_the_cut"), 0)
    for row, theirs in enumerate(said["asked"]):
        used = len(theirs["input_ids"][0])  # the port pads to the longest
        for ours, name in zip(batch.joint, ("input_ids", "token_type_ids"), strict=True):
            np.testing.assert_array_equal(ours[row, :, :used], theirs[name], err_msg=theirs["question"])
            assert not ours[row, :, used:].any()
        for column, document in enumerate(documents[row]):
            spans = {(s, e) for s, e in zip(theirs["starts"][column], theirs["ends"][column], strict=True) if s >= 0}
            found = np.flatnonzero(batch.is_answer[row, column])
            short = {(s, e) for s, e in spans if e - s < width}
            assert {(int(starts[span]), int(ends[span])) for span in found} == short, (theirs["question"], document)
            was_cut = query_lens[row] + corpus.bodies.lengths(np.array([document]))[0] + 1 > length
            has_answer = bool(batch.has_answer[row, column])
            assert bool(spans) == theirs["has_answers"][column]
            # the port looks at what is left of a document, we at the whole of it
            assert has_answer == bool(spans) or (was_cut and has_answer), (theirs["question"], document)
            counts["documents"] += 1
            counts["answers"] += has_answer
            counts["inside_words"] += has_answer and not whole_words.has_answer[row, column]
            counts["too_wide"] += len(short) < len(spans)
            counts["cut"] += bool(was_cut)
            counts["beyond_the_cut"] += has_answer and not spans
    return counts
