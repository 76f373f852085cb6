"""RA-DIT from one job to the next: documents are found and judged, both sides are fine-tuned, and the pair answers."""

import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import losses
from realm_jax.answering.likelihoods import LikelihoodJudge
from realm_jax.answering.loading import load_answerer
from realm_jax.answering.prompted import prompt_with
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.writer import make_corpus
from realm_jax.evaluation.answer_scores import is_correct
from realm_jax.evaluation.few_shot.job import few_shot
from realm_jax.generation import GenerationConfig
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.judge import LanguageModelJudge, continuations_of
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.instructions.retrieve import retrieve
from realm_jax.instructions.retrieved import open_retrieved, save_retrieved
from realm_jax.models import LanguageModel, Retriever
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.run_dir import RunDir
from realm_jax.tasks.instruction_tuning import InstructionTuning
from realm_jax.tasks.language_modeling import LanguageModeling
from realm_jax.tasks.ra_dit import RaDit
from realm_jax.tasks.retriever_tuning import RetrieverTuning, init_params, preference_losses, retriever_tuning_loss
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from realm_jax.training import checkpoint
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.snapshots import save_snapshot
from tests import tiny

LENGTH = 56
OPTIMIZER = OptimizerConfig(learning_rate=5e-3, warmup_steps=2)
OBJECTIVES = ["ra_dit", "reversed_kl", "emdr2", "perplexity_distillation"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A corpus, a language model, a retriever with an index, and what the retrieve job has made of them."""
    place = tmp_path_factory.mktemp("runs")
    corpus = make_corpus(place / "corpus", tiny.blocks(), tiny.tokenizer())
    special = corpus.tokenizer
    ids = {"bos_id": special.cls_id, "eos_id": special.sep_id, "pad_id": special.pad_id}
    language_model = tiny.language_model(vocab_size=special.vocab_size, num_layers=1, **ids)
    common = {"optimizer": OPTIMIZER, "batch_size": 8, "checkpoint_every_steps": 10}
    train(
        run_dir=str(place / "lm"),
        task=LanguageModeling(str(corpus.directory), language_model, length=LENGTH),
        num_steps=4,
        **common,
    )
    train(run_dir=str(place / "ict"), task=tiny.ict(corpus.directory), num_steps=2, **common)
    retriever = tiny.ict(corpus.directory).retriever
    run = RunDir.of(place / "ict")
    save_snapshot(run, 2, load_params(run)[1]["retriever"])
    tiny.build_index(run, 2, retriever, corpus)
    found = SimpleNamespace(
        place=place,
        corpus=corpus,
        language_model=language_model,
        retriever=retriever,
        tokenizer=as_generator_tokenizer(corpus.tokenizer),
        questions=str(tiny.questions_file(place / "questions.jsonl")),
        judge=LanguageModelJudge(str(place / "lm"), language_model, length=LENGTH),
    )
    found.said = run_retrieve(found)
    found.retrieved = str(place / "ict" / "retrieved" / "train")
    return found


def run_retrieve(runs, **changes):
    settings = {
        "run_dir": str(runs.place / "ict"),
        "corpus": str(runs.corpus.directory),
        "retriever": runs.retriever,
        "sources": runs.questions,
        "corpus_examples": 6,
        "prompt_tokens": 4,
        "answer_tokens": 4,
        "num_documents": 3,
        "query_len": 12,
        "judge": runs.judge,
    }
    return retrieve(**{**settings, **changes})


def tuning(runs, **changes):
    settings = {"num_documents": 2, "length": LENGTH, "shares": (("plain_text", 0.1),)}
    return InstructionTuning(str(runs.corpus.directory), runs.retrieved, runs.language_model, **{**settings, **changes})


def retriever_tuning(runs, **changes):
    settings = {"num_documents": 3, "query_len": 12, "document_len": 24, "shares": ()}
    untied = dataclasses.replace(runs.retriever, tied=False)
    return RetrieverTuning(str(runs.corpus.directory), runs.retrieved, untied, **{**settings, **changes})


def test_what_is_retrieved_and_judged(runs):
    found = open_retrieved(runs.retrieved, runs.corpus)
    groups = [example.group for example in found.examples]
    assert groups.count("plain_text") == 6 and groups.count("open_qa") == len(groups) - 6 > 0
    assert found.documents.shape == (len(groups), 3) and (found.documents >= 0).all()
    assert (np.diff(found.scores, axis=1) <= 0).all()
    for example, documents in zip(found.examples, found.documents, strict=True):
        if example.group == "plain_text":
            assert int(example.id) not in documents.tolist()  # it holds the answer word for word
    # each likelihood against the model read whole
    _, params = load_params(RunDir.of(runs.place / "lm"))
    pieces, tokenizer = open_pieces(runs.corpus, runs.tokenizer), runs.tokenizer
    form = PromptFormat.of(tokenizer)
    checked = 0
    for row in (0, len(groups) - 1):
        example = found.examples[row]
        prompt, answer = tokenizer.encode(example.prompt).ids, tokenizer.encode(f" {example.answer}").ids
        assert found.preferences.num_tokens[row] == len(answer)
        for column, document in enumerate(found.documents[row].tolist()):
            background = form.background(pieces.titles[document], pieces.bodies[document])
            room = LENGTH - 1 - len(prompt) - len(answer)
            if len(background) > room:
                continue
            checked += 1
            text = jnp.asarray(np.concatenate([[form.bos], background, prompt, answer]), jnp.int32)[None]
            logits = LanguageModel(runs.language_model).apply({"params": params["language_model"]}, text, text * 0 + 1)
            log_probs = jax.nn.log_softmax(logits[0], axis=-1)
            first = text.shape[1] - len(answer)
            expected = sum(float(log_probs[first + at - 1, token]) for at, token in enumerate(answer.tolist()))
            assert found.preferences.log_likelihoods[row, column] == pytest.approx(expected, abs=1e-3)
    assert checked >= 2


def test_texts_with_odd_line_ends_come_back_as_they_were(runs, tmp_path):
    odd = InstructionExample("made", "open_qa", "a\u2028b\x85c\nQ:", "d\u2029e", "q", ("d\u2029e",))
    save_retrieved(
        tmp_path, [odd], np.array([[1, 2]]), np.zeros((1, 2), np.float32), {"corpus": runs.corpus.fingerprint}
    )
    assert open_retrieved(str(tmp_path), runs.corpus).examples == (odd,)


def test_new_documents_take_the_judgement_of_the_old_ones_away(runs, tmp_path):
    for part in (runs.place / "ict/retrieved/train").iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    found = open_retrieved(str(tmp_path), runs.corpus)
    save_retrieved(tmp_path, found.examples, found.documents[:, ::-1].copy(), found.scores, found.provenance)
    assert open_retrieved(str(tmp_path), runs.corpus).preferences is None


def test_examples_that_are_longer_than_the_judge_reads_are_left_unjudged(runs, caplog):
    short = dataclasses.replace(runs.judge, length=9)
    run_retrieve(runs, name="short", judge=short)
    found = open_retrieved(str(runs.place / "ict/retrieved/short"), runs.corpus)
    tokens = [1 + len(runs.tokenizer.encode(one.prompt).ids) + len(runs.tokenizer.encode(f" {one.answer}").ids) for one in found.examples]  # fmt: skip
    too_long = np.asarray(tokens) > 9
    assert 0 < too_long.sum() < len(tokens) and found.preferences.provenance["too_long"] == too_long.sum()
    np.testing.assert_array_equal(np.isnan(found.preferences.log_likelihoods).all(axis=1), too_long)
    assert f"{too_long.sum()} examples are longer than LanguageModelJudge.length=9, and not judged" in caplog.text


def test_what_is_there_is_used_again_and_never_mixed_with_other_settings(runs, caplog):
    before = (runs.place / "ict/retrieved/train/documents.npy").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert run_retrieve(runs) == runs.said
    assert caplog.text.count("is there already, and used again") == 2
    assert (runs.place / "ict/retrieved/train/documents.npy").stat().st_mtime_ns == before
    with pytest.raises(
        ValueError, match=r"made with other settings \(query_len: 12, now 11\); give another retrieve.name"
    ):
        run_retrieve(runs, query_len=11)
    with pytest.raises(ValueError, match=r"made with other settings \(length: 56, now 40\)"):
        run_retrieve(runs, judge=dataclasses.replace(runs.judge, length=40))
    with pytest.raises(ValueError, match=r"made with other settings \(retriever: "):
        run_retrieve(runs, retriever=dataclasses.replace(runs.retriever, score_scale=2.0))


@pytest.mark.parametrize("run", ["ict", "lm"])
def test_a_run_that_was_trained_anew_is_another(runs, run, monkeypatch):
    """Under the same name, with as many steps."""
    plain = checkpoint.params_checksum
    anew = lambda one, step=None: plain(one, step) + (one.path.name == run)  # noqa: E731
    for module in ("retrieve", "judge"):
        monkeypatch.setattr(f"realm_jax.instructions.{module}.params_checksum", anew)
    with pytest.raises(
        ValueError,
        match=rf"was made by an earlier state of .*/{run}, which was trained anew since; give another retrieve.name, or remove that file",
    ):
        run_retrieve(runs)


def test_files_of_a_pattern_are_told_apart_by_their_content(runs, tmp_path):
    for name in ("ann", "bob"):
        record = {"url": "", "question": f"where was {name} born ?", "answers": ["oslo"]}
        (tmp_path / f"part-{name}.jsonl").write_text(json.dumps(record))
    settings = {
        "name": "pattern",
        "sources": f"web_questions={tmp_path}/part-*.jsonl",
        "judge": None,
        "corpus_examples": 0,
    }
    first = run_retrieve(runs, **settings)
    assert run_retrieve(runs, **settings) == first and first["examples"] == 2
    changed = tmp_path / "part-bob.jsonl"
    changed.write_text(changed.read_text().replace("oslo", "rome"))
    with pytest.raises(ValueError, match=r"made with other settings \(source_files: "):
        run_retrieve(runs, **settings)


def test_a_judge_that_was_stopped_goes_on_where_it_was(runs, monkeypatch):
    monkeypatch.setattr("realm_jax.instructions.judge._EXAMPLES_A_PART", 4)
    judged, calls = LikelihoodJudge.judge, []

    def stopped(self, continuations, *rest):
        calls.append(len(continuations))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judged(self, continuations, *rest)

    monkeypatch.setattr(LikelihoodJudge, "judge", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_retrieve(runs, name="stopped")
    with pytest.raises(ValueError, match="has not been judged"):
        retriever_tuning(with_changes(runs, retrieved=str(runs.place / "ict/retrieved/stopped"))).build(0)
    run_retrieve(runs, name="stopped")
    whole, again = (
        open_retrieved(str(runs.place / "ict/retrieved" / name), runs.corpus) for name in ("train", "stopped")
    )
    np.testing.assert_allclose(
        whole.preferences.log_likelihoods, again.preferences.log_likelihoods, atol=1e-4
    )  # in other batches
    assert sum(calls) == whole.documents.size + 12  # the part that was lost was judged twice


def with_changes(runs, **changes):
    return SimpleNamespace(**{**vars(runs), **changes})


def test_examples_without_a_document_or_with_one_teach_the_retriever_nothing(runs):
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
        spread = dataclasses.replace(task, marginal=marginal, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
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
    assert alone["model"]["documents"] == "none" and list(alone["rows"]) == ["nq 0-shot"]
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


@pytest.mark.parametrize(
    "file",
    [
        "examples.jsonl",
        "documents.npy",
        "scores.npy",
        "retrieved.json",
        "log_likelihoods.npy",
        "num_tokens.npy",
        "judged.json",
    ],
)
def test_damaged_results_are_refused(runs, tmp_path, file):
    for part in (runs.place / "ict/retrieved/train").iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"is damaged .* run the retrieve job again"):
        open_retrieved(str(tmp_path), runs.corpus)
