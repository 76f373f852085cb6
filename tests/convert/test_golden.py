"""Every class against what the Hugging Face port computed of the same weights, and the way out and back.

The files under golden/ are written by `python tests/parity/reference.py golden tests/convert/golden` (transformers 4.39.3,
random weights); `make parity` compares more sizes and shapes.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from realm_jax.convert import load_hugging_face, save_hugging_face
from tests.convert.cases import check
from tests.convert.made import GOLDEN as FOLDER
from tests.convert.made import golden_folder
from tests.convert.retrieved import check_retrieved

GOLDEN = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
CLASSES = ["BartForConditionalGeneration", "BartModel", "BertForMaskedLM", "BertForPreTraining", "BertModel",
           "DPRContextEncoder", "DPRQuestionEncoder", "RagSequenceForGeneration", "RealmEmbedder", "RealmForOpenQA",
           "RealmKnowledgeAugEncoder", "RealmReader", "RealmScorer", "RealmScorer-untied"]  # fmt: skip
TIED = ("decoder.bias", "embed_tokens.weight", "lm_head.weight")


def load(name: str, place: Path):
    folder, case = golden_folder(name, place)
    return load_hugging_face(folder, pooling="pooler" if name == "BertModel" else "cls"), case


def test_every_class_has_a_golden_file():
    assert GOLDEN == CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients(name: str, tmp_path: Path):
    model, case = load(name, tmp_path / "theirs")
    check(case, model)


def test_the_documents_of_a_question_are_realm_retrievers(tmp_path: Path):
    counts = check_retrieved(json.loads((FOLDER / "RealmRetriever.json").read_text()), tmp_path)
    assert counts == {"documents": 20, "answers": 10, "inside_words": 2, "too_wide": 1, "cut": 13, "beyond_the_cut": 3}


@pytest.mark.parametrize("name", CLASSES)
def test_out_and_back_is_exact(name: str, tmp_path: Path):
    model, case = load(name, tmp_path / "theirs")
    left_out = save_hugging_face(tmp_path / "ours", model.architecture, model)
    assert left_out == []
    written = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    theirs = {  # what the port itself leaves out of safetensors: tensors that repeat another one
        key: value for key, value in case.named("model/").items()
        if not key.endswith(TIED) and not (name == "RealmScorer" and key.startswith("query_embedder."))
        and not (key == "cls.predictions.decoder.weight" and name in ("BertForMaskedLM", "BertForPreTraining", "RealmKnowledgeAugEncoder"))
    }  # fmt: skip
    if name == "BertForMaskedLM":
        assert "bert.pooler.dense.weight" not in theirs
    assert set(written) == set(theirs)
    for key, value in theirs.items():
        assert written[key].tobytes() == value.tobytes(), key
    again = load_hugging_face(tmp_path / "ours", pooling="pooler" if name == "BertModel" else "cls")
    assert (again.retriever, again.knowledge_encoder, again.span_reader, again.generator) == (
        model.retriever, model.knowledge_encoder, model.span_reader, model.generator
    )  # fmt: skip
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert {**model.settings, **again.settings} == again.settings  # config.json keeps what it said
    if model.tokenizer is not None:
        assert again.tokenizer.fingerprint == model.tokenizer.fingerprint


def test_a_scorers_two_embedders_keep_their_names(tmp_path: Path):
    model, case = load("RealmScorer-untied", tmp_path / "theirs")
    assert set(model.params["retriever"]) == {"query_encoder", "document_encoder"}
    for file_name, ours in (("query_embedder.", "query_encoder"), ("embedder.", "document_encoder")):
        kernel = model.params["retriever"][ours]["projection"]["kernel"]
        np.testing.assert_array_equal(kernel, case.named("model/")[f"{file_name}cls.dense.weight"].T)
    for side in ("query", "document"):
        save_hugging_face(tmp_path / side, "RealmEmbedder", model, side=side)
        one = load_hugging_face(tmp_path / side)
        own = one.params["retriever"]["shared_encoder"], model.params["retriever"][f"{side}_encoder"]
        jax.tree.map(np.testing.assert_array_equal, *own)


@pytest.mark.parametrize("left", ["embedder.", "query_embedder.", "mixed"])
def test_a_tied_scorer_is_read_whichever_of_its_two_names_was_saved(left: str, tmp_path: Path):
    folder, case = golden_folder("RealmScorer", tmp_path / "theirs")
    tensors = case.named("model/")
    whole = load_hugging_face(folder)
    assert whole.retriever.tied
    # the port drops one of two names that share memory, and does not say which
    drop = {"embedder.": "query_embedder.", "query_embedder.": "embedder."}.get(left)
    kept = {
        key: value for key, value in tensors.items()
        if not key.startswith(drop or ("embedder." if hash_of(key) else "query_embedder."))
    }  # fmt: skip
    assert len(kept) == len(tensors) // 2
    safetensors.numpy.save_file(kept, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_hugging_face(folder).params, whole.params)


def hash_of(name: str) -> int:
    return sum(name.removeprefix("query_").encode()) % 2
