"""Small runs of all that RA-DIT needs, and its jobs with small settings."""

import dataclasses
from types import SimpleNamespace

from realm_jax.corpus.writer import make_corpus
from realm_jax.instructions.judge import LanguageModelJudge
from realm_jax.instructions.retrieve import retrieve
from realm_jax.run_dir import RunDir
from realm_jax.tasks.instruction_tuning import InstructionTuning
from realm_jax.tasks.language_modeling import LanguageModeling
from realm_jax.tasks.retriever_tuning import RetrieverTuning
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.snapshots import save_snapshot
from tests import tiny

LENGTH = 56
OPTIMIZER = OptimizerConfig(learning_rate=5e-3, warmup_steps=2)


def make_runs(place):
    """A corpus, a language model, a retriever with an index, and what the retrieve job has made of them."""
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


def with_changes(runs, **changes):
    return SimpleNamespace(**{**vars(runs), **changes})
