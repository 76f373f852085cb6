"""BEIR folders (arXiv:2104.08663): queries with graded judgements, and rankings of documents as BEIR ranks them.

    FOLDER/corpus.jsonl         {"_id", "title", "text"} a line; the corpus job reads it
    FOLDER/queries.jsonl        {"_id", "text"} a line, those of all splits
    FOLDER/qrels/SPLIT.tsv      a header, then query id, document id and judgement between tabs

The corpus may have cut a document into several blocks; the document then has the rank of its best block.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realm_jax.corpus.sources.beir_folder import beir_file, is_beir_folder
from realm_jax.corpus.store import Corpus
from realm_jax.data.question_formats.lines import question_lines
from realm_jax.data.question_formats.question import Question, QuestionFilter, shortened
from realm_jax.evaluation.judging import SearchFunction
from realm_jax.evaluation.queries import QUESTIONS, QuerySet, RetrievalQuery, drawn, question_query
from realm_jax.evaluation.trec import Judgements, RankedDocument, Run, strictly_descending
from realm_jax.storage import RemotePath, as_place, copy_of, fetch
from realm_jax.text.tokenizer import Tokenizer

DEPTH = 100  # documents ranked for a query
NOT_AMONG_QUERIES = "judged query that queries.jsonl does not have"
NOT_IN_CORPUS = "relevant document that is not in the corpus"


def qrels_of(source: str | Path) -> Path | None:
    """The judgements that are meant by a BEIR folder (its test split) or by one of its qrels files; None for others.

    Raises:
      ValueError: for a folder without a test split, naming those that it has.
    """
    place = as_place(source)
    if isinstance(place, RemotePath):
        fetch(place.parent.parent if place.parent.name == "qrels" else place)
    path = copy_of(place)
    if path.parent.name == "qrels" and is_beir_folder(path.parent.parent):
        return path
    if not is_beir_folder(path):
        return None
    test = path / "qrels" / "test.tsv"
    if not test.is_file():
        others = sorted(str(file) for file in (path / "qrels").glob("*.tsv"))
        raise ValueError(
            f"{path} has no qrels/test.tsv; name one of its qrels files instead: {others or 'it has none'}"
        )
    return test


def beir_queries(
    qrels: Path, corpus: Corpus, tokenizer: Tokenizer, max_queries: int | None = None, seed: int = 0
) -> QuerySet:
    """The judged queries of a split. Gold documents are all blocks of the documents judged above 0.

    Their texts pass what all questions pass (`QuestionFilter`); those that do not are counted by cause.

    Raises:
      ValueError: for a line of queries or judgements of another form, naming file and line.
    """
    judgements, texts = read_qrels(qrels), read_queries(beir_file(qrels.parent.parent, "queries"))
    dropped: Counter[str] = Counter()

    def count(cause: str) -> None:
        dropped[cause] += 1

    keep = QuestionFilter(count, count)
    found = []
    for query_id, judged in judgements.items():
        if query_id not in texts:
            count(NOT_AMONG_QUERIES)
            continue
        question = keep.question(Question(texts[query_id], id=query_id))
        if question is None:
            continue
        relevant = [corpus.documents_of(document).tolist() for document, value in judged.items() if value > 0]
        for blocks in relevant:
            if not blocks:
                count(NOT_IN_CORPUS)
        gold = frozenset(block for blocks in relevant for block in blocks)
        found.append(question_query(question, gold, tokenizer))
    queries = drawn(found, max_queries, seed)
    of_drawn = {query.id: judgements[query.id] for query in queries}
    return QuerySet(queries, str(qrels), dict(dropped), QUESTIONS, of_drawn)


def read_qrels(path: Path) -> Judgements:
    """Judgements by query and document.

    Raises:
      ValueError: for a line of another form, naming file and line.
    """
    judgements: Judgements = {}
    for number, line in question_lines(path, lambda cause: _refuse(path, cause)):
        columns = line.split("\t")
        if number == 1 and columns[-1].strip() == "score":
            continue
        try:
            query, document, value = columns
            if len(query.split()) != 1 or len(document.split()) != 1:  # TREC's files have spaces between columns
                raise ValueError
            judgements.setdefault(query, {})[document] = int(value)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: expected query id, document id and judgement between tabs, got {shortened(line)}"
            ) from error
    return judgements


def read_queries(path: Path) -> dict[str, str]:
    """Texts of queries by id.

    Raises:
      ValueError: for a line of another form, naming file and line.
    """
    texts = {}
    for number, line in question_lines(path, lambda cause: _refuse(path, cause)):
        try:
            record: Any = json.loads(line)
            query, text = record["_id"], record["text"]
            if not isinstance(query, str | int) or not isinstance(text, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f'{path}, line {number}: expected {{"_id", "text"}}, got {shortened(line)}') from error
        texts[str(query)] = text
    return texts


def rank_documents(
    queries: Sequence[RetrievalQuery], search: SearchFunction, corpus: Corpus, depth: int = DEPTH, batch_size: int = 256
) -> Run:
    """The best documents of each query by the score of their best block, as many as `depth`.

    A document whose id is the query's own is left out, as BEIR does (ArguAna's queries are documents). Of blocks so many
    are searched that `depth` documents come together, or there are no more.
    """
    run: Run = {}
    for first in range(0, len(queries), batch_size):
        part = queries[first : first + batch_size]
        num_results = min(depth, corpus.num_documents)
        while True:
            found = search(part, num_results)
            rankings = [
                _documents(query, ids, scores, corpus, depth)
                for query, ids, scores in zip(part, found.ids, found.scores, strict=True)
            ]
            enough = (len(ranking) >= depth or ids[-1] < 0 for ranking, ids in zip(rankings, found.ids, strict=True))
            if num_results == corpus.num_documents or all(enough):
                break
            num_results = min(2 * num_results, corpus.num_documents)
        run |= {query.id: strictly_descending(ranking) for query, ranking in zip(part, rankings, strict=True)}
    return run


def _documents(
    query: RetrievalQuery, ids: np.ndarray, scores: np.ndarray, corpus: Corpus, depth: int
) -> list[RankedDocument]:
    best: dict[str, float] = {}
    for document, score in zip(ids.tolist(), scores.tolist(), strict=True):
        if document < 0 or len(best) == depth:
            break
        source = corpus.source_id(document)
        if source != query.id:
            best.setdefault(source, score)
    return [RankedDocument(*item) for item in best.items()]


def _refuse(path: Path, cause: str) -> None:
    raise ValueError(f"{path} holds a line that cannot be read: {cause}; get it again")
