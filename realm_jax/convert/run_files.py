"""A converted model in a run directory: checkpoint and snapshot as a training run has them, and the gin files to go on with."""

import dataclasses
import logging
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from realm_jax.convert.folder import read_safetensors, read_settings
from realm_jax.convert.generator_settings import rag_generation, rag_task
from realm_jax.convert.language_models import language_model_of
from realm_jax.convert.model import Model
from realm_jax.convert.rag import RAG_CLASSES
from realm_jax.corpus.store import Corpus
from realm_jax.models import EncoderDecoderConfig, RetrieverConfig, SpanReaderConfig, TransformerConfig
from realm_jax.run_dir import RunDir, write_json_atomically, write_text_atomically
from realm_jax.text.loading import load_any_tokenizer
from realm_jax.text.sentence_piece import SentencePieceTokenizer
from realm_jax.text.word_piece import WordPieceTokenizer
from realm_jax.training.checkpoint import NO_VERSION, Checkpoints, ResumeUnit, list_checkpoints, load_params
from realm_jax.training.snapshots import save_snapshot
from realm_jax.training.state import TrainState

logger = logging.getLogger(__name__)

MODEL_FILE, UNUSED_FILE, BLOCKS_FILE = "model.json", "unused.safetensors", "block_embeddings.npy"
TOKENIZER_FOLDER, GENERATOR_TOKENIZER_FOLDER = "tokenizer", "generator_tokenizer"
OPEN_QA_FILE = "open_qa.gin"
LEARNERS = ("retriever", "knowledge_encoder", "span_reader", "generator", "language_model")
# How a machine computes, and what of a language model is trained, is not the weights': the run file says it.
_MACHINE_FIELDS = ("attention", "dtype", "remat", "remat_saves", "unroll_layers", "lora")


def check_unused(run: RunDir) -> None:
    """Refuses a run directory that holds a model.

    Raises:
      ValueError: naming what is there.
    """
    steps = list_checkpoints(run)
    if steps or run.weights.exists():
        what = f"checkpoints of steps {', '.join(map(str, steps))}" if steps else f"{run.weights}"
        raise ValueError(f"{run.path} holds {what}; convert into another --run_dir, or remove it")


def write_run(run: RunDir, model: Model) -> None:
    """Writes a model as a run of no steps: `train.warm_start` takes it, `embed` and `evaluate` read it.

    Args:
      run: to write; see `check_unused`.
      model: with the tokenizers of its learners.
    """
    place = run.weights
    place.mkdir(parents=True)
    identity = {"task": "converted"}
    if model.tokenizer is not None:
        model.tokenizer.save(place / TOKENIZER_FOLDER)
        identity["tokenizer"] = model.tokenizer.fingerprint
    if model.generator_tokenizer is not None:
        model.generator_tokenizer.save(place / GENERATOR_TOKENIZER_FOLDER)
        identity["generator_tokenizer"] = model.generator_tokenizer.fingerprint
    if model.unused:
        content = {name: np.ascontiguousarray(value) for name, value in sorted(model.unused.items())}
        safetensors.numpy.save_file(content, place / UNUSED_FILE)
    if model.block_embeds is not None:
        np.save(place / BLOCKS_FILE, model.block_embeds, allow_pickle=False)
    for name, text in gin_files(model).items():
        write_text_atomically(place / name, text)
    if model.retriever is not None:
        save_snapshot(run, 0, model.params["retriever"], tokenizer=identity["tokenizer"])
    checkpoints = Checkpoints(run, identity=identity)
    zero = jnp.zeros((), jnp.int32)
    checkpoints.save(0, ResumeUnit(TrainState(zero, dict(model.params), {}, zero), NO_VERSION, None))
    checkpoints.close()
    learners = {name: getattr(model, name) for name in LEARNERS}
    record = {name: None if config is None else dataclasses.asdict(config) for name, config in learners.items()}
    # written last: with it the conversion is whole
    write_json_atomically(
        place / MODEL_FILE,
        {
            "architecture": model.architecture,
            "settings": dict(model.settings),
            "max_seq_length": model.max_seq_length,
            "generation": dict(model.generation),
            **record,
        },
    )


