"""What retrieval is measured with: masked sentences, or questions, each with what should be found."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32

from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.sources.tfds import PREFIX as TFDS_PREFIX
from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_patterns import contains_match
from realm_jax.data.masked_lm import MaskedSentences
from realm_jax.data.masking import MaskingConfig
from realm_jax.data.order import example_rng
from realm_jax.data.questions import Question, read_questions
from realm_jax.evaluation.answers import contains_answer, normalise_answer
from realm_jax.evaluation.trec import Judgements
from realm_jax.storage import as_place
from realm_jax.text.tokenizer import Tokenizer

Drawn = TypeVar("Drawn")

HELD_OUT, OWN, QUESTIONS = "held-out sentences", "the documents' own sentences", "questions"
GOLD_NOT_IN_CORPUS = "gold passage not in the corpus, kept for its answers"
_WHOLE_SENTENCE = 514  # pieces; sentences beyond are cut to a window around their mask


class RetrievalQuery(NamedTuple):
    """A query in words and in pieces, and what should be found for it."""

    text: str  # what BM25 sees: of a masked sentence the words outside the mask
    pieces: Int32[np.ndarray, "length"]  # what a retriever sees between [CLS] and [SEP]; masked pieces are [MASK]
    gold: frozenset[int]  # documents that should be found; empty if unknown
    answers: tuple[str, ...]  # strings that a found document should contain; empty if unknown
    is_regex: bool = False  # the answers are regular expressions
    id: str = ""  # that judgements know it by
    original: str = ""  # the question as its source has it, where that is another text

    @property
    def as_written(self) -> str:
        """The text as the source has it: what scorers know a question by."""
        return self.original or self.text


def question_query(question: Question, gold: frozenset[int], tokenizer: Tokenizer) -> RetrievalQuery:
    """The query of a question, cut into pieces."""
    pieces = np.asarray(tokenizer.encode(question.text).ids)
    return RetrievalQuery(
        question.text, pieces, gold, question.answers, question.is_regex, question.id, question.original
    )


class QuerySet(NamedTuple):
    """Queries, where they come from, rows that could not become queries by cause, and what they are, for headings."""

    queries: list[RetrievalQuery]
    source: str
    dropped: dict[str, int]
    kind: str = HELD_OUT
    judgements: Judgements | None = None  # graded, of documents by the ids of their sources (BEIR)


def masked_sentences(x_corpus: Corpus, max_queries: int | None = None, seed: int = 0) -> QuerySet:
    """The rows of a sentence stream apart from the documents as queries, the span that is the answer masked piece by piece, as in training.

    The masked span is the salient span that reads as one of the row's answers; where a row has no answer but a single
    salient span, that one.

    Args:
      x_corpus: its `gold_documents` are rows of the knowledge corpus.
      max_queries: that many rows, drawn without replacement; None for all.
      seed: of the draw.
    """
    rows = np.arange(x_corpus.num_documents)
    if max_queries is not None and max_queries < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_queries, replace=False))
    queries, unmasked = [], 0
    for row in rows.tolist():
        query = _masked_sentence(x_corpus, row)
        if query is None:
            unmasked += 1
        else:
            queries.append(query)
    return QuerySet(queries, str(x_corpus.directory), {"no span to mask": unmasked} if unmasked else {})


def _masked_sentence(x_corpus: Corpus, row: int) -> RetrievalQuery | None:
    tokenizer = x_corpus.tokenizer
    pieces = np.asarray(x_corpus.bodies[row], np.int32)
    spans = np.asarray(x_corpus.salient_spans[row], np.int32).reshape(-1, 2)
    answers = x_corpus.answers(row)
    span_texts = [tokenizer.decode(pieces[start:end]) for start, end in spans]
    wanted = {normalise_answer(answer) for answer in answers} - {""}
    matching = [i for i, text in enumerate(span_texts) if normalise_answer(text) in wanted]
    if not matching and x_corpus.info.has_blocks:  # pieces that decode to [UNK] still have their characters
        block = x_corpus.block(row)
        if len(block.salient_spans) == len(spans):
            span_texts = [block.text[start:end] for start, end in block.salient_spans]
            matching = [i for i, text in enumerate(span_texts) if normalise_answer(text) in wanted]
    if not matching and not answers and len(spans) == 1:
        matching = [0]
    if not matching:
        return None
    start, end = spans[matching[0]]
    masked = pieces.copy()
    masked[start:end] = tokenizer.mask_id
    gold = -1 if x_corpus.gold_documents is None else int(x_corpus.gold_documents[row])
    return RetrievalQuery(
        text=f"{tokenizer.decode(pieces[:start])} {tokenizer.decode(pieces[end:])}",
        pieces=masked,
        gold=frozenset([gold] if gold >= 0 else []),
        answers=answers or (span_texts[matching[0]],),
    )


def known_items(corpus: Corpus, max_queries: int | None = None, seed: int = 0) -> QuerySet:
    """Sentences of the corpus itself, one a document, a salient span masked: is their own document found?

    What can be measured on documents that come without questions. Easier than it sounds: the words of the sentence stand
    in the document.
    """
    masking = MaskingConfig()
    drawn = MaskedSentences(corpus, query_len=_WHOLE_SENTENCE, masking=masking, seed=seed, is_knowledge_corpus=True)
    rows = drawn.usable
    if max_queries is not None and max_queries < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_queries, replace=False))
    batch = drawn.mask(rows, [example_rng(seed, int(row)) for row in rows])
    queries = []
    for row, sentence, positions, weights in zip(
        rows.tolist(), batch.sentences, batch.mask_positions, batch.mask_weights, strict=True
    ):
        masked = sentence.copy()
        masked[positions[weights > 0] - 1] = corpus.tokenizer.mask_id
        text = corpus.tokenizer.decode(masked[masked != corpus.tokenizer.mask_id])
        queries.append(RetrievalQuery(text, masked, frozenset([row]), ()))
    return QuerySet(queries, f"{corpus.directory} (sentences of the documents themselves)", drawn.left_out, OWN)


def questions(
    source: str | Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    max_queries: int | None = None,
    seed: int = 0,
    answers_are_regex: bool | None = None,
) -> QuerySet:
    """Questions from any source that `realm_jax.data.questions` reads.

    A gold passage's id is the id of an article or passage. Of one that was cut into several documents, those that
    contain an answer are gold; all of them where none does (a cut went through the answer) or where no answer is given.
    The corpus may have other sources besides; an id that two of them use belongs to the first (the corpus job renames
    the other). A gold passage that is not in the corpus (another source, a duplicate of text already there) is counted
    among the queries that are drawn; its question is kept for its answers.

    Raises:
      ValueError: for a source that is not what its format says, naming file and line.
    """
    if not str(source).startswith(TFDS_PREFIX) and not as_place(source).is_file():
        raise ValueError(
            f"evaluate.questions: expected a file of questions, got {source}, which is "
            f"{'a folder' if as_place(source).is_dir() else 'not there'}; name one, or set evaluate.x_corpus to measure with "
            "sentences"
        )
    asked = read_questions(source, answers_are_regex=answers_are_regex)
    dropped = Counter(asked.dropped | asked.noted)
    found: list[RetrievalQuery] = []
    for question in drawn(asked.questions, max_queries, seed):
        gold = _gold_documents(corpus, question)
        if question.gold_passage is not None and not gold:
            dropped[GOLD_NOT_IN_CORPUS] += 1
        found.append(question_query(question, gold, tokenizer))
    return QuerySet(found, asked.source, dict(dropped), QUESTIONS)


def _gold_documents(corpus: Corpus, question: Question) -> frozenset[int]:
    documents = corpus.documents_of(question.gold_passage).tolist() if question.gold_passage is not None else []
    if len(documents) < 2:
        return frozenset(documents)
    contains = contains_match if question.is_regex else contains_answer
    answering = (d for d in documents if contains(document_text(corpus, d)[1], question.answers))
    return frozenset(answering) or frozenset(documents)


def drawn(queries: Sequence[Drawn], max_queries: int | None, seed: int) -> list[Drawn]:
    """At most that many, drawn without replacement, in their order; None for all."""
    if max_queries is None or max_queries >= len(queries):
        return list(queries)
    return [queries[i] for i in np.sort(np.random.default_rng(seed).choice(len(queries), max_queries, replace=False))]


def window(pieces: Int32[np.ndarray, "length"], room: int, mask_id: int) -> Int32[np.ndarray, "kept"]:
    """At most `room` pieces: of a longer query the part around its first mask, or its beginning if it has none."""
    if len(pieces) <= room:
        return pieces
    masks = np.flatnonzero(pieces == mask_id)
    start = max(0, min(int(masks[0]) - room // 2, len(pieces) - room)) if len(masks) else 0
    return pieces[start : start + room]


def texts_for_search(corpus: Corpus) -> Iterator[str]:
    """Title and text of every document in order: what BM25 indexes."""
    for document in range(corpus.num_documents):
        yield "\n".join(document_text(corpus, document))


def check_any(query_set: QuerySet) -> Sequence[RetrievalQuery]:
    """The queries.

    Raises:
      ValueError: when there are none.
    """
    if not query_set.queries:
        causes = "; ".join(f"{cause}: {count}" for cause, count in query_set.dropped.items()) or "it is empty"
        raise ValueError(f"{query_set.source} gives no queries ({causes})")
    return query_set.queries
