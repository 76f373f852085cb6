"""Answers written by a generator that reads a question's documents: RAG-Sequence, RAG-Token and FiD; or the question alone."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float32, Int32, Int64

from realm_jax.answering.answer import Answer, GeneratedToken, WeighedDocument
from realm_jax.answering.documents import Documents, Text
from realm_jax.answering.retrieving import Find, OnStage, RetrievingAnswerer, check_scores, power_of_two
from realm_jax.corpus.generator_pieces import DocumentPieces
from realm_jax.corpus.ragged import Ragged
from realm_jax.data.rag import SourceFormat, sources
from realm_jax.generation import GenerationConfig
from realm_jax.generation.generator import fusion_in_decoder, generate, rag_sequence, rag_token
from realm_jax.generation.readers import GeneratorConfig, check_lengths
from realm_jax.models import EncoderDecoder, EncoderDecoderConfig, RetrieverConfig
from realm_jax.retrieval.index import Index
from realm_jax.tasks.rag import Marginal
from realm_jax.text.generator_tokenizer import GeneratorTokenizer
from realm_jax.training.sharding import MeshConfig, put_batch, rows_for, state_shardings
from realm_jax.training.snapshots import check_shapes

_STEP = 32
"""Sources are padded to multiples of this, long ones to eighths of a power of two: few programs, little padding."""

# What word pieces leave apart and texts write together: within names and numbers.
_APART = re.compile(r"(?<=\w) ([-'’–/]) (?=\w)|(?<=\d) ([.,:]) (?=\d)")


def rounded_up(length: int) -> int:
    """To a length of which there is a program."""
    step = max(_STEP, power_of_two(length) // 8)
    return -(-length // step) * step


class Written(NamedTuple):
    """The best answer of a question."""

    ids: Int32[np.ndarray, "length"]  # with the end-of-sequence token, if it came to it
    log_prob: float
    document_posteriors: Float32[np.ndarray, "num_documents"] | None  # p(z|x, y); None of documents read together
    token_posteriors: Float32[np.ndarray, "length num_documents"] | None  # of RAG-Token


class Generator:
    """A generator with its tokenizer: sources in, best answers out. Compiled once for each shape of its inputs."""

    def __init__(
        self,
        config: EncoderDecoderConfig,
        params: Mapping[str, Any],
        tokenizer: GeneratorTokenizer,
        generation: GenerationConfig,
        *,
        source_len: int,
        marginal: Marginal,
    ):
        """Args:
        config: shape of the generator.
        params: of it.
        tokenizer: its own.
        generation: how answers are searched for.
        source_len: pieces of `[bos] title / body // question [eos]`.
        marginal: what becomes of several documents; see `tasks.rag.Rag`.

        Raises:
          ValueError: parameters of other shapes, lengths beyond the position table.
        """
        ids = jax.ShapeDtypeStruct((1, 8), np.int32)
        mask = jax.ShapeDtypeStruct((1, 8), np.bool_)
        abstract = jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), ids, mask, ids)["params"]
        one_device = MeshConfig().build(jax.local_devices()[:1])
        self._open(
            config, params, abstract, "EncoderDecoderConfig", tokenizer, generation, source_len, marginal, one_device
        )
        self._source_form = SourceFormat.of(tokenizer)

    def _open(
        self,
        config: GeneratorConfig,
        params: Mapping[str, Any],
        abstract: Any,
        kind: str,
        tokenizer: GeneratorTokenizer,
        generation: GenerationConfig,
        source_len: int,
        marginal: Marginal,
        mesh: Mesh,
    ) -> None:
        """What every generator keeps; `abstract` are parameters of its configuration's shapes."""
        check_lengths(config, generation, source_len)
        check_shapes(abstract, params, "generator", f"give the job the {kind} that the run was trained with")
        if source_len > config.max_length:
            raise ValueError(
                f"source_len must be at most the generator's max_length {config.max_length}, got {source_len}"
            )
        self.tokenizer, self.config, self.generation, self.marginal = tokenizer, config, generation, marginal
        self._mesh, self._source_len = mesh, source_len
        self._params = jax.device_put(params, state_shardings(mesh, abstract))
        self._draws = itertools.count()
        self._filler = config.pad_id  # stands in `sources` where nothing does

    def sources(
        self, questions: Sequence[str], ids: Int64[np.ndarray, "batch num_documents"], documents: Mapping[int, Text]
    ) -> Int32[np.ndarray, "batch num_documents source_len"]:
        """What is read: every question with each of its documents, padded no further than the longest needs.

        Args:
          questions: texts.
          ids: documents of each; negative: the question alone.
          documents: by id.
        """
        known = sorted(documents)
        places = np.searchsorted(np.asarray(known, np.int64), ids) if known else np.zeros_like(ids)
        pieces = DocumentPieces(
            self._ragged([documents[document].title for document in known]),
            self._ragged([f" {documents[document].text}" for document in known]),
        )
        asked = [encoding.ids for encoding in self.tokenizer.encode_batch([f" {question}" for question in questions])]
        whole = sources(pieces, np.where(ids >= 0, places, -1), asked, self._source_len, self._source_form)
        used = int((whole != self.config.pad_id).sum(axis=-1).max(initial=1))
        return whole[:, :, : min(rounded_up(used), self._source_len)]

    def _ragged(self, texts: list[str]) -> Ragged:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)] if texts else []
        return Ragged(np.concatenate([np.zeros(0, np.int32), *rows]), np.cumsum([0, *(len(row) for row in rows)]))

    def write(
        self,
        source_ids: Int32[np.ndarray, "batch num_documents source_len"],
        scores: Float32[np.ndarray, "batch num_documents"],
        *,
        alone: bool = False,
    ) -> list[Written]:
        """The best answer to each question; of `GenerationConfig.sample` one that is drawn anew at each call.

        Args:
          source_ids: of `sources`.
          scores: log p(z|x), or retrieval scores; -inf where there is no document. A question without any is answered from its
            first source, the question alone.
          alone: whether the one source is all there is, so that nothing is marginalised.

        Raises:
          FloatingPointError: a score that is no number.
        """
        count = len(source_ids)
        check_scores(scores)
        there: Bool[np.ndarray, "batch num_documents"] = np.isfinite(scores)
        there[:, 0] |= ~there.any(axis=1)
        scores = np.where(there, np.where(np.isfinite(scores), scores, 0.0), -np.inf).astype(np.float32)
        rows = rows_for(self._mesh, power_of_two(count))
        scores = np.pad(scores, ((0, rows - count), (0, 0)))
        ids = np.pad(source_ids, ((0, rows - count), (0, 0), (0, 0)), constant_values=self._filler)
        mask = (ids != self._filler) & np.pad(there, ((0, rows - count), (0, 0)))[:, :, None]
        ids, mask, scores = put_batch(
            self._mesh, (np.where(ids != self._filler, ids, self.config.pad_id), mask, scores)
        )
        rng = None
        if self.generation.sample:
            rng = jax.random.fold_in(jax.random.key(self.generation.seed), next(self._draws))
        settings: Any = {"config": self.config, "generation": self.generation}
        answers: Any = None
        if alone:
            hypotheses = generate(self._params, ids[:, 0], mask[:, 0], rng, **settings)
        elif self.marginal == "joint":
            hypotheses = fusion_in_decoder(self._params, ids, mask, rng, **settings)
        else:
            decode = rag_token if self.marginal == "token" else rag_sequence
            answers = decode(self._params, ids, mask, scores, rng, **settings)
            hypotheses = answers.hypotheses
        found, answers = jax.device_get((hypotheses, answers))
        written = []
        for row in range(count):
            length = int(found.lengths[row, 0])
            penalised = answers is None or self.marginal == "token"  # RAG-Sequence ranks by log p(y|x) itself
            log_prob = float(found.scores[row, 0]) * (length**self.generation.length_penalty if penalised else 1.0)
            posteriors = tokens = None
            if answers is not None:
                posteriors = answers.document_posteriors[row, 0]
                if answers.token_posteriors is not None:
                    tokens = answers.token_posteriors[row, 0, :length]
            written.append(Written(found.ids[row, 0, :length], log_prob, posteriors, tokens))
        return written

    def text(self, ids: Int32[np.ndarray, "length"], read: Sequence[str] = ()) -> str:
        """Readable text, without the end-of-sequence token.

        Pieces that know no capitals, accents or white space: where they stand in one of the texts that were read, the answer is spelled
        as there.
        """
        if self.tokenizer.keeps_spelling:
            return self.tokenizer.decode(ids.tolist()).strip()
        kept = ids[~np.isin(ids, (self.config.pad_id, self.config.bos_id, self.config.eos_id))]
        for text, encoding in zip(read, self.tokenizer.encode_batch(list(read)), strict=True):
            if 0 < len(kept) <= len(encoding.ids):
                windows = np.lib.stride_tricks.sliding_window_view(encoding.ids, len(kept))
                found = np.flatnonzero((windows == kept).all(axis=1))
                if len(found):
                    start, end = encoding.offsets[found[0], 0], encoding.offsets[found[0] + len(kept) - 1, 1]
                    return text[start:end].strip()
        apart = self.tokenizer.decode(ids.tolist()).strip()
        together = _APART.sub(lambda match: match[1] or match[2], apart)
        return together if np.array_equal(self.tokenizer.encode(together).ids, kept) else apart

    def spelled(self, ids: Int32[np.ndarray, "length"]) -> list[str]:
        """What each token adds to the text; together they are the decoded text, but for white space at the ends.

        A token that ends within a character, or that a later one is written together with, adds nothing; the later one adds both.
        """
        texts = [self.tokenizer.decode(ids[:end].tolist()) for end in range(len(ids) + 1)]
        pieces, said = [], ""
        for number, text in enumerate(texts[1:], start=1):
            whole = all(later.startswith(text) for later in texts[number + 1 :])
            pieces.append(text[len(said) :] if whole else "")
            said = text if whole else said
        return pieces


