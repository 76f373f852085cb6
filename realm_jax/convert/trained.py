"""A trained run on its way out: its checkpoint with the configurations that it was trained with."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from realm_jax.answering.loading import served_version
from realm_jax.convert.model import Model
from realm_jax.convert.run_files import TOKENIZER_FOLDER
from realm_jax.corpus.store import Corpus
from realm_jax.models import (
    EncoderDecoderConfig,
    LanguageModelConfig,
    RetrieverConfig,
    SpanReaderConfig,
    TransformerConfig,
)
from realm_jax.models.lora import merge_lora
from realm_jax.retrieval.shards import map_embeddings
from realm_jax.retrieval.versions import list_versions, read_manifest, version_dir
from realm_jax.run_dir import RunDir
from realm_jax.storage import as_place
from realm_jax.tasks.open_qa import OpenQa
from realm_jax.tasks.rag import Rag
from realm_jax.text.loading import load_any_tokenizer, load_tokenizer
from realm_jax.text.sentence_piece import SentencePieceTokenizer
from realm_jax.text.word_piece import WordPieceTokenizer
from realm_jax.training.checkpoint import load_params

_ADAPTER = "adapter"  # the learner that a language model with LoRA has beside it


def trained_model(run: RunDir, step: int | None = None) -> Model:
    """A training run's checkpoint with the configurations that config-train.gin says.

    Raises:
      FileNotFoundError: the run has no checkpoint, or no configuration.
    """
    _, params = load_params(run, step)
    task = _task_of(run)
    configs: dict[str, Any] = {}
    _collect(task, configs)
    retriever = configs.get("retriever") if "retriever" in params else None
    if retriever is not None:
        retriever = dataclasses.replace(retriever, tied="shared_encoder" in params["retriever"])
    corpus = getattr(task, "corpus", "")
    named = getattr(task, "generator_tokenizer", "") or getattr(
        task, "tokenizer", ""
    )  # a generator's, a language model's
    tokenizer = load_tokenizer(as_place(corpus) / TOKENIZER_FOLDER) if corpus and as_place(corpus).is_dir() else None
    of_generator = load_any_tokenizer(named) if named else tokenizer
    language_model = configs.get("language_model") if "language_model" in params else None
    if language_model is not None and language_model.lora is not None:
        language_model, params = _with_adapter(run, language_model, params)
    return Model(
        params,
        retriever=retriever,
        knowledge_encoder=configs.get("knowledge_encoder") if "knowledge_encoder" in params else None,
        span_reader=configs.get("span_reader") if "span_reader" in params else None,
        generator=configs.get("generator") if "generator" in params else None,
        language_model=language_model,
        settings=_rag_settings(task) if isinstance(task, Rag) else {},
        tokenizer=tokenizer if isinstance(tokenizer, WordPieceTokenizer) else None,
        generator_tokenizer=None if isinstance(of_generator, SentencePieceTokenizer) else of_generator,
    )


def _with_adapter(
    run: RunDir, config: LanguageModelConfig, params: dict[str, Any]
) -> tuple[LanguageModelConfig, dict[str, Any]]:
    """A language model with its adapter added to its matrices: the classes have none."""
    if _ADAPTER not in params or config.lora is None:
        raise ValueError(
            f"{run.path} was trained with an adapter ({config.lora}), and its checkpoint holds {', '.join(params)}; expected {_ADAPTER} "
            "among them, without which the language model is what it was before"
        )
    merged = merge_lora(params["language_model"], params[_ADAPTER], config.lora)
    others = {name: value for name, value in params.items() if name != _ADAPTER}
    return dataclasses.replace(config, lora=None), others | {"language_model": merged}


def _rag_settings(task: Rag) -> dict[str, Any]:
    """What RagConfig says of how many documents are read, and how long."""
    return {"model_type": "rag", "n_docs": task.num_documents, "max_combined_length": task.source_len}


def _task_of(run: RunDir) -> Any:
    from realm_jax import config

    place = run.config_file("train")
    if not place.exists():
        raise FileNotFoundError(f"{place} is not there; expected the directory of a run that was trained or converted")
    return config.bind("train", [str(place)])["task"]


def _collect(value: Any, configs: dict[str, Any]) -> None:
    """The learners' configurations among a task's settings, by the names of the learners."""
    kinds = {RetrieverConfig: "retriever", SpanReaderConfig: "span_reader", TransformerConfig: "knowledge_encoder",
             EncoderDecoderConfig: "generator", LanguageModelConfig: "language_model"}  # fmt: skip
    if type(value) in kinds:
        configs.setdefault(kinds[type(value)], value)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _collect(getattr(value, field.name), configs)


def with_blocks(run: RunDir, model: Model) -> tuple[Model, Iterator[str]]:
    """The embeddings of the index version that the run serves, its beams and lengths, and the texts of its documents."""
    if not list_versions(run.index):
        raise ValueError(
            f"{run.index} has no version, and RealmForOpenQA holds its documents' embeddings; run the embed job"
        )
    task = _task_of(run)
    if not isinstance(task, OpenQa):
        raise ValueError(
            f"{run.path} was trained with the task {type(task).__name__}, and RealmForOpenQA answers questions; name a run that "
            "was fine-tuned on them (task OpenQa)"
        )
    place = version_dir(run.index, served_version(run))
    manifest = read_manifest(place)
    corpus = Corpus.open(task.corpus)
    if corpus.fingerprint != manifest.corpus_fingerprint:
        raise ValueError(
            f"{place} was made of corpus {manifest.corpus_fingerprint[:12]}, the run reads {corpus.fingerprint[:12]}; build "
            "the index again"
        )
    if not corpus.info.has_blocks:
        raise ValueError(
            f"{corpus.directory} was made without text, and RealmForOpenQA shows its documents; build it with the corpus job"
        )
    rows = np.concatenate([map_embeddings(place, shard, manifest.embed_dim) for shard in manifest.shards])
    texts = (corpus.block(document).text for document in range(corpus.num_documents))
    settings = {
        "searcher_beam_size": task.num_retrieved,
        "reader_beam_size": task.num_read,
        "reader_seq_len": task.joint_len,
    }
    return dataclasses.replace(model, block_embeds=rows, settings=settings), texts
