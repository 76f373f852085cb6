"""Masked sentences and questions become queries."""

import gzip
import json

import numpy as np
import pytest

from realm_jax.corpus.blocks import Block
from realm_jax.corpus.build import corpus as build_corpus
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.evaluation.queries import check_any, known_items, masked_sentences, questions, texts_for_search, window
from realm_jax.evaluation.retrieval import evaluate
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

WORDS = ["ann", "bob", "was", "born", "in", "oslo", "rome", "19", "##31", ".", "who", "river"]
MASK = 4


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer([*SPECIAL_PIECES, *WORDS])


def block(source, text, spans=(), title="", number=0):
    whole = np.array([[0, len(text)]], np.int32)
    return Block(f"{source}#{number}", source, title, text, whole, np.asarray(spans, np.int32).reshape(-1, 2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    blocks = [block("a", "Ann was born in Oslo.", title="Ann"), block("b", "Bob.", title="Bob"), block("b", "In Rome.")]
    return make_corpus(tmp_path_factory.mktemp("z") / "z", blocks, tokenizer)


@pytest.mark.parametrize("with_text", [True, False])
def test_the_answer_is_masked_piece_by_piece(tmp_path, tokenizer, with_text):
    blocks = [
        block("0", "Ann was born in 1931.", [(0, 3), (16, 20)]),
        block("1", "Bob was in Oslo.", [(0, 3), (11, 15)]),
        block("2", "Bob was in Rome.", [(0, 3)]),
        block("3", "Bob was in Rome.", [(11, 15)]),
        block("4", "Bob was."),
    ]
    answers = [["1931"], ["OSLO!", "x"], ["Rome"], [], []]
    x = make_corpus(
        tmp_path / "x", blocks, tokenizer, gold_documents=[7, -1, 2, 5, 6], answers=answers, with_text=with_text
    )
    found = masked_sentences(x)
    assert found.kind == "held-out sentences"
    assert found.dropped == {"no span to mask": 2}  # Rome is no span of row 2; row 4 has neither span nor answer
    first, second, third = found.queries
    assert first.pieces.tolist() == [5, 7, 8, 9, MASK, MASK, 14]
    assert first.text == "ann was born in ."
    assert first.gold == {7} and first.answers == ("1931",)
    assert second.pieces.tolist() == [6, 7, 9, MASK, 14] and second.gold == frozenset()
    assert third.pieces.tolist() == [6, 7, 9, MASK, 14] and third.gold == {5}
    assert third.answers == (("Rome",) if with_text else ("rome",))
    assert x.bodies[0].tolist() == [5, 7, 8, 9, 12, 13, 14]


def test_answers_of_unknown_pieces_are_found_by_their_characters(tmp_path, tokenizer):
    x = make_corpus(tmp_path / "x", [block("0", "Ann was in Zyx.", [(11, 14)])], tokenizer, answers=[["Zyx"]])
    (query,) = masked_sentences(x).queries
    assert query.pieces.tolist() == [5, 7, 9, MASK, 14] and query.answers == ("Zyx",)


def test_a_draw_repeats(tmp_path, tokenizer):
    blocks = [block(str(i), "Bob was in Oslo.", [(11, 15)]) for i in range(50)]
    x = make_corpus(tmp_path / "x", blocks, tokenizer, gold_documents=range(50))
    gold = [min(q.gold) for q in masked_sentences(x, max_queries=10, seed=3).queries]
    assert len(gold) == 10 and gold == sorted(gold)
    assert gold == [min(q.gold) for q in masked_sentences(x, max_queries=10, seed=3).queries]
    assert gold != [min(q.gold) for q in masked_sentences(x, max_queries=10, seed=4).queries]


def test_known_items_are_sentences_of_the_documents_themselves(tmp_path, tokenizer):
    def two_sentences(source, second, spans):
        text = "Bob was. " + second
        ends = np.array([[0, 8], [9, len(text)]], np.int32)
        return Block(f"{source}#0", source, "", text, ends, np.asarray(spans, np.int32).reshape(-1, 2))

    blocks = [
        two_sentences("a", "Ann was born in 1931.", [(25, 29)]),
        two_sentences("b", "Ann was in Oslo.", []),  # nothing to mask
        two_sentences("c", "In Rome Ann was.", [(12, 16)]),
    ]
    z = make_corpus(tmp_path / "z", blocks, tokenizer)
    found = known_items(z)
    first, second = found.queries
    assert first.pieces.tolist() == [5, 7, 8, 9, MASK, MASK, 14] and first.text == "ann was born in ."
    assert second.pieces.tolist() == [9, MASK, 5, 7, 14] and second.text == "in ann was ."
    assert [query.gold for query in found.queries] == [{0}, {2}]
    assert all(query.answers == () for query in found.queries) and found.dropped == {"no salient span": 1}
    assert found.kind == "the documents' own sentences"
    many = make_corpus(tmp_path / "many", [blocks[0]] * 30, tokenizer)
    drawn = [known_items(many, max_queries=7, seed=seed).queries for seed in (1, 1, 2)]
    gold = [[min(query.gold) for query in queries] for queries in drawn]
    assert len(gold[0]) == 7 and gold[0] == sorted(gold[0]) == gold[1] != gold[2]


def rows_to(path, rows):
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_questions(tmp_path, corpus, tokenizer, name):
    rows = [
        {"question": "Who was born in Oslo", "answer": ["Ann", "ann b"], "passage_id": "a"},
        {"question": "Who", "answer": "Bob", "gold_id": "b"},
        {"question": "River", "answer": ["x"], "gold_id": "missing"},
        {"question": "When", "answer": ["19..", "("], "answer_is_regex": True},
        {"question": "Who"},
    ]
    found = questions(rows_to(tmp_path / name, rows), corpus, tokenizer)
    assert [q.gold for q in found.queries] == [{0}, {1}, frozenset(), frozenset(), frozenset()]
    assert [q.answers for q in found.queries] == [("Ann", "ann b"), ("Bob",), ("x",), ("19..", "("), ()]
    assert [q.is_regex for q in found.queries] == [False, False, False, True, False]
    assert found.queries[0].pieces.tolist() == [15, 7, 8, 9, 10]
    assert found.dropped == {
        "answer pattern that does not compile, matches nothing": 1,
        "gold passage not in the corpus, kept for its answers": 1,
    }
    for seed in range(8):  # what is counted as kept is among the queries drawn
        drawn = questions(tmp_path / name, corpus, tokenizer, max_queries=2, seed=seed)
        missing = ("x",) in [query.answers for query in drawn.queries]
        assert len(drawn.queries) == 2 and drawn.kind == "questions"
        kept = {"gold passage not in the corpus, kept for its answers": 1} if missing else {}
        assert drawn.dropped == {"answer pattern that does not compile, matches nothing": 1} | kept


@pytest.mark.parametrize("with_text", [True, False])
def test_of_a_passage_cut_into_several_documents_those_with_an_answer_are_gold(tmp_path, tokenizer, with_text):
    parts = ["Ann was born in Oslo.", "Bob was born in 1931.", "Ann was in Rome.", "In Oslo was Bob."]
    blocks = [block("other", "Ann was in Oslo."), *(block("p", text, number=i) for i, text in enumerate(parts))]
    made = make_corpus(tmp_path / "z", blocks, tokenizer, with_text=with_text)

    def gold(*answers, is_regex=False):
        rows = [{"question": "Who", "answer": list(answers), "gold_id": "p", "answer_is_regex": is_regex}]
        (query,) = questions(rows_to(tmp_path / "q.jsonl", rows), made, tokenizer).queries
        return query.gold

    assert gold("1931") == {2} and gold("rome!") == {3} and gold("Oslo") == {1, 4} and gold("Rome", "1931") == {2, 3}
    assert gold("Oslo. Bob") == {1, 2, 3, 4}  # the cut went through it
    assert gold() == {1, 2, 3, 4}
    assert gold("19[0-9]+|rome", is_regex=True) == {2, 3} and gold("19[0-9]+|rome") == {1, 2, 3, 4}


def test_questions_of_one_of_several_sources(tmp_path, tokenizer):
    """Gold ids name passages of the second source's second file; the other texts hold the answers too."""
    tokenizer.save(tmp_path / "tokenizer")
    sources = {
        "articles.jsonl": [{"id": "1", "text": "Ann was born in Oslo. Bob was born in Rome."}, {"id": "2", "text": "Bob was in Oslo."}],
        "passages/a.jsonl": [{"id": "qed-1", "text": "In Rome was born Bob."}, {"id": "qed-5", "text": "Bob was in Oslo."}],
        "passages/b.jsonl": [
            {"id": "qed-2", "text": "Ann was born in 1931. Ann was in Oslo, Bob was in Rome. In Oslo was a river."},
            {"id": "2", "text": "In 1931 was born Ann."},
        ],
    }  # fmt: skip
    (tmp_path / "passages").mkdir()
    for name, rows in sources.items():
        rows_to(tmp_path / name, rows)
    build_corpus(
        run_dir=str(tmp_path), source=(str(tmp_path / "articles.jsonl"), str(tmp_path / "passages")), block_len=10,
        tokenizer=str(tmp_path / "tokenizer"), tagger="none", num_workers=0,
    )  # fmt: skip
    made = Corpus.open(tmp_path / "corpus")
    texts = [made.block(document).text for document in range(made.num_documents)]
    asked = [
        ("qed-1", "Rome"),
        ("qed-2", "1931"),
        ("qed-2", "Oslo"),
        ("2", "Oslo"),
        ("qed-5", "Oslo"),
        ("tydi-1", "Rome"),
    ]
    rows = [{"question": "Who", "answer": [answer], "passage_id": gold} for gold, answer in asked]
    found = questions(rows_to(tmp_path / "q.jsonl", rows), made, tokenizer)
    assert [sorted(texts[document] for document in query.gold) for query in found.queries] == [
        ["In Rome was born Bob."],
        ["Ann was born in 1931."],
        ["Ann was in Oslo, Bob was in Rome.", "In Oslo was a river."],
        ["Bob was in Oslo."],  # of the first source: the second one's 2 goes by another id
        [],  # the first source says the same, word for word, so the passage was dropped
        [],
    ]
    assert found.dropped == {"gold passage not in the corpus, kept for its answers": 2}
    assert made.info.dropped == {"exact duplicate block": 1}
    result = evaluate(run_dir=str(tmp_path), corpus=str(made.directory), questions=str(tmp_path / "q.jsonl"))
    assert result["rows"]["bm25"]["queries_with_gold"] == 4 and result["rows"]["bm25"]["queries_with_answers"] == 6
    asked = {"kind": "questions", "source": str(tmp_path / "q.jsonl"), "count": 6, "dropped": found.dropped}
    assert result["queries"] == asked


@pytest.mark.parametrize("line", ['{"answer": "x"}', '{"question": "x", "answer": 3}', "[1]", "{"])
def test_bad_questions_are_named(tmp_path, corpus, tokenizer, line):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "fine", "answer": "x"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3"):
        questions(path, corpus, tokenizer)


@pytest.mark.parametrize(("name", "what"), [("absent.jsonl", "not there"), (".", "a folder")])
def test_a_missing_file_of_questions_is_named(tmp_path, corpus, tokenizer, name, what):
    message = rf"evaluate.questions: expected a file of questions, got .*, which is {what}; name one, or .*x_corpus"
    with pytest.raises(ValueError, match=message):
        questions(tmp_path / name, corpus, tokenizer)


def test_no_queries_is_an_error(tmp_path, tokenizer):
    x = make_corpus(tmp_path / "x", [block("0", "Bob was.")], tokenizer)
    with pytest.raises(ValueError, match=r"gives no queries .*no span to mask: 1"):
        check_any(masked_sentences(x))


def test_a_long_query_keeps_its_masks():
    pieces = np.arange(10, 30, dtype=np.int32)
    assert window(pieces, 20, MASK).tolist() == pieces.tolist()
    assert window(pieces, 5, MASK).tolist() == [10, 11, 12, 13, 14]
    for place in range(20):
        masked = pieces.copy()
        masked[place] = MASK
        cut = window(masked, 5, MASK)
        assert len(cut) == 5 and MASK in cut


def test_texts_hold_titles(corpus):
    assert list(texts_for_search(corpus)) == ["Ann\nAnn was born in Oslo.", "Bob\nBob.", "\nIn Rome."]
