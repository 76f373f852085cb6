"""A language model that retrieves, asked as language models are: how likely is this after that, go on from here.

What evaluation harnesses rely on. For each prompt the best documents of its query are read in prompts of their own, and probabilities are
added up by the retriever's (RA-DIT, Lin et al. 2023, arXiv:2310.01352, section 2.1; REPLUG, arXiv:2301.12652); or all documents in one prompt.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from tqdm import tqdm

from realm_jax.answering.generating import rounded_up
from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.answering.prompted import NOTHING, PROMPT_CUT, padded_prompts, prompt_alone, prompt_with
from realm_jax.answering.retrieving import Find, RetrievingAnswerer, check_scores, power_of_two
from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.generation import GenerationConfig
from realm_jax.generation.generator import generate, rag_sequence, rag_token
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.tasks.rag import Marginal
from realm_jax.text.generator_tokenizer import GeneratorTokenizer
from realm_jax.training.sharding import put_batch, rows_for

logger = logging.getLogger(__name__)

_QUERIES_AT_ONCE = 16


class Scored(NamedTuple):
    """A continuation, as the model finds it."""

    log_prob: float  # in nats, of all its tokens together
    is_greedy: bool  # whether each of its tokens is the likeliest, after the document that speaks most for it
    num_tokens: int


class RetrievalAugmentedLm:
    """A language model with a retriever, or without one.

    Attributes:
      max_length: tokens of prompt and continuation together, the one at the beginning and the last one included.
      tokenizer: the language model's.
      counts: how often prompts and documents had to be cut or left out.
    """

    def __init__(
        self,
        model: LikelihoodJudge,
        tokenizer: GeneratorTokenizer,
        finder: RetrievingAnswerer | None = None,
        pieces: DocumentPieces | None = None,
        find: Find | None = None,
        *,
        num_documents: int = 10,
        marginal: Marginal = "sequence",
        generation: GenerationConfig = GenerationConfig(num_beams=1),
    ):
        """Args:
        model: the language model.
        tokenizer: its own.
        finder: retriever, index and documents; None: what is asked with a query is answered without documents all the same.
        pieces: the finder's documents in the tokenizer's pieces.
        find: which documents are read instead of those that the finder's index finds, see `RetrievingAnswerer.answer`.
        num_documents: read for a query.
        marginal: see `tasks.ra_dit.RaDit`.
        generation: how is searched for what is written; its max_length is not read.

        Raises:
          ValueError: a finder without pieces, or the other way around; sampling.
        """
        if (finder is None) != (pieces is None):
            raise ValueError("expected a finder and the pieces of its documents, or neither, got one of them")
        self._model, self._finder, self._pieces, self._find = model, finder, pieces, find
        if generation.sample:
            raise ValueError(
                "a language model that is evaluated writes what is likeliest, got GenerationConfig.sample=True; set it to False"
            )
        self._num_documents, self._marginal, self._generation = num_documents, marginal, generation
        self._form = PromptFormat.of(tokenizer)
        self.tokenizer, self.max_length = tokenizer, model.config.max_length
        self._longest = self.max_length - 1  # of what follows: the token at the beginning is always read
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
          ValueError: lists of different lengths, or a continuation of more than max_length - 1 tokens.
        """
        asked = [self._parts(*pair) for pair in zip(prompts, continuations, strict=True)]
        for text, (_, ids) in zip(continuations, asked, strict=True):
            if len(ids) > self._longest:
                raise ValueError(
                    f"expected continuations of at most {self._longest} tokens, which the model's {self.max_length} positions leave "
                    f"behind the token at the beginning, got one of {len(ids)}: {text[:60]!r}; shorten it"
                )
        documents, log_probs = self._retrieve(len(prompts), queries)
        # continuations that compete stand after the same context: that which leaves room for the longest
        keys = [(prompt, None if queries is None else queries[number]) for number, prompt in enumerate(prompts)]
        longest: dict[tuple[str, str | None], int] = {}
        for key, (_, ids) in zip(keys, asked, strict=True):
            longest[key] = max(longest.get(key, 0), len(ids))
        rows: list[Continuation] = []
        owners: list[int] = []
        priors: list[float] = []
        for number, (prompt, continuation) in enumerate(asked):
            for context, log_prob in self._contexts(
                prompt, documents[number], log_probs[number], longest[keys[number]]
            ):
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
        width = self._longest
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
          max_tokens: of an answer; what they leave of the model's positions is the prompt's.
          stop: texts that end it; they are not part of it.

        Raises:
          ValueError: no tokens, or more than max_length - 1.
        """
        if not 1 <= max_tokens <= self._longest:
            raise ValueError(
                f"max_tokens: expected between 1 and {self._longest}, which the model's {self.max_length} positions leave behind the "
                f"token at the beginning, got {max_tokens}; ask for fewer"
            )
        generation = dataclasses.replace(self._generation, max_length=max_tokens + 1, min_length=0)
        documents, log_probs = self._retrieve(len(prompts), queries)
        read = [
            self._contexts(self._encode(prompt), documents[row], log_probs[row], generation.target_len)
            for row, prompt in enumerate(prompts)
        ]
        # prompts of like length together, as many tokens at once as when it judges
        longest = np.asarray([max(len(context) for context, _ in row) for row in read], np.int64)
        order = np.argsort(-longest, kind="stable")
        written = [""] * len(prompts)
        with tqdm(total=len(prompts), desc="write", unit=" prompts", mininterval=1.0, disable=len(prompts) < 64) as bar:
            while len(order):
                tokens = self._num_documents * (rounded_up(int(longest[order[0]])) + generation.target_len)
                fitting = max(1, self._model.tokens_at_once // tokens)
                at_once = rows_for(self._model.mesh, 1 << (fitting.bit_length() - 1))  # power of two: few programs
                now, order = order[:at_once], order[at_once:]
                for row, text in zip(now, self._write([read[row] for row in now], generation, stop), strict=True):
                    written[row] = text
                bar.update(len(now))
        return written

    def _write(
        self,
        read: Sequence[Sequence[tuple[Int32[np.ndarray, "_"], float]]],
        generation: GenerationConfig,
        stop: Sequence[str],
    ) -> list[str]:
        """What is written after the contexts of each prompt."""
        most = max(map(len, read))
        if most > 1 and self._marginal == "sequence" and any(stop):
            return self._write_stopped(read, generation, stop)
        contexts = [[context for context, _ in row] + [row[0][0]] * (most - len(row)) for row in read]
        scores = np.full((len(read), most), -np.inf, np.float32)
        for row, of_row in enumerate(read):
            scores[row, : len(of_row)] = [log_prob for _, log_prob in of_row]
        return [_stopped(texts[0], stop) for texts in self._hypotheses(contexts, scores, generation)]

    def _write_stopped(
        self,
        read: Sequence[Sequence[tuple[Int32[np.ndarray, "_"], float]]],
        generation: GenerationConfig,
        stop: Sequence[str],
    ) -> list[str]:
        """The likeliest of what is written after each document, up to a stop text and with it: what a model that does not end by itself
        goes on to write is no part of its answer, and must not weigh."""
        flat = [[context] for row in read for context, _ in row]
        found = iter(self._hypotheses(flat, np.zeros((len(flat), 1), np.float32), generation))
        rows: list[Continuation] = []
        priors: list[float] = []
        asked: list[tuple[int, str]] = []
        for number, row in enumerate(read):
            texts = dict.fromkeys(_with_stop(text, stop) for _ in row for text in next(found))
            for text in texts:
                ids = self._encode(text)[: generation.target_len]
                if len(ids) < generation.target_len and not text.endswith(tuple(end for end in stop if end)):
                    # it ended by itself: without its end an empty answer would be certain
                    ids = np.append(ids, np.int32(self._form.eos)).astype(np.int32)
                rows += [Continuation(context, ids) for context, _ in row]
                priors += [log_prob for _, log_prob in row]
                asked += [(number, text)] * len(row)
        joint = np.asarray(priors) + self._model.judge(rows).log_probs
        totals: dict[tuple[int, str], float] = {}
        for key, value in zip(asked, joint.tolist(), strict=True):
            totals[key] = float(np.logaddexp(totals.get(key, -np.inf), value))
        best = [max((key for key in totals if key[0] == number), key=totals.__getitem__) for number in range(len(read))]
        return [_stopped(text, stop) for _, text in best]

    def _hypotheses(
        self,
        contexts: Sequence[Sequence[Int32[np.ndarray, "_"]]],
        scores: Float32[np.ndarray, "batch num_prompts"],
        generation: GenerationConfig,
    ) -> list[list[str]]:
        """What is written after the prompts of each row, best first."""
        count, most = scores.shape
        rows = rows_for(self._model.mesh, power_of_two(count))
        padded = padded_prompts(contexts, self.max_length - generation.target_len)
        padded = np.pad(padded, ((0, rows - count), (0, 0), (0, 0)), constant_values=NOTHING)
        scores = np.pad(scores, ((0, rows - count), (0, 0)), constant_values=-np.inf)
        mask = (padded != NOTHING) & (scores > -np.inf)[:, :, None]
        ids, mask, scores = put_batch(self._model.mesh, (np.where(mask, padded, self._form.pad), mask, scores))
        settings: Any = {"config": self._model.config, "generation": generation}
        if most == 1:
            found = generate(self._model.params, ids[:, 0], mask[:, 0], **settings)
        else:
            decode = rag_token if self._marginal == "token" else rag_sequence
            found = decode(self._model.params, ids, mask, scores, **settings).hypotheses
        ids, lengths = jax.device_get((found.ids, found.lengths))
        return [
            [self.tokenizer.decode(tokens[:length].tolist()) for tokens, length in zip(*of_row, strict=True)]
            for of_row in zip(ids[:count], lengths[:count], strict=True)
        ]

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
        there = [place for place, document in enumerate(documents.tolist()) if document >= 0]
        if not there or self._pieces is None:
            self.counts[PROMPT_CUT] += int(len(prompt) + 1 > room)
            return [(prompt_alone(self._form, prompt, room), 0.0)]
        if self._marginal == "joint":
            return [(prompt_with(self._form, self._pieces, documents[there].tolist(), prompt, room, self.counts), 0.0)]
        return [
            (
                prompt_with(self._form, self._pieces, [int(documents[place])], prompt, room, self.counts),
                float(log_probs[place]),
            )
            for place in there
        ]

    def _retrieve(
        self, count: int, queries: Sequence[str] | None
    ) -> tuple[Int64[np.ndarray, "batch num_documents"], Float64[np.ndarray, "batch num_documents"]]:
        """Documents of each query, best first, and log p_R; -1 where there is none.

        Raises:
          FloatingPointError: a score that is no number.
        """
        documents = np.full((count, self._num_documents), -1, np.int64)
        log_probs = np.full(documents.shape, -np.inf)
        if queries is None or self._finder is None:
            return documents, log_probs
        if len(queries) != count:
            raise ValueError(f"expected a query for each of {count} prompts, got {len(queries)}")
        rows_of: dict[str, list[int]] = {}
        for row, query in enumerate(queries):
            if query.strip():
                rows_of.setdefault(query, []).append(row)
        distinct = list(rows_of)
        for first in range(0, len(distinct), _QUERIES_AT_ONCE):
            some = distinct[first : first + _QUERIES_AT_ONCE]
            result = self._finder.retrieve(some, self._find, lambda stage: None)
            ids, scores = result.ids[:, : self._num_documents], result.scores[:, : self._num_documents].astype(float)
            check_scores(scores)
            totals = np.logaddexp.reduce(scores, axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                normal = np.where(ids >= 0, scores - totals, -np.inf)
            for place, query in enumerate(some):
                documents[rows_of[query], : ids.shape[1]] = ids[place]
                log_probs[rows_of[query], : ids.shape[1]] = normal[place]
        return documents, log_probs


def _stopped(text: str, stop: Sequence[str]) -> str:
    """Up to the first of the stop texts."""
    places = [place for place in (text.find(end) for end in stop if end) if place >= 0]
    return text[: min(places, default=len(text))]


def _with_stop(text: str, stop: Sequence[str]) -> str:
    """Up to the first of the stop texts, and with it."""
    kept = _stopped(text, stop)
    return kept + next((end for end in stop if end and text.startswith(end, len(kept))), "")
