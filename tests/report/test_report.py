"""The report job: complete runs, partial runs, damaged files, hostile texts."""

import copy
import html.parser
import json
import re

import pytest

from realm_jax.report import report
from realm_jax.report.figures import NUMBERS, TABLES, check_figures, write_report
from realm_jax.report.gather import gather
from realm_jax.report.page import CHARTS, charts, evaluation, headline
from realm_jax.run_dir import RunDir
from tests.report.conftest import FIGURES, HOSTILE

VOID = {"meta", "br", "img", "hr", "input", "link"}
SELF_CLOSED = {"line", "circle", "path"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced; keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in SELF_CLOSED
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_page(run):
    report(run_dir=str(run.path))
    return Page(run.report_html.read_text("utf-8"))


def test_a_finished_run(finished_run, capsys):
    page = make_page(finished_run)
    assert capsys.readouterr().out.strip() == str(finished_run.report_html)
    assert "Not there yet" not in page.text
    for shown in ("58.2", "22.6", "recall@1 +35.6 points over ICT", "29.8 % with retrieval", "+1.314", "11.4 ms",
                  "12 min 14 s", "2,000", "1.3%", "ict: Loss", "reader: Loss",
                  "loop.train.num_steps = 450", "version 425 serves from step 440", "0.710"):  # fmt: skip
        assert shown in page.text, shown
    assert page.tags.count("svg") >= 14
    assert page.tags.count("article") == 3


def test_the_page_asks_nothing_of_the_network(finished_run):
    page = make_page(finished_run)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "action"} and not [name for name in names if name.startswith("on")]
    style = finished_run.report_html.read_text("utf-8")
    assert "url(" not in style and "@import" not in style and "http://" not in style


def test_hostile_texts_are_shown_and_not_obeyed(finished_run):
    run = finished_run
    run.config_file("embed").write_text(HOSTILE)
    evaluation_path = run.evaluation("retrieval")
    content = json.loads(evaluation_path.read_text())
    content["rows"][HOSTILE] = content["rows"].pop("bm25") | {HOSTILE: 1}
    content["queries"]["source"] = HOSTILE
    evaluation_path.write_text(json.dumps(content))
    lines = run.metrics_jsonl.read_text() + "\n"
    lines = lines.replace('{"step": 999, "lo\n', json.dumps({"step": 999, f"recall_at_{HOSTILE}": 0.5}) + "\n")
    run.metrics_jsonl.write_text(lines)
    raw_page = make_page(run)
    assert "script" not in raw_page.tags and "img" not in raw_page.tags
    # twice in each example's candidates, once in a sentence, configuration, row, column, source
    assert raw_page.text.count(HOSTILE) >= 3 * 2 + 4
    assert "49" not in re.findall(r"\b49\b", raw_page.text)  # {{ 7*7 }} is text


def test_a_run_that_has_begun(tmp_path):
    run = RunDir(tmp_path / "young")
    run.metrics.mkdir(parents=True)
    run.metrics_jsonl.write_text('{"step": 1, "loss": 6.5, "index_version": -1}\n')
    page = make_page(run)
    for shown in ("Not there yet", "report.json", "examples.json", "Loss"):
        assert shown in page.text
    assert "metrics.jsonl" not in page.text
    run.metrics_jsonl.write_text('{"step": 1, "loss": 6.5, "retrieval_utility": 0.25}\n')
    assert "+0.250retrieval utility, last training batch" in make_page(run).text
    run.metrics_jsonl.unlink()
    page = make_page(run)
    assert "metrics/metrics.jsonl" in page.text and "svg" not in page.tags


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run in .*absent"):
        report(run_dir=str(tmp_path / "absent"))
    (tmp_path / "config-report.gin").write_text("")  # the command line writes it before the job begins
    with pytest.raises(FileNotFoundError, match="give the --run_dir"):
        report(run_dir=str(tmp_path))


