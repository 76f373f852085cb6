"""From a run directory written by hand to the figures of report.json."""

import json
import os
import time

import pytest

from realm_jax.report import report
from realm_jax.report.assemble import assemble, table
from realm_jax.report.figures import check_figures
from realm_jax.run_dir import RunDir, write_json_atomically

METRICS = [
    {"step": 1, "index_version": 0, "swap_pause_ms": 0.0, "index_age_steps": 0, "retrieval_wait_ms": 0.0},
    {"step": 2, "index_version": 0, "swap_pause_ms": 0.0, "index_age_steps": 1, "retrieval_wait_ms": 30.0},
    {"step": 3, "index_version": 2, "swap_pause_ms": 4.5, "index_age_steps": 0, "retrieval_wait_ms": 0.0},
    {"step": 4, "index_version": 2, "swap_pause_ms": 0.0, "index_age_steps": 1, "retrieval_wait_ms": 0.0},
    {"step": 5, "index_version": 4, "swap_pause_ms": 7.25, "index_age_steps": 3, "retrieval_wait_ms": 10.0},
]
SWAPS = [  # step 2 is the third: the line of metrics after it says 3
    {"step": 0, "version": 0, "pause_ms": 0.0, "load_secs": 0.1},
    {"step": 2, "version": 2, "pause_ms": 4.5, "load_secs": 0.1},
    {"step": 4, "version": 4, "pause_ms": 7.25, "load_secs": 0.1},
]
STEP_SECS = [None, 0.5, 0.75, 0.5, 0.25]  # the first step compiles and is not timed


def recalls(*figures):
    return dict(zip(("recall_at_1", "recall_at_5", "recall_at_20"), figures, strict=True))


def write_swaps(run, swaps):
    (run.metrics / "swaps.jsonl").write_text("".join(json.dumps(swap) + "\n" for swap in swaps))


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "run")
    run.metrics.mkdir(parents=True)
    now = time.time()
    lines = [
        m | ({"step_secs": s} if s is not None else {}) | {"time": now + m["step"]}
        for m, s in zip(METRICS, STEP_SECS, strict=True)
    ]
    run.metrics_jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_swaps(run, SWAPS)
    rows = {
        "bm25": recalls(0.1, 0.2, 0.3),
        "ict": recalls(0.11, 0.21, 0.31),
        "checkpoint": recalls(0.4, 0.5, 0.6),
        "served_index": recalls(0.39, 0.49, 0.59) | {"search_recall": 0.998, "version": 4},
    }
    corpus = {"directory": str(run.corpus), "documents": 12}
    asked = {"kind": "held-out sentences", "source": "x_heldout", "count": 9, "dropped": {}}
    write_json_atomically(run.evaluation("retrieval"), {"queries": asked, "rows": rows, "corpus": corpus})
    spans = {
        "realm": {"with_retrieval": 0.7, "null_only": 0.05, "retrieval_utility": 1.5},
        "ict": {"with_retrieval": 0.2, "null_only": 0.04, "retrieval_utility": 0.5},
        "bm25": {"with_retrieval": 0.3, "null_only": 0.05, "retrieval_utility": 0.7},
    }
    write_json_atomically(run.evaluation("reading"), {"rows": spans})
    write_json_atomically(run.corpus / "corpus.json", {"num_documents": 12, "num_pieces": 345})
    run.config_file("train").write_text("import realm_jax.training.loop as loop\nloop.train.seed = 7\n")
    run.config_file("corpus").write_text("")
    begun = time.time() - 100
    os.utime(run.config_file("corpus"), (begun, begun))
    return run


def test_the_figures(run):
    figures = assemble(run)
    check_figures(figures)
    assert figures["recall_at_1"] == {"bm25": 0.1, "ict": 0.11, "realm": 0.4}
    assert figures["recall_at_5"] == {"bm25": 0.2, "ict": 0.21, "realm": 0.5}
    assert figures["recall_at_20"] == {"bm25": 0.3, "ict": 0.31, "realm": 0.6}
    assert figures["masked_span_accuracy"] == {"bm25": 0.3, "ict": 0.2, "realm": 0.7, "null_only": 0.05}
    assert figures["retrieval_utility"] == 1.5
    assert figures["index_versions_served"] == 3  # 0, 2, 4
    assert figures["swap_pause_ms_max"] == 7.25
    assert figures["index_age_steps_max"] == 3
    assert figures["step_secs_median"] == 0.5
    assert figures["step_secs_max_over_median_at_swaps"] == 1.5  # step 3: 0.75 s
    assert figures["retrieval_wait_share"] == pytest.approx((0.040 / 5) / 0.5)
    assert (figures["search_recall"], figures["served_index_version"]) == (0.998, 4)
    assert figures["corpus"] == {"documents": 12, "pieces": 345} and figures["seed"] == 7
    assert 100 <= figures["wall_secs"] < 160
    assert figures["evaluated_on"] == "held-out sentences"


def test_sentences_of_the_documents_are_not_called_held_out(run):
    content = json.loads(run.evaluation("retrieval").read_text())
    content["queries"]["kind"] = "the documents' own sentences"
    write_json_atomically(run.evaluation("retrieval"), content)
    lines = table(assemble(run)).splitlines()
    assert lines[0].startswith("the documents' own sentences") and len({len(line) for line in lines[:4]}) == 1
    report(run_dir=str(run.path))
    page = run.report_html.read_text("utf-8")
    assert "<th>the documents&#39; own sentences, %</th>" in page and "held out" not in page
    assert "<span>retrieval utility, the documents&#39; own sentences</span>" in page
    del content["queries"]  # an evaluation of before
    write_json_atomically(run.evaluation("retrieval"), content)
    assert assemble(run)["evaluated_on"] == "evaluated sentences"


