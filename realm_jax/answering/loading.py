"""A fine-tuned run, ready to be asked: its newest checkpoint, its corpus, and the index that it serves."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from realm_jax.answering.answerer import Answerer
from realm_jax.answering.documents import CorpusDocuments, Documents
from realm_jax.answering.ensemble import RetrievalAugmentedLm
from realm_jax.answering.generating import GeneratingAnswerer, Generator
from realm_jax.answering.language_models import check_language_model, load_language_model, merged
from realm_jax.answering.likelihoods import LikelihoodJudge
from realm_jax.answering.prompted import PromptedGenerator
from realm_jax.answering.retrieving import RetrievingAnswerer, random_documents
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.models import LanguageModelConfig, check_heads
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.manifest import Backend, Manifest
from realm_jax.retrieval.versions import list_versions, load_version, verify, version_dir
from realm_jax.run_dir import RunDir, read_json
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.open_qa import OpenQa
from realm_jax.tasks.ra_dit import RaDit
from realm_jax.tasks.rag import Rag
from realm_jax.text.generator_tokenizer import GeneratorTokenizer
from realm_jax.training.checkpoint import check_tokenizer, learners, load_params, newest_step

Answering = OpenQa | Rag | RaDit
"""The settings that questions are answered with."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What questions are answered with."""

    answerer: RetrievingAnswerer
    corpus: Corpus
    index: Index
    manifest: Manifest  # of the index
    step: int  # of the checkpoint

    def describe(self) -> str:
        """Checkpoint, index version and search recall in a line."""
        manifest = self.manifest
        return (
            f"checkpoint {self.step}, index version {manifest.version} ({manifest.backend}, "
            f"{manifest.num_documents} documents, search recall {manifest.search_recall:.3f}), "
            f"corpus {self.corpus.directory}"
        )


def load_answerer(
    run: RunDir,
    task: Answering,
    *,
    step: int | None = None,
    index_version: int | None = None,
    backend: Backend | None = None,
) -> Loaded:
    """Loads a run of open QA or RAG, or RA-DIT's pair; what does not fit is refused before anything large is read.

    Args:
      run: fine-tuned with `task`.
      task: its settings; its questions are not read.
      step: which checkpoint; None for the newest.
      index_version: which version; None for the one that the trainer says it uses, or the newest.
      backend: None for the one that the index was built for; "exact" works for all.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: a run of another kind, no index, or parts that do not fit each other.
    """
    parts = _load_parts(run, task, step, index_version, backend)
    answerer = answerer_of(task, parts.params, parts.documents, parts.index)
    return Loaded(answerer, parts.corpus, parts.index, parts.manifest, parts.step)