def read_run(run: RunDir) -> Model:
    """The inverse of `write_run`.

    Raises:
      FileNotFoundError: the run was not converted, or not to the end.
    """
    place = run.weights
    record = read_settings(place / MODEL_FILE)
    retriever, encoder, reader = (record[name] for name in ("retriever", "knowledge_encoder", "span_reader"))
    generator, language_model = record.get("generator"), record.get("language_model")  # earlier versions wrote neither
    tokenizer, of_generator = (
        load_any_tokenizer(place / name) if (place / name).is_dir() else None
        for name in (TOKENIZER_FOLDER, GENERATOR_TOKENIZER_FOLDER)
    )
    assert tokenizer is None or isinstance(tokenizer, WordPieceTokenizer)
    assert not isinstance(of_generator, SentencePieceTokenizer)
    blocks = place / BLOCKS_FILE
    return Model(
        load_params(run)[1],
        retriever=None if retriever is None else RetrieverConfig(**_with_encoder(retriever)),
        knowledge_encoder=None if encoder is None else TransformerConfig(**encoder),
        span_reader=None if reader is None else SpanReaderConfig(**_with_encoder(reader)),
        generator=None if generator is None else EncoderDecoderConfig(**generator),
        language_model=None if language_model is None else language_model_of(language_model),
        architecture=record["architecture"],
        settings=record["settings"],
        unused=read_safetensors(place / UNUSED_FILE) if (place / UNUSED_FILE).exists() else {},
        block_embeds=np.load(blocks, mmap_mode="r", allow_pickle=False) if blocks.exists() else None,
        tokenizer=tokenizer,
        generator_tokenizer=of_generator,
        generation=record.get("generation", {}),
        max_seq_length=record.get("max_seq_length"),
    )


def _with_encoder(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "encoder": TransformerConfig(**record["encoder"])}


def gin_files(model: Model) -> dict[str, str]:
    """Run-file texts that set a task's learners to the model's, by file name; for `--gin_file` after the run's own."""
    files = {}
    if model.retriever is not None:
        files["retriever.gin"] = _gin_text("retriever", model.retriever)
    if model.knowledge_encoder is not None:
        files["reader.gin"] = (
            _HEADER.format(learner="knowledge encoder", where="in scope reader, where run files have it")
            + "from realm_jax.models import transformer\n\n"
            + _block("reader/transformer.TransformerConfig", model.knowledge_encoder)
        )
    if model.span_reader is not None:
        files["span_reader.gin"] = _gin_text("span_reader", model.span_reader)
    if model.generator is not None:
        files["generator.gin"] = (
            _HEADER.format(learner="generator", where="as every run file has it")
            + "from realm_jax.models import encoder_decoder\n\n"
            + _block("encoder_decoder.EncoderDecoderConfig", model.generator)
        )
    if model.language_model is not None:
        files["language_model.gin"] = (
            _HEADER.format(learner="language model", where="as every run file has it")
            + "from realm_jax.models import language_model\nfrom realm_jax.models import rotary\n\n"
            + _block("language_model.LanguageModelConfig", model.language_model, "  rotary = @rotary.RotaryConfig()\n")
            + "\n"
            + _block("rotary.RotaryConfig", model.language_model.rotary)
        )
    if model.architecture in RAG_CLASSES and model.generator is not None:
        said = rag_task(model.architecture, model.settings, model.generator)
        files["rag.gin"] = (
            _HEADER.format(
                learner="task", where="what it reads, how documents are marginalised and answers searched for"
            )
            + "from realm_jax.generation import settings\nfrom realm_jax.tasks import rag\n\nrag.Rag:\n"
            + "".join(f"  {name} = {value!r}\n" for name, value in said.items())
            + "  generation = @settings.GenerationConfig()\n\n"
            + _block(
                "settings.GenerationConfig",
                rag_generation(model.architecture, model.settings, model.generation, model.generator),
            )
        )
    return files


