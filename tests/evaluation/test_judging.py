"""Rankings judged by gold document and by contained answer: figures by hand with a made-up search."""

import numpy as np
import pytest

from realm_jax.corpus.writer import make_corpus
from realm_jax.evaluation.judging import Judge, evaluate_rankings
from realm_jax.evaluation.queries import RetrievalQuery
from realm_jax.retrieval.index import SearchResult
from tests import tiny


def query(gold, answers):
    return RetrievalQuery("", np.zeros(1, np.int32), frozenset(gold), tuple(answers))


def test_figures_by_hand(tmp_path):
    # documents 0..5 state a town each; the last query has no gold document, the one before no answer
    towns = ["oslo", "rome", "bern", "kyiv", "lima", "cork"]
    corpus = make_corpus(
        tmp_path, [tiny.article("", [f"ann was born in {town} ."]) for town in towns], tiny.tokenizer(), with_text=False
    )
    queries = [query({0}, ["Oslo"]), query({1}, ["nowhere"]), query({2}, []), query(set(), ["cork"])]
    rankings = [[3, 0, 2], [1, 0, 2], [0, 1, 3], [5, 5, -1]]
    asked = []

    def search(part, num_results):
        asked.append((len(part), num_results))
        first = sum(count for count, _ in asked[:-1])
        ids = np.array(rankings[first : first + len(part)])
        return SearchResult(ids, np.zeros(ids.shape, np.float32))

    figures = evaluate_rankings(queries, search, Judge(corpus), recall_at=(1, 2, 3), batch_size=3)
    assert asked == [(3, 3), (1, 3)]
    assert figures == {
        "queries_with_gold": 3,
        "recall_at_1": pytest.approx(1 / 3),
        "recall_at_2": pytest.approx(2 / 3),
        "recall_at_3": pytest.approx(2 / 3),
        "mrr": pytest.approx((1 / 2 + 1 + 0) / 3),
        "ndcg_at_10": pytest.approx((1 / np.log2(3) + 1 + 0) / 3),
        "queries_with_answers": 3,
        "answer_recall_at_1": pytest.approx(1 / 3),  # cork alone
        "answer_recall_at_2": pytest.approx(2 / 3),
        "answer_recall_at_3": pytest.approx(2 / 3),
        "answer_mrr": pytest.approx((1 / 2 + 0 + 1) / 3),
    }
    asked.clear()
    by_gold = evaluate_rankings(queries, search, None, recall_at=(1,))
    assert by_gold == {
        "queries_with_gold": 3,
        "recall_at_1": pytest.approx(1 / 3),
        "mrr": pytest.approx(1 / 2),
        "ndcg_at_10": pytest.approx((1 / np.log2(3) + 1 + 0) / 3),
    }


def test_answers_that_are_regular_expressions(tmp_path):
    towns = ["oslo", "rome", "bern"]
    corpus = make_corpus(
        tmp_path, [tiny.article("", [f"ann was born in {town} ."]) for town in towns], tiny.tokenizer()
    )
    queries = [query(set(), answers)._replace(is_regex=True) for answers in (["R[aeiou]ME|x"], ["("], ["(", "b.rn"])]
    queries.append(query(set(), ["b.rn"]))  # a string, which stands in no text
    found = Judge(corpus).contains(np.array([[0, 1, -1], [0, 1, 2], [2, 2, 0], [0, 1, 2]]), queries)
    expected = [[False, True, False], [False] * 3, [True, False, True], [False] * 3]
    np.testing.assert_array_equal(found, expected)
