"""A language model that retrieves, asked as language models are: how likely is this after that, go on from here.

What evaluation harnesses rely on. For each prompt the best documents of its query are read in prompts of their own, and probabilities are
added up by the retriever's (RA-DIT, Lin et al. 2023, arXiv:2310.01352, eq. 1; REPLUG, arXiv:2301.12652); or all documents in one prompt.
"""

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float64, Int32, Int64
from tqdm import tqdm

from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.answering.prompted import NOTHING, padded_prompts, prompt_alone, prompt_with
from realm_jax.answering.retrieving import RetrievingAnswerer, power_of_two
from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.generation import GenerationConfig
from realm_jax.generation.generator import generate, rag_sequence, rag_token
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.tasks.rag import Marginal
from realm_jax.text.generator_tokenizer import GeneratorTokenizer

logger = logging.getLogger(__name__)

_PROMPTS_AT_ONCE = 16
CUT = "prompts that were longer than the model reads, their beginning cut"


class Scored(NamedTuple):
    """A continuation, as the model finds it."""

    log_prob: float  # in nats, of all its tokens together
    is_greedy: bool  # whether each of its tokens is the likeliest, after the document that speaks most for it
    num_tokens: int


class RetrievalAugmentedLm:
    """A language model with a retriever, or without one.

    Attributes:
      max_length: positions of prompt and continuation together.
      tokenizer: the language model's.
      counts: how often a prompt had to be cut.
    """

    def __init__(
        self,
        model: LikelihoodJudge,
        tokenizer: GeneratorTokenizer,
        finder: RetrievingAnswerer | None = None,
        pieces: DocumentPieces | None = None,
        *,
        num_documents: int = 10,
        marginal: Marginal = "sequence",
        num_beams: int = 1,
    ):
        """Args:
        model: the language model.
        tokenizer: its own.
        finder: retriever, index and documents; None: what is asked with a query is answered without documents all the same.
        pieces: the finder's documents in the tokenizer's pieces.
        num_documents: read for a query.
        marginal: see `tasks.ra_dit.RaDit`.
        num_beams: of what is written; 1: greedy.

        Raises:
          ValueError: a finder without pieces, or the other way around.
        """
        if (finder is None) != (pieces is None):
            raise ValueError("expected a finder and the pieces of its documents, or neither, got one of them")
        self._model, self._finder, self._pieces = model, finder, pieces
        self._num_documents, self._marginal, self._num_beams = num_documents, marginal, num_beams
        self._form = PromptFormat.of(tokenizer)
        self.tokenizer, self.max_length = tokenizer, model.config.max_length
        self.counts: Counter[str] = Counter()
        self._encode = functools.lru_cache(65536)(lambda text: tokenizer.encode(text).ids)

    def log_likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[str], queries: Sequence[str] | None = None
    ) -> list[Scored]:
        """log Σ_c p_R(c|query) p_LM(continuation | Background: c ⏎⏎ prompt), of each prompt with its continuation.

        Args:
          prompts: texts.
          continuations: written right after them, with the space that they may begin with.
          queries: what is retrieved with; None, and "" for one of them: the prompt alone.

        Raises:
          ValueError: lists of different lengths, or a continuation longer than the model reads.
        """
        asked = [self._parts(*pair) for pair in zip(prompts, continuations, strict=True)]
        for text, (_, ids) in zip(continuations, asked, strict=True):
            if len(ids) > self.max_length - 2:
                raise ValueError(
                    f"a continuation of {len(ids)} tokens, and the model reads {self.max_length}: {text[:60]!r}; shorten it"
                )
        documents, log_probs = self._retrieve(len(prompts), queries)
        rows: list[Continuation] = []
        owners: list[int] = []
        priors: list[float] = []
        for number, (prompt, continuation) in enumerate(asked):
            for context, log_prob in self._contexts(prompt, documents[number], log_probs[number], len(continuation)):
                rows.append(Continuation(context, continuation))
                owners.append(number)
                priors.append(log_prob)
        judged = self._model.judge(rows)
        joint = np.asarray(priors) + judged.log_probs
        scored = []
        starts = np.searchsorted(owners, np.arange(len(asked) + 1))
        for number, (_, continuation) in enumerate(asked):
            own = slice(starts[number], starts[number + 1])
            likeliest = int(joint[own].argmax())
            log_prob = float(np.logaddexp.reduce(joint[own]))
            scored.append(Scored(log_prob, bool(judged.is_greedy[own][likeliest]), len(continuation)))
        return scored

    def rolling_log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """log p of each whole text without documents; of one longer than the model reads, window after window, each token being judged once
        after as much as stands before it in its window."""
        rows: list[Continuation] = []
        owners: list[int] = []
        width = self.max_length - 1
        for number, text in enumerate(texts):
            ids = self._encode(text)
            for first in range(0, len(ids), width):
                now = ids[first : first + width]
                # the last window reaches back, so that its tokens are judged after something
                before = ids[max(0, first + len(now) - width) : first] if first else ids[:0]
                rows.append(Continuation(np.concatenate([[self._form.bos], before]).astype(np.int32), now))
                owners.append(number)
        judged = self._model.judge(rows)
        sums = np.zeros(len(texts))
        np.add.at(sums, owners, judged.log_probs.astype(np.float64))
        return sums.tolist()

    def generate(
        self, prompts: Sequence[str], queries: Sequence[str] | None = None, *, max_tokens: int, stop: Sequence[str] = ()
    ) -> list[str]:
        """What the model writes after each prompt: at most `max_tokens` tokens, up to the first of the stop texts.

        Args:
          prompts, queries: see `log_likelihoods`.
          max_tokens: of an answer.
          stop: texts that end it; they are not part of it.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        if not 1 <= max_tokens < self.max_length - 1:
            raise ValueError(
                f"max_tokens: expected between 1 and {self.max_length - 2}, since the model has {self.max_length} positions, got {max_tokens}"
            )
        generation = GenerationConfig(num_beams=self._num_beams, max_length=max_tokens + 1)
        written: list[str] = []
        with tqdm(total=len(prompts), desc="write", unit=" prompts", mininterval=1.0, disable=len(prompts) < 64) as bar:
            for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
                rows = slice(first, first + _PROMPTS_AT_ONCE)
                written += self._write(prompts[rows], None if queries is None else queries[rows], generation, stop)
                bar.update(len(prompts[rows]))
        return written

    def _write(
        self,
        prompts: Sequence[str],
        queries: Sequence[str] | None,
        generation: GenerationConfig,
        stop: Sequence[str],
    ) -> list[str]:
        documents, log_probs = self._retrieve(len(prompts), queries)
        read = [
            self._contexts(self._encode(prompt), documents[row], log_probs[row], generation.target_len)
            for row, prompt in enumerate(prompts)
        ]
        most = max(map(len, read))
        contexts = [[context for context, _ in row] + [row[0][0]] * (most - len(row)) for row in read]
        scores = np.full((power_of_two(len(prompts)), most), -np.inf, np.float32)
        for row, of_row in enumerate(read):
            scores[row, : len(of_row)] = [log_prob for _, log_prob in of_row]
        padded = padded_prompts(contexts, self.max_length - generation.target_len)
        padded = np.pad(padded, ((0, len(scores) - len(prompts)), (0, 0), (0, 0)), constant_values=NOTHING)
        mask = (padded != NOTHING) & (scores > -np.inf)[:, :, None]
        ids = np.where(padded != NOTHING, padded, self._form.pad)
        settings: Any = {"config": self._model.config, "generation": generation}
        if most == 1:
            found = generate(self._model.params, ids[:, 0], mask[:, 0], **settings)
        else:
            decode = rag_token if self._marginal == "token" else rag_sequence
            found = decode(self._model.params, ids, mask, scores, **settings).hypotheses
        hypotheses = jax.device_get(found)
        texts = []
        for row in range(len(prompts)):
            text = self.tokenizer.decode(hypotheses.ids[row, 0, : int(hypotheses.lengths[row, 0])].tolist())
            places = [place for place in (text.find(end) for end in stop if end) if place >= 0]
            texts.append(text[: min(places, default=len(text))])
        return texts

    def _parts(self, prompt: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of both: of the whole text where the prompt's are its beginning, else of each by itself."""
        before, whole = self._encode(prompt), self._encode(prompt + continuation)
        if len(whole) > len(before) and np.array_equal(whole[: len(before)], before):
            return before, whole[len(before) :]
        return before, self._encode(continuation)

    def _contexts(
        self,
        prompt: Int32[np.ndarray, "prompt_len"],
        documents: Int64[np.ndarray, "num_documents"],
        log_probs: Float64[np.ndarray, "num_documents"],
        num_tokens: int,
    ) -> list[tuple[Int32[np.ndarray, "_"], float]]:
        """What stands before a continuation of so many tokens, with log p_R; the prompt alone where there is no document."""
        room = self.max_length - num_tokens
        if len(prompt) + 1 > room:
            self.counts[CUT] += 1
        there = [place for place, document in enumerate(documents.tolist()) if document >= 0]
        if not there or self._pieces is None:
            return [(prompt_alone(self._form, prompt, room), 0.0)]
        if self._marginal == "joint":
            return [(prompt_with(self._form, self._pieces, documents[there].tolist(), prompt, room), 0.0)]
        return [
            (prompt_with(self._form, self._pieces, [int(documents[place])], prompt, room), float(log_probs[place]))
            for place in there
        ]

    def _retrieve(
        self, count: int, queries: Sequence[str] | None
    ) -> tuple[Int64[np.ndarray, "batch num_documents"], Float64[np.ndarray, "batch num_documents"]]:
        """Documents of each query, best first, and log p_R; -1 where there is none."""
        documents = np.full((count, self._num_documents), -1, np.int64)
        log_probs = np.full(documents.shape, -np.inf)
        if queries is None or self._finder is None:
            return documents, log_probs
        if len(queries) != count:
            raise ValueError(f"expected a query for each of {count} prompts, got {len(queries)}")
        asked = [row for row, query in enumerate(queries) if query.strip()]
        distinct = list(dict.fromkeys(queries[row] for row in asked))
        found_at = {query: place for place, query in enumerate(distinct)}
        for first in range(0, len(distinct), _PROMPTS_AT_ONCE):
            some = distinct[first : first + _PROMPTS_AT_ONCE]
            result = self._finder.retrieve(some, None, lambda stage: None)
            ids, scores = result.ids[:, : self._num_documents], result.scores[:, : self._num_documents].astype(float)
            totals = np.logaddexp.reduce(scores, axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                normal = np.where(ids >= 0, scores - totals, -np.inf)
            for row in (row for row in asked if first <= found_at[queries[row]] < first + len(some)):
                place = found_at[queries[row]] - first
                documents[row, : ids.shape[1]], log_probs[row, : ids.shape[1]] = ids[place], normal[place]
        return documents, log_probs