def load_augmented(
    run: RunDir,
    task: RaDit,
    *,
    step: int | None = None,
    index_version: int | None = None,
    backend: Backend | None = None,
    random_seed: int | None = None,
    tokens_at_once: int = 16384,
) -> tuple[RetrievalAugmentedLm, dict[str, Any]]:
    """Loads RA-DIT's pair to be asked as language models are, by an evaluation harness say.

    Args:
      run: of the retriever, with an index.
      task: what belongs together; `prompt`, `source_len` and `generation.max_length` are not read.
      step, index_version, backend: see `load_answerer`.
      random_seed: of documents that are drawn at random; None: those that the retriever finds are read.
      tokens_at_once: of one program.

    Returns:
      The pair, and what it is made of: runs, steps, index version and its search recall.

    Raises: as `load_answerer`.
    """
    parts = _load_parts(run, task, step, index_version, backend)
    tokenizer = task.open_generator_tokenizer(parts.corpus)
    pieces = open_pieces(parts.corpus, tokenizer)
    config, own = language_model_of(task, parts.params, tokenizer)
    finder = RetrievingAnswerer(
        parts.documents,
        parts.index,
        task.retriever,
        parts.params["retriever"],
        query_len=task.query_len,
        document_len=task.document_len,
        num_read=task.num_documents,
    )
    judge = LikelihoodJudge(config, own, mesh=task.mesh, tokens_at_once=tokens_at_once)
    model = RetrievalAugmentedLm(
        judge,
        tokenizer,
        finder,
        pieces,
        None if random_seed is None else random_documents(parts.corpus.num_documents, random_seed),
        num_documents=task.num_documents,
        marginal=task.marginal,
        generation=task.generation,
    )
    return model, {
        "retriever_run": str(run.path),
        "retriever_step": parts.step,
        "language_model_run": task.language_model_run or str(run.path),
        "language_model_step": newest_step(RunDir.of(task.language_model_run))
        if task.language_model_run
        else parts.step,
        "index_version": parts.manifest.version,
        "search_recall": parts.manifest.search_recall,
        "num_documents": task.num_documents,
        "marginal": task.marginal,
    }


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Of a run."""

    corpus: Corpus
    documents: CorpusDocuments
    index: Index
    manifest: Manifest
    step: int
    params: dict[str, Any]


def _load_parts(
    run: RunDir, task: Answering, step: int | None, index_version: int | None, backend: Backend | None
) -> _Parts:
    corpus = Corpus.open(task.corpus)
    documents = CorpusDocuments(corpus)
    documents.text(0)  # opened now: what cannot be read is told before the models are loaded
    check_vocabulary(corpus, task.retriever.encoder.vocab_size, "retriever")
    if isinstance(task, OpenQa):
        check_vocabulary(corpus, task.reader.encoder.vocab_size, "reader")
    elif isinstance(task, Rag) and not task.num_documents:
        raise ValueError(
            "Rag.num_documents=0: a generator without retrieval has no index to answer from; measure it with the evaluate job"
        )
    check_tokenizer(run, corpus.info.tokenizer_fingerprint, step)
    check_learners(run, task, step)
    directory = version_dir(run.index, served_version(run, index_version))
    manifest = verify(
        directory,
        corpus_fingerprint=corpus.fingerprint,
        embed_dim=task.retriever.embed_dim,
        num_documents=corpus.num_documents,
    )
    step, params = load_params(run, step)
    index = load_version(directory, backend=backend, manifest=manifest)
    return _Parts(corpus, documents, index, manifest, step, params)


def check_learners(run: RunDir, task: Answering, step: int | None = None) -> None:
    """Refuses a checkpoint without what the task answers with.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: naming what is missing, a generator that was trained on the pieces of another tokenizer, or a mesh whose tensor axis does
        not divide a language model's heads.
    """
    trained = learners(run, step)
    if not set(task.learners) <= set(trained):
        raise ValueError(
            f"{run.path} has trained {', '.join(trained)}, expected a {' and a '.join(task.learners)}; "
            f"name a run that was fine-tuned on questions (task {task.name})"
        )
    if isinstance(task, Rag | RaDit):
        tokenizer = task.open_generator_tokenizer(Corpus.open(task.corpus))
        if isinstance(task, Rag):
            check_tokenizer(run, tokenizer.fingerprint, step, kind="generator_tokenizer")
            return
        check_heads(task.language_model, task.mesh.build_here().shape["tensor"])
        if task.language_model_run:
            check_language_model(RunDir.of(task.language_model_run), task.language_model, tokenizer.fingerprint)
        else:
            check_language_model(run, task.language_model, tokenizer.fingerprint, step)


def answerer_of(task: Answering, params: Mapping[str, Any], documents: Documents, index: Index) -> RetrievingAnswerer:
    """An answerer with the settings of a task.

    Raises:
      ValueError: parts that do not fit each other.
    """
    if isinstance(task, OpenQa):
        return Answerer(
            documents,
            index,
            task.retriever,
            task.reader,
            params,
            query_len=task.query_len,
            joint_len=task.joint_len,
            document_len=task.document_len,
            num_read=task.num_read,
        )
    return GeneratingAnswerer(
        documents,
        index,
        task.retriever,
        generator_of(task, params),
        params["retriever"],
        query_len=task.query_len,
        document_len=task.document_len,
        num_documents=task.num_documents,
    )


def generator_of(task: Rag | RaDit, params: Mapping[str, Any]) -> Generator:
    """What writes a task's answers; the language model of a run of its own is read from there. Errors as `answerer_of`."""
    tokenizer = task.open_generator_tokenizer(Corpus.open(task.corpus))
    if isinstance(task, Rag):
        return Generator(
            task.generator,
            params["generator"],
            tokenizer,
            task.generation,
            source_len=task.source_len,
            marginal=task.marginal,
        )
    config, own = language_model_of(task, params, tokenizer)
    return PromptedGenerator(
        config,
        own,
        tokenizer,
        task.generation,
        task.asked,
        source_len=task.source_len,
        marginal=task.marginal,
        mesh=task.mesh,
    )


def language_model_of(
    task: RaDit, params: Mapping[str, Any], tokenizer: GeneratorTokenizer
) -> tuple[LanguageModelConfig, Mapping[str, Any]]:
    """The shape of a task's language model without its adapter, and its parameters, from its own run or from among `params`."""
    if task.language_model_run:
        _, config, own = load_language_model(
            task.language_model_run, task.language_model, tokenizer.fingerprint, mesh=task.mesh.build_here()
        )
        return config, own
    return dataclasses.replace(task.language_model, lora=None), merged(params, task.language_model)


def served_version(run: RunDir, index_version: int | None = None) -> int:
    """The version asked for; else the one that the trainer says it uses; else the newest.

    Raises:
      ValueError: there is no such version, or none at all.
    """
    published = list_versions(run.index)
    if index_version is not None and index_version not in published:
        raise ValueError(f"{run.index} has no version {index_version}; it has {published or 'none'}")
    if not published:
        raise ValueError(f"{run.index} holds no index version; make one with the embed job, or train the run further")
    if index_version is not None:
        return index_version
    if run.trainer_status(0).exists():
        in_use = read_json(run.trainer_status(0)).get("index_version", -1)
        if in_use in published:
            return int(in_use)
    return published[-1]
