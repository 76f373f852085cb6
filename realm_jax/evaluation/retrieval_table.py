"""The figures of the evaluate job as text."""

from collections.abc import Mapping
from typing import Any

from realm_jax.evaluation.judging import RECALL_AT
from realm_jax.evaluation.queries import QuerySet


def table(rows: Mapping[str, Mapping[str, Any]], query_set: QuerySet) -> str:
    """The figures as aligned text, in per cent; a row's gold figures left, its answer figures right."""
    kinds = [("", "gold document"), ("answer_", "contained answer")]
    kinds = [(prefix, title) for prefix, title in kinds if any(f"{prefix}mrr" in row for row in rows.values())]
    columns = [f"recall_at_{k}" for k in RECALL_AT] + ["mrr"]
    heads = [f"R@{k}" for k in RECALL_AT] + ["MRR"]
    label = max(len(_label(name, row)) for name, row in rows.items())
    groups = " | ".join(f"{title:^{7 * len(columns) - 1}}" for _, title in kinds)
    names = " | ".join(" ".join(f"{head:>6}" for head in heads) for _ in kinds)
    causes = "; ".join(f"{count}: {cause}" for cause, count in query_set.dropped.items())
    lines = [f"{len(query_set.queries)} queries of {query_set.source}" + (f" ({causes})" if causes else "")]
    lines.append(f"{'':{label}} | {groups}")
    lines.append(f"{'':{label}} | {names} | search recall")
    for name, row in rows.items():
        cells = " | ".join(" ".join(_percent(row.get(prefix + column)) for column in columns) for prefix, _ in kinds)
        lines.append(f"{_label(name, row):{label}} | {cells} | {_percent(row.get('search_recall'))}".rstrip())
    return "\n".join(lines)


def _label(name: str, row: Mapping[str, Any]) -> str:
    if "version" in row:
        return f"{name} {row['version']}"
    return f"{name} {row['step']}" if "step" in row else name


def _percent(value: float | None) -> str:
    return f"{'':>6}" if value is None else f"{100 * value:6.1f}"
