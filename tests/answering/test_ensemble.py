"""A language model that retrieves, asked for likelihoods and for text: against the model read whole, prompt by prompt."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from realm_jax.answering.ensemble import RetrievalAugmentedLm
from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.answering.prompted import BACKGROUND_CUT, BACKGROUND_LEFT_OUT, PROMPT_CUT, padded_prompts, prompt_with
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.evaluation.few_shot.model import AugmentedModel
from realm_jax.generation import GenerationConfig
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.training.sharding import MeshConfig
from tests import tiny
from tests.answering.made_ensemble import greedy, log_prob, log_probs_after, made_model, made_parts

TOLERANCE = 2e-4  # of sums of log-probabilities about 20, added in other orders


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return made_parts(tmp_path_factory.mktemp("z"))


def contexts(parts, prompt, query, room):
    """Of each document, and log p_R, made by hand."""
    corpus, tokenizer, _, _, finder = parts
    found = finder.retrieve([query], None, lambda stage: None)
    form, pieces = PromptFormat.of(tokenizer), open_pieces(corpus, tokenizer)
    scores = found.scores[0].astype(np.float64)
    asked = tokenizer.encode(prompt).ids
    read = [prompt_with(form, pieces, [int(document)], asked, room, Counter()).tolist() for document in found.ids[0]]
    return read, scores - np.logaddexp.reduce(scores)


def test_is_what_evaluations_ask_for(parts):
    assert isinstance(made_model(parts), AugmentedModel)


def test_likelihoods_are_ensembled_by_the_retrievers_probabilities(parts):
    tokenizer, config = parts[1], parts[2]
    prompts, continuations = ["w1 w2 lived in", "w3", "w1 w2 lived in"], [" w5 w6", " w7", " w8"]
    found = made_model(parts).log_likelihoods(prompts, continuations, prompts)
    for prompt, continuation, scored in zip(prompts, continuations, found, strict=True):
        ids = tokenizer.encode(continuation).ids.tolist()
        read, log_priors = contexts(parts, prompt, prompt, config.max_length - len(ids))
        joint = [prior + log_prob(parts, context, ids) for context, prior in zip(read, log_priors, strict=True)]
        assert scored.log_prob == pytest.approx(np.logaddexp.reduce(joint), abs=TOLERANCE)
        assert scored.num_tokens == len(ids)


def test_without_a_query_the_prompt_stands_alone(parts):
    tokenizer = parts[1]
    context = [tokenizer.bos_id, *tokenizer.encode("w1 w2").ids.tolist()]
    ids = tokenizer.encode(" w5").ids.tolist()
    expected = pytest.approx(log_prob(parts, context, ids), abs=TOLERANCE)
    assert made_model(parts).log_likelihoods(["w1 w2"], [" w5"])[0].log_prob == expected
    assert made_model(parts).log_likelihoods(["w1 w2"], [" w5"], [" "])[0].log_prob == expected
    alone = RetrievalAugmentedLm(LikelihoodJudge(*parts[2:4]), tokenizer)
    assert alone.log_likelihoods(["w1 w2"], [" w5"], ["w1 w2"])[0].log_prob == expected


def test_greedy_is_said_of_what_is_written(parts):
    asked = made_model(parts, num_documents=1)
    (written,) = asked.generate(["w1 w2"], ["w1 w2"], max_tokens=3)
    assert written
    scored = asked.log_likelihoods(["w1 w2"] * 2, [f" {written}", " w5 w6 w7"], ["w1 w2"] * 2)
    assert [one.is_greedy for one in scored] == [True, False]


def test_text_is_written_token_by_token_of_the_ensemble(parts):
    tokenizer = parts[1]
    (written,) = made_model(parts, marginal="token").generate(["w1 w2"], ["w1 w2"], max_tokens=4)
    read, log_priors = contexts(parts, "w1 w2", "w1 w2", parts[2].max_length - 4)
    expected: list[int] = []
    while len(expected) < 4 and (not expected or expected[-1] != tokenizer.eos_id):
        steps = np.stack([log_probs_after(parts, context, expected)[-1] for context in read])
        expected.append(int(np.logaddexp.reduce(log_priors[:, None] + steps, axis=0).argmax()))
    assert written == tokenizer.decode(expected)


def written_ids(tokenizer, text, stop, most):
    """The tokens of an answer: with its end, where neither a stop text nor the most tokens ended it."""
    ids = tokenizer.encode(text).ids.tolist()[:most]
    return ids if text.endswith(stop) or len(ids) == most else [*ids, tokenizer.eos_id]


def test_stop_texts_end_what_is_written(parts):
    asked = made_model(parts, marginal="token")
    (whole,) = asked.generate(["w1"], ["w1"], max_tokens=6)
    words = whole.split()
    (cut,) = asked.generate(["w1"], ["w1"], max_tokens=6, stop=[words[-1], "nowhere"])
    assert cut == whole[: whole.find(words[-1])]


def test_prompts_of_like_length_are_written_together_and_come_back_in_order(parts, monkeypatch):
    prompts = [" ".join(["w1 w2 w3 w4"] * size) for size in (1, 9, 2, 1, 8, 2, 1, 3, 2, 1)]
    asked = made_model(parts, marginal="token")
    alone = [asked.generate([prompt], ["w1"], max_tokens=3)[0] for prompt in prompts]
    shapes: list[tuple[int, ...]] = []
    plain = asked._hypotheses

    def noted(contexts, scores, generation):
        shapes.append((scores.shape[0], max(len(context) for row in contexts for context in row)))
        return plain(contexts, scores, generation)

    monkeypatch.setattr(asked, "_hypotheses", noted)
    assert asked.generate(prompts, ["w1"] * len(prompts), max_tokens=3) == alone
    # 1024 tokens at once, 8 devices: eight of three prompts each, though the model could read prompts of any length
    assert [rows for rows, _ in shapes] == [8, 2] and shapes[0][1] > shapes[1][1]
    assert asked.generate([], max_tokens=3) == []


def test_what_comes_after_a_stop_text_does_not_weigh(parts):
    tokenizer, config = parts[1], parts[2]
    plain = made_model(parts)
    stop = made_model(parts, num_documents=1).generate(["w1"], ["w1"], max_tokens=6)[0].split()[1]
    (written,) = plain.generate(["w1"], ["w1"], max_tokens=6, stop=[stop])
    read, log_priors = contexts(parts, "w1", "w1", config.max_length - 6)
    found = set()
    for context in read:  # what each document alone writes, greedily
        text = tokenizer.decode(greedy(parts, context, 6))
        found.add(text[: text.find(stop)] + stop if stop in text else text)
    totals = {
        text: np.logaddexp.reduce(
            [
                prior + log_prob(parts, context, written_ids(tokenizer, text, stop, 6))
                for context, prior in zip(read, log_priors, strict=True)
            ]
        )
        for text in found
    }
    best = max(totals, key=totals.get)
    assert written == best.removesuffix(stop)


def test_an_empty_answer_is_not_certain(parts, monkeypatch):
    tokenizer, config = parts[1], parts[2]
    asked = made_model(parts)
    monkeypatch.setattr(asked, "_hypotheses", lambda contexts, scores, generation: [[""], ["w5"], ["w6 ."]])
    (written,) = asked.generate(["w1"], ["w1"], max_tokens=4, stop=["."])
    read, log_priors = contexts(parts, "w1", "w1", config.max_length - 4)
    eos = [tokenizer.eos_id]
    ids = {"": eos, "w5": [*tokenizer.encode("w5").ids, *eos], "w6 .": tokenizer.encode("w6 .").ids.tolist()}
    totals = {
        text: np.logaddexp.reduce(
            [prior + log_prob(parts, context, tokens) for context, prior in zip(read, log_priors, strict=True)]
        )
        for text, tokens in ids.items()
    }
    assert totals[""] < 0
    assert written == max(totals, key=totals.get).removesuffix(".")


def test_all_documents_in_one_prompt_the_best_last(parts):
    corpus, tokenizer, config, _, finder = parts
    form, pieces = PromptFormat.of(tokenizer), open_pieces(corpus, tokenizer)
    ids = finder.retrieve(["w1"], None, lambda stage: None).ids[0].tolist()
    asked = tokenizer.encode("w1").ids
    backgrounds = [form.background(pieces.titles[document], pieces.bodies[document]) for document in ids]
    enough = 2 + sum(map(len, backgrounds))
    counts: Counter[str] = Counter()
    whole = prompt_with(form, pieces, ids, asked, enough, counts)
    assert +counts == Counter()
    assert whole.tolist() == np.concatenate([[form.bos], *reversed(backgrounds), asked]).tolist()
    room = enough - len(backgrounds[2]) - 1  # the third has no room, and the second is cut
    part = prompt_with(form, pieces, ids, asked, room, counts)
    assert +counts == {BACKGROUND_CUT: 1, BACKGROUND_LEFT_OUT: 1}
    assert len(part) <= room and part[-1 - len(backgrounds[0]) : -1].tolist() == backgrounds[0].tolist()
    context = prompt_with(form, pieces, ids, asked, config.max_length - 1, counts).tolist()
    (scored,) = made_model(parts, marginal="joint").log_likelihoods(["w1"], [" w5"], ["w1"])
    assert scored.log_prob == pytest.approx(
        log_prob(parts, context, tokenizer.encode(" w5").ids.tolist()), abs=TOLERANCE
    )


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_counted(parts):
    asked, tokenizer = made_model(parts), parts[1]
    words = " ".join(["w1 w2 w3 w4"] * 40)
    (scored,) = asked.log_likelihoods([words], [" w5"], ["w1"])
    assert +asked.counts == {PROMPT_CUT: 3, BACKGROUND_LEFT_OUT: 3}  # once for each document
    room = parts[2].max_length - 1
    context = [tokenizer.bos_id, *tokenizer.encode(words).ids.tolist()[-(room - 1) :]]
    assert scored.log_prob == pytest.approx(
        log_prob(parts, context, tokenizer.encode(" w5").ids.tolist()), abs=TOLERANCE
    )


def test_a_long_text_is_judged_token_by_token_once(parts):
    tokenizer, config = parts[1], parts[2]
    words = " ".join(f"w{number % 9}" for number in range(100))
    ids = tokenizer.encode(words).ids.tolist()
    width = config.max_length - 1
    assert len(ids) > width
    first = log_prob(parts, [tokenizer.bos_id], ids[:width])
    rest = ids[width:]
    before = ids[len(ids) - width : width]
    second = log_prob(parts, [tokenizer.bos_id, *before], rest)
    found = made_model(parts).rolling_log_likelihoods([words, "w1", ""])
    assert found[0] == pytest.approx(first + second, abs=1e-3)
    assert found[1] == pytest.approx(
        log_prob(parts, [tokenizer.bos_id], tokenizer.encode("w1").ids.tolist()), abs=TOLERANCE
    )
    assert found[2] == 0.0


def test_a_continuation_may_fill_the_room_behind_the_beginning(parts):
    tokenizer = parts.tokenizer
    words = [f" {tiny.NAMES[place % 7]}" for place in range(63)]
    ids = tokenizer.encode("".join(words)).ids.tolist()
    assert len(ids) == parts.config.max_length - 1
    for marginal in ("sequence", "joint"):
        asked = made_model(parts, marginal=marginal)
        whole, shorter = asked.log_likelihoods(
            ["ann lived in", "bob"], ["".join(words), "".join(words[:62])], ["ann", ""]
        )
        # no document and nothing of the prompt has room beside 63 tokens, and one token beside 62
        assert whole.num_tokens == 63 and asked.counts[PROMPT_CUT] == (3 if marginal == "sequence" else 1)
        assert whole.log_prob == pytest.approx(log_prob(parts, [tokenizer.bos_id], ids), abs=1e-3)
        context = [tokenizer.bos_id, *tokenizer.encode("bob").ids.tolist()]
        assert shorter.log_prob == pytest.approx(log_prob(parts, context, ids[:62]), abs=1e-3)


@pytest.mark.parametrize(
    ("marginal", "stop"), [("sequence", []), ("sequence", ["nowhere"]), ("token", []), ("joint", [])]
)
def test_what_is_written_may_fill_the_room_behind_the_beginning(parts, marginal, stop):
    expected = greedy(parts, [parts.tokenizer.bos_id], 63)
    assert len(expected) == 63 and parts.tokenizer.eos_id not in expected
    (written,) = made_model(parts, marginal=marginal).generate(["ann lived in"], ["ann"], max_tokens=63, stop=stop)
    assert written == parts.tokenizer.decode(expected)


def test_judging_does_not_depend_on_batches_or_devices(parts):
    _, _, config, params, _ = parts
    rng = np.random.default_rng(0)
    rows = [
        Continuation(
            rng.integers(3, 40, rng.integers(1, 30)).astype(np.int32), rng.integers(3, 40, size).astype(np.int32)
        )
        for size in [1, 4, 0, 9, 2, 3, 7, 1, 5, 2, 6]
    ]
    told: list[int] = []
    whole = LikelihoodJudge(config, params, mesh=MeshConfig(data=4, fsdp=2)).judge(rows, told.append)
    assert sum(told) == len(rows)
    spread = LikelihoodJudge(config, params, mesh=MeshConfig(data=2, tensor=4), tokens_at_once=64).judge(rows)
    np.testing.assert_allclose(whole.log_probs, spread.log_probs, atol=TOLERANCE)
    expected = [log_prob(parts, row.context.tolist(), row.continuation.tolist()) for row in rows]
    np.testing.assert_allclose(whole.log_probs, expected, atol=TOLERANCE)
    np.testing.assert_array_equal(whole.is_greedy, spread.is_greedy)
    assert whole.log_probs[2] == 0.0 and whole.is_greedy[2]


def test_what_is_refused(parts):
    _, tokenizer, config, params, finder = parts
    judge = LikelihoodJudge(config, params)
    with pytest.raises(ValueError, match="together up to 65 tokens; cut the contexts"):
        judge.judge([Continuation(np.full(60, 5, np.int32), np.full(5, 5, np.int32))])
    with pytest.raises(ValueError, match="contexts from 0"):
        judge.judge([Continuation(np.zeros(0, np.int32), np.full(5, 5, np.int32))])
    with pytest.raises(ValueError, match="a finder and the pieces of its documents, or neither"):
        RetrievalAugmentedLm(judge, tokenizer, finder)
    with pytest.raises(ValueError, match=r"got GenerationConfig\.sample=True"):
        made_model(parts, generation=GenerationConfig(sample=True))
    asked = made_model(parts)
    with pytest.raises(ValueError, match="a query for each of 1 prompts, got 2"):
        asked.log_likelihoods(["w1"], [" w2"], ["w1", "w2"])
    with pytest.raises(
        ValueError,
        match=r"max_tokens: expected between 1 and 63, which the model's 64 positions leave behind .*, got 64; ask for fewer",
    ):
        asked.generate(["w1"], max_tokens=64)
    with pytest.raises(ValueError, match=r"max_tokens: expected between 1 and 63, .*, got 0"):
        asked.generate(["w1"], max_tokens=0)
    with pytest.raises(
        ValueError, match=r"continuations of at most 63 tokens, .*, got one of 64: ' w2 w2.*; shorten it"
    ):
        asked.log_likelihoods(["w1"], [" w2" * 64])
    with pytest.raises(ValueError, match="give the job the LanguageModelConfig that the run was trained with"):
        LikelihoodJudge(dataclasses.replace(config, num_layers=2), params)


def test_padding_may_be_a_token_that_prompts_have(parts):
    padded = padded_prompts([[np.array([2, 0, 5], np.int32)], [np.array([2], np.int32)]], 40)
    assert padded[:, 0, :4].tolist() == [[2, 0, 5, -1], [2, -1, -1, -1]]
