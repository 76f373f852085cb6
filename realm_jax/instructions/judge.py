"""What a frozen language model says of documents: how likely each makes the answer of an example."""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from realm_jax.answering.language_models import load_language_model
from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.corpus.generator_pieces import DocumentPieces, open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.instructions.retrieved import (
    JUDGING,
    RETRIEVED,
    Preferences,
    now,
    provenance_of,
    save_preferences,
)
from realm_jax.instructions.texts import encoded
from realm_jax.models import LanguageModelConfig, check_heads
from realm_jax.run_dir import RunDir
from realm_jax.text.generator_tokenizer import GeneratorTokenizer
from realm_jax.training.checkpoint import newest_step, params_checksum
from realm_jax.training.sharding import MeshConfig
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)

_EXAMPLES_A_PART = 512  # that are judged before what is known is written down


@dataclasses.dataclass(frozen=True)
class LanguageModelJudge:
    """The frozen language model that says how well a document explains an answer.

    Attributes:
      run: its run directory.
      language_model: its shape, with its adapter if it was trained with one.
      step: of its checkpoint; None for the newest.
      length: tokens of `[bos] background prompt answer`; the background is cut to that, never prompt or answer.
      mesh: over the devices of this process.
      tokens_at_once: of one program.
    """

    run: str
    language_model: LanguageModelConfig
    step: int | None = None
    length: int = 2048
    mesh: MeshConfig = MeshConfig()
    tokens_at_once: int = 16384

    def __post_init__(self) -> None:
        check_fields(self)
        if not 8 <= self.length <= self.language_model.max_length:
            raise ValueError(
                f"LanguageModelJudge.length must lie between 8 and the language model's max_length="
                f"{self.language_model.max_length}, got {self.length}"
            )
        if self.mesh.tensor > 0:  # -1 is known where the devices are
            check_heads(self.language_model, self.mesh.tensor)


def continuations_of(
    examples: Sequence[InstructionExample],
    documents: Int64[np.ndarray, "examples num_documents"],
    pieces: DocumentPieces,
    tokenizer: GeneratorTokenizer,
    length: int,
) -> list[Continuation]:
    """`[bos] background prompt` and the answer, for each example and each of its places for a document.

    Raises:
      ValueError: an example that has no room even without a document.
    """
    form = PromptFormat.of(tokenizer)
    prompts, answers = encoded(examples, tokenizer)
    room = length - 1 - prompts.lengths() - answers.lengths()
    unfit = (room < 0) & (documents >= 0).any(axis=1)
    if unfit.any():
        worst = examples[int(np.where(unfit, room, 0).argmin())]
        raise ValueError(
            f"an example of {worst.dataset} has {length - int(room.min())} tokens, and the judge reads {length}; raise LanguageModelJudge.length, "
            "or leave out long examples"
        )
    kept = form.lengths(pieces.titles.lengths(documents), pieces.bodies.lengths(documents), room[:, None])
    found = []
    for row in range(len(examples)):
        for column in range(documents.shape[1]):
            read = int(documents[row, column]), int(kept.titles[row, column]), int(kept.bodies[row, column])
            found.append(Continuation(form.prompt(pieces, *read, prompts[row]), answers[row]))
    return found


def judge_identity(judge: LanguageModelJudge, tokenizer: GeneratorTokenizer) -> dict[str, Any]:
    """What must be the same for scores to be the same."""
    return {
        "language_model_run": judge.run,
        "language_model_step": newest_step(RunDir.of(judge.run), judge.step),
        "language_model_checksum": params_checksum(RunDir.of(judge.run), judge.step),
        "language_model": repr(judge.language_model),
        "length": judge.length,
        "tokenizer": tokenizer.fingerprint,
    }


def prefer(
    judge: LanguageModelJudge,
    identity: dict[str, Any],
    directory: Path,
    examples: Sequence[InstructionExample],
    documents: Int64[np.ndarray, "examples num_documents"],
    corpus: Corpus,
    tokenizer: GeneratorTokenizer,
) -> Preferences:
    """Scores all documents and adds that to what was retrieved, part by part; parts that a stopped job has left are not scored again.

    Examples that are longer than the judge reads, even without a document, are not judged, and counted.

    Raises:
      FileNotFoundError: the judge's run has no such checkpoint.
      ValueError: a run of another kind.
    """
    found_step = identity["language_model_step"]
    _, config, params = load_language_model(
        judge.run, judge.language_model, tokenizer.fingerprint, found_step, judge.mesh.build_here()
    )
    model = LikelihoodJudge(config, params, mesh=judge.mesh, tokens_at_once=judge.tokens_at_once)
    pieces = open_pieces(corpus, tokenizer)
    prompt_lens, num_tokens = (part.lengths().astype(np.int32) for part in encoded(examples, tokenizer))
    too_long = 1 + prompt_lens + num_tokens > judge.length
    if too_long.any():
        logger.warning(
            "%d examples are longer than LanguageModelJudge.length=%d, and not judged", too_long.sum(), judge.length
        )
    documents = np.where(too_long[:, None], -1, documents)
    made_of = json.dumps([identity, provenance_of(directory, RETRIEVED)], sort_keys=True)
    parts = directory / f"{JUDGING}{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    parts.mkdir(exist_ok=True)
    log_likelihoods = np.full(documents.shape, np.nan, np.float32)
    with tqdm(total=documents.size, desc="judge", unit=" documents", mininterval=1.0) as bar:
        for number, first in enumerate(range(0, len(examples), _EXAMPLES_A_PART)):
            rows, file = slice(first, first + _EXAMPLES_A_PART), parts / f"part-{number:05d}.npy"
            if file.exists():
                log_likelihoods[rows] = np.load(file, allow_pickle=False)
                bar.update(documents[rows].size)
                continue
            some = continuations_of(examples[rows], documents[rows], pieces, tokenizer, judge.length)
            wanted = np.flatnonzero(documents[rows].reshape(-1) >= 0)
            judged = model.judge([some[place] for place in wanted.tolist()], bar.update)
            of_part = np.full(documents[rows].size, np.nan, np.float32)
            of_part[wanted] = judged.log_probs
            log_likelihoods[rows] = of_part.reshape(documents[rows].shape)
            temporary = file.with_suffix(".tmp.npy")
            np.save(temporary, log_likelihoods[rows])
            temporary.replace(file)
    provenance = {"identity": identity, "too_long": int(too_long.sum()), "made_at": now()}
    preferences = Preferences(log_likelihoods, num_tokens, provenance)
    save_preferences(directory, preferences)
    shutil.rmtree(parts)
    return preferences
