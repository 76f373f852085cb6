"""Instruction examples with the documents that a retriever found for them, and what a language model says of each document.

RUN/retrieved/NAME/examples.jsonl       the examples, one a line
RUN/retrieved/NAME/documents.npy        [examples, num_documents], best first, -1 for none
RUN/retrieved/NAME/scores.npy           the retriever's, -inf for none
RUN/retrieved/NAME/retrieved.json       written last of these: where all of it comes from
RUN/retrieved/NAME/log_likelihoods.npy  [examples, num_documents] log p_LM(answer | document, prompt), nan for none
RUN/retrieved/NAME/num_tokens.npy       of each answer
RUN/retrieved/NAME/judged.json          written last: which language model says so
"""

import datetime
import hashlib
import json
import shutil
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.instructions.example import InstructionExample
from realm_jax.run_dir import read_json, write_json_atomically, write_text_atomically
from realm_jax.storage import fetch

RETRIEVED, JUDGED = "retrieved.json", "judged.json"
JUDGING = "judging-"
"""Begins the name of the folder of what is judged so far."""
_DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError, tokenize.TokenError)
"""What reading a torn or changed file ends in; the last of an array's header."""


class Preferences(NamedTuple):
    """What a language model makes of each document."""

    log_likelihoods: Float32[np.ndarray, "examples num_documents"]  # log p_LM(y|c∘x), nan where there is no document
    num_tokens: Int32[np.ndarray, "examples"]  # of the answer
    provenance: Mapping[str, Any]

    def comparable(self, num_documents: int | None = None) -> Bool[np.ndarray, "examples"]:
        """Which examples say what is preferred: those that have an answer, and two judged documents among the first."""
        judged = np.isfinite(self.log_likelihoods[:, :num_documents]).sum(axis=1)
        return (self.num_tokens > 0) & (judged >= 2)


class RetrievedExamples(NamedTuple):
    """What the `retrieve` job has made."""

    examples: tuple[InstructionExample, ...]
    documents: Int64[np.ndarray, "examples num_documents"]
    scores: Float32[np.ndarray, "examples num_documents"]
    provenance: Mapping[str, Any]
    preferences: Preferences | None  # None: no language model was asked


def save_retrieved(
    directory: Path,
    examples: Sequence[InstructionExample],
    documents: Int64[np.ndarray, "examples num_documents"],
    scores: Float32[np.ndarray, "examples num_documents"],
    provenance: Mapping[str, Any],
) -> None:
    """Writes all but a language model's part; one that is there is of other documents, and goes."""
    directory.mkdir(parents=True, exist_ok=True)
    for record in (JUDGED, RETRIEVED):
        (directory / record).unlink(missing_ok=True)
    for part in directory.glob(f"{JUDGING}*"):
        shutil.rmtree(part)
    lines = (json.dumps(example._asdict(), ensure_ascii=False) + "\n" for example in examples)
    write_text_atomically(directory / "examples.jsonl", "".join(lines))
    np.save(directory / "documents.npy", documents)
    np.save(directory / "scores.npy", scores)
    write_json_atomically(directory / RETRIEVED, dict(provenance))


def save_preferences(directory: Path, preferences: Preferences) -> None:
    """Adds a language model's part."""
    np.save(directory / "log_likelihoods.npy", preferences.log_likelihoods)
    np.save(directory / "num_tokens.npy", preferences.num_tokens)
    write_json_atomically(directory / JUDGED, dict(preferences.provenance))


def provenance_of(directory: Path, record: str) -> dict[str, Any] | None:
    """What is said of the parts that are there; None where they are not, or not whole."""
    return dict(read_json(directory / record)) if (directory / record).is_file() else None


def open_retrieved(place: str, corpus: Corpus) -> RetrievedExamples:
    """Reads what the job has made, of a corpus.

    Raises:
      ValueError: it is not there, not whole, or of another corpus.
    """
    directory = fetch(place)
    try:
        said = provenance_of(directory, RETRIEVED)
    except _DAMAGED as error:
        raise ValueError(f"{place} is damaged ({error}); remove it and run the retrieve job again") from error
    if said is None:
        raise ValueError(
            f"{place} holds no retrieved examples ({RETRIEVED}); name a folder RUN/retrieved/NAME of the retrieve job"
        )
    if said.get("corpus") != corpus.fingerprint:
        raise ValueError(
            f"{place} is of a corpus {str(said.get('corpus'))[:12]}, expected {corpus.fingerprint[:12]} ({corpus.directory}); "
            "retrieve from this corpus, or name that one"
        )
    try:
        lines = (directory / "examples.jsonl").read_bytes().splitlines()  # of a text it would also cut at other marks
        examples = tuple(_example(line.decode("utf-8")) for line in lines)
        documents, scores = _array(directory, "documents", np.int64), _array(directory, "scores", np.float32)
        judged = provenance_of(directory, JUDGED)
        preferences = None
        if judged is not None:
            log_likelihoods = _array(directory, "log_likelihoods", np.float32)
            preferences = Preferences(log_likelihoods, _array(directory, "num_tokens", np.int32), judged)
    except _DAMAGED as error:
        raise ValueError(f"{place} is damaged ({error}); remove it and run the retrieve job again") from error
    shape = documents.shape
    wrong = documents.ndim != 2 or scores.shape != shape or len(examples) != len(documents)
    if preferences is not None:
        wrong |= preferences.log_likelihoods.shape != shape or preferences.num_tokens.shape != shape[:1]
    if wrong or documents.max(initial=-1) >= corpus.num_documents:
        raise ValueError(
            f"{place} is damaged (its arrays do not fit its examples); remove it and run the retrieve job again"
        )
    return RetrievedExamples(examples, documents, scores, said, preferences)


def retrieved_fingerprint(found: Sequence[RetrievedExamples]) -> str:
    """Of where results come from, and when they were made: what a training run must go on with."""
    made_of = [[dict(one.provenance), dict(one.preferences.provenance) if one.preferences else None] for one in found]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _example(line: str) -> InstructionExample:
    fields = json.loads(line)
    found = InstructionExample(**{**fields, "references": tuple(fields["references"])})
    if not all(isinstance(value, str) for value in (*found[:5], *found.references, found.id)):
        raise ValueError("an example that is no text")
    return found


def _array(directory: Path, name: str, dtype: type) -> np.ndarray:
    found = np.load(directory / f"{name}.npy", allow_pickle=False)
    if found.dtype != dtype:
        raise ValueError(f"{name}.npy holds {found.dtype}, expected {np.dtype(dtype)}")
    return found


def now() -> str:
    """The time, for a record."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
