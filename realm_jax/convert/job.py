"""The convert job: weights of elsewhere into a run directory, their index, a run's weights out to elsewhere."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from realm_jax.convert.block_index import index_blocks
from realm_jax.convert.block_records import (
    RECORDS_FILE,
    block_texts,
    check_block_records,
    find_block_records,
    write_block_records,
)
from realm_jax.convert.hugging_face import (
    ARCHITECTURES,
    CONTRIEVER,
    Pooling,
    Side,
    load_hugging_face,
    save_hugging_face,
)
from realm_jax.convert.model import Model, WeightsDtype
from realm_jax.convert.rag import RAG_CLASSES
from realm_jax.convert.run_files import (
    GENERATOR_TOKENIZER_FOLDER,
    LEARNERS,
    MODEL_FILE,
    TOKENIZER_FOLDER,
    check_unused,
    read_run,
    write_run,
)
from realm_jax.convert.starting_point import (
    with_document_encoder,
    with_masked_lm,
    with_projection,
    with_span_reader,
)
from realm_jax.convert.tensorflow import is_checkpoint, load_tensorflow
from realm_jax.convert.trained import trained_model, with_blocks
from realm_jax.retrieval.manifest import Backend
from realm_jax.run_dir import RunDir
from realm_jax.storage import fetch, is_remote, require_local
from realm_jax.text.byte_level import ByteLevelTokenizer
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from realm_jax.text.loading import load_any_tokenizer, load_tokenizer
from realm_jax.text.word_piece import WordPieceTokenizer

logger = logging.getLogger(__name__)

# Their embedder embeds questions alone; another one made the embeddings of the documents.
_OF_QUESTIONS = ("RealmForOpenQA", *RAG_CLASSES)
# One of two encoders, where another one for the documents is named; by itself it embeds both.
_OF_PAIRS = ("DPRQuestionEncoder", "BertModel", CONTRIEVER)


def convert(
    *,
    run_dir: str,
    direction: Literal["in", "index", "out"] = "in",
    source: str = "",
    destination: str = "",
    architecture: str = "",
    revision: str = "main",
    tokenizer: str = "",
    generator_tokenizer: str = "",
    block_records: str = "",
    document_embedder: str = "",
    corpus: str = "",
    backend: Backend = "scann",
    pooling: Literal["cls", "pooler", "mean"] = "cls",
    projection_size: int | None = None,
    score_scale: float | None = None,
    masked_lm: bool = False,
    span_reader: bool = False,
    seed: int = 0,
    step: int | None = None,
    side: Literal["query", "document"] = "query",
    dtype: WeightsDtype = "float32",
) -> None:
    """Brings weights in as a run that others start from, or takes a run's weights out as a Hugging Face folder.

    In: `source` becomes a run directory with a checkpoint (for train.warm_start), a snapshot (for embed and evaluate), a
    tokenizer directory (for corpus.tokenizer) and gin files with the model's settings. Index: the embeddings that came in
    with a RealmForOpenQA become the run's index version 0, over a corpus of its texts: predict, serve and evaluate can then
    ask it. Out: the newest checkpoint becomes a folder that the class's from_pretrained loads.

    Args:
      run_dir: to write (in), to add an index to (index) or to read (out).
      direction: "in", "index" or "out".
      source: a folder with config.json, weights and vocab.txt; a Hugging Face hub id; or the prefix of a TensorFlow
        checkpoint (NAME of NAME.index), with bert_config.json or config.json and vocab.txt beside it.
      destination: the folder to write; by default RUN/weights-out/ARCHITECTURE.
      architecture: the class, such as "RealmEmbedder"; empty takes the one that the source names.
      revision: of a hub id.
      tokenizer: a vocab.txt, or its folder, where the source has none.
      generator_tokenizer: the folder of vocab.json and merges.txt, or of a vocab.txt, where the source's generator has none; of a
        language model the folder of tokenizer.json or tokenizer.model.
      block_records: JSON lines {"text": …}, the texts of RealmForOpenQA's documents; by default block_records.jsonl of the
        source, where there is one. They can be given with the index, too.
      document_embedder: of RealmForOpenQA, RAG or a DPRQuestionEncoder, the folder or hub id of what embeds the documents: the
        RealmEmbedder, the DPRContextEncoder that the index was made with. By default new documents are embedded as questions are.
        Of a BertModel or a Contriever, the second encoder of a pair (DRAGON); by default it embeds both.
      corpus: of the index, a corpus directory with a document a record; by default RUN/corpus, made of the records.
      backend: of the index: "scann", "exact" or "ball_tree".
      pooling: of BERT as a retriever: "cls", "mean", or "pooler" (BERT's own); a Contriever's is the mean, whatever this says.
      projection_size: adds a projection of this width, at random, to a retriever without: how ICT starts from BERT.
      score_scale: of the retriever; by default 1, and 20 for embeddings of unit length, whose scores are cosines.
      masked_lm: adds a masked-LM head, its inner layer at random, to the BERT of a retriever that has none (MiniLM): what REALM
        reads with, once task masked_lm has taught it.
      span_reader: adds a span reader that starts from BERT, its scorer at random.
      seed: of what is added.
      step: which checkpoint goes out; the newest by default.
      side: which encoder of an untied retriever goes out, where a class has room for one.
      dtype: in which a language model's weights go out; the others' are float32.

    Raises:
      ValueError: weights that do not fit their class, all tensors named; settings that make no sense together.
      FileNotFoundError: no such source or checkpoint.
      FileExistsError: the destination holds something.
    """
    run = RunDir.of(run_dir)
    require_local(run.path, "convert's --run_dir")
    require_local(destination, "convert.destination")
    source, block_records = (str(fetch(path)) if is_remote(path) else path for path in (source, block_records))
    if architecture and architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}, valid: {', '.join(ARCHITECTURES)}")
    if direction != "index" and corpus:
        raise ValueError(f"corpus is for direction='index', got direction={direction!r}; leave out corpus={corpus!r}")
    if direction == "index":
        if source or destination:
            raise ValueError(
                f"direction='index' adds an index to --run_dir; leave out {f'{source=}' if source else f'{destination=}'}"
            )
        index_blocks(run, corpus, block_records, backend)
        return
    if direction == "out":
        if source:
            raise ValueError(f"direction='out' reads --run_dir and writes destination; leave out source={source!r}")
        take_out(run, architecture, Path(destination) if destination else None, step, side, dtype)
        return
    if not source or destination:
        raise ValueError(
            "direction='in' needs a source (a folder, a hub id or a TensorFlow checkpoint) and no destination"
        )
    check_unused(run)
    model = load_source(source, architecture, pooling, revision, generator_tokenizer)
    model = with_generator_tokenizer(with_tokenizer(model, tokenizer, source), generator_tokenizer, source)
    if document_embedder and model.architecture not in (*_OF_QUESTIONS, *_OF_PAIRS):
        raise ValueError(
            f"document_embedder is for {', '.join((*_OF_QUESTIONS, *_OF_PAIRS))}, and the source is a {model.architecture}; "
            "leave it out"
        )
    if document_embedder:
        model = with_document_encoder(model, load_source(document_embedder, _other_class(model, architecture), pooling))
    elif model.architecture in _OF_QUESTIONS:
        logger.info("no document_embedder: documents that are not in the index will be embedded as questions are")
        model = with_document_encoder(model)
    records = find_block_records(block_records, source) if model.block_embeds is not None else None
    if records is not None and model.block_embeds is not None:
        check_block_records(records, len(model.block_embeds))
    if projection_size is not None:
        model = with_projection(model, projection_size, seed)
    if masked_lm:
        model = with_masked_lm(model, seed)
    if span_reader:
        model = with_span_reader(model, seed)
    if model.retriever is not None:
        scale = score_scale if score_scale is not None else 20.0 if model.retriever.normalize else 1.0
        model = dataclasses.replace(model, retriever=dataclasses.replace(model.retriever, score_scale=scale))
    write_run(run, model)
    if records is not None:
        write_block_records(run.weights / RECORDS_FILE, block_texts(records))
    _say_how_to_go_on(run, model, has_texts=records is not None)


def _other_class(model: Model, architecture: str) -> str:
    """The class that the documents' encoder is to be read as: the same, where the source's was named and both are of one."""
    return architecture if model.architecture in _OF_PAIRS[1:] else ""


def load_source(
    source: str, architecture: str = "", pooling: Pooling = "cls", revision: str = "main", generator_tokenizer: str = ""
) -> Model:
    """A Hugging Face folder or hub id, or a TensorFlow checkpoint; see `convert`."""
    if is_checkpoint(source):
        return load_tensorflow(source, architecture, pooling)
    return load_hugging_face(source, architecture, pooling, revision, generator_tokenizer)


def with_tokenizer(model: Model, tokenizer: str, source: str) -> Model:
    """The model with the tokenizer of a place, where one is named; a generator by itself has none of this kind.

    Raises:
      ValueError: there is none, or it has more pieces than the model has rows.
    """
    if set(model.params) <= {"generator", "language_model"}:
        if tokenizer:
            raise ValueError(
                f"tokenizer={tokenizer!r} is a retriever's, and {source} is a generator; name generator_tokenizer, or neither"
            )
        return model
    chosen = load_tokenizer(tokenizer) if tokenizer else model.tokenizer
    if not isinstance(chosen, WordPieceTokenizer):
        raise ValueError(
            f"{tokenizer or source} has no vocab.txt; name the model's WordPiece vocabulary (--gin.convert.tokenizer=FILE)"
        )
    for name in ("retriever", "knowledge_encoder", "span_reader"):
        config = getattr(model, name)
        encoder = config if name == "knowledge_encoder" else getattr(config, "encoder", None)
        if encoder is not None and encoder.vocab_size < chosen.vocab_size:
            raise ValueError(
                f"the vocabulary has {chosen.vocab_size} pieces, the {name} {encoder.vocab_size} rows; "
                "take the vocab.txt that was saved with the weights"
            )
    return dataclasses.replace(model, tokenizer=chosen)


def with_generator_tokenizer(model: Model, tokenizer: str, source: str) -> Model:
    """The model with the generator's tokenizer of a place, where one is named.

    Raises:
      ValueError: there is none, it has more pieces than the generator has rows, or other ids for padding, begin or end.
    """
    if model.language_model is not None:
        return model  # was read with it
    if model.generator is None:
        if tokenizer:
            raise ValueError(
                f"generator_tokenizer={tokenizer!r} is given, and {source} holds no generator; leave it out"
            )
        return model
    chosen = load_any_tokenizer(tokenizer) if tokenizer else model.generator_tokenizer
    if not isinstance(chosen, ByteLevelTokenizer | WordPieceTokenizer):
        raise ValueError(
            f"{tokenizer or source} has no vocab.json with merges.txt, and no vocab.txt; name the generator's tokenizer "
            "(--gin.convert.generator_tokenizer=FOLDER)"
        )
    found = as_generator_tokenizer(chosen)
    if found.vocab_size > model.generator.vocab_size:
        raise ValueError(
            f"the generator's tokenizer has {found.vocab_size} pieces, the generator {model.generator.vocab_size} rows; "
            "take the one that was saved with the weights"
        )
    for name in ("pad_id", "bos_id", "eos_id"):
        expected, got = getattr(model.generator, name), getattr(found, name)
        if expected != got:
            raise ValueError(
                f"the generator's tokenizer has {name}={got}, config.json says {expected}; take the one that was saved with "
                "the weights, or correct config.json"
            )
    return dataclasses.replace(model, generator_tokenizer=chosen)


def _say_how_to_go_on(run: RunDir, model: Model, has_texts: bool) -> None:
    learners = [name for name in LEARNERS if getattr(model, name) is not None]
    logger.info("%s of %s lie in %s", " and ".join(learners), model.architecture, run.path)
    if model.unused:
        logger.info(
            "%d tensors that nothing here computes with are kept: %s", len(model.unused), ", ".join(model.unused)
        )
    flags = {"tokenizer": (model.tokenizer, TOKENIZER_FOLDER),
             "generator_tokenizer": (model.generator_tokenizer, GENERATOR_TOKENIZER_FOLDER)}  # fmt: skip
    there = [
        f"--gin.corpus.{name}={run.weights / folder}" for name, (found, folder) in flags.items() if found is not None
    ]
    logger.info("a corpus for it: %s", " ".join(there))
    files = " ".join(f"--gin_file={path}" for path in sorted(run.weights.glob("*.gin")))
    logger.info(
        "a run that starts from it: RUN_FILE's flags, then %s --gin.train.warm_start=\"('%s',)\"", files, run.path
    )
    if model.block_embeds is not None:
        texts = "" if has_texts else " --gin.convert.block_records=FILE"
        logger.info("to ask it: convert --run_dir=%s --gin.convert.direction=index%s", run.path, texts)


def take_out(
    run: RunDir,
    architecture: str = "",
    destination: Path | None = None,
    step: int | None = None,
    side: Side = "query",
    dtype: WeightsDtype = "float32",
) -> Path:
    """Writes a run's checkpoint as a Hugging Face folder.

    Returns:
      The folder.

    Raises:
      ValueError: no class named, or one that the run's learners are not.
      FileNotFoundError: the run has no such checkpoint.
    """
    converted = (run.weights / MODEL_FILE).exists()
    model = read_run(run) if converted else trained_model(run, step)
    if converted and step not in (None, 0):
        raise ValueError(f"{run.path} was converted, and has step 0 alone; leave out step={step}")
    architecture = architecture or model.architecture
    if not architecture:
        raise ValueError(
            f"say which class {', '.join(model.params)} shall be (--gin.convert.architecture=CLASS), one of: {', '.join(ARCHITECTURES)}"
        )
    texts: Iterator[str] | None = None
    if architecture == "RealmForOpenQA" and not converted:
        model, texts = with_blocks(run, model)
    elif architecture == "RealmForOpenQA" and (run.weights / RECORDS_FILE).exists() and model.block_embeds is not None:
        check_block_records(run.weights / RECORDS_FILE, len(model.block_embeds))
        texts = block_texts(run.weights / RECORDS_FILE)
    place = destination or run.path / "weights-out" / architecture
    left_out = save_hugging_face(place, architecture, model, side, dtype)
    if texts is not None:
        write_block_records(place / RECORDS_FILE, texts)
    logger.info("wrote %s as %s", place, architecture)
    if left_out:
        logger.info("left out, and never called by %s: %s", architecture, ", ".join(left_out))
    if model.tokenizer is None and not set(model.params) <= {"generator", "language_model"}:
        logger.warning("no vocab.txt: the run's corpus has no WordPiece tokenizer, and the classes have no other")
    if model.generator_tokenizer is None and (model.generator or model.language_model):
        logger.warning("no generator's tokenizer: its own is SentencePiece, and the classes have none")
    return place
