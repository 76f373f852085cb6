"""The figures of a few-shot evaluation as text."""

from collections.abc import Mapping
from typing import Any

_HEADS = {"accuracy": "acc.", "exact_match": "EM", "f1": "F1", "hotpot_f1": "F1", "rouge_l": "RougeL"}
_WIDTH = len("100.0 ± 10.0")


def few_shot_table(rows: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """The figures as aligned text, in per cent with standard errors; what was cut stands below."""
    heads = list(dict.fromkeys(_HEADS[metric] for row in rows.values() for metric in row["mean"]))
    by_subject = any("macro" in row for row in rows.values())
    label = max(map(len, rows))
    columns = [*heads, *(["by subject"] if by_subject else [])]
    lines = [
        title,
        f"{'':{label}} | questions | {' '.join(f'{head:>{_WIDTH}}' for head in columns)}",
    ]
    for name, row in rows.items():
        known = {_HEADS[metric]: value for metric, value in row["mean"].items()}
        known |= {"by subject": next(iter(row["macro"].values()))} if "macro" in row else {}
        cells = " ".join(_cell(known.get(head)) for head in columns)
        lines.append(f"{name:{label}} | {row['questions']:9} | {cells}".rstrip())
    for name, row in rows.items():
        if "reference_nll" in row:
            nll = row["reference_nll"]
            error = "" if nll["standard_error"] is None else f" ± {nll['standard_error']:.2f}"
            lines.append(f"{name}: −log p of the first reference {nll['mean']:.2f}{error} nats")
    for name, row in rows.items():
        causes = {**row["cut"], **row["dropped"], **row["noted"]}
        if causes:
            lines.append(f"{name}: " + "; ".join(f"{count}: {cause}" for cause, count in causes.items()))
    return "\n".join(lines)


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return " " * _WIDTH
    error = value["standard_error"]
    return f"{100 * value['mean']:{_WIDTH - 7}.1f}" + (" " * 7 if error is None else f" ± {100 * error:4.1f}")
