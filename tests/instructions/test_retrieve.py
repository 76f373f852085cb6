"""The retrieve job: what it finds and has judged, what it uses again, and what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.answering.likelihoods import LikelihoodJudge
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.instructions.retrieved import open_retrieved, save_retrieved
from realm_jax.models import LanguageModel
from realm_jax.run_dir import RunDir
from realm_jax.training import checkpoint
from realm_jax.training.checkpoint import load_params
from tests import ra_dit_runs
from tests.ra_dit_runs import LENGTH, retriever_tuning, run_retrieve, with_changes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return ra_dit_runs.make_runs(tmp_path_factory.mktemp("runs"))


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
