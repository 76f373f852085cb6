"""A BEIR folder becomes a corpus and queries, is ranked by documents, and scored as BEIR scores it."""

import gzip
import json
import sys

import numpy as np
import pytest

from realm_jax.corpus.build import corpus as build_corpus
from realm_jax.corpus.store import Corpus
from realm_jax.evaluation.beir import beir_queries, qrels_of, rank_documents, read_qrels, read_queries
from realm_jax.evaluation.queries import RetrievalQuery
from realm_jax.evaluation.retrieval import evaluate
from realm_jax.evaluation.trec import RankedDocument, score_run, strictly_descending, write_qrels, write_run
from realm_jax.retrieval.index import SearchResult
from realm_jax.run_dir import RunDir

TOWNS = ["Oslo", "Rome", "Bern", "Kyiv", "Lima", "Cork"]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six documents; the first is long and is cut into blocks, the last is a title alone."""
    place = tmp_path_factory.mktemp("beir") / "towns"
    texts = [f"{town} is a town. People live in {town}." for town in TOWNS]
    texts[0] = " ".join(f"{word} stands in Oslo today." for word in ("Church", "Castle", "Harbour", "Museum", "Tower"))
    texts[5] = ""
    rows = [{"_id": f"d{i}", "title": town, "text": text, "metadata": {}} for i, (town, text) in enumerate(zip(TOWNS, texts, strict=True))]  # fmt: skip
    lines(place / "corpus.jsonl", rows)
    queries = {"q1": "Oslo museum", "q2": "town of Bern", "q3": "Kyiv", "d4": "people live", "q5": "xyz", "q6": "dev"}
    lines(place / "queries.jsonl.gz", [{"_id": name, "text": text, "metadata": {}} for name, text in queries.items()])
    (place / "qrels").mkdir()
    (place / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td1\t1\nq2\td2\t2\nq3\td5\t0\nq3\td9\t1\nd4\td1\t1\nq5\td3\t1\nq9\td1\t1\n"
    )
    (place / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq6\td5\t1\n")
    return place


@pytest.fixture(scope="module")
def corpus(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    build_corpus(run_dir=str(run), source=str(folder), vocab_size=200, block_len=60, tagger="none", num_workers=0)
    return Corpus.open(run / "corpus")


def test_the_corpus_job_reads_the_documents_alone(corpus):
    assert [len(corpus.documents_of(f"d{i}")) > 0 for i in range(7)] == [True] * 6 + [False]
    assert len(corpus.documents_of("d0")) > 2 and corpus.documents_of("q1").tolist() == []
    (last,) = corpus.documents_of("d5").tolist()
    assert corpus.block(last).text == "Cork" == corpus.block(last).title
    assert sum(corpus.info.dropped.values()) == 0


def test_queries(folder, corpus):
    found = beir_queries(qrels_of(folder), corpus, corpus.tokenizer)
    assert [(query.id, query.text) for query in found.queries] == [
        ("q1", "Oslo museum"), ("q2", "town of Bern"), ("q3", "Kyiv"), ("d4", "people live"), ("q5", "xyz"),
    ]  # fmt: skip
    gold = {f"d{i}": frozenset(corpus.documents_of(f"d{i}").tolist()) for i in range(6)}
    assert [query.gold for query in found.queries] == [
        gold["d0"],
        gold["d1"] | gold["d2"],
        frozenset(),
        gold["d1"],
        gold["d3"],
    ]
    assert found.dropped == {
        "judged query that queries.jsonl does not have": 1,
        "relevant document that is not in the corpus": 1,
    }
    assert found.judgements is not None and found.judgements["q2"] == {"d1": 1, "d2": 2}
    some = beir_queries(qrels_of(folder), corpus, corpus.tokenizer, max_queries=2)
    assert len(some.queries) == 2 and set(some.judgements) == {query.id for query in some.queries}


def test_queries_are_asked_as_all_questions_are(folder, corpus, tmp_path):
    place = tmp_path / "odd"
    lines(place / "corpus.jsonl", [{"_id": "d0", "title": "Oslo", "text": "Oslo."}])
    texts = {"q1": " Oslo\n\x00museum ", "q2": " \x07\n", "q3": "half \ud800"}
    lines(place / "queries.jsonl", [{"_id": name, "text": text} for name, text in texts.items()])
    (place / "qrels").mkdir()
    (place / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td0\t1\nq3\td0\t1\n")
    found = beir_queries(qrels_of(place), corpus, corpus.tokenizer)
    assert [(query.text, query.as_written) for query in found.queries] == [("Oslo museum", " Oslo\n\x00museum ")]
    assert found.queries[0].pieces.tolist() == corpus.tokenizer.encode("Oslo museum").ids.tolist()
    assert found.dropped == {"empty question": 1, "text that is no Unicode (half a surrogate pair)": 1}


def test_which_judgements_are_meant(folder, tmp_path):
    assert qrels_of(folder) == folder / "qrels" / "test.tsv"
    assert qrels_of(folder / "qrels" / "dev.tsv") == folder / "qrels" / "dev.tsv"
    assert qrels_of(folder / "corpus.jsonl") is None and qrels_of(tmp_path) is None
    lines(tmp_path / "corpus.jsonl", [])
    lines(tmp_path / "queries.jsonl", [])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").touch()
    with pytest.raises(
        ValueError, match=r"has no qrels/test\.tsv; name one of its qrels files instead: \[.*train\.tsv"
    ):
        qrels_of(tmp_path)


@pytest.mark.parametrize("line", ["q1 d1 1", "q1\td1\thigh", "q1\td1", "q1\td 1\t1", "\td1\t1"])
def test_bad_judgements_are_named(tmp_path, line):
    path = tmp_path / "test.tsv"
    path.write_text(f"query-id\tcorpus-id\tscore\nq1\td1\t1\n{line}\n")
    with pytest.raises(ValueError, match=r"test\.tsv, line 3: expected query id, document id and judgement"):
        read_qrels(path)


@pytest.mark.parametrize("line", ["{", "[1]", '{"_id": "x"}', '{"_id": "x", "text": 3}'])
def test_bad_queries_are_named(tmp_path, line):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": "q1", "text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r'queries\.jsonl, line 2: expected {"_id", "text"}'):
        read_queries(path)


def query(name):
    return RetrievalQuery("", np.zeros(1, np.int32), frozenset(), (), id=name)


def test_documents_have_the_rank_of_their_best_block(corpus):
    """Blocks are searched until enough documents came together, and a query that is a document does not find itself."""
    order = np.argsort([int(corpus.source_id(d).removeprefix("d")) for d in range(corpus.num_documents)], kind="stable")
    asked = []

    def search(part, num_results):
        asked.append(num_results)
        ids = np.tile(np.pad(order, (0, 99), constant_values=-1)[:num_results], (len(part), 1))
        scores = np.arange(100, 100 - num_results, -1, dtype=np.float32)
        return SearchResult(ids, np.tile(scores, (len(part), 1)))

    blocks = len(corpus.documents_of("d0"))
    run = rank_documents([query("q1"), query("d1")], search, corpus, depth=3, batch_size=8)
    assert [list(of) for of in run.values()] == [["d0", "d1", "d2"], ["d0", "d2", "d3"]] and list(run) == ["q1", "d1"]
    assert asked[0] == 3 < blocks + 2 <= asked[-1]
    assert list(run["q1"].values()) == [100, 100 - blocks, 100 - blocks - 1]
    everything = rank_documents([query("d1")], search, corpus, depth=50)
    assert list(everything["d1"]) == ["d0", "d2", "d3", "d4", "d5"]


def test_equal_scores_keep_their_order_in_trec_eval():
    ir_measures = pytest.importorskip("ir_measures")
    ranking = [
        RankedDocument(name, score) for name, score in (("a", 1.5), ("z", 1.5), ("m", 1.5), ("b", 0.1), ("y", 0.1))
    ]
    run = {"q": strictly_descending(ranking)}
    scores = np.array(list(run["q"].values()), np.float32)
    assert (np.diff(scores) < 0).all() and list(run["q"]) == ["a", "z", "m", "b", "y"]
    np.testing.assert_allclose(scores, [1.5, 1.5, 1.5, 0.1, 0.1], rtol=1e-6)
    for rank, name in enumerate(run["q"], 1):
        (found,) = ir_measures.iter_calc([ir_measures.RR], {"q": {name: 1}}, run)
        assert found.value == pytest.approx(1 / rank)


def test_scores_by_hand():
    pytest.importorskip("ir_measures")
    judgements = {"q1": {"a": 1, "b": 2, "c": 0}, "q2": {"x": 1}}
    figures = score_run({"q1": {"a": 3.0, "c": 2.0, "b": 1.0}, "q2": {}}, judgements)
    assert figures == {
        "nDCG@10": pytest.approx((1 + 2 / 2) / (2 + 1 / np.log2(3)) / 2),
        "R@100": pytest.approx(1 / 2),  # q2 has no hit and counts
        "AP@100": pytest.approx((1 + 2 / 3) / 2 / 2),
        "RR@10": pytest.approx(1 / 2),
    }


def test_files_are_trec_files(tmp_path):
    run = {"q1": {"d2": 1.5, "d1": 0.25}, "q2": {}}
    write_run(tmp_path / "x.run", run, "bm25")
    write_qrels(tmp_path / "x.qrels", {"q1": {"d1": 2}})
    assert (tmp_path / "x.run").read_text() == "q1 Q0 d2 1 1.5 bm25\nq1 Q0 d1 2 0.25 bm25\n"
    assert (tmp_path / "x.qrels").read_text() == "q1 0 d1 2\n"


def test_the_job_scores_a_folder_by_bm25_alone(folder, corpus, tmp_path, capsys):
    ir_measures = pytest.importorskip("ir_measures")
    splits = (str(folder), str(folder / "qrels" / "dev.tsv"))
    result = evaluate(run_dir=str(tmp_path), corpus=str(corpus.directory), questions=splits, name="beir")
    assert list(result) == ["beir-towns", "beir-towns-dev"]
    row = result["beir-towns"]["rows"]["bm25"]
    # q1 finds d0, q2 d2 before d1, d4 finds d1; q3's document is not there, nothing says xyz
    assert row["beir"]["R@100"] == pytest.approx(3 / 5) and row["recall_at_20"] == pytest.approx(3 / 4)
    run = RunDir(tmp_path)
    read_back = (
        list(ir_measures.read_trec_qrels(str(run.judgements("beir-towns")))),
        list(ir_measures.read_trec_run(str(run.ranking("beir-towns", "bm25")))),
    )
    for name, value in row["beir"].items():
        again = ir_measures.calc_aggregate([ir_measures.parse_measure(name)], *read_back)
        assert list(again.values()) == [pytest.approx(value)]
    shown = capsys.readouterr().out
    assert "BEIR, by ir-measures" in shown and "nDCG@10   R@100  AP@100   RR@10" in shown


def test_without_ir_measures_the_job_says_what_to_install(folder, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(ValueError, match=r"scored with ir-measures; pip install 'realm_jax\[beir\]'"):
        evaluate(run_dir=str(tmp_path), corpus=str(corpus.directory), questions=str(folder))
