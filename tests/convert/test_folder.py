"""Folders of weights: every format read, every misfit named at once, nothing of a pickle run."""

import json
import pickle
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from realm_jax.convert import load_hugging_face
from realm_jax.convert.folder import find_folder
from realm_jax.convert.tokenizer_files import read_tokenizer
from tests.convert.extras import needs_package
from tests.convert.made import VOCAB, change, golden_folder, sentence_transformer

EMBEDDER = "RealmEmbedder"


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_every_misfit_is_named_in_one_error(tmp_path: Path):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model")
    change(
        folder,
        realm__pooler__dense__bias=None,
        cls__LayerNorm__weight=None,
        cls__dense__weight=np.zeros((6, 9), np.float32),
        cls__predictions__bias=np.zeros(4, np.float32),
        classifier__weight=np.zeros((2, 8), np.float32),
        cls__predictions__decoder__bias=np.ones(31, np.float32),
    )
    with pytest.raises(ValueError) as caught:
        load_hugging_face(folder)
    message = str(caught.value)
    assert "2 missing: realm.pooler.dense.bias, cls.LayerNorm.weight;" in message
    assert "1 extra: classifier.weight;" in message
    assert "2 misshapen: cls.dense.weight [6, 9], expected [6, 8], cls.predictions.bias [4], expected [31];" in message
    assert "1 not tied: cls.predictions.decoder.bias is not cls.predictions.bias" in message
    assert f"{folder} as RealmEmbedder does not fit" in message and "correct its config.json" in message
    assert message.endswith(
        "(--gin.convert.architecture=CLASS), or correct its config.json, or the file is incomplete: get it again"
    )
    assert len(message.splitlines()) == 1


def test_an_untied_vocabulary_matrix_is_refused(tmp_path: Path):
    folder, _ = golden_folder("BertForMaskedLM", tmp_path / "model")
    change(folder, cls__predictions__decoder__weight=np.zeros((31, 8), np.float32))
    with pytest.raises(
        ValueError, match=r"1 not tied: cls.predictions.decoder.weight is not bert.embeddings.word_embeddings.weight"
    ) as caught:
        load_hugging_face(folder)
    assert str(caught.value).endswith("or correct its config.json")


def test_a_config_of_another_size_names_the_tensors(tmp_path: Path):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model", num_hidden_layers=3, vocab_size=40)
    with pytest.raises(
        ValueError, match=r"16 missing: realm.encoder.layer.2.*word_embeddings.weight \[31, 8\], expected \[40, 8\]"
    ):
        load_hugging_face(folder)


def test_several_files(tmp_path: Path):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model")
    whole = load_hugging_face(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    same(load_hugging_face(folder), whole)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"names model-00002-of-00002.safetensors, not in .*fetch the folder again"
    ):
        load_hugging_face(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../model-00001-of-00002.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"names \.\./model-00001-of-00002.safetensors, not in"):
        load_hugging_face(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(dtype, tmp_path: Path):
    folder, case = golden_folder(EMBEDDER, tmp_path / "model")
    tensors = {name: value.astype(dtype) for name, value in case.named("model/").items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    model = load_hugging_face(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float32)}
    kernel = model.params["retriever"]["shared_encoder"]["projection"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["cls.dense.weight"].astype(np.float32).T)


def test_older_names_and_buffers(tmp_path: Path):
    folder, case = golden_folder("BertForPreTraining", tmp_path / "model")
    whole = load_hugging_face(folder)
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in case.named("model/").items()
    }
    assert sum("gamma" in name for name in older) == 6
    older["bert.embeddings.position_ids"] = np.arange(20)[None]
    safetensors.numpy.save_file(older, folder / "model.safetensors")
    same(load_hugging_face(folder), whole)


def test_bert_with_and_without_prefix_and_head(tmp_path: Path):
    folder, case = golden_folder("BertForMaskedLM", tmp_path / "lm")
    model = load_hugging_face(folder)
    assert set(model.params) == {"retriever", "knowledge_encoder"}
    assert (model.retriever.pooling, model.retriever.projection_size, model.retriever.embed_dim) == ("cls", None, 8)
    body = {n.removeprefix("bert."): v for n, v in case.named("model/").items() if n.startswith("bert.")}
    safetensors.numpy.save_file(body, folder / "model.safetensors")
    alone = load_hugging_face(folder, "BertModel", pooling="mean")
    assert set(alone.params) == {"retriever"} and alone.retriever.pooling == "mean"
    same_body = alone.params["retriever"]["shared_encoder"], model.params["knowledge_encoder"]
    jax.tree.map(np.testing.assert_array_equal, *(part["encoder"] for part in same_body))
    with pytest.raises(ValueError, match=r"2 missing: pooler.dense.weight, pooler.dense.bias"):
        load_hugging_face(folder, "BertModel", pooling="pooler")


def test_a_torch_file_without_torch_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r"torch is not installed; install torch, or save the model as model.safetensors"
    ):
        load_hugging_face(folder)


class Harm:
    ran = False

    def __reduce__(self):
        return setattr, (Harm, "ran", True)


