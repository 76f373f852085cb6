"""How well questions are answered: exact match and F1 by the official scorers, beside what retrieval brought the reader."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from realm_jax.answering import Answer
from realm_jax.answering.documents import CorpusDocuments
from realm_jax.answering.generating import ClosedBookAnswerer, GeneratingAnswerer
from realm_jax.answering.loading import Answering, answerer_of, check_learners, generator_of
from realm_jax.answering.retrieving import Find, RetrievingAnswerer, random_documents
from realm_jax.corpus.store import Corpus
from realm_jax.data.questions import Question
from realm_jax.evaluation.answer_scores import f1, is_correct
from realm_jax.evaluation.bm25 import Bm25Index
from realm_jax.evaluation.queries import RetrievalQuery
from realm_jax.evaluation.text_scores import check_packages, text_scores
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.index import Index
from realm_jax.run_dir import RunDir, write_json_atomically
from realm_jax.tasks.rag import Rag
from realm_jax.training.checkpoint import load_params

_QUESTIONS_AT_ONCE = 16
_RECALLS = {f"answer_recall_at_{k}": f"R@{k}" for k in (1, 5, 20)}  # heads of columns: by contained answer

Asked = Question | RetrievalQuery


class Scores(NamedTuple):
    """Means over questions."""

    questions: int
    exact_match: float
    f1: float | None  # None where the references are regular expressions
    rouge_l: float | None = None  # these two where they were asked for
    bleu: float | None = None


def score(answers: Sequence[str], questions: Sequence[Asked], texts: bool = False) -> Scores:
    """Exact match (a match of the pattern where references are regular expressions) and F1 over the other questions, with `texts`
    their ROUGE-L and BLEU, too.

    Raises:
      ValueError: without questions, or of a question without a reference.
    """
    if not questions:
        raise ValueError("no questions to score")
    right = [is_correct(answer, q.answers, q.is_regex) for answer, q in zip(answers, questions, strict=True)]
    overlaps = [f1(answer, q.answers) for answer, q in zip(answers, questions, strict=True) if not q.is_regex]
    scores = Scores(len(questions), float(np.mean(right)), float(np.mean(overlaps)) if overlaps else None)
    written = [(answer, q.answers) for answer, q in zip(answers, questions, strict=True) if not q.is_regex]
    if not texts or not written:
        return scores
    return scores._replace(**text_scores(*zip(*written, strict=True))._asdict())


def answer_all(
    answerer: RetrievingAnswerer | ClosedBookAnswerer, questions: Sequence[Asked], find: Find | None = None
) -> list[Answer]:
    """Answers every question, with a progress bar."""
    answers: list[Answer] = []
    with tqdm(total=len(questions), desc="answer", unit=" questions", mininterval=1.0) as bar:
        for first in range(0, len(questions), _QUESTIONS_AT_ONCE):
            part = questions[first : first + _QUESTIONS_AT_ONCE]
            answers += answerer.answer([question.text for question in part], find)
            bar.update(len(part))
    return answers


def evaluate_answering(
    task: Answering,
    params: Mapping[str, Any],
    corpus: Corpus,
    index: Index | None,
    questions: Sequence[Asked],
    *,
    bm25: Bm25Index | None = None,
    texts: bool = False,
    random_seed: int | None = None,
) -> tuple[dict[str, dict[str, Any]], list[Answer]]:
    """Exact match and F1 of a fine-tuned run, with its retriever and with BM25, and closed book.

    The rows:
      open_qa, or rag: the run's retriever, index and reader or generator.
      bm25: the same reader over the documents that BM25 finds, weighed by the run's retriever.
      random: over documents that are drawn at random: what harm those do that do not help.
      closed_book: the question alone. A reader that extracts has nothing to extract from, so that this is 0 by
        construction; `nearest_question` is what it can have without documents. A generator writes what it remembers.
      nearest_question: the first answer of the training question that the question encoder finds nearest (Lewis et al.
        2021, arXiv:2008.02637, section 4.2).

    Args:
      task: settings of the run.
      params: of its checkpoint.
      corpus: the knowledge corpus.
      index: of the corpus, embedded by the run's document encoder; None of a generator that was trained without documents.
      questions: with references.
      bm25: an index of the corpus's words; None leaves that row out.
      texts: score ROUGE-L and BLEU, too.
      random_seed: of documents drawn at random; None leaves that row out.

    Returns:
      (figures by row, the answers of the first row).
    """
    rows: dict[str, dict[str, Any]] = {}

    def measure(row: str, answerer: RetrievingAnswerer | ClosedBookAnswerer, find: Find | None = None) -> list[Answer]:
        answers = answer_all(answerer, questions, find)
        rows[row] = score([answer.text for answer in answers], questions, texts)._asdict()
        return answers

    if index is None:
        assert isinstance(task, Rag), task
        return rows, measure(task.name, ClosedBookAnswerer(generator_of(task, params)))
    answerer = answerer_of(task, params, CorpusDocuments(corpus), index)
    answers = measure(task.name, answerer)
    if bm25 is not None:
        measure("bm25", answerer, lambda texts, num_read: bm25.search(list(texts), num_read).ids)
    if random_seed is not None:
        measure("random", answerer, random_documents(corpus.num_documents, random_seed))
    if isinstance(answerer, GeneratingAnswerer):
        measure("closed_book", answerer.closed_book())
    else:
        rows["closed_book"] = score([""] * len(questions), questions, texts)._asdict()
    known = nearest_question(answerer, task.known_questions(), questions)
    rows["nearest_question"] = score(known, questions, texts)._asdict()
    return rows, answers


def nearest_question(answerer: RetrievingAnswerer, known: Sequence[Asked], asked: Sequence[Asked]) -> list[str]:
    """For each question the first answer of the nearest known one, by inner product of unit question embeddings."""

    def unit(questions: Sequence[Asked]) -> np.ndarray:
        parts = [
            answerer.embed([question.text for question in questions[first : first + 64]])
            for first in range(0, len(questions), 64)
        ]
        embeds = np.concatenate(parts)
        return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)

    plain = [question for question in known if not question.is_regex]
    if not plain:
        return [""] * len(asked)
    nearest = (unit(asked) @ unit(plain).T).argmax(axis=1)
    return [plain[number].answers[0] for number in nearest]


def check_answering(
    run: RunDir,
    retriever: RetrieverConfig | None,
    task: Answering,
    questions: str | tuple[str, ...] | None,
    texts: bool = False,
) -> None:
    """Refuses what cannot be answered with, before anything is loaded.

    Raises:
      ValueError: no questions, another retriever than the task's, or a run without a span reader.
      FileNotFoundError: the run has no checkpoint.
    """
    if questions is None:
        raise ValueError(
            "evaluate.answering expects questions, got sentences to mask; set evaluate.questions, and x_corpus to None"
        )
    if texts:
        check_packages()
    alone = "retriever" not in task.learners
    if retriever != (None if alone else task.retriever):
        raise ValueError(
            "evaluate.retriever must be None for a generator without documents"
            if alone
            else "evaluate.retriever and the retriever of evaluate.answering differ; give both the run's"
        )
    check_learners(run, task)


def answer_queries(
    run: RunDir,
    name: str,
    task: Answering,
    corpus: Corpus,
    index: Index | None,
    queries: Sequence[RetrievalQuery],
    *,
    step: int | None,
    retrieval: Mapping[str, Mapping[str, Any]],
    bm25: Bm25Index | None,
    texts: bool = False,
    random_seed: int | None = None,
) -> dict[str, Any]:
    """`evaluate_answering` with a run's checkpoint, over the queries that have answers, written down and printed.

    Args:
      run: its figures go to RUN/evaluation/NAME-answers.json, with every prediction.
      name: of the evaluation.
      task: settings of the run.
      corpus: the knowledge corpus.
      index: that is served; None of a generator without documents.
      queries: questions.
      step: of the checkpoint; None for the newest.
      retrieval: by row, what is known of the documents that the reader gets: how often they hold an answer, the version of
        the index and its search recall.
      bm25: index of the corpus's words, or None.
      texts: score ROUGE-L and BLEU, too.
      random_seed: of documents drawn at random, which get a row; None: they get none.

    Raises:
      ValueError: when no question has an answer.
    """
    asked = [query for query in queries if query.answers]
    if not asked:
        raise ValueError(f"no question of {name} has an answer to compare with; set evaluate.answering to None")
    found, params = load_params(run, step)
    rows, answers = evaluate_answering(
        task, params, corpus, index, asked, bm25=bm25, texts=texts, random_seed=random_seed
    )
    predictions = [
        {"question": q.as_written, "prediction": a.text, "answer": list(q.answers)}
        for q, a in zip(asked, answers, strict=True)
    ]
    for row, known in retrieval.items():
        if row in rows:
            rows[row] |= {
                figure: known[figure] for figure in (*_RECALLS, "version", "search_recall") if figure in known
            }
    figures = {"name": name, "step": found, "rows": rows}
    write_json_atomically(run.evaluation(f"{name}-answers"), {**figures, "predictions": predictions})
    print(answering_table(rows))
    return figures


def answering_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as aligned text, in per cent: answers, how often the documents found hold one, and the index searched.

    A row that was searched exactly in documents embedded for the evaluation has no version.
    """
    label = max(map(len, rows))
    more = {"rouge_l": "RougeL", "bleu": "BLEU"} if any(row.get("bleu") is not None for row in rows.values()) else {}
    heads = "".join(f"{head:>7}" for head in more.values())
    lines = [
        f"{next(iter(rows.values()))['questions']} questions answered",
        f"{'':{label}} |     EM     F1{heads} |{''.join(f'{head:>7}' for head in _RECALLS.values())} | index search recall",
    ]
    for name, row in rows.items():
        texts = "".join(_percent(row.get(figure), 7) for figure in more)
        recalls = "".join(_percent(row.get(figure), 7) for figure in _RECALLS)
        version = str(row["version"]) if "version" in row else ("none" if name in ("open_qa", "rag", "ra_dit") else "")
        lines.append(
            f"{name:{label}} | {_percent(row['exact_match'], 6)} {_percent(row['f1'], 6)}{texts} |{recalls} | {version:>5} "
            f"{_percent(row.get('search_recall'), 13)}".rstrip()
        )
    return "\n".join(lines)


def _percent(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{100 * value:{width}.1f}"
