"""RA-DIT from one job to the next: both sides are fine-tuned from what was retrieved and judged, and the pair answers."""

import dataclasses
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import losses
from realm_jax.answering.loading import load_answerer
from realm_jax.answering.prompted import prompt_with
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.evaluation.answer_scores import is_correct
from realm_jax.evaluation.few_shot.job import few_shot
from realm_jax.generation import GenerationConfig
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.judge import continuations_of
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.instructions.retrieved import Preferences, open_retrieved, save_preferences, save_retrieved
from realm_jax.models import LanguageModel, Retriever
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.run_dir import RunDir
from realm_jax.tasks.ra_dit import RaDit
from realm_jax.tasks.retriever_tuning import init_params, preference_losses, retriever_tuning_loss
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig
from tests import ra_dit_runs, tiny
from tests.ra_dit_runs import LENGTH, OPTIMIZER, retriever_tuning, run_retrieve, tuning, with_changes

OBJECTIVES = ["ra_dit", "reversed_kl", "emdr2", "perplexity_distillation"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return ra_dit_runs.make_runs(tmp_path_factory.mktemp("runs"))


def test_examples_without_a_document_teach_the_retriever_nothing(runs):
    task = retriever_tuning(runs)
    built = task.build(0)
    examples = built.examples(0, 8, slice(None))
    batch = built.retrieval.join_embedded(examples, examples.documents, np.ones((8, 3, 16), np.float32))
    params = init_params(jax.random.key(0), retriever=task.retriever)
    settings = {"retriever": task.retriever, "objective": "ra_dit", "temperature": 0.01, "train_documents": False}
    batch = jax.tree.map(jnp.asarray, batch)
    nothing = batch._replace(document_mask=batch.document_mask.at[3].set(False))
    loss, metrics = retriever_tuning_loss(params, nothing, None, **settings)
    assert float(loss.weight) == 7.0 and np.isfinite(float(loss.total))
    assert 0 <= float(metrics["preferred_first"].total) <= 7


def test_examples_of_which_nothing_can_be_preferred_are_left_out_and_counted(runs, tmp_path, caplog):
    found = open_retrieved(runs.retrieved, runs.corpus)
    place = tmp_path / "odd"
    save_retrieved(place, found.examples[:5], found.documents[:5], found.scores[:5], found.provenance)
    known, num_tokens = found.preferences.log_likelihoods[:5].copy(), found.preferences.num_tokens[:5].copy()
    assert np.isfinite(known).all() and (num_tokens > 0).all()
    known[0] = np.nan
    known[1, 1:] = np.nan
    known[2, 2] = np.nan
    num_tokens[3], known[3] = 0, 0.0
    save_preferences(place, Preferences(known, num_tokens, found.preferences.provenance))
    queries = retriever_tuning(with_changes(runs, retrieved=str(place))).build(0).examples(0, 16, slice(None))
    assert set(map(tuple, queries.documents.tolist())) == {
        (*found.documents[2, :2].tolist(), -1),
        tuple(found.documents[4].tolist()),
    }
    assert "2 examples have fewer than two judged documents, and are left out" in caplog.text
    assert "1 examples have no answer in the language model's pieces, and are left out" in caplog.text
    with pytest.raises(ValueError, match=r"no example of .* has an answer and two judged documents"):
        save_preferences(place, Preferences(known, num_tokens * 0, found.preferences.provenance))
        retriever_tuning(with_changes(runs, retrieved=str(place))).build(0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_is_its_equation_of_the_batch(runs, objective):
    task = retriever_tuning(runs, objective=objective, temperature=0.5)
    built = task.build(0)
    examples = built.examples(0, 4, slice(None))
    embeds = np.random.default_rng(0).standard_normal((4, 3, task.retriever.embed_dim)).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, built.retrieval.join_embedded(examples, examples.documents, embeds))
    params = init_params(jax.random.key(0), retriever=task.retriever)
    query = Retriever(task.retriever).apply(
        {"params": params["retriever"]}, batch.query.ids, batch.query.segment_ids, batch.query.ids != 0, True,
        method="embed_queries",
    )  # fmt: skip
    scores = np.einsum("be,bke->bk", np.asarray(query, np.float64), embeds)
    log_r = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    likelihoods = np.asarray(batch.log_likelihoods, np.float64)
    normal = np.exp(likelihoods / np.asarray(batch.num_tokens)[:, None]) / 0.5
    log_lsr = normal - np.logaddexp.reduce(normal, axis=1, keepdims=True)
    tempered = likelihoods / 0.5
    log_atlas = tempered - np.logaddexp.reduce(tempered, axis=1, keepdims=True)
    expected = {
        "ra_dit": (np.exp(log_r) * (log_r - log_lsr)).sum(1),
        "reversed_kl": (np.exp(log_lsr) * (log_lsr - log_r)).sum(1),
        "emdr2": -np.logaddexp.reduce(log_r + likelihoods, axis=1),
        "perplexity_distillation": (np.exp(log_atlas) * (log_atlas - log_r)).sum(1),
    }[objective]
    loss, _ = built.loss(params, batch, None)
    np.testing.assert_allclose(loss.total, expected.sum(), rtol=1e-3, atol=1e-4)
    log_probs = losses.candidate_log_probs(jnp.asarray(scores, jnp.float32), batch.document_mask)
    np.testing.assert_allclose(preference_losses(objective, log_probs, batch, 0.5), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("train_documents", [False, True])
def test_the_retriever_learns_what_the_language_model_prefers(runs, tmp_path, train_documents):
    refresh = RefreshConfig(
        mode="synchronous" if train_documents else "frozen",
        embedder="in_trainer",
        snapshot_every_steps=6,
        index=IndexSettings(backend="exact"),
        batches=BatchSettings(document_len=24, query_len=12, batch_size=16),
    )
    train(
        run_dir=str(tmp_path / "tuned"),
        task=retriever_tuning(runs, temperature=0.001, train_documents=train_documents),
        optimizer=OPTIMIZER,
        refresh=refresh,
        warm_start=(str(runs.place / "ict"),),
        num_steps=12,
        batch_size=16,
        checkpoint_every_steps=12,
    )
    records = read_metrics(str(tmp_path / "tuned"))
    first, last = (np.mean([record["loss"] for record in some]) for some in (records[:3], records[-3:]))
    assert last < 0.98 * first
    assert {"preferred_first", "answer_nll", "retrieval_entropy", "index_version"} <= records[-1].keys()
    before = load_params(RunDir.of(runs.place / "ict"))[1]["retriever"]["shared_encoder"]
    after = load_params(RunDir.of(tmp_path / "tuned"))[1]["retriever"]
    same = {side: all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before, after[side]))) for side in after}  # fmt: skip
    assert same == {"query_encoder": False, "document_encoder": not train_documents}
    assert records[-1]["index_version"] == (6 if train_documents else 0)