def test_a_run_without_a_warm_start_or_a_swap(run):
    for name in ("retrieval", "reading"):
        content = json.loads(run.evaluation(name).read_text())
        del content["rows"]["ict"]
        write_json_atomically(run.evaluation(name), content)
    run.metrics_jsonl.write_text(json.dumps(METRICS[0]) + "\n")
    write_swaps(run, SWAPS[:1])
    run.config_file("train").write_text("")
    figures = assemble(run)
    check_figures(figures)
    assert figures["recall_at_1"]["ict"] is None and figures["masked_span_accuracy"]["ict"] is None
    assert figures["swap_pause_ms_max"] is None and figures["step_secs_max_over_median_at_swaps"] is None
    assert figures["step_secs_median"] is None and figures["retrieval_wait_share"] is None
    assert figures["index_versions_served"] == 1 and figures["seed"] == 0


def test_swaps_between_two_lines_of_metrics_are_counted(run):
    """Metrics of every fifth step: two swaps, one of them slow, in one window."""
    last = json.loads(run.metrics_jsonl.read_text().splitlines()[-1])
    run.metrics_jsonl.write_text(json.dumps(last | {"index_age_steps": 0}) + "\n")
    write_swaps(
        run, [*SWAPS[:2], {"step": 2, "version": 2, "pause_ms": 0.0}, {"step": 4, "version": 3, "pause_ms": 2.0}]
    )
    figures = assemble(run)
    assert figures["index_versions_served"] == 3 and figures["swap_pause_ms_max"] == 4.5
    assert figures["index_age_steps_max"] == 1  # of version 0 at step 1, and of version 2 at step 3
    assert figures["step_secs_max_over_median_at_swaps"] is None


def test_the_slowest_step_around_a_swap_when_lines_cover_several_steps(run):
    """Lines of two steps and an evaluation; the slowest window of all has no swap."""
    windows = [(2, 0.5, 0.5), (4, 0.5, 1.25), (6, 0.5, 9.0), (8, 0.5, 0.75)]
    lines = [
        {"step": step, "index_version": 0, "step_secs": median, "step_secs_max": slowest}
        for step, median, slowest in windows
    ]
    lines.insert(1, {"step": 3, "heldout_recall_at_1": 0.5})
    run.metrics_jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_swaps(run, [SWAPS[0], SWAPS[1], SWAPS[2] | {"step": 6}])  # before steps 2 and 6: the second and fourth line
    assert assemble(run)["step_secs_max_over_median_at_swaps"] == 2.5
    write_swaps(run, [SWAPS[0], SWAPS[1], SWAPS[2] | {"step": 8}])  # its line is not written yet
    assert assemble(run)["step_secs_max_over_median_at_swaps"] is None


def test_serving_a_version_again_is_no_swap(run):
    write_swaps(run, [SWAPS[0], SWAPS[0] | {"step": 3}])
    figures = assemble(run)
    assert figures["index_versions_served"] == 1 and figures["swap_pause_ms_max"] is None
    assert figures["step_secs_max_over_median_at_swaps"] is None


def test_the_corpus_is_the_one_that_was_evaluated_on(run, tmp_path):
    content = json.loads(run.evaluation("retrieval").read_text())
    content["corpus"] = {"directory": str(tmp_path / "elsewhere"), "documents": 4}
    write_json_atomically(run.evaluation("retrieval"), content)
    assert assemble(run)["corpus"] == {"documents": 4, "pieces": None}
    write_json_atomically(tmp_path / "elsewhere" / "corpus.json", {"num_documents": 4, "num_pieces": 56})
    assert assemble(run)["corpus"] == {"documents": 4, "pieces": 56}
    content["corpus"] = {"directory": "moved/away", "documents": 12}
    write_json_atomically(run.evaluation("retrieval"), content)
    assert assemble(run)["corpus"] == {"documents": 12, "pieces": 345}


def test_the_seed_is_of_the_configuration_that_trained(run):
    last_step_at = json.loads(run.metrics_jsonl.read_text().splitlines()[-1])["time"]
    settings = [(1, "seed = 5", -50), (2, "seed = 6", -20), (0, "seed = 7", 10)]  # the last had nothing left to train
    for number, text, after_secs in settings:
        place = run.config_file("train", number)
        place.write_text(f"loop.train.{text}\n")
        os.utime(place, (last_step_at + after_secs,) * 2)
    figures = assemble(run)
    assert figures["seed"] == 6
    os.utime(run.config_file("corpus"), (last_step_at, last_step_at))
    assert 45 <= assemble(run)["wall_secs"] < 105  # since the first of them
    run.metrics_jsonl.write_text("")  # a trainer that has only begun
    assert assemble(run)["seed"] == 7


@pytest.mark.parametrize("name", ["retrieval", "reading"])
def test_nothing_is_final_before_both_evaluations(run, name):
    run.evaluation(name).unlink()
    assert assemble(run) is None


def test_the_table_is_in_per_cent(run):
    figures = assemble(run)
    figures["recall_at_20"]["ict"] = None
    lines = [line.split() for line in table(figures).splitlines()]
    assert lines[0] == ["held-out", "sentences", "bm25", "ict", "realm", "null_only"]
    assert lines[1] == ["recall_at_1", "10.0", "11.0", "40.0"]
    assert lines[3] == ["recall_at_20", "30.0", "60.0"]
    assert lines[4] == ["masked_span_accuracy", "30.0", "20.0", "70.0", "5.0"]
