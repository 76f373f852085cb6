"""What the training loop knows of a method."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import Inputs
from realm_jax.losses import WeightedSum
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.exact import DeviceResult
from realm_jax.retrieval.index import Index, SearchResult
from realm_jax.retrieval.resident import ResidentDocuments
from realm_jax.tasks.passes import EncoderPass, LanguageModelPass, Logits

Params = Mapping[str, Any]  # nested dict of arrays; the top-level names are the task's learners
Batch = Any  # a NamedTuple of arrays, every one with the batch as leading axis
Metrics = dict[str, WeightedSum]


class InStepRetrieval(NamedTuple):
    """How a compiled step gets candidates by itself: `Retrieval.select` and `join` as pure functions of arrays."""

    arrays: Callable[[Any], Any]  # of examples, on the host: what of them goes to the devices
    join: Callable[[Any, DeviceResult, ResidentDocuments], tuple[Batch, Int32[Array, "batch num_candidates"]]]
    max_title_len: int  # pieces of a title that are read


class Retrieval(NamedTuple):
    """How examples get their candidates. Absent from tasks that retrieve nothing."""

    config: RetrieverConfig
    corpus: Corpus
    document_len: int
    num_results: (
        int  # documents asked of the index for each query: candidates plus a margin for exclusions; 0: no search
    )
    queries: Callable[[Any], Inputs]  # of examples: what is embedded to search with
    embed_queries: Callable[[Params, Inputs], Float[Array, "batch embed"]]  # pure
    retriever_params: Callable[[Params], Params]  # what a snapshot holds
    select: Callable[[Any, SearchResult], Int64[np.ndarray, "batch num_candidates"]]
    join: Callable[[Any, Int64[np.ndarray, "batch num_candidates"]], Batch]
    evaluate: Callable[[Params, Index], dict[str, float]] | None = None  # on held-out queries, with the served index
    join_embedded: Callable[..., Batch] | None = None  # instead of `join`: given (examples, ids, embeddings of the ids)
    in_step: InStepRetrieval | None = None  # None: the host must take part


class GroupedLoss(NamedTuple):
    """The loss once more, with rows encoded in groups of like length: cheaper, for batches that fit the groups."""

    fits: Callable[[Batch, int], Bool[Array, ""]]  # (batch, num_parts): whether this one does
    # as `Task.loss`, with num_parts beside: among so many devices the batch's rows are divided
    loss: Callable[..., tuple[WeightedSum, Metrics]]


class Task(NamedTuple):
    """A method: pure functions of parameters and arrays, and batches that are pure functions of (seed, step, row)."""

    name: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch, jax.Array | None], tuple[WeightedSum, Metrics]]  # no rng: no dropout
    examples: Callable[[int, int, slice], Any]  # (step, batch_size, rows) -> examples, on the host
    batch: Callable[[Any], Batch]  # of examples, for tasks without retrieval
    tokens_per_example: int  # pieces that the models read for one example, padding included
    flops_per_example: float  # of forward and backward, by the models' shapes, without rematerialisation
    can_accumulate: bool  # false where the loss couples the examples of a batch
    data: Mapping[str, str] = MappingProxyType(
        {}
    )  # fingerprints: `tokenizer`, `corpus`, and `x_corpus` where it is apart
    retrieval: Retrieval | None = None
    grouped: GroupedLoss | None = None  # None: every row at its full length
    frozen: tuple[str, ...] = ()  # paths of parameters that no update touches: "retriever/document_encoder"
    adopt: Callable[[Params], Params] = dict  # another run's learners as this task's, for a warm start; parts will do


class Program(NamedTuple):
    """What of a method is compiled: its pure functions, and the shapes of what they read.

    It comes from the settings alone, before there is a corpus, so that a run can be planned for machines that are not there.
    """

    name: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch, jax.Array | None], tuple[WeightedSum, Metrics]]
    batch_shapes: Callable[[int], Batch]  # of a batch of so many examples: every array as jax.ShapeDtypeStruct
    passes: tuple[EncoderPass | LanguageModelPass, ...]
    tokens_per_example: int
    can_accumulate: bool
    logits: Logits = Logits(0, 0, 0)
    frozen: tuple[str, ...] = ()
    retriever: RetrieverConfig | None = None  # that the queries are embedded with, in methods that retrieve
    query_len: int = 0  # of these queries
    document_len: int = 0  # of the documents in the index

    @property
    def flops_per_example(self) -> float:
        """Of forward and backward, by the models' shapes, without rematerialisation."""
        return sum(one.flops for one in self.passes) + self.logits.flops

    def task(self, examples: Callable[[int, int, slice], Any], batch: Callable[[Any], Batch], **rest: Any) -> Task:
        """The method with its data: `examples`, `batch` and what else a `Task` has that is not in here."""
        return Task(
            name=self.name,
            init=self.init,
            loss=self.loss,
            examples=examples,
            batch=batch,
            tokens_per_example=self.tokens_per_example,
            flops_per_example=self.flops_per_example,
            can_accumulate=self.can_accumulate,
            frozen=self.frozen,
            **rest,
        )


def untied(found: Params) -> dict[str, Any]:
    """Another run's learners, a tied retriever's one encoder as both."""
    if "shared_encoder" not in found.get("retriever", {}):
        return dict(found)
    shared = found["retriever"]["shared_encoder"]
    return {**found, "retriever": {"query_encoder": shared, "document_encoder": shared}}


def array_shape(dtype: Any, *shape: int) -> Any:
    """An array of a batch that is not there."""
    return jax.ShapeDtypeStruct(shape, dtype)


def input_shapes(*shape: int) -> Inputs:
    """Model inputs that are not there."""
    return Inputs(array_shape(jnp.int32, *shape), array_shape(jnp.int32, *shape))


def fingerprints(corpus: Corpus, x_corpus: Corpus | None = None) -> dict[str, str]:
    """What a task's examples are made of, for `Task.data`; an `x_corpus` that is the corpus itself adds nothing."""
    found = {"tokenizer": corpus.info.tokenizer_fingerprint, "corpus": corpus.fingerprint}
    if x_corpus is not None and x_corpus.fingerprint != corpus.fingerprint:
        found["x_corpus"] = x_corpus.fingerprint
    return found


@runtime_checkable
class TaskConfig(Protocol):
    """The settings of a task, made by gin or by hand; `build` opens its corpora and returns the task."""

    def build(self, seed: int) -> Task: ...
