"""Questions of TFDS data sets, read without TensorFlow."""

import sys
import types

import numpy as np
import pytest

from realm_jax.data.questions import Passage, Question, read_questions


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Small data sets with the features of natural_questions_open, web_questions, trivia_qa and squad."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
    trivia = {"aliases": texts, "normalized_aliases": texts, "type": text, "value": text}
    spans = tfds.features.Sequence({"text": text, "answer_start": tfds.features.Scalar(np.int32)})
    sets = {
        "TinyNqOpen": (
            {"question": text, "answer": texts},
            [{"question": f"who is {i}", "answer": ["Ann", "Bob"][: i % 3]} for i in range(150)],
        ),
        "TinyWeb": (
            {"url": text, "question": text, "answers": texts},
            [{"url": "u", "question": "where", "answers": ["Oslo"]}, {"url": "u", "question": b"caf\xe9", "answers": []}],
        ),
        "TinyTrivia": (
            {"question": text, "question_id": text, "answer": trivia},
            [
                {"question": "what", "question_id": "tc_1", "answer": {"aliases": ["Sun", "The Sun"], "normalized_aliases": ["sun"], "type": "x", "value": "Sun"}},
                {"question": "of the test part", "question_id": "tc_2", "answer": {"aliases": [], "normalized_aliases": [], "type": "", "value": "<unk>"}},
            ],
        ),
        "TinySquad": (
            {"id": text, "title": text, "context": text, "question": text, "answers": spans},
            [{"id": "5", "title": "T", "context": "In Oslo.", "question": "where", "answers": [{"text": "Oslo", "answer_start": 3}, {"text": "In Oslo", "answer_start": 0}]}],
        ),
        "TinyNumbers": ({"question": text, "label": tfds.features.Scalar(np.int64)}, [{"question": "who", "label": 3}]),
    }  # fmt: skip
    data_dir = tmp_path_factory.mktemp("tfds")
    module = types.ModuleType("tiny_question_builders")  # TFDS wants its builders in an importable module
    sys.modules[module.__name__] = module
    for name, (features, records) in sets.items():

        def _info(self, features=features):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), description="Questions."
            )

        def _split_generators(self, dl_manager, records=records):
            return {"train": enumerate(records[:100]), "validation": enumerate(records[100:] or records)}

        builder = type(
            name,
            (tfds.core.GeneratorBasedBuilder,),
            {
                "__module__": module.__name__, "__doc__": "Questions.", "VERSION": tfds.core.Version("1.0.0"),
                "pkg_dir_path": data_dir, "_info": _info, "_split_generators": _split_generators,
                "_generate_examples": lambda self: None,
            },
        )  # fmt: skip
        builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def questions(name, tfds_dir, **parameters):
    query = "&".join(f"{key}={value}" for key, value in {**parameters, "data_dir": tfds_dir}.items())
    return read_questions(f"tfds:{name}?{query}")


def test_natural_questions_open(tfds_dir):
    found = questions("tiny_nq_open", tfds_dir, split="validation")
    assert "tensorflow" not in sys.modules or sys.modules["tensorflow"] is None
    numbers = [int(question.text.removeprefix("who is ")) for question in found.questions]
    assert sorted(numbers) == list(range(100, 150))
    assert [q.answers for q in found.questions] == [("Ann", "Bob")[: i % 3] for i in numbers]
    assert [q.id for q in found.questions] == [str(place) for place in range(1, 51)] and found.dropped == {}
    assert found.source == f"tfds:tiny_nq_open?split=validation&data_dir={tfds_dir}"
    assert len(questions("tiny_nq_open", tfds_dir).questions) == 100  # train
    assert len(questions("tiny_nq_open", tfds_dir, split="train[:10%]").questions) == 10


def test_web_questions(tfds_dir):
    found = questions("tiny_web", tfds_dir)
    assert [(q.text, q.answers) for q in found.questions] == [("where", ("Oslo",))] and found.dropped == {
        "not UTF-8": 1
    }


def test_trivia_qa(tfds_dir):
    found = sorted(questions("tiny_trivia", tfds_dir).questions, key=lambda question: question.id)
    assert found == [
        Question("what", ("Sun", "The Sun", "sun"), id="tc_1"),
        Question("of the test part", (), id="tc_2"),
    ]


def test_squad(tfds_dir):
    (found,) = questions("tiny_squad", tfds_dir).questions
    assert found == Question("where", ("Oslo", "In Oslo"), False, None, "5", Passage("T", "In Oslo."))


def test_errors(tfds_dir):
    with pytest.raises(ValueError, match=r"expected a feature 'answer', got a data set with \['label', 'question'\]"):
        questions("tiny_numbers", tfds_dir)
    with pytest.raises(ValueError, match=r"record 1: expected a question and its answers: no answers: 3"):
        questions("tiny_numbers", tfds_dir, answer="label")
    with pytest.raises(ValueError, match=r"as 'tfds:natural_questions_open\?split=validation' with parameters among"):
        questions("tiny_web", tfds_dir, spilt="train")
    with pytest.raises(
        ValueError, match=r"cannot read the TFDS data set 'tiny_web', split 'dev'.*natural_questions_open"
    ):
        questions("tiny_web", tfds_dir, split="dev")
    with pytest.raises(ValueError, match=r"begins with 'tfds:' has the format 'tfds', got 'jsonl'; use 'auto'"):
        read_questions("tfds:tiny_web", "jsonl")
