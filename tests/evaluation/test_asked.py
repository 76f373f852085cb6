"""What an evaluation asks, and what its figures are called."""

import pytest

from realm_jax.evaluation.asked import short_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/qed.dev.jsonl", "qed.dev"),
        ("a/triviaqa.dev.jsonl.gz", "triviaqa.dev"),
        ("squad.v1.json", "squad.v1"),
        ("nq-test.qa.csv", "nq-test.qa"),
        ("beir/scifact", "scifact"),
        ("beir/scifact/", "scifact"),
        ("beir/fiqa/qrels/dev.tsv", "fiqa-dev"),
        ("tfds:natural_questions_open?split=validation", "natural_questions_open_split_validation"),
        (
            "tfds:trivia_qa/unfiltered.nocontext?split=train[:1%]&data_dir=/x/y",
            "trivia_qa_unfiltered.nocontext_split_train_1",
        ),
        ("tfds:squad?data_dir=/x/y&split=train", "squad_split_train"),
        ("questions", "questions"),
    ],
)
def test_short_names(source, name):
    assert short_name(source) == name
