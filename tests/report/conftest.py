"""A run directory with plausible figures, as a finished run leaves it."""

import json
import math
import random

import pytest

from realm_jax.run_dir import RunDir, write_json_atomically

HOSTILE = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;'\"{{ 7*7 }}"

FIGURES = {
    "recall_at_1": {"bm25": 0.412, "ict": 0.226, "realm": 0.582},
    "recall_at_5": {"bm25": 0.633, "ict": 0.383, "realm": 0.64},
    "recall_at_20": {"bm25": 0.741, "ict": 0.471, "realm": 0.735},
    "masked_span_accuracy": {"bm25": None, "ict": 0.025, "realm": 0.298, "null_only": 0.004},
    "retrieval_utility": 1.314,
    "index_versions_served": 24,
    "swap_pause_ms_max": 11.4,
    "index_age_steps_max": 41,
    "step_secs_median": 0.912,
    "retrieval_wait_share": 0.013,
    "search_recall": 0.997,
    "corpus": {"documents": 2000, "pieces": 121_480},
    "seed": 0,
    "wall_secs": 734.2,
}


def make_run(path, num_steps=450):
    run = RunDir(path)
    rng = random.Random(0)
    run.metrics.mkdir(parents=True)
    lines, swaps, version = [], [], 0
    for step in range(5, num_steps + 1, 5):
        if step % 20 == 0 and step > 60:
            version = step - 15
            swaps.append({"step": step, "version": version, "pause_ms": rng.uniform(1, 9), "load_secs": 0.1})
        done = 1 - math.exp(-step / 150)
        lines.append(
            {
                "step": step,
                "time": 1.79e9 + step,
                "loss": 6.5 - 3.4 * done + rng.gauss(0, 0.25),
                "learning_rate": 1e-3 * min(1, step / 60) * (1 - step / num_steps),
                "grad_norm": abs(rng.gauss(1.5, 0.4)),
                "retrieval_utility": 1.4 * done + rng.gauss(0, 0.12),
                "null_document_prob": 0.03 + 0.12 * math.exp(-step / 90) + abs(rng.gauss(0, 0.01)),
                "retrieval_entropy": 1.5 - 0.8 * done + rng.gauss(0, 0.05),
                "gold_selected": min(1, 0.35 + 0.3 * done + rng.gauss(0, 0.04)),
                "gold_prob": min(1, 0.1 + 0.4 * done + rng.gauss(0, 0.04)),
                "index_version": version,
                "index_age_steps": step - version,
                "index_age_secs": 0.9 * (step - version),
                "swap_pause_ms": swaps[-1]["pause_ms"] if swaps and swaps[-1]["step"] == step else 0.0,
                "search_ms": rng.uniform(4, 9),
                "retrieval_wait_ms": rng.uniform(0, 12) if step % 35 == 0 else 0.0,
                "step_secs": rng.uniform(0.88, 0.97),
                "examples_per_sec": rng.uniform(16, 18),
                "mfu": 0.31,
            }
        )
        if step % 50 == 0:
            recalls = {f"heldout_recall_at_{k}": base + 0.35 * done for k, base in ((1, 0.22), (5, 0.3), (20, 0.4))}
            lines.append({"step": step, "time": 1.79e9 + step, **recalls})
    lines[3]["grad_norm"] = "NaN"
    run.metrics_jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 999, "lo')
    (run.metrics / "swaps.jsonl").write_text("".join(json.dumps(swap) + "\n" for swap in swaps))
    for stage in ("ict", "reader"):
        place = run.stage(stage)
        place.metrics.mkdir(parents=True)
        entries = [{"step": s, "loss": 4 * math.exp(-s / 200) + rng.gauss(0, 0.1)} for s in range(10, 600, 10)]
        place.metrics_jsonl.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for number in (420, 435):
        shards = [{"name": "shard-00000-of-00001", "files": [{"path": "embeddings.npy", "bytes": 1_024_128}]}]
        manifest = {"version": number, "num_documents": 2000, "backend": "scann", "shards": shards}
        manifest |= {"search_recall": 0.997, "build_secs": 1.94}
        write_json_atomically(run.index_version(number) / "manifest.json", manifest)
    row = {"step": 450, "queries_with_gold": 1000, "recall_at_1": 0.582, "recall_at_5": 0.64, "recall_at_20": 0.735}
    row |= {"recall_at_100": 0.81, "mrr": 0.61, "answer_recall_at_1": 0.6, "answer_mrr": 0.63}
    served = row | {"version": 435, "search_recall": 0.997, "recall_at_1": 0.571}
    content = {"name": "retrieval", "queries": {"source": "corpus/x_heldout", "count": 1000, "dropped": {}}}
    content["rows"] = {"bm25": {k: v for k, v in row.items() if k != "step"}, "checkpoint": row, "served_index": served}
    write_json_atomically(run.evaluation("retrieval"), content)
    body = "Marel Tondrin was an engineer from Ostaven. Tondrin joined the Halvik works in 1871 and left it in 1880. "
    examples = []
    for number in range(3):
        right = number != 1
        probabilities = [0.03, 0.71, 0.19, 0.05, 0.02]
        candidates = [
            {
                "document": -1 if i == 0 else 100 + i,
                "title": "" if i == 0 else ["Marel Tondrin", "Halvik works", HOSTILE, "Ostaven"][i - 1],
                "text": "" if i == 0 else body * (5 if i == 1 else 1),
                "probability": p,
                "log_prob": -0.4 - i,
                "prediction": ["1902", "1871", "1880", "Halvik", HOSTILE][i],
                "is_gold": i == 1,
            }
            for i, p in enumerate(probabilities)
        ]
        examples.append(
            {
                "masked_sentence": "In [MASK] the engineer M. Tondrin, schooled in Ostaven, took up work at Halvik. "
                + (HOSTILE if number == 2 else ""),
                "answer": "1871",
                "prediction": "1871" if right else "1880",
                "null_prediction": "1902",
                "candidates": candidates,
            }
        )
    write_json_atomically(run.path / "examples.json", examples)
    run.config_file("train").write_text("from __gin__ import dynamic_registration\n\nloop.train.num_steps = 450\n")
    write_json_atomically(run.report_json, FIGURES)
    return run


@pytest.fixture
def finished_run(tmp_path):
    return make_run(tmp_path / "pretrain")
