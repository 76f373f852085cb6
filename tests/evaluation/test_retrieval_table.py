"""The evaluate job's table."""

from realm_jax.evaluation.judging import RECALL_AT
from realm_jax.evaluation.queries import QuerySet
from realm_jax.evaluation.retrieval_table import table


def test_rows_and_groups_line_up():
    figures = {f"recall_at_{k}": k / 400 for k in RECALL_AT} | {"mrr": 0.5}
    by_answer = {f"answer_{name}": value / 2 for name, value in figures.items()}
    rows = {
        "bm25": figures | by_answer,
        "served_index": figures | {"version": 300, "step": 300, "search_recall": 0.987},
    }
    lines = table(rows, QuerySet([], "q.jsonl", {"gold passage not in the corpus": 3, "no answer": 1})).splitlines()
    assert lines[0] == "0 queries of q.jsonl (3: gold passage not in the corpus; 1: no answer)"
    assert lines[1].split("|")[1].strip() == "gold document" and lines[1].split("|")[2].strip() == "contained answer"
    cells = [line.split("|") for line in lines[1:]]
    assert [[len(cell) for cell in row[:2]] for row in cells] == [[len(cell) for cell in cells[0][:2]]] * 4
    assert cells[2][0].strip() == "bm25" and cells[2][1].split() == ["0.2", "1.2", "5.0", "25.0", "50.0"]
    assert cells[2][2].split() == ["0.1", "0.6", "2.5", "12.5", "25.0"]
    assert cells[3][0].strip() == "served_index 300" and cells[3][2].strip() == "" and cells[3][3].strip() == "98.7"


def test_figures_of_ir_measures_and_ndcg():
    rows = {
        "bm25": {"mrr": 0.5, "ndcg_at_10": 0.25, "beir": {"nDCG@10": 0.123, "R@100": 1.0, "AP@100": 0.2, "RR@10": 0.3}},
        "checkpoint": {"mrr": 0.5, "ndcg_at_10": 1.0, "step": 7},
    }
    lines = [line.split("|") for line in table(rows, QuerySet([], "fiqa", {}, {})).splitlines()[1:]]
    assert lines[0][2].strip() == "BEIR, by ir-measures" and lines[1][1].split()[-2:] == ["MRR", "nDCG@10"]
    assert lines[2][1].split() == ["50.0", "25.0"] and lines[2][2].split() == ["12.3", "100.0", "20.0", "30.0"]
    assert lines[3][1].split() == ["50.0", "100.0"] and lines[3][2].strip() == ""
    assert len({len(line[1]) for line in lines}) == 1 == len({len(line[2]) for line in lines[1:]})


def test_figures_by_answer_are_left_out_where_no_row_has_them():
    lines = table({"checkpoint": {"mrr": 1.0, "step": 20}}, QuerySet([], "x", {})).splitlines()
    assert (
        lines[0] == "0 queries of x"
        and "contained answer" not in lines[1]
        and lines[3].split() == ["checkpoint", "20", "|", "100.0", "|"]
    )
