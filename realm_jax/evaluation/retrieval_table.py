"""The figures of the evaluate job as text."""

from collections.abc import Mapping
from typing import Any

from realm_jax.evaluation.judging import NDCG_AT, RECALL_AT
from realm_jax.evaluation.queries import QuerySet
from realm_jax.evaluation.trec import MEASURES

_WIDTH = len(f"nDCG@{NDCG_AT}")
_RANKS = {f"recall_at_{k}": f"R@{k}" for k in RECALL_AT} | {"mrr": "MRR"}
_GROUPS = {  # title: heads of columns by the figures that they show
    "gold document": _RANKS | {f"ndcg_at_{NDCG_AT}": f"nDCG@{NDCG_AT}"},
    "contained answer": {f"answer_{figure}": head for figure, head in _RANKS.items()},
    "BEIR, by ir-measures": {f"beir {measure}": measure for measure in MEASURES},
}


def table(rows: Mapping[str, Mapping[str, Any]], query_set: QuerySet) -> str:
    """The figures as aligned text, in per cent; groups of columns that no row has are left out."""
    figures = {name: _flat(row) for name, row in rows.items()}
    groups = {
        title: columns
        for title, columns in _GROUPS.items()
        if any(figure in row for row in figures.values() for figure in columns)
    }
    label = max(len(_label(name, row)) for name, row in rows.items())
    causes = "; ".join(f"{count}: {cause}" for cause, count in query_set.dropped.items())
    lines = [f"{len(query_set.queries)} queries of {query_set.source}" + (f" ({causes})" if causes else "")]
    heads = [" ".join(f"{head:>{_WIDTH}}" for head in columns.values()) for columns in groups.values()]
    titles = (f"{title:^{len(head)}}" for title, head in zip(groups, heads, strict=True))
    lines.append(" | ".join([" " * label, *titles]).rstrip())
    lines.append(" | ".join([" " * label, *heads, "search recall"]))
    for name, row in figures.items():
        cells = [" ".join(_percent(row.get(figure)) for figure in columns) for columns in groups.values()]
        lines.append(" | ".join([f"{_label(name, row):{label}}", *cells, _percent(row.get("search_recall"))]).rstrip())
    return "\n".join(lines)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, **{f"beir {measure}": value for measure, value in row.get("beir", {}).items()}}


def _label(name: str, row: Mapping[str, Any]) -> str:
    if "version" in row:
        return f"{name} {row['version']}"
    return f"{name} {row['step']}" if "step" in row else name


def _percent(value: float | None) -> str:
    return " " * _WIDTH if value is None else f"{100 * value:{_WIDTH}.1f}"