_HEADER = (
    "# The {learner} of converted weights, {where}; written by the convert job. Give it after a run's own file:\n"
    "#   --gin_file=RUN_FILE --gin_file=THIS_FILE\n"
    "from __gin__ import dynamic_registration\n\n"
)


def _gin_text(module: str, config: RetrieverConfig | SpanReaderConfig) -> str:
    return (
        _HEADER.format(learner=module.replace("_", " "), where="whose encoder has a scope of its own")
        + f"from realm_jax.models import {module}\nfrom realm_jax.models import transformer\n\n"
        + _with_own_encoder(module, config)
    )


def _with_own_encoder(module: str, config: RetrieverConfig | SpanReaderConfig) -> str:
    scope = f"converted_{module}/transformer.TransformerConfig"
    name = f"{module}.{type(config).__name__}"
    return _block(name, config, f"  encoder = @{scope}()\n") + "\n" + _block(scope, config.encoder)


_OPEN_QA = """# Asks the converted RealmForOpenQA; written by the convert job. JOB is predict, serve or evaluate:
#   python -m realm_jax JOB --run_dir={run} --gin_file={file}
from __gin__ import dynamic_registration

from realm_jax.answering import predict
from realm_jax.evaluation import retrieval
from realm_jax.models import retriever
from realm_jax.models import span_reader
from realm_jax.models import transformer
from realm_jax.serve import server
from realm_jax.tasks import open_qa

CORPUS = {corpus!r}
QUESTIONS = %gin.REQUIRED  # of evaluate alone: questions of training, among which its row nearest_question looks
QUERY_LEN = {query_len}
DOCUMENT_LEN = {document_len}

open_qa.OpenQa:
  corpus = %CORPUS
  questions = ()
  retriever = @retriever.RetrieverConfig()
  reader = @span_reader.SpanReaderConfig()
  num_retrieved = {num_retrieved}
  num_read = {num_read}
  query_len = %QUERY_LEN
  document_len = %DOCUMENT_LEN
  joint_len = {joint_len}

evaluated/open_qa.OpenQa.questions = %QUESTIONS

predict.predict.task = @open_qa.OpenQa()

server.serve.task = @open_qa.OpenQa()

# The index alone is measured: what embedded its documents need not be the document encoder here.
retrieval.evaluate:
  corpus = %CORPUS
  retriever = @retriever.RetrieverConfig()
  answering = @evaluated/open_qa.OpenQa()
  name = 'questions'
  stages = ()
  afresh = False
  query_len = %QUERY_LEN
  document_len = %DOCUMENT_LEN

"""


def open_qa_gin(run: RunDir, model: Model, corpus: Corpus) -> str:
    """The run file that asks a converted RealmForOpenQA, with the beams and lengths that its config.json says."""
    retriever, reader = model.retriever, model.span_reader
    assert retriever is not None and reader is not None
    joint_len = min(model.settings.get("reader_seq_len", 320), reader.encoder.max_length)
    num_read = min(model.settings.get("reader_beam_size", 5), corpus.num_documents)
    longest = retriever.encoder.max_length
    head = _OPEN_QA.format(
        run=run.path,
        file=run.weights / OPEN_QA_FILE,
        corpus=str(corpus.directory),
        query_len=min(64, longest, joint_len // 2),
        document_len=min(corpus.info.block_len + 3, longest),
        joint_len=joint_len,
        num_read=num_read,
        num_retrieved=max(num_read, min(model.settings.get("searcher_beam_size", 5000), corpus.num_documents)),
    )
    return f"{head}{_with_own_encoder('retriever', retriever)}\n{_with_own_encoder('span_reader', reader)}"


def _block(name: str, config: Any, first: str = "") -> str:
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("encoder", "rotary", *_MACHINE_FIELDS)
    }
    return f"{name}:\n{first}" + "".join(f"  {key} = {value!r}\n" for key, value in values.items())