def test_the_schema_names_what_is_missing(tmp_path):
    write_report(tmp_path, FIGURES | {"commit": "abc"})
    assert json.loads(RunDir(tmp_path).report_json.read_text())["commit"] == "abc"
    for name in (*TABLES, *NUMBERS):
        without = {key: value for key, value in FIGURES.items() if key != name}
        with pytest.raises(ValueError, match=f"report.json lacks {name}$"):
            write_report(tmp_path, without)
    for name, keys in TABLES.items():
        for key in keys:
            without = copy.deepcopy(FIGURES)
            del without[name][key]
            with pytest.raises(ValueError, match=f"lacks {name}.{key}$"):
                check_figures(without)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "0.5", True, [1]])
def test_figures_are_finite_numbers(bad):
    with pytest.raises(ValueError, match=r"no finite number .* in retrieval_utility$"):
        check_figures(FIGURES | {"retrieval_utility": bad})
    with pytest.raises(ValueError, match=r"in recall_at_1\.realm$"):
        check_figures(FIGURES | {"recall_at_1": FIGURES["recall_at_1"] | {"realm": bad}})
    check_figures(FIGURES | {"retrieval_utility": None})  # not measured


def test_a_report_json_without_figures_is_refused(finished_run):
    finished_run.report_json.write_text('{"seed": 1}')
    with pytest.raises(ValueError, match=r"report\.json lacks recall_at_1, .*wall_secs"):
        report(run_dir=str(finished_run.path))
    finished_run.report_json.write_text('{"seed"')
    with pytest.raises(ValueError, match=r"report\.json does not hold JSON"):
        report(run_dir=str(finished_run.path))


def test_swaps_come_from_the_record_or_else_from_the_metrics(finished_run):
    found = gather(finished_run).swaps
    assert found[0] == (80, 65) and found[-1] == (440, 425)
    (finished_run.metrics / "swaps.jsonl").unlink()
    assert gather(finished_run).swaps == [(5, 0), *found]


def test_a_torn_manifest_is_left_out(finished_run):
    (finished_run.index_version(420) / "manifest.json").write_text('{"version"')
    assert [version["version"] for version in gather(finished_run).versions] == [435]


def test_headline_marks_the_best_and_leaves_out_rows_without_figures():
    rows = dict(headline(FIGURES))
    assert list(rows) == ["BM25", "ICT (warm start)", "REALM", "null document only"]
    assert [cell.best for cell in rows["REALM"]] == [True, True, False, True]
    assert [cell.text for cell in rows["null document only"]] == ["–", "–", "–", "0.4"]
    without = copy.deepcopy(FIGURES)
    for name in TABLES:
        without[name]["bm25"] = None
    assert "BM25" not in dict(headline(without))


def test_charts_of_recall_are_in_the_order_of_k(finished_run):
    drawn = {chart.title: chart for chart in charts(gather(finished_run).metrics, CHARTS, ())}
    assert drawn["Recall"].legend == ["recall@1", "recall@5", "recall@20"]
    assert drawn["Loss"].legend == []


def test_an_evaluation_shows_shares_counts_and_nats():
    row = {"sentences": 1000.0, "with_retrieval": 0.2984, "retrieval_utility": 1.31449, "recall_at_1": 1, "step": 450}
    shown = evaluation({"rows": {"realm": row, "bm25": {"with_retrieval": None}}})
    assert shown["columns"] == ["step", "sentences", "with retrieval", "retrieval utility", "recall@1"]
    assert shown["rows"] == [("REALM", ["450", "1,000", "29.8", "1.314", "100.0"]), ("BM25", ["", "", "", "", ""])]


def test_an_evaluation_without_rows_is_names_and_values():
    shown = evaluation({"name": "spans", "accuracy": 0.25, "count": 40})
    assert shown["plain"] == {"accuracy": "0.25", "count": "40"} and shown["rows"] == []


@pytest.mark.parametrize(("gold_prob", "is_drawn"), [(0.0, False), (0.2, True)])
def test_gold_documents_that_nobody_knows_are_not_drawn(gold_prob, is_drawn):
    entries = [{"step": step, "loss": 1.0, "gold_selected": 0.0, "gold_prob": gold_prob} for step in (1, 2)]
    assert ("Gold document" in [chart.title for chart in charts(entries, CHARTS, ())]) is is_drawn
