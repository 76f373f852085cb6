"""Answers written by a language model after prompts with documents: RA-DIT's parallel prompts, or all documents in one."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32, Int64

from realm_jax.answering.documents import Text
from realm_jax.answering.generating import Generator, Written, rounded_up
from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.generation import GenerationConfig
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.models import LanguageModel, LanguageModelConfig
from realm_jax.tasks.rag import Marginal
from realm_jax.text.generator_tokenizer import GeneratorTokenizer
from realm_jax.training.sharding import MeshConfig

logger = logging.getLogger(__name__)

PROMPT_CUT = "prompts that were longer than the model reads, their beginning cut"
BACKGROUND_CUT = "documents that were cut"
BACKGROUND_LEFT_OUT = "documents that had no room"
NOTHING = -1
"""Stands behind prompts. A language model's padding may be a token that prompts have."""


class PromptedGenerator(Generator):
    """A language model with its tokenizer: prompts in, best answers out. Compiled once for each shape of its inputs."""

    def __init__(
        self,
        config: LanguageModelConfig,
        params: Mapping[str, Any],
        tokenizer: GeneratorTokenizer,
        generation: GenerationConfig,
        asked: Callable[[str], str],
        *,
        source_len: int,
        marginal: Marginal,
        mesh: MeshConfig = MeshConfig(),
    ):
        """Args:
        config: shape of the language model, without an adapter.
        params: of it.
        tokenizer: its own.
        generation: how answers are searched for.
        asked: how a question is put.
        source_len: tokens of `[bos] background question`, of which a longer question has more, and no background.
        marginal: what becomes of several documents; see `tasks.ra_dit.RaDit`.
        mesh: over the devices of this process.

        Raises:
          ValueError: parameters of other shapes, lengths beyond the model's positions.
        """
        ids = jax.ShapeDtypeStruct((1, 8), np.int32)
        abstract = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids, ids)["params"]
        self._open(
            config,
            params,
            abstract,
            "LanguageModelConfig",
            tokenizer,
            generation,
            source_len,
            marginal,
            mesh.build_here(),
        )
        self._asked, self._form = asked, PromptFormat.of(tokenizer)
        self._filler = NOTHING
        self.counts: Counter[str] = Counter()
        self._has_warned = False

    def sources(
        self, questions: Sequence[str], ids: Int64[np.ndarray, "batch num_documents"], documents: Mapping[int, Text]
    ) -> Int32[np.ndarray, "batch num_prompts source_len"]:
        """The prompts of each question: one for each of its documents, or one with all of them.

        A question is never cut: one that leaves no room for documents stands alone, and is counted.

        Raises:
          ValueError: a question that leaves the model no room for an answer.
        """
        known = sorted(documents)
        places = {document: place for place, document in enumerate(known)}
        pieces = DocumentPieces(
            self._ragged([documents[document].title for document in known]),
            self._ragged([f" {documents[document].text}" for document in known]),
        )
        asked = [encoding.ids for encoding in self.tokenizer.encode_batch([self._asked(text) for text in questions])]
        longest, most = (1 + max(map(len, asked), default=0), self.config.max_length - self.generation.target_len + 1)
        if longest > most:
            raise ValueError(
                f"expected questions of at most {most} tokens, which leave room for {self.generation.target_len} of an answer in the "
                f"language model's {self.config.max_length}, got one of {longest}; ask shorter ones"
            )
        if longest > self._source_len and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a question is longer than source_len=%d tokens, and is asked without documents", self._source_len
            )
        prompts = [
            [
                prompt_with(
                    self._form,
                    pieces,
                    [places[document] for document in read if document >= 0],
                    ids_asked,
                    max(self._source_len, 1 + len(ids_asked)),
                    self.counts,
                )
                for read in ([row.tolist()] if self.marginal == "joint" else [[document] for document in row.tolist()])
            ]
            for row, ids_asked in zip(ids, asked, strict=True)
        ]
        return padded_prompts(prompts, max(self._source_len, longest))

    def write(
        self,
        source_ids: Int32[np.ndarray, "batch num_prompts source_len"],
        scores: Float32[np.ndarray, "batch num_documents"],
        *,
        alone: bool = False,
    ) -> list[Written]:
        """See `Generator.write`; of all documents in one prompt the scores say nothing."""
        if self.marginal == "joint":
            return super().write(source_ids, np.zeros(source_ids.shape[:2], np.float32), alone=True)
        return super().write(source_ids, scores, alone=alone)


def prompt_with(
    form: PromptFormat,
    pieces: DocumentPieces,
    documents: Sequence[int],
    prompt: Int32[np.ndarray, "prompt_len"],
    length: int,
    counts: Counter[str],
) -> Int32[np.ndarray, "_"]:
    """`[bos] background prompt`, of several documents the best, which comes first in `documents`, last.

    What has no room is left out: of the documents the last one that has some is cut, and a prompt that is too long by itself loses its
    beginning. `counts` is told of each.
    """
    counts[PROMPT_CUT] += int(len(prompt) + 1 > length)
    alone = prompt_alone(form, prompt, length)
    room = length - len(alone)
    backgrounds: list[np.ndarray] = []
    for document in documents:
        titles, bodies = (np.asarray([len(part[document])], np.int64) for part in pieces)
        kept = form.lengths(titles, bodies, np.asarray([room], np.int64))
        title, body = pieces.titles[document][: int(kept.titles[0])], pieces.bodies[document][: int(kept.bodies[0])]
        backgrounds.append(form.background(title, body))
        counts[BACKGROUND_LEFT_OUT] += int(not len(backgrounds[-1]) and titles[0] + bodies[0] > 0)
        counts[BACKGROUND_CUT] += int(0 < len(title) + len(body) < titles[0] + bodies[0])
        room -= len(backgrounds[-1])
    return np.concatenate([alone[:1], *reversed(backgrounds), alone[1:]])


def prompt_alone(form: PromptFormat, prompt: Int32[np.ndarray, "prompt_len"], length: int) -> Int32[np.ndarray, "_"]:
    """`[bos] prompt`, its beginning left out where it is too long."""
    return np.concatenate([np.asarray([form.bos], np.int32), prompt[max(0, len(prompt) - (length - 1)) :]])


def padded_prompts(
    prompts: Sequence[Sequence[Int32[np.ndarray, "_"]]], longest: int
) -> Int32[np.ndarray, "batch num_prompts length"]:
    """In one array, `NOTHING` after their ends, no longer than the longest needs."""
    used = max(len(prompt) for row in prompts for prompt in row)
    ids = np.full((len(prompts), len(prompts[0]), min(rounded_up(used), longest)), NOTHING, np.int32)
    for row, of_row in enumerate(prompts):
        for column, prompt in enumerate(of_row):
            ids[row, column, : len(prompt)] = prompt
    return ids
