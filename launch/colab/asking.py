"""Questions to a run: its fine-tuning on them, and its answers with their documents to read."""

import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colab.runtime import Stop
from realm_jax import config
from realm_jax.answering import Answer
from realm_jax.answering.documents import CorpusDocuments
from realm_jax.answering.explaining import excerpt
from realm_jax.answering.loading import load_answerer, served_version
from realm_jax.answering.retrieving import RetrievingAnswerer
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.data.questions import Question, read_questions
from realm_jax.retrieval.embedder import Embedder
from realm_jax.retrieval.versions import load_version, verify, version_dir
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import load_params

AROUND = 140  # characters shown at either side of a span
NUM_FOUND = 5
NUM_RETRIEVED = 100  # of a question in training; less where the corpus is smaller

# The kernel asks on the CPU: the accelerator is for the jobs, and a TPU serves one process at a time.
jax.config.update("jax_platforms", "cpu")


def question_files(run: RunDir, questions: str) -> tuple[Path, Path | None] | None:
    """The questions to fine-tune on and, apart from them, those to ask.

    Args:
      run: the pre-training; the embedded corpus brings questions of both kinds.
      questions: the user's own file, in a format of docs/evaluation.md; "" for those of the corpus.

    Returns:
      None where there are no questions at all.

    Raises:
      Stop: no such file.
    """
    if questions:
        if not Path(questions).is_file():
            raise Stop(f"QUESTIONS: expected a file of questions with answers, got {questions!r}, which is not there")
        return Path(questions), None
    trained, heldout = (Path(str(run.corpus)) / f"questions_{split}.jsonl" for split in ("train", "heldout"))
    return (trained, heldout) if trained.exists() else None


def training_command(run: RunDir, asked_run: RunDir, questions: Path, num_steps: int) -> list[str]:
    """The train job that fine-tunes a pre-training on questions, with lengths, vocabulary and corpus of that run.

    Args:
      run: the pre-training.
      asked_run: the run directory of the fine-tuning.
      questions: a file of questions with answers.
      num_steps: 0 for as many as the run file says.
    """
    task = pretraining_task(run)
    bindings = {
        "CORPUS": str(run.corpus),
        "QUESTIONS": str(questions),
        "WARM_START": repr((str(run.path),)),
        "VOCAB_SIZE": task.retriever.encoder.vocab_size,
        "QUERY_LEN": task.query_len,
        "DOCUMENT_LEN": task.document_len,
        "open_qa.OpenQa.joint_len": task.joint_len,
        "open_qa.OpenQa.num_retrieved": min(NUM_RETRIEVED, Corpus.open(task.corpus).num_documents),
    }
    if num_steps:
        bindings["train.num_steps"] = num_steps
    return [
        sys.executable,
        *("-m", "realm_jax", "train", f"--run_dir={asked_run.path}", "--gin_file=runs/open_qa_tiny.gin"),
        *(f"--gin.{name}={value}" for name, value in bindings.items()),
    ]


def pretraining_task(run: RunDir) -> Any:
    """The task of a run with the settings that it was trained with.

    Raises:
      Stop: a run that has not been trained.
    """
    saved = run.config_file("train")
    if not saved.exists():
        raise Stop(f"{run.path} has not been trained; run the cells above first")
    return config.bind("train", [str(saved)])["task"]


def load(asked_run: RunDir) -> RetrievingAnswerer:
    """What answers with a fine-tuned run."""
    loaded = load_answerer(asked_run, pretraining_task(asked_run))
    print(loaded.describe())
    return loaded.answerer


def first_questions(questions: Path, count: int) -> list[Question]:
    """The first questions of a file of any format that the project reads."""
    return list(read_questions(questions).questions[:count])


def answer_html(answer: Answer, expected: Sequence[str] = ()) -> str:
    """An answer, the documents that were read, how likely each is, and where in it the answer stands."""
    known = f" <small>(the file says: {html.escape(' or '.join(expected))})</small>" if expected else ""
    rows = []
    for found in answer.documents:
        before, span, after = excerpt(found.text, found.best_span, AROUND)
        marked = f"{html.escape(before)}<mark>{html.escape(span)}</mark>{html.escape(after)}" if span else ""
        name = html.escape(found.title) if found.document >= 0 else "∅ null document"
        rows.append(_row(found.prob, f"<b>{name}</b>" if found is answer.document else name, marked))
    return (
        f"<p><b>{html.escape(answer.question)}</b><br>→ <b>{html.escape(answer.text) or '(none)'}</b>, "
        f"p = {answer.prob:.2f}{known}</p>" + _table(rows)
    )


def found_html(run: RunDir, text: str) -> str:
    """The documents that a pre-trained retriever finds for a text, without a reader: for corpora without questions."""
    task = pretraining_task(run)
    corpus = Corpus.open(task.corpus)
    directory = version_dir(run.index, served_version(run))
    index = load_version(directory, manifest=verify(directory, corpus_fingerprint=corpus.fingerprint))
    embedder = Embedder(task.retriever, load_params(run)[1]["retriever"])
    pieces = [encoding.ids for encoding in corpus.tokenizer.encode_batch([text] * embedder.num_devices)]
    query = query_inputs(pieces, task.query_len, SpecialIds.of(corpus.tokenizer))
    found = index.search(np.asarray(embedder.embed_queries(*query))[:1], NUM_FOUND)
    scores = np.asarray(found.scores[0], np.float64)
    probs = np.exp(scores - np.logaddexp.reduce(scores))
    documents = CorpusDocuments(corpus)
    rows = []
    for document, prob in zip(np.asarray(found.ids[0]).tolist(), probs.tolist(), strict=True):
        if document >= 0:
            shown = documents.text(document)
            rows.append(_row(prob, html.escape(shown.title), html.escape(shown.text[: 2 * AROUND]) + " …"))
    return f"<p><b>{html.escape(text)}</b></p>" + _table(rows)


def _table(rows: Sequence[str]) -> str:
    heads = (("p(z|x)", "90px"), ("document", "20%"), ("text", "auto"))
    head = "".join(f'<th style="text-align:left;width:{width}">{name}</th>' for name, width in heads)
    return f'<table style="width:100%"><tr>{head}</tr>{"".join(rows)}</table>'


def _row(prob: float, name: str, text: str) -> str:
    bar = f'<div style="background:#2a6fbb;height:5px;width:{max(1, round(80 * prob))}px"></div>'
    cell = '<td style="text-align:left;vertical-align:top">'
    return f"<tr>{cell}{prob:.3f}{bar}</td>{cell}{name}</td>{cell}{text}</td></tr>"