def test_the_pair_answers_with_documents(runs, tmp_path):
    train(
        run_dir=str(tmp_path / "lm_ft"),
        task=tuning(runs),
        optimizer=OPTIMIZER,
        warm_start=(str(runs.place / "lm"),),
        num_steps=6,
        batch_size=8,
        checkpoint_every_steps=6,
    )
    task = RaDit(
        str(runs.corpus.directory),
        runs.retriever,
        runs.language_model,
        language_model_run=str(tmp_path / "lm_ft"),
        num_documents=3,
        query_len=12,
        source_len=48,
        document_len=24,
        generation=GenerationConfig(num_beams=2, max_length=6),
    )
    question = json.loads((runs.place / "questions.jsonl").read_text().splitlines()[0])["question"]
    for marginal in ("sequence", "token", "joint"):
        loaded = load_answerer(RunDir.of(runs.place / "ict"), dataclasses.replace(task, marginal=marginal))
        (answer,) = loaded.answerer.answer([question])
        assert len(answer.documents) == 3
        ids = runs.tokenizer.encode(answer.text).ids.tolist()
        ids += [runs.tokenizer.eos_id] * (len(ids) < 5)
        ranked = [found.document for found in answer.documents]
        prompts = [ranked] if marginal == "joint" else [[document] for document in ranked]
        likely = np.exp([log_prob_of(runs, tmp_path / "lm_ft", question, read, ids) for read in prompts])  # by token
        if marginal == "joint":
            assert answer.prob == pytest.approx(likely[0].prod(), rel=1e-3)
        else:
            priors = np.array([found.prob for found in answer.documents])
            before = priors[:, None] * np.cumprod(np.c_[np.ones(3), likely[:, :-1]], axis=1)  # p(c, y so far)
            steps = (priors[:, None] * likely if marginal == "token" else before * likely).sum(axis=0)
            expected = steps.prod() if marginal == "token" else steps[-1]
            assert answer.prob == pytest.approx(expected, rel=1e-3)
            posteriors = [found.posterior for found in answer.documents]
            if marginal == "sequence":
                joint = priors * likely.prod(axis=1)
                np.testing.assert_allclose(posteriors, joint / joint.sum(), atol=1e-3)
            assert sum(posteriors) == pytest.approx(1.0, abs=1e-4)
        if marginal == "sequence":
            spread = dataclasses.replace(task, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
            (again,) = load_answerer(RunDir.of(runs.place / "ict"), spread).answerer.answer([question])
            assert again.text == answer.text and again.prob == pytest.approx(answer.prob, rel=1e-4)


def log_prob_of(runs, run, question, documents, ids):
    """log p of each token of an answer after a prompt with documents, from the logits of all of it."""
    form, pieces = PromptFormat.of(runs.tokenizer), open_pieces(runs.corpus, runs.tokenizer)
    asked = runs.tokenizer.encode(f"Q: {question}\nA:").ids
    prompt = prompt_with(form, pieces, documents, asked, 48, Counter())
    whole = jnp.asarray(np.concatenate([prompt, ids])[None], jnp.int32)
    _, params = load_params(RunDir.of(run))
    logits = LanguageModel(runs.language_model).apply({"params": params["language_model"]}, whole, jnp.ones_like(whole))
    said = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
    return [said[len(prompt) - 1 + place, piece] for place, piece in enumerate(ids)]


def test_the_pair_is_asked_with_demonstrations(runs, capsys):
    task = RaDit(
        str(runs.corpus.directory), runs.retriever, runs.language_model, language_model_run=str(runs.place / "lm"),
        num_documents=3, query_len=12, source_len=48, document_len=24, generation=GenerationConfig(num_beams=1, max_length=6),
    )  # fmt: skip
    settings = {
        "run_dir": str(runs.place / "ict"),
        "task": task,
        "questions": f"nq={runs.questions}",
        "max_questions": 4,
    }
    with pytest.raises(ValueError, match="nq"):  # before the models are loaded
        few_shot(**settings, shots=(1,))
    with pytest.raises(ValueError, match="expected TEMPLATE=PLACE, each template once, got 'nq'"):
        few_shot(**{**settings, "questions": "nq"})
    with pytest.raises(ValueError, match="demonstrations are of fever, of which there are no questions"):
        few_shot(**settings, demonstrations=f"fever={runs.questions}")
    found = few_shot(**settings, shots=(0, 1), demonstrations=f"nq={runs.questions}")
    few_shot(**settings, documents="none", reference_nll=True)
    by_chance = few_shot(**settings, documents="random", reference_nll=True)["model"]
    assert list(found["rows"]) == ["nq 0-shot", "nq 1-shot"]
    written = json.loads((runs.place / "ict/evaluation/sequence-3-few_shot.json").read_text())
    assert written["model"]["index_version"] == 2 and written["model"]["search_recall"] == 1.0
    assert written["model"]["language_model_run"] == str(runs.place / "lm")
    printed = capsys.readouterr().out
    assert "nq 1-shot" in printed and "nq 0-shot: −log p of the first reference " in printed

    # the language model alone: each figure again, from its logits
    alone = json.loads((runs.place / "ict/evaluation/alone-few_shot.json").read_text())
    assert alone["model"]["documents"] == "none" and not {"num_documents", "index_version"} & alone["model"].keys()
    assert list(alone["rows"]) == ["nq 0-shot"]
    _, params = load_params(RunDir.of(runs.place / "lm"))
    apply = jax.jit(LanguageModel(runs.language_model).apply)

    def log_probs(ids):
        whole = np.zeros((1, LENGTH), np.int32)
        whole[0, : len(ids)] = ids
        found = apply(
            {"params": params["language_model"]}, whole, (np.arange(LENGTH) < len(ids)).astype(np.int32)[None]
        )
        return np.asarray(jax.nn.log_softmax(found[0]), np.float64)

    bos = runs.tokenizer.bos_id
    nlls, right = [], []
    for record in alone["predictions"]["nq 0-shot"]:
        prompt = [bos, *runs.tokenizer.encode(f"Q: {record['question']}\nA:").ids.tolist()]
        answer = runs.tokenizer.encode(f" {record['answer'][0]}").ids.tolist()
        said = log_probs([*prompt, *answer])
        nlls.append(-sum(said[len(prompt) - 1 + place, piece] for place, piece in enumerate(answer)))
        assert record["reference_nll"] == pytest.approx(nlls[-1], abs=1e-4)
        written = []
        while len(written) < 8 and runs.tokenizer.eos_id not in written:
            written.append(int(log_probs([*prompt, *written])[len(prompt) + len(written) - 1].argmax()))
        text = runs.tokenizer.decode([piece for piece in written if piece != runs.tokenizer.eos_id]).strip()
        assert text and record["prediction"].startswith(text)
        right.append(is_correct(record["prediction"], record["answer"], is_regex=False))
    row = alone["rows"]["nq 0-shot"]
    assert row["reference_nll"]["mean"] == pytest.approx(np.mean(nlls), abs=1e-4)
    assert row["mean"]["exact_match"]["mean"] == np.mean(right)

    # documents that are drawn at random are others, and the same again
    assert by_chance["documents"] == "random"
    file = runs.place / "ict/evaluation/sequence-3-random-few_shot.json"
    drawn = [record["reference_nll"] for record in json.loads(file.read_text())["predictions"]["nq 0-shot"]]
    assert not np.allclose(drawn, nlls, atol=1e-3)
    few_shot(**settings, documents="random", reference_nll=True)
    again = [record["reference_nll"] for record in json.loads(file.read_text())["predictions"]["nq 0-shot"]]
    assert again == drawn


def test_a_twentieth_of_the_texts_is_dialogue_and_a_tenth_plain_text(runs, tmp_path):
    """The paper's mixture (section 2.3), of the texts that the model reads."""
    answers = {"dialogue": "rome", "open_qa": "oslo"}
    examples = [
        InstructionExample(group, group, f"{tiny.NAMES[place]} lived in", answer, "", (answer,))
        for group, answer in answers.items()
        for place in range(10 if group == "dialogue" else 4)
    ]
    nothing = np.full((len(examples), 1), -1, np.int64)
    provenance = {"corpus": runs.corpus.fingerprint}
    save_retrieved(tmp_path / "mixed", examples, nothing, np.full(nothing.shape, -np.inf, np.float32), provenance)
    task = tuning(
        with_changes(runs, retrieved=str(tmp_path / "mixed")),
        num_documents=1,
        shares=(("plain_text", 0.1), ("dialogue", 0.05)),
    )
    rows = task.build(0).examples(0, 160, slice(None))
    eos, drawn = runs.tokenizer.eos_id, {"dialogue": 0, "open_qa": 0, "plain_text": 0}
    of_answer = {int(runs.tokenizer.encode(f" {answer}").ids[0]): group for group, answer in answers.items()}
    for segments, targets in zip(rows.segments, rows.targets, strict=True):
        for number in range(1, segments.max() + 1):
            own = segments == number
            learned = targets[own][targets[own] >= 0]
            instruction = len(learned) == 2 and learned[1] == eos
            drawn[of_answer[int(learned[0])] if instruction else "plain_text"] += 1
            assert instruction or len(learned) == own.sum() - 1  # every token of plain text is learned
    total = sum(drawn.values())
    assert total > 500
    assert drawn["plain_text"] / total == pytest.approx(0.1, abs=0.03)
    assert drawn["dialogue"] / total == pytest.approx(0.05, abs=0.025)


def test_plain_text_that_is_not_named_is_not_learned(runs):
    rows = tuning(runs, shares=()).build(0).examples(0, 64, slice(None))
    whole = [
        (targets[segments == number][:-1] >= 0).all()  # every token is learned
        for segments, targets in zip(rows.segments, rows.targets, strict=True)
        for number in range(1, segments.max() + 1)
    ]
    assert len(whole) > 64 and not any(whole)


def test_instruction_tuning_without_documents_reads_the_instructions_alone(runs):
    found, tokenizer = open_retrieved(runs.retrieved, runs.corpus), runs.tokenizer
    expected = {
        (tokenizer.bos_id, *tokenizer.encode(one.prompt).ids, *tokenizer.encode(f" {one.answer}").ids, tokenizer.eos_id)
        for one in found.examples
        if one.group != "plain_text"
    }
    rows = tuning(runs, num_documents=0, shares=()).build(0).examples(0, 16, slice(None))
    seen = {
        tuple(inputs[segments == number].tolist())
        for inputs, segments in zip(rows.ids, rows.segments, strict=True)
        for number in range(1, segments.max() + 1)
    }
    assert seen == expected


def test_what_does_not_fit_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"num_documents=4, but 3 documents were retrieved"):
        tuning(runs, num_documents=4).build(0)
    with pytest.raises(
        ValueError, match=r"shares names dialogue, of which there is no example; .* plain_text, open_qa"
    ):
        tuning(runs, shares=(("dialogue", 0.05),)).build(0)
    with pytest.raises(ValueError, match="holds no retrieved examples"):
        tuning(with_changes(runs, retrieved=str(tmp_path))).build(0)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0.0"):
        retriever_tuning(runs, temperature=0.0)
    with pytest.raises(ValueError, match="at least 2, since one document has nothing to compare with"):
        retriever_tuning(runs, num_documents=1)
    with pytest.raises(ValueError, match="has trained retriever, expected a language_model"):
        run_retrieve(runs, name="other", judge=dataclasses.replace(runs.judge, run=str(runs.place / "ict")))
    assert not (runs.place / "ict/retrieved/other").exists()  # before anything slow
    with pytest.raises(ValueError, match="nothing to retrieve for"):
        run_retrieve(runs, name="none", sources=(), corpus_examples=0)
    with pytest.raises(ValueError, match=r"an example of .* has .* tokens, and the judge reads 8"):
        found = open_retrieved(runs.retrieved, runs.corpus)
        continuations_of(found.examples, found.documents, open_pieces(runs.corpus, runs.tokenizer), runs.tokenizer, 8)  # fmt: skip
