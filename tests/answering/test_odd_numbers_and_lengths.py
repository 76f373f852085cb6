"""What RA-DIT's pair does when a model has diverged, and when a question is longer than its prompt should be."""

import dataclasses

import jax
import numpy as np
import pytest

from realm_jax.answering.documents import Text
from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.answering.prompted import BACKGROUND_LEFT_OUT, NOTHING, PROMPT_CUT, PromptedGenerator
from realm_jax.generation import GenerationConfig
from realm_jax.training.sharding import MeshConfig
from tests.answering.made_ensemble import made_model, made_parts

LONG = "where was ann born " * 12


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return made_parts(tmp_path_factory.mktemp("parts"))


def test_a_language_model_that_has_diverged_judges_nothing(parts):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, parts.params)
    judge = LikelihoodJudge(parts.config, broken, mesh=MeshConfig(), tokens_at_once=1024)
    with pytest.raises(FloatingPointError, match="log-probability is not finite; the language model has diverged"):
        judge.judge([Continuation(np.array([1, 5], np.int32), np.array([6], np.int32))])


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_retriever_that_has_diverged_answers_nothing(parts, monkeypatch, number):
    model, find = made_model(parts), parts.finder.retrieve

    def broken(*arguments):
        found = find(*arguments)
        return found._replace(scores=np.where(np.arange(3) == 1, np.float32(number), found.scores))

    monkeypatch.setattr(parts.finder, "retrieve", broken)
    with pytest.raises(FloatingPointError, match="retrieval score is not finite; the run has diverged"):
        model.generate(["Q: who ?\nA:"], ["who ?"], max_tokens=4)
    with pytest.raises(FloatingPointError, match="retrieval score is not finite"):
        model.log_likelihoods(["Q: who ?\nA:"], [" ann"], ["who ?"])


def test_a_question_is_never_cut(parts, caplog):
    generation = GenerationConfig(num_beams=1, max_length=5)
    room = 20
    writer = PromptedGenerator(
        parts.config, parts.params, parts.tokenizer, generation, lambda text: text, source_len=room, marginal="sequence"
    )
    documents = {7: Text("ann", "ann was born in oslo")}
    words = len(parts.tokenizer.encode(LONG).ids)
    assert room < words + 1 < parts.config.max_length - 5
    ids = writer.sources([LONG, "who ?"], np.array([[7], [7]]), documents)
    asked = [row[0][row[0] != NOTHING].tolist() for row in ids]
    assert asked[0] == [parts.tokenizer.bos_id, *parts.tokenizer.encode(LONG).ids.tolist()]  # whole, and alone
    assert len(asked[1]) <= room and asked[1][-2:] == parts.tokenizer.encode("who ?").ids.tolist()
    assert len(asked[1]) > 1 + 2  # with a document
    assert writer.counts[BACKGROUND_LEFT_OUT] == 1 and writer.counts[PROMPT_CUT] == 0
    assert f"a question is longer than source_len={room} tokens, and is asked without documents" in caplog.text
    written = writer.write(ids, np.zeros((2, 1), np.float32))

    full = dataclasses.replace(
        parts.config, max_length=words + generation.target_len
    )  # the answer ends at the last position
    writer = PromptedGenerator(
        full, parts.params, parts.tokenizer, generation, lambda text: text, source_len=room, marginal="sequence"
    )
    (again,) = writer.write(writer.sources([LONG], np.array([[7]]), documents), np.zeros((1, 1), np.float32))
    assert again.ids.tolist() == written[0].ids.tolist()
    np.testing.assert_allclose(again.log_prob, written[0].log_prob, atol=1e-4)

    short = dataclasses.replace(parts.config, max_length=words)
    writer = PromptedGenerator(
        short, parts.params, parts.tokenizer, generation, lambda text: text, source_len=room, marginal="sequence"
    )
    with pytest.raises(
        ValueError, match=rf"questions of at most {words - 3} tokens, .*, got one of {words + 1}; ask shorter ones"
    ):
        writer.sources([LONG], np.array([[7]]), documents)