def test_torch_files(tmp_path: Path):
    needs_package("torch", "pip install 'realm_jax[torch]'")
    import torch

    folder, case = golden_folder(EMBEDDER, tmp_path / "model")
    whole = load_hugging_face(folder)
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(value.copy()) for name, value in case.named("model/").items()}
    torch.save(state, folder / "pytorch_model.bin")
    same(load_hugging_face(folder), whole)
    torch.save({name: value.bfloat16() for name, value in state.items()}, folder / "pytorch_model.bin")
    kernel = load_hugging_face(folder).params["retriever"]["shared_encoder"]["projection"]["kernel"]
    np.testing.assert_array_equal(
        kernel, case.arrays["model/cls.dense.weight"].astype(ml_dtypes.bfloat16).astype(np.float32).T
    )
    torch.save({"a": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin holds more than tensors, or is damaged .*nothing of it was run"
    ):
        load_hugging_face(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match="nothing of it was run"):
        load_hugging_face(folder)
    assert not Harm.ran
    for content in ([torch.ones(2)], {1: torch.ones(2)}):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="holds no tensors by name"):
            load_hugging_face(folder)
    for tensor, reason in (
        (torch.zeros(1, dtype=torch.half).expand(1 << 40), r"a \[1099511627776\] is larger than the file"),
        (torch.eye(3).to_sparse(), "no plain array"),
        (torch.empty(2, device="meta"), "no plain array"),
    ):
        torch.save({"a": tensor}, folder / "pytorch_model.bin")
        with pytest.raises(
            ValueError, match=rf"pytorch_model.bin has a tensor that is no plain array .*{reason}|{reason}"
        ):
            load_hugging_face(folder)


def test_refuses_what_is_no_folder_of_weights(tmp_path: Path):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{nonsens")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or no safetensors file"):
        load_hugging_face(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights; expected model.safetensors or pytorch_model.bin"):
        load_hugging_face(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json holds a list, expected an object"):
        load_hugging_face(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json does not hold JSON"):
        load_hugging_face(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json does not hold JSON"):
        load_hugging_face(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json; expected a folder as save_pretrained writes it"):
        load_hugging_face(folder)
    with pytest.raises(FileNotFoundError, match=r"no folder '\./nowhere/at/all'"):
        find_folder("./nowhere/at/all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, r"hidden_act='silu', valid: gelu, gelu_new, relu, gelu_pytorch_tanh"),
        ({"position_embedding_type": "relative_key"}, r"position_embedding_type='relative_key'; only 'absolute'"),
        ({"hidden_size": None, "vocab_size": "31"}, r"no whole number above 0 for vocab_size, hidden_size"),
        (
            {"num_attention_heads": 0, "hidden_size": True},
            r"no whole number above 0 for hidden_size, num_attention_heads",
        ),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers=1000000000, expected at most 1000"),
        ({"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\], valid: gelu"),
        (
            {"layer_norm_eps": "@os.system('true')"},
            r"layer_norm_eps=\"@os.system\('true'\)\", expected a number such as 1e-12",
        ),
        ({"architectures": ["T5Model"]}, r"names T5Model under architectures; .*one of: BertModel, BertForMaskedLM"),
        ({"architectures": None}, r"names no class under architectures|names None under architectures"),
        ({"architectures": 3}, r"names 3 under architectures"),
    ],
)
def test_refuses_settings_that_nothing_here_computes(changes: dict, message: str, tmp_path: Path):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=message):
        load_hugging_face(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "a" * 5000, "a\x00", "..", ""]
)
def test_an_index_names_files_of_its_folder_alone(name: str, tmp_path: Path):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FileNotFoundError, match=r"index.json names .*, not in .*fetch the folder again"):
        load_hugging_face(folder)


@pytest.mark.parametrize("place", ["../outside", "/etc", "1_Pooling/../../outside", "a" * 5000, "1_Pooling\x00", ""])
def test_modules_lie_in_their_folder_alone(place: str, tmp_path: Path):
    folder = sentence_transformer(tmp_path / "model")
    (folder / "1_Pooling").rename(tmp_path / "outside")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = place
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        ValueError, match=r"modules.json has the path .*, expected a folder beside it such as 1_Pooling"
    ):
        load_hugging_face(folder)


def test_modules_of_thousands_of_brackets(tmp_path: Path):
    folder = sentence_transformer(tmp_path / "model")
    (folder / "modules.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"modules\.json lists no modules"):
        load_hugging_face(folder)


def test_tokenizer_settings(tmp_path: Path):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "model", VOCAB)
    assert read_tokenizer(folder).lower_case
    said = folder / "tokenizer_config.json"
    said.write_text(json.dumps({"do_lower_case": False, "strip_accents": None}))
    assert not read_tokenizer(folder).lower_case
    said.write_text(json.dumps({"do_lower_case": True, "strip_accents": False}))
    with pytest.raises(ValueError, match=r"tokenizer_config.json has strip_accents=false, expected true"):
        read_tokenizer(folder)


def test_a_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, _ = golden_folder(EMBEDDER, tmp_path / "snapshot")
    asked = []

    def snapshot_download(repo_id, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    same(load_hugging_face("someone/realm-embedder", revision="v2"), load_hugging_face(folder))
    assert [call[:2] for call in asked] == [("someone/realm-embedder", "v2")]
    assert "*.safetensors" in asked[0][2] and not any("bin" in pattern for pattern in asked[0][2])
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_hugging_face("someone/realm-embedder")
    assert "pytorch_model*" in asked[-1][2]  # asked for once more, torch files included


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    def snapshot_download(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        FileNotFoundError, match=r"'someone/model' is no folder here.*\(no route to host\); name a folder"
    ):
        load_hugging_face("someone/model")


def test_block_embeddings_of_another_shape(tmp_path: Path):
    folder, _ = golden_folder("RealmForOpenQA", tmp_path / "model", num_block_records=9)
    with pytest.raises(ValueError, match=r"block_emb is \[7, 6\], expected .* = \[9, 6\]"):
        load_hugging_face(folder)
