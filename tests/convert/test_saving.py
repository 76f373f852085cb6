"""Writing folders: what a class does not compute is refused; sentence-transformers folders out and back."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from realm_jax.convert import Model, load_hugging_face, save_hugging_face
from realm_jax.convert.job import convert
from realm_jax.models import Retriever
from tests import tiny
from tests.convert.made import golden_folder, sentence_transformer


def made_retriever(**changes) -> Model:
    config = tiny.retriever(score_scale=1.0, **changes)
    ids = jnp.ones((1, 4), jnp.int32)
    params = jax.device_get(jax.jit(Retriever(config).init)(jax.random.key(0), ids, ids * 0, ids > 0)["params"])
    return Model({"retriever": params}, retriever=config)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_out_and_back(pooling: str, normalize: bool, tmp_path: Path):
    mode = {"cls": "cls_token", "mean": "mean_tokens"}[pooling]
    model = load_hugging_face(sentence_transformer(tmp_path / "theirs", mode, normalize))
    assert (model.retriever.pooling, model.retriever.normalize) == (pooling, normalize)
    assert model.retriever.projection_size is None and set(model.unused) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert save_hugging_face(tmp_path / "ours", "SentenceTransformer", model) == []
    again = load_hugging_face(tmp_path / "ours")
    assert again.architecture == "SentenceTransformer" and again.retriever == model.retriever
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    theirs, ours = (safetensors.numpy.load_file(tmp_path / place / "model.safetensors") for place in ("theirs", "ours"))
    assert {name: value.tobytes() for name, value in theirs.items()} == {n: v.tobytes() for n, v in ours.items()}
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert set(json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"]) == {"BertModel"}


def test_the_length_at_which_texts_are_cut_goes_out_again(tmp_path: Path):
    folder, length = sentence_transformer(tmp_path / "theirs"), "sentence_bert_config.json"
    for said, kept, written in ((None, None, 20), ({"max_seq_length": None}, None, 20), ({"max_seq_length": 7}, 7, 7)):
        if said is not None:
            (folder / length).write_text(json.dumps(said))
        model = load_hugging_face(folder)
        place = tmp_path / f"ours-{kept}-{said is None}"
        save_hugging_face(place, "SentenceTransformer", model)
        assert model.max_seq_length == kept
        assert json.loads((place / length).read_text())["max_seq_length"] == written
    convert(run_dir=str(tmp_path / "run"), source=str(folder))
    convert(run_dir=str(tmp_path / "run"), direction="out", destination=str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / length).read_text())["max_seq_length"] == 7
    (folder / length).write_text('{"max_seq_length": "7"}')
    with pytest.raises(
        ValueError, match=r"sentence_bert_config.json has max_seq_length='7', expected a number of pieces"
    ):
        load_hugging_face(folder)


def test_newer_pooling_settings(tmp_path: Path):
    folder = sentence_transformer(tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 8, "pooling_mode": "cls"}))
    assert load_hugging_face(folder).retriever.pooling == "cls"


def test_refuses_other_modules_and_poolings(tmp_path: Path):
    folder = sentence_transformer(tmp_path / "max", "max_tokens")
    with pytest.raises(ValueError, match=r"has pooling_mode_max_tokens, valid: one of pooling_mode_cls_token"):
        load_hugging_face(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"lists Transformer, Pooling, Dense, Normalize; only Transformer"):
        load_hugging_face(folder)
    (folder / "modules.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"modules.json lists no modules with type and path"):
        load_hugging_face(folder)


def test_a_retriever_trained_here_goes_out_as_an_embedder(tmp_path: Path):
    model = made_retriever(pooling="pooler", tied=False)
    left_out = save_hugging_face(tmp_path / "document", "RealmEmbedder", model, side="document")
    assert set(left_out) == {
        f"cls.predictions.{name}"
        for name in ("transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight",
                     "transform.LayerNorm.bias", "bias", "decoder.weight")
    }  # fmt: skip
    again = load_hugging_face(tmp_path / "document")
    jax.tree.map(
        np.testing.assert_array_equal,
        again.params["retriever"]["shared_encoder"],
        model.params["retriever"]["document_encoder"],
    )
    assert again.retriever == dataclasses.replace(model.retriever, tied=True)


@pytest.mark.parametrize(
    ("changes", "architecture", "message"),
    [
        ({}, "RealmEmbedder", r"the retriever has pooling='cls'; RealmEmbedder projects BERT's pooler output"),
        ({"pooling": "pooler", "normalize": True}, "RealmScorer", r"has normalize=True; RealmEmbedder projects"),
        ({"pooling": "pooler", "projection_size": None}, "RealmEmbedder", r"has projection_size=None; RealmEmbedder"),
        ({}, "BertModel", r"projects to 16, and BertModel has no projection"),
        ({"pooling": "pooler", "projection_size": None}, "SentenceTransformer", r"pools by 'cls' or 'mean'"),
        ({}, "RealmReader", r"RealmReader holds a span_reader; this model has retriever"),
        ({}, "BertForMaskedLM", r"BertForMaskedLM holds a knowledge_encoder; this model has none"),
        ({}, "T5Model", r"unknown class 'T5Model', valid: BertModel"),
        (
            {"encoder": tiny.encoder(norm="pre", positions="rotary"), "projection_size": None},
            "BertModel",
            r"the retriever has norm='pre', positions='rotary', which no BERT has",
        ),
    ],
)
def test_refuses_what_the_class_does_not_compute(changes: dict, architecture: str, message: str, tmp_path: Path):
    model = Model({}, retriever=tiny.retriever(**{"score_scale": 1.0, **changes}))
    with pytest.raises(ValueError, match=message):
        save_hugging_face(tmp_path / "out", architecture, model)
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_configuration_are_named(tmp_path: Path):
    model = made_retriever(pooling="pooler")
    del model.params["retriever"]["shared_encoder"]["pooler"]
    wrong = dataclasses.replace(model, retriever=dataclasses.replace(model.retriever, projection_size=8))
    with pytest.raises(ValueError) as caught:
        save_hugging_face(tmp_path / "out", "RealmEmbedder", wrong)
    assert "no retriever/shared_encoder/pooler/kernel" in str(caught.value)
    assert "projection/kernel makes cls.dense.weight [16, 32], expected [8, 32]" in str(caught.value)


def test_never_writes_over_anything(tmp_path: Path):
    folder, _ = golden_folder("RealmReader", tmp_path / "model")
    model = load_hugging_face(folder)
    with pytest.raises(FileExistsError, match=r"is there already and holds something; name another folder"):
        save_hugging_face(folder, "RealmReader", model)


def test_open_qa_needs_its_documents(tmp_path: Path):
    folder, _ = golden_folder("RealmForOpenQA", tmp_path / "model")
    model = load_hugging_face(folder)
    assert model.block_embeds.shape == (7, 6)
    with pytest.raises(ValueError, match="give the model block_embeds"):
        save_hugging_face(tmp_path / "none", "RealmForOpenQA", dataclasses.replace(model, block_embeds=None))
    with pytest.raises(ValueError, match=r"block_embeds are \[7, 5\], expected \[num_documents, 6\]"):
        save_hugging_face(
            tmp_path / "narrow", "RealmForOpenQA", dataclasses.replace(model, block_embeds=model.block_embeds[:, :5])
        )