class GeneratingAnswerer(RetrievingAnswerer):
    """A retriever, an index and a generator, ready to be asked. May be used from several threads."""

    def __init__(
        self,
        documents: Documents,
        index: Index,
        retriever: RetrieverConfig,
        generator: Generator,
        params: Mapping[str, Any],
        *,
        query_len: int = 64,
        document_len: int = 288,
        num_documents: int = 5,
    ):
        """Args:
        documents: what the index's ids stand for.
        index: of these documents, embedded by this retriever's document encoder.
        retriever: shape of the retriever.
        generator: writes the answers.
        params: of the retriever.
        query_len, document_len: see `RetrievingAnswerer`.
        num_documents: read for a question.

        Raises:
          ValueError: as `RetrievingAnswerer`.
        """
        super().__init__(
            documents, index, retriever, params, query_len=query_len, document_len=document_len, num_read=num_documents
        )
        self._generator = generator

    def closed_book(self) -> "ClosedBookAnswerer":
        """The same generator without its documents."""
        return ClosedBookAnswerer(self._generator)

    def answer(
        self, questions: Sequence[str], find: Find | None = None, on_stage: OnStage = lambda stage: None
    ) -> list[Answer]:
        """Writes answers to questions together; see `RetrievingAnswerer.answer`."""
        if not questions:
            return []
        found = self.retrieve(questions, find, on_stage)
        texts = {document: self.documents.text(document) for document in np.unique(found.ids[found.ids >= 0]).tolist()}
        source_ids = self._generator.sources(questions, found.ids, texts)
        on_stage("gather")
        written = self._generator.write(source_ids, found.scores)
        on_stage("read")
        answers = [
            self._answer(question, found.ids[row], found.scores[row], texts, written[row])._replace(
                pieces_left_out=self.pieces_left_out(found.pieces[row])
            )
            for row, question in enumerate(questions)
        ]
        on_stage("choose")
        return answers

    def _answer(
        self,
        question: str,
        ids: Int64[np.ndarray, "num_documents"],
        scores: Float32[np.ndarray, "num_documents"],
        texts: Mapping[int, Text],
        written: Written,
    ) -> Answer:
        there = np.flatnonzero(ids >= 0)
        probs = np.exp(scores - np.logaddexp.reduce(scores[there].astype(np.float64))) if len(there) else scores
        documents = []
        for column in there.tolist():
            document = int(ids[column])
            posterior = None if written.document_posteriors is None else float(written.document_posteriors[column])
            documents.append(
                WeighedDocument(
                    document, *texts[document], float(scores[column]), float(probs[column]), None, posterior
                )
            )
        tokens = []
        if written.token_posteriors is not None and len(there):
            for text, shares in zip(
                self._generator.spelled(written.ids), written.token_posteriors[:, there], strict=True
            ):
                if text:
                    tokens.append(GeneratedToken(text, tuple(shares.tolist())))
        prob = float(np.exp(written.log_prob)) if len(written.ids) else 0.0
        likeliest = sorted(documents, key=lambda found: -(found.prob if found.posterior is None else found.posterior))
        read = [part for found in likeliest for part in (found.text, found.title)]
        text = self._generator.text(written.ids, [*read, question])
        return Answer(question, text, prob, tuple(documents), tokens=tuple(tokens))


class ClosedBookAnswerer:
    """A generator that reads the question alone."""

    def __init__(self, generator: Generator):
        self._generator = generator

    def answer(self, questions: Sequence[str], find: Find | None = None) -> list[Answer]:
        """Writes answers to questions together; there is nothing to find documents for.

        Raises:
          ValueError: when a `find` is given.
        """
        if find is not None:
            raise ValueError("a generator without documents reads none; leave out find")
        if not questions:
            return []
        nothing = np.full((len(questions), 1), -1, np.int64)
        written = self._generator.write(
            self._generator.sources(questions, nothing, {}), np.full(nothing.shape, -np.inf, np.float32), alone=True
        )
        return [
            Answer(question, self._generator.text(one.ids, [question]), float(np.exp(one.log_prob)), ())
            for question, one in zip(questions, written, strict=True)
        ]
