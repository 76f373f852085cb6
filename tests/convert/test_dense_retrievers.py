"""DRAGON, two encoders of BERT's kind, and Contriever, one that pools by the mean: in and out through the convert job."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from realm_jax.convert import load_hugging_face
from realm_jax.convert.job import convert
from realm_jax.convert.run_files import read_run
from realm_jax.models import Retriever
from realm_jax.run_dir import RunDir
from tests.convert.made import VOCAB, change, golden_folder

IDS = jnp.array([[2, 7, 9, 11, 3, 0], [2, 5, 3, 0, 0, 0]], jnp.int32)


def dragon(place: Path) -> tuple[Path, Path]:
    """The folders of the two encoders: plain BERTs of different weights."""
    query, _ = golden_folder("BertModel", place / "query", VOCAB)
    context, _ = golden_folder("BertModel", place / "context", VOCAB)
    weight = safetensors.numpy.load_file(context / "model.safetensors")["encoder.layer.0.attention.self.query.weight"]
    change(context, encoder__layer__0__attention__self__query__weight=weight[::-1].copy())
    return query, context


def embeds(model, side: str) -> np.ndarray:
    params = {"params": model.params["retriever"]}
    return np.asarray(Retriever(model.retriever).apply(params, IDS, IDS * 0, IDS != 0, method=f"embed_{side}"))


def test_dragon_is_two_encoders(tmp_path: Path):
    query, context = dragon(tmp_path)
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(query), document_embedder=str(context))
    pair = read_run(run)
    config = pair.retriever
    assert (config.tied, config.pooling, config.projection_size, config.normalize, config.score_scale) == (
        False, "cls", None, False, 1.0,
    )  # fmt: skip
    for side, folder in (("queries", query), ("documents", context)):
        alone = load_hugging_face(folder)
        assert alone.retriever.tied
        np.testing.assert_array_equal(embeds(pair, side), embeds(alone, side))
    assert np.abs(embeds(pair, "queries") - embeds(pair, "documents")).max() > 0.01
    assert "tied = False" in (run.weights / "retriever.gin").read_text()

    for side, folder in (("query", query), ("document", context)):
        out = tmp_path / f"{side}-out"
        convert(run_dir=str(run.path), direction="out", side=side, destination=str(out))
        one, other = load_hugging_face(out), load_hugging_face(folder)
        jax.tree.map(np.testing.assert_array_equal, dict(one.params), dict(other.params))
        assert one.architecture == "BertModel" and one.tokenizer.fingerprint == other.tokenizer.fingerprint
        # the pooler, which nothing calls, is kept of the source alone
        assert bool(one.unused) == (side == "query")


def test_contriever_pools_by_the_mean(tmp_path: Path):
    folder, _ = golden_folder("BertModel", tmp_path / "theirs", VOCAB, architectures=["Contriever"])
    change(folder, pooler__dense__weight=None, pooler__dense__bias=None)  # the class has none
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(folder))
    model = read_run(run)
    assert (model.architecture, model.retriever.pooling, model.retriever.score_scale) == ("Contriever", "mean", 1.0)
    named = tmp_path / "named"
    convert(
        run_dir=str(named),
        source=str(golden_folder("BertModel", tmp_path / "bert", VOCAB)[0]),
        architecture="Contriever",
    )
    np.testing.assert_array_equal(embeds(read_run(RunDir.of(named)), "queries"), embeds(model, "documents"))
    hidden = embeds(load_hugging_face(folder, "BertModel"), "queries")  # of [CLS]
    assert np.abs(hidden - embeds(model, "queries")).max() > 0.01

    convert(run_dir=str(run.path), direction="out")
    again = load_hugging_face(run.path / "weights-out" / "Contriever")
    assert again.architecture == "Contriever" and again.retriever == load_hugging_face(folder).retriever
    theirs, ours = (
        safetensors.numpy.load_file(place / "model.safetensors")
        for place in (folder, run.path / "weights-out" / "Contriever")
    )
    assert ours.keys() == {name for name in theirs if "position_ids" not in name}
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


def test_a_pair_of_contrievers(tmp_path: Path):
    query, context = dragon(tmp_path)
    run = tmp_path / "run"
    convert(run_dir=str(run), source=str(query), document_embedder=str(context), architecture="Contriever")
    model = read_run(RunDir.of(run))
    assert (model.retriever.tied, model.retriever.pooling) == (False, "mean")


def test_refusals(tmp_path: Path):
    query, context = dragon(tmp_path)
    run = str(tmp_path / "run")
    convert(run_dir=str(tmp_path / "cls"), source=str(query))
    with pytest.raises(
        ValueError,
        match=r"the retriever has pooling='cls'; Contriever's score is the inner product of means: .* a BertModel",
    ):
        convert(run_dir=str(tmp_path / "cls"), direction="out", architecture="Contriever")
    (context / "vocab.txt").write_text("\n".join([*VOCAB[:5], *VOCAB[:4:-1]]) + "\n")
    with pytest.raises(ValueError, match=r"name the BertModel that was trained beside the source, for the documents"):
        convert(run_dir=run, source=str(query), document_embedder=str(context))
    wider, _ = golden_folder("DPRContextEncoder", tmp_path / "dpr", VOCAB, layer_norm_eps=1e-3, hidden_act="gelu")
    with pytest.raises(
        ValueError, match=r"document_embedder has layer_norm_eps 0.001 \(the source 1e-12\); name the BertModel"
    ):
        convert(run_dir=run, source=str(query), document_embedder=str(wider))
    reader, _ = golden_folder("RealmReader", tmp_path / "reader", VOCAB)
    with pytest.raises(
        ValueError, match=r"document_embedder is for .*BertModel, Contriever, and the source is a RealmReader"
    ):
        convert(run_dir=run, source=str(reader), document_embedder=str(context))
    assert not Path(run).exists()
