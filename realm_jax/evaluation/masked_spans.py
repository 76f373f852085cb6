"""How well masked spans are predicted, with retrieval and without: what pre-training is for, measured on unseen sentences."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Int64

from realm_jax import losses
from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.store import Corpus
from realm_jax.data.masked_lm import MaskedBatch, MaskedSentences
from realm_jax.data.order import example_rng
from realm_jax.retrieval.index import Index, SearchResult
from realm_jax.tasks.realm import Realm, RealmBatch, RealmModel, embed_queries, read, retrieval_scores

Search = Callable[[MaskedBatch, int], SearchResult]


class SpanPrediction(NamedTuple):
    """What is predicted for a batch: for every mask the most likely piece."""

    marginal_ids: Int32[Array, "batch num_masks"]  # by Σ_z p(z|x) p(y_j|z,x)
    null_ids: Int32[Array, "batch num_masks"]  # reading the null document alone
    candidate_ids: Int32[Array, "batch num_candidates num_masks"]  # reading each candidate
    retrieval_probs: Float[Array, "batch num_candidates"]
    gold_log_probs: Float[Array, "batch num_candidates num_masks"]
    marginal_log_probs: Float[Array, "batch num_masks"]
    null_log_probs: Float[Array, "batch num_masks"]


def predict_spans(params: Mapping[str, Any], batch: RealmBatch, model: RealmModel) -> SpanPrediction:
    """Reads every candidate, and the null document also where the model trains without one. Pure; jit it."""
    log_retrieval_probs = losses.candidate_log_probs(retrieval_scores(params, batch, None, model), batch.candidate_mask)
    with_null = jax.nn.log_softmax(read(params, batch, None, model._replace(null_document=True)), axis=-1)
    log_probs = with_null if model.null_document else with_null[:, 1:]  # [batch, num_candidates, num_masks, vocab]
    marginal = jax.nn.logsumexp(log_retrieval_probs[:, :, None, None] + log_probs, axis=1)

    def gold(of: Float[Array, "*rows num_masks vocab"]) -> Float[Array, "*rows num_masks"]:
        targets = batch.mask_targets if of.ndim == 3 else batch.mask_targets[:, None, :]
        return jnp.take_along_axis(of, jnp.broadcast_to(targets, of.shape[:-1])[..., None], axis=-1)[..., 0]

    return SpanPrediction(
        marginal.argmax(-1).astype(jnp.int32),
        with_null[:, 0].argmax(-1).astype(jnp.int32),
        log_probs.argmax(-1).astype(jnp.int32),
        jnp.exp(log_retrieval_probs),
        gold(log_probs),
        gold(marginal),
        gold(with_null[:, 0]),
    )


class Spans(NamedTuple):
    """Figures over all sentences, and some of them to look at (RUN/examples.json)."""

    figures: dict[str, float]
    examples: list[dict[str, Any]]


class MaskedSpanEvaluation:
    """Held-out sentences, masked once and for all by their seed, evaluated with any parameters and any search."""

    def __init__(self, task: Realm, x_corpus: str, num_sentences: int = 1000, batch_size: int = 32, seed: int = 0):
        """Args:
        task: the settings that the parameters were trained with.
        x_corpus: directory of the sentences; if it is the task's corpus, no sentence gets its own document.
        num_sentences: how many, from an even spread over the rows; all if there are fewer.
        batch_size: sentences read at once.
        seed: of the choice of the span where a sentence has several.
        """
        self.task, self.batch_size, self.seed = task, batch_size, seed
        self.corpus = Corpus.open(task.corpus)
        sentences = Corpus.open(x_corpus)
        self.sentences = MaskedSentences(
            sentences,
            query_len=task.query_len,
            masking=task.evaluation_masking(),
            seed=seed,
            is_knowledge_corpus=sentences.directory.resolve() == self.corpus.directory.resolve(),
        )
        usable = self.sentences.usable
        self.rows = usable[np.linspace(0, len(usable) - 1, min(num_sentences, len(usable))).astype(np.int64)]
        self.model = task.model(self.corpus)
        self._predict = jax.jit(functools.partial(predict_spans, model=self.model))
        self._embed = jax.jit(functools.partial(embed_queries, config=task.retriever))

    def batches(self) -> Iterator[MaskedBatch]:
        """All sentences; the last batch is filled up by repeating its last row, to keep one program."""
        for first in range(0, len(self.rows), self.batch_size):
            rows = self.rows[first : first + self.batch_size]
            rows = np.pad(rows, (0, self.batch_size - len(rows)), "edge")
            yield self.sentences.mask(rows, [example_rng(self.seed, int(row)) for row in rows])

    def search_in(self, params: Mapping[str, Any], index: Index) -> Search:
        """Searches with queries embedded by the given parameters."""
        on_device = jax.device_put(params)

        def search(batch: MaskedBatch, num_results: int) -> SearchResult:
            return index.search(np.asarray(self._embed(on_device, batch.query), np.float32), num_results)

        return search

    def recall(
        self, params: Mapping[str, Any], index: Index, recall_at: tuple[int, ...] = (1, 5, 20)
    ) -> dict[str, float]:
        """Share of sentences whose gold document is among the first k: cheap enough for the training loop."""
        search, ids, gold = self.search_in(params, index), [], []
        for batch in self.batches():
            ids.append(search(batch, max(recall_at)).ids)
            gold.append(batch.gold_documents)
        wanted = np.concatenate(gold)[:, None]
        found = ((np.concatenate(ids) == wanted) & (wanted >= 0))[: len(self.rows)]  # a missing hit is -1 too
        return {f"heldout_recall_at_{k}": float(found[:, :k].any(axis=1).mean()) for k in recall_at}

    def evaluate(self, params: Mapping[str, Any], search: Search, num_examples: int = 0) -> Spans:
        """Accuracy of whole spans: every masked piece right.

        Args:
          params: of both learners.
          search: where candidates come from; they are scored by the parameters' own retriever whatever the search.
          num_examples: how many sentences to keep for looking at.

        Returns:
          `with_retrieval` and `null_only` (shares of sentences), `retrieval_utility` (nats a masked piece),
          `null_document_prob`, and, where gold documents are known, `gold_selected` and `with_gold_selected`.
        """
        sums: dict[str, list[np.ndarray]] = {}
        examples: list[dict[str, Any]] = []
        on_device = jax.device_put(params)
        special = self.model.special
        first = 0
        for batch in self.batches():
            results = search(batch, self.task.num_candidates + self.task.extra_results)
            candidate_ids = self.task.select(batch, results, corpus=self.corpus)
            joined = self.task.join(batch, candidate_ids, corpus=self.corpus, special=special)
            predicted: SpanPrediction = jax.device_get(self._predict(on_device, joined))
            for name, values in _row_figures(batch, joined, predicted, self.model.null_document).items():
                sums.setdefault(name, []).append(values)
            wanted = min(num_examples - len(examples), len(self.rows) - first, self.batch_size)
            examples += [self._example(batch, candidate_ids, predicted, row) for row in range(wanted)]
            first += self.batch_size
        rows = {name: np.concatenate(values)[: len(self.rows)] for name, values in sums.items()}
        figures = {
            "sentences": float(len(self.rows)),
            "with_retrieval": float(rows["right"].mean()),
            "null_only": float(rows["null_right"].mean()),
            "retrieval_utility": float(rows["gain"].sum() / rows["masks"].sum()),
        }
        if self.model.null_document:
            figures["null_document_prob"] = float(rows["null_prob"].mean())
        if (rows["gold_known"] > 0).any():
            figures["gold_selected"] = float(rows["gold_selected"].mean())
            selected = rows["gold_selected"] > 0
            figures["with_gold_selected"] = float(rows["right"][selected].mean()) if selected.any() else 0.0
        return Spans(figures, examples)

    def _example(
        self,
        batch: MaskedBatch,
        candidate_ids: Int64[np.ndarray, "batch num_candidates"],
        predicted: SpanPrediction,
        row: int,
    ) -> dict[str, Any]:
        tokenizer = self.corpus.tokenizer

        def decode(ids: Int32[np.ndarray, "length"]) -> str:
            # the model's table may have more rows than the tokenizer has pieces; an untrained one may predict them
            return tokenizer.decode(np.where(ids < tokenizer.vocab_size, ids, tokenizer.unk_id))

        used = batch.mask_weights[row] > 0
        masked = batch.query.ids[row][1 : 1 + len(batch.sentences[row])]
        candidates = []
        for column, document in enumerate(candidate_ids[row]):
            if document < -1:
                continue
            title, text = ("", "") if document < 0 else document_text(self.corpus, int(document))
            candidates.append(
                {
                    "document": int(document),
                    "title": title,
                    "text": text,
                    "probability": float(predicted.retrieval_probs[row, column]),
                    "log_prob": float(predicted.gold_log_probs[row, column][used].sum()),
                    "prediction": decode(predicted.candidate_ids[row, column][used]),
                    "is_gold": bool(document >= 0 and document == batch.gold_documents[row]),
                }
            )
        return {
            "masked_sentence": with_blank(tokenizer, masked),
            "answer": decode(batch.mask_targets[row][used]),
            "prediction": decode(predicted.marginal_ids[row][used]),
            "null_prediction": decode(predicted.null_ids[row][used]),
            "candidates": candidates,
        }


def with_blank(tokenizer: Any, pieces: Int32[np.ndarray, "length"]) -> str:
    """Masked pieces as text, each run of masks shown as one [MASK]."""
    parts: list[str] = []
    start = 0
    for end in range(len(pieces) + 1):
        if end == len(pieces) or pieces[end] == tokenizer.mask_id:
            if end > start:
                parts.append(tokenizer.decode(pieces[start:end]))
            if end < len(pieces) and (not parts or parts[-1] != "[MASK]"):
                parts.append("[MASK]")
            start = end + 1
    return " ".join(part.strip() for part in parts)


def _row_figures(
    batch: MaskedBatch, joined: RealmBatch, predicted: SpanPrediction, null_document: bool
) -> dict[str, Float32[np.ndarray, "batch"]]:
    used = batch.mask_weights > 0

    def right(ids: Any) -> np.ndarray:
        return (((ids == batch.mask_targets) | ~used).all(axis=1) & used.any(axis=1)).astype(np.float32)

    gain = np.where(used, predicted.marginal_log_probs - predicted.null_log_probs, 0.0)
    return {
        "right": right(predicted.marginal_ids),
        "null_right": right(predicted.null_ids),
        "gain": gain.sum(axis=1).astype(np.float32),
        "masks": used.sum(axis=1).astype(np.float32),
        "null_prob": predicted.retrieval_probs[:, 0] if null_document else np.zeros(len(used), np.float32),
        "gold_known": (batch.gold_documents >= 0).astype(np.float32),
        "gold_selected": np.asarray(joined.is_gold).any(axis=1).astype(np.float32),
    }
