"""How well questions are answered: exact match and F1 by the official scorers, beside what retrieval brought the reader."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from realm_jax.answering import Answer, Answerer
from realm_jax.answering.documents import CorpusDocuments
from realm_jax.corpus.store import Corpus
from realm_jax.data.questions import Question
from realm_jax.evaluation.answer_scores import f1, is_correct
from realm_jax.evaluation.bm25 import Bm25Index
from realm_jax.retrieval.index import Index
from realm_jax.tasks.open_qa import OpenQa

_QUESTIONS_AT_ONCE = 16

Find = Callable[[Sequence[str], int], np.ndarray]


class Scores(NamedTuple):
    """Means over questions."""

    questions: int
    exact_match: float
    f1: float | None  # None where the references are regular expressions


def score(answers: Sequence[str], questions: Sequence[Question]) -> Scores:
    """Exact match (a match of the pattern where references are regular expressions) and F1 over the other questions.

    Raises:
      ValueError: without questions, or of a question without a reference.
    """
    if not questions:
        raise ValueError("no questions to score")
    right = [is_correct(answer, q.answers, q.is_regex) for answer, q in zip(answers, questions, strict=True)]
    overlaps = [f1(answer, q.answers) for answer, q in zip(answers, questions, strict=True) if not q.is_regex]
    return Scores(len(questions), float(np.mean(right)), float(np.mean(overlaps)) if overlaps else None)


def answer_all(answerer: Answerer, questions: Sequence[Question], find: Find | None = None) -> list[Answer]:
    """Answers every question, with a progress bar."""
    answers: list[Answer] = []
    with tqdm(total=len(questions), desc="answer", unit=" questions", mininterval=1.0) as bar:
        for first in range(0, len(questions), _QUESTIONS_AT_ONCE):
            part = questions[first : first + _QUESTIONS_AT_ONCE]
            answers += answerer.answer([question.text for question in part], find)
            bar.update(len(part))
    return answers


def evaluate_answering(
    task: OpenQa,
    params: Mapping[str, Any],
    corpus: Corpus,
    index: Index,
    questions: Sequence[Question],
    *,
    bm25: Bm25Index | None = None,
) -> tuple[dict[str, dict[str, Any]], list[Answer]]:
    """Exact match and F1 of a fine-tuned run, with its retriever and with BM25, and closed book.

    The rows:
      open_qa: the run's retriever, index and reader.
      bm25: the same reader over the documents that BM25 finds, weighed by the run's retriever.
      closed_book: the null document alone. A reader that extracts has nothing to extract from, so that this is 0 by
        construction; `nearest_question` is what can be had without documents.
      nearest_question: the first answer of the training question that the question encoder finds nearest (Lewis et al.
        2021, arXiv:2008.02637, section 4.2).

    Args:
      task: settings of the run.
      params: of its checkpoint.
      corpus: the knowledge corpus.
      index: of the corpus, embedded by the run's document encoder.
      questions: with references.
      bm25: an index of the corpus's words; None leaves that row out.

    Returns:
      (figures by row, the answers of the first row).
    """
    answerer = Answerer(
        CorpusDocuments(corpus),
        index,
        task.retriever,
        task.reader,
        params,
        query_len=task.query_len,
        joint_len=task.joint_len,
        num_read=task.num_read,
    )
    answers = answer_all(answerer, questions)
    rows = {"open_qa": score([answer.text for answer in answers], questions)._asdict()}
    if bm25 is not None:

        def find(texts: Sequence[str], num_read: int) -> np.ndarray:
            return bm25.search(list(texts), num_read).ids

        rows["bm25"] = score([answer.text for answer in answer_all(answerer, questions, find)], questions)._asdict()
    rows["closed_book"] = score([""] * len(questions), questions)._asdict()
    rows["nearest_question"] = score(
        nearest_question(answerer, task.training_questions(), questions), questions
    )._asdict()
    return rows, answers


def nearest_question(answerer: Answerer, known: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """For each question the first answer of the nearest known one, by inner product of unit question embeddings."""

    def unit(questions: Sequence[Question]) -> np.ndarray:
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


def answering_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as aligned text, in per cent."""
    label = max(map(len, rows))
    lines = [f"{next(iter(rows.values()))['questions']} questions", f"{'':{label}} |     EM     F1"]
    for name, row in rows.items():
        overlap = f"{'':>6}" if row["f1"] is None else f"{100 * row['f1']:6.1f}"
        lines.append(f"{name:{label}} | {100 * row['exact_match']:6.1f} {overlap}".rstrip())
    return "\n".join(lines)
