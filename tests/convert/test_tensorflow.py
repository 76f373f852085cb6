"""TensorFlow-1 checkpoints: their names, and a small checkpoint of each class where TensorFlow is installed."""

import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from realm_jax.convert import load_hugging_face
from realm_jax.convert.tensorflow import TENSORFLOW_CLASSES, hugging_face_name, is_checkpoint, load_tensorflow, renamed
from tests.convert.extras import needs_package
from tests.convert.made import golden_folder

PREFIXES = {  # as the released checkpoints have them: google-research/bert, google-research/language (realm, orqa)
    "RealmEmbedder": (("realm.", "module/module/module/bert/"), ("cls.predictions.", "module/module/cls/predictions/"),
                      ("cls.", "module/module/module/")),
    "RealmKnowledgeAugEncoder": (("realm.", "bert/"),),
    "RealmReader": (("realm.", "reader/module/bert/"), ("cls.", "reader/module/cls/"),
                    ("qa_outputs.dense_intermediate", "reader/dense"), ("qa_outputs.dense_output", "reader/dense_1"),
                    ("qa_outputs.layer_normalization", "reader/layer_normalization")),
    "BertForPreTraining": (),
}  # fmt: skip


def tensorflow_variables(architecture: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A class's tensors under TensorFlow's names, with what an optimizer leaves."""
    variables = {"global_step": np.array(3), "bert/pooler/dense/kernel/adam_m": np.zeros((8, 8), np.float32)}
    for name, value in tensors.items():
        if "decoder" in name:
            continue  # tied there
        for ours, theirs in PREFIXES[architecture]:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        norm = re.search(r"LayerNorm|layer_normalization", name)
        *path, leaf = re.sub(r"layer\.(\d)", r"layer_\1", name).replace(".", "/").split("/")
        if leaf == "weight" and path[-1].endswith("_embeddings"):
            variables["/".join(path)] = value
        elif "seq_relationship" in name:
            variables["/".join([*path, {"weight": "output_weights", "bias": "output_bias"}[leaf]])] = value
        elif leaf == "weight":
            variables["/".join([*path, "gamma" if norm else "kernel"])] = value if norm else value.T
        else:
            last = "beta" if norm else "output_bias" if path[-1] == "predictions" else "bias"
            variables["/".join([*path, last])] = value
    return variables


@pytest.mark.parametrize("architecture", PREFIXES)
def test_names_of_every_tensor(architecture: str, tmp_path: Path):
    _, case = golden_folder(architecture, tmp_path / "model")
    tensors = {name: value for name, value in case.named("model/").items() if "decoder" not in name}
    variables = tensorflow_variables(architecture, tensors)
    assert "reader/dense_1/kernel" in variables or architecture != "RealmReader"
    found = renamed(variables, architecture)
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("variable", "architecture", "name"),
    [
        ("module/module/LayerNorm/gamma", "RealmEmbedder", "cls.LayerNorm.weight"),
        ("module/module/dense/kernel", "RealmEmbedder", "cls.dense.weight"),
        ("module/module/module/bert/embeddings/LayerNorm/beta", "RealmEmbedder", "realm.embeddings.LayerNorm.bias"),
        ("module/module/module/module/bert/pooler/dense/bias", "RealmEmbedder", "realm.pooler.dense.bias"),
        ("reader/layer_normalization/gamma", "RealmReader", "qa_outputs.layer_normalization.weight"),
        ("module/module/LayerNorm/gamma", "RealmReader", None),
        ("bert/pooler/dense/kernel/adam_v", "BertModel", None),
        ("global_step", "BertModel", None),
        ("cls/seq_relationship/output_weights", "BertForPreTraining", "cls.seq_relationship.weight"),
    ],
)
def test_single_names(variable: str, architecture: str, name: str | None):
    assert hugging_face_name(variable, architecture) == name


def test_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, _ = golden_folder("BertForPreTraining", tmp_path / "model")
    (folder / "bert_model.ckpt.index").write_bytes(b"")
    assert is_checkpoint(str(folder / "bert_model.ckpt")) and not is_checkpoint(str(folder))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match=r"TensorFlow is not installed; pip install 'realm_jax\[tensorflow\]'"):
        load_tensorflow(str(folder / "bert_model.ckpt"), "")
    with pytest.raises(ValueError, match="RealmForOpenQA is not read from TensorFlow, valid: RealmEmbedder"):
        load_tensorflow(str(folder / "bert_model.ckpt"), "RealmForOpenQA")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no bert_config.json"):
        load_tensorflow(str(folder / "bert_model.ckpt"), "")
    assert set(PREFIXES) < set(TENSORFLOW_CLASSES)


@pytest.mark.parametrize("architecture", PREFIXES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorFlow 2.20's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_checkpoint(architecture: str, tmp_path: Path):
    needs_package("tensorflow", "pip install 'realm_jax[tensorflow]'")
    import tensorflow

    folder, case = golden_folder(architecture, tmp_path / "model")
    variables = tensorflow_variables(architecture, case.named("model/"))
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        made = [tensorflow.compat.v1.get_variable(name, initializer=value) for name, value in variables.items()]
        session.run(tensorflow.compat.v1.global_variables_initializer())
        tensorflow.compat.v1.train.Saver(made).save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    found = load_tensorflow(str(folder / "model.ckpt"), architecture)
    expected = load_hugging_face(folder)
    jax.tree.map(np.testing.assert_array_equal, dict(found.params), dict(expected.params))
    assert jax.tree.structure(dict(found.params)) == jax.tree.structure(dict(expected.params))
    assert found.architecture == architecture


def test_a_damaged_checkpoint_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """TensorFlow's errors are of kinds of its own; a stand-in raises one."""

    class OpError(Exception):
        pass

    def load_checkpoint(prefix: str) -> None:
        raise OpError("Data loss: not an sstable (bad magic number)\nmore")

    train, errors = types.SimpleNamespace(load_checkpoint=load_checkpoint), types.SimpleNamespace(OpError=OpError)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(train=train, errors=errors))
    (tmp_path / "bert_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"bert is damaged or no TensorFlow checkpoint \(Data loss: .*number\)\); fetch it again"
    ):
        load_tensorflow(str(tmp_path / "bert"), "BertModel")
