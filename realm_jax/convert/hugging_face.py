"""Models of the Hugging Face classes in and out: BERT, Contriever, sentence-transformers, REALM's port, DPR, BART, RAG and Llama.

model = load_hugging_face("path/or/hub-id")            # model.params["retriever"], model.retriever, …
save_hugging_face("folder", "RealmEmbedder", model)
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realm_jax.convert import bert_names, rag, settings
from realm_jax.convert.folder import GENERATION_FILE, Folder, find_folder, read_folder, write_folder
from realm_jax.convert.language_models import is_language_model, read_language_model, write_language_model
from realm_jax.convert.layout import Layout, as_float32, fill, same, spread
from realm_jax.convert.llama import ARCHITECTURE as LLAMA
from realm_jax.convert.model import Model, WeightsDtype
from realm_jax.convert.sentence_transformers import MODULES_FILE, read_modules, write_modules
from realm_jax.convert.tokenizer_files import (
    GENERATOR_FOLDER,
    QUESTION_FOLDER,
    read_generator_tokenizer,
    read_tokenizer,
    write_generator_tokenizer,
    write_tokenizer,
)
from realm_jax.models import RetrieverConfig, SpanReaderConfig, TransformerConfig
from realm_jax.run_dir import write_json_atomically

Side = Literal["query", "document"]
Pooling = Literal["cls", "pooler", "mean"]

BERT_CLASSES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
REALM_CLASSES = ("RealmEmbedder", "RealmScorer", "RealmKnowledgeAugEncoder", "RealmReader", "RealmForOpenQA")
SENTENCE_TRANSFORMER, CONTRIEVER = "SentenceTransformer", "Contriever"
ARCHITECTURES = (*BERT_CLASSES, SENTENCE_TRANSFORMER, CONTRIEVER, *REALM_CLASSES, *rag.CLASSES, LLAMA)
_PREDICTIONS = "cls.predictions."
_BLOCKS = "block_emb"


def load_hugging_face(
    source: str | Path,
    architecture: str = "",
    pooling: Pooling = "cls",
    revision: str = "main",
    generator_tokenizer: str = "",
) -> Model:
    """Loads a folder, or a model of the Hugging Face hub.

    What becomes of a class: RealmEmbedder and RealmScorer a `retriever` (untied where the scorer has a query embedder of
    its own), RealmKnowledgeAugEncoder a `knowledge_encoder`, RealmReader a `span_reader`, RealmForOpenQA a retriever, a
    span reader and `block_embeds`; BERT a retriever without projection and, with its masked-LM head, a
    knowledge encoder; a sentence-transformers folder a retriever with the pooling and unit length that it says; Contriever
    a retriever that pools by the mean. DPR's encoders
    become a tied retriever each, BART a `generator`, RAG both; Llama a `language_model`.

    Args:
      source: folder with config.json and weights, or a hub id.
      architecture: the class; empty takes the one that config.json names.
      pooling: of BERT as a retriever.
      revision: of a hub id.
      generator_tokenizer: of a language model, the folder of the tokenizer that it shall have in the place of its own.

    Raises:
      FileNotFoundError: there is no such folder, or no weights in it.
      ValueError: an unknown class or setting; missing, extra or misshapen tensors, all named in one message.
    """
    place = find_folder(str(source), revision)
    if is_language_model(place, architecture):
        return read_language_model(place, generator_tokenizer)
    folder = read_folder(place)
    if not architecture and (folder.path / MODULES_FILE).is_file():
        architecture = SENTENCE_TRANSFORMER
    return make_model(folder, architecture or named_architecture(folder), pooling)


def make_model(folder: Folder, architecture: str, pooling: Pooling = "cls") -> Model:
    """The model of what was read; see `load_hugging_face`."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{folder.path}: unknown class {architecture!r}, valid: {', '.join(ARCHITECTURES)}")
    if architecture in (*BERT_CLASSES, CONTRIEVER):
        pooling = (
            "mean" if architecture == CONTRIEVER else pooling
        )  # Izacard et al. 2021, arXiv:2112.09118, section 3.1
        model = _bert(
            folder, architecture, RetrieverConfig(settings.encoder_config(folder.settings), None, pooling=pooling)
        )
    elif architecture == SENTENCE_TRANSFORMER:
        modules = read_modules(folder.path)
        config = RetrieverConfig(
            settings.encoder_config(folder.settings), None, pooling=modules.pooling, normalize=modules.normalize
        )
        model = dataclasses.replace(_bert(folder, architecture, config), max_seq_length=modules.max_seq_length)
    elif architecture in rag.CLASSES:
        model = rag.read(folder, architecture)
    else:
        model = _realm(folder, architecture)
    return _with_tokenizers(
        dataclasses.replace(model, architecture=architecture, settings=folder.settings), folder.path
    )


def _with_tokenizers(model: Model, path: Path) -> Model:
    of_question, of_generator = _tokenizer_folders(path, model.architecture)
    if model.generator is not None:
        model = dataclasses.replace(model, generator_tokenizer=read_generator_tokenizer(of_generator))
    if model.architecture not in rag.BART_CLASSES:
        model = dataclasses.replace(model, tokenizer=read_tokenizer(of_question))
    return model


def named_architecture(folder: Folder) -> str:
    """The class that config.json names.

    Raises:
      ValueError: when it names none, or one that is not here.
    """
    named = folder.settings.get("architectures") or []
    named = named if isinstance(named, list) else [named]  # of one class, without a list
    if len(named) != 1 or named[0] not in ARCHITECTURES:
        raise ValueError(
            f"{folder.path}/config.json names {', '.join(map(str, named)) or 'no class'} under architectures; say which class "
            f"it is (--gin.convert.architecture=CLASS), one of: {', '.join(ARCHITECTURES)}"
        )
    return str(named[0])


def _bert(folder: Folder, architecture: str, config: RetrieverConfig) -> Model:
    names = folder.tensors
    prefix = "bert." if any(name.startswith("bert.") for name in names) else ""
    has_head = architecture in ("BertForMaskedLM", "BertForPreTraining") or any(
        n.startswith(_PREDICTIONS) for n in names
    )
    layout = bert_retriever_layout(config, prefix)
    if has_head:
        layout += bert_knowledge_encoder_layout(config.encoder, prefix)
    filled = fill(layout, names, f"{folder.path} as {architecture}")
    reader = config.encoder if has_head else None
    return Model(filled.params, retriever=config, knowledge_encoder=reader, unused=filled.unused)


def bert_retriever_layout(config: RetrieverConfig, prefix: str, encoder: str = "shared_encoder") -> Layout:
    """BERT as one encoder of a retriever; without `pooling="pooler"` the pooler is not used."""
    path = f"retriever/{encoder}"
    pooler = bert_names.pooler(config.encoder, prefix, f"{path}/pooler")
    used = Layout(tuple(pooler)) if config.pooling == "pooler" else bert_names.unused(pooler)
    return bert_names.body(config.encoder, prefix, f"{path}/encoder") + used


def bert_knowledge_encoder_layout(config: TransformerConfig, prefix: str) -> Layout:
    """BERT with its masked-LM head; the head of next-sentence prediction is not used."""
    path, hidden = "knowledge_encoder", config.hidden_size
    next_sentence = Layout(unused={"cls.seq_relationship.weight": (2, hidden), "cls.seq_relationship.bias": (2,)})
    return (
        bert_names.body(config, prefix, f"{path}/encoder")
        + bert_names.prediction_head(config, _PREDICTIONS, prefix, path)
        + bert_names.unused(bert_names.pooler(config, prefix, ""))
        + next_sentence
    )


def realm_layout(
    architecture: str,
    retriever: RetrieverConfig | None,
    knowledge_encoder: TransformerConfig | None,
    span_reader: SpanReaderConfig | None,
    encoder: str = "shared_encoder",
) -> Layout:
    """The layout of a REALM class; `encoder` is the part of the retriever that its embedder is."""
    path, layout = f"retriever/{encoder}", Layout()
    if architecture == "RealmEmbedder" and retriever:
        layout = bert_names.embedder(retriever, "", path)
    elif architecture == "RealmScorer" and retriever:
        document = "shared_encoder" if retriever.tied else "document_encoder"
        layout = bert_names.embedder(retriever, "embedder.", f"retriever/{document}")
        if retriever.tied:
            repeated = [slot.name for slot in layout.slots] + [*layout.unused, *layout.copies]
            copies = {f"query_{name}": name for name in repeated}
            layout += Layout(copies=copies)
        else:
            layout += bert_names.embedder(retriever, "query_embedder.", "retriever/query_encoder")
    elif architecture == "RealmKnowledgeAugEncoder" and knowledge_encoder:
        layout = bert_names.knowledge_encoder(knowledge_encoder, "", "knowledge_encoder")
    elif architecture == "RealmReader" and span_reader:
        layout = bert_names.reader(span_reader, "", "span_reader")
    elif architecture == "RealmForOpenQA" and retriever and span_reader:
        layout = bert_names.embedder(retriever, "embedder.", path) + bert_names.reader(
            span_reader, "reader.", "span_reader"
        )
    if not layout.slots:
        raise ValueError(
            f"{architecture} holds {_LEARNERS[architecture]}; this model has "
            f"{_listed(retriever=retriever, knowledge_encoder=knowledge_encoder, span_reader=span_reader)}"
        )
    return layout


_LEARNERS = {
    "RealmEmbedder": "a retriever",
    "RealmScorer": "a retriever",
    "RealmKnowledgeAugEncoder": "a knowledge_encoder",
    "RealmReader": "a span_reader",
    "RealmForOpenQA": "a retriever and a span_reader",
}


def _listed(**learners: Any) -> str:
    return ", ".join(name for name, config in learners.items() if config is not None) or "none"


def _realm(folder: Folder, architecture: str) -> Model:
    tensors = dict(folder.tensors)
    retriever = reader = knowledge_encoder = None
    if architecture in ("RealmEmbedder", "RealmScorer", "RealmForOpenQA"):
        tied = architecture != "RealmScorer" or _is_tied_scorer(tensors)
        retriever = settings.realm_retriever_config(folder.settings, tied)
        if architecture == "RealmScorer" and tied:
            tensors = _with_either_name(tensors)
    if architecture == "RealmKnowledgeAugEncoder":
        knowledge_encoder = settings.encoder_config(folder.settings)
    if architecture in ("RealmReader", "RealmForOpenQA"):
        reader = settings.span_reader_config(folder.settings)
    blocks = tensors.pop(_BLOCKS, None) if architecture == "RealmForOpenQA" else None
    if blocks is not None and retriever is not None:
        _check_blocks(folder, blocks, retriever.embed_dim)
    layout = realm_layout(architecture, retriever, knowledge_encoder, reader)
    filled = fill(layout, tensors, f"{folder.path} as {architecture}")
    return Model(
        filled.params,
        retriever=retriever,
        knowledge_encoder=knowledge_encoder,
        span_reader=reader,
        unused=filled.unused,
        block_embeds=None if blocks is None else as_float32(blocks),
    )


def _check_blocks(folder: Folder, blocks: np.ndarray, width: int) -> None:
    expected = (folder.settings.get("num_block_records", blocks.shape[0] if blocks.ndim else 0), width)
    if blocks.shape != expected:
        raise ValueError(
            f"{folder.path}: {_BLOCKS} is {list(blocks.shape)}, expected [num_block_records, retriever_proj_size] = "
            f"{list(expected)}; correct config.json, or fetch the weights that belong to it"
        )


def _is_tied_scorer(tensors: Mapping[str, np.ndarray]) -> bool:
    """False when some tensor of the query embedder differs from the document embedder's."""
    pairs = [(name, f"query_{name}") for name in tensors if name.startswith("embedder.")]
    return all(same(tensors[one], tensors[other]) for one, other in pairs if other in tensors)


def _with_either_name(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of a tied scorer the port saves each tensor under one of two names, no matter which: both are the document embedder's."""
    own = {name: value for name, value in tensors.items() if not name.startswith("query_embedder.")}
    shared = {
        name.removeprefix("query_"): value for name, value in tensors.items() if name.startswith("query_embedder.")
    }
    return {**shared, **own}


def save_hugging_face(
    folder: str | Path, architecture: str, model: Model, side: Side = "query", dtype: WeightsDtype = "float32"
) -> list[str]:
    """Writes a folder that `architecture.from_pretrained` loads.

    A tied retriever is one embedder. Of an untied one a RealmScorer gets both, each under its own name; a class with room for one
    gets the `side` that is named. Some say it themselves: RealmForOpenQA, DPRQuestionEncoder and RAG hold the query's,
    DPRContextEncoder the document's.

    Args:
      folder: to write; must not hold anything yet.
      architecture: the class, one of `ARCHITECTURES`.
      model: with the learners of the class.
      side: which encoder of an untied retriever.
      dtype: of a language model's weights; those of the others are float32.

    Returns:
      Names of tensors that the class has, and that were left out: nothing here computes with them, and the model was not loaded
      from a file that has them. `from_pretrained` fills them at random, and says so.

    Raises:
      ValueError: a model that the class does not compute, or parameters of other shapes than the configurations say.
      FileExistsError: the folder holds something.
    """
    path = Path(folder)
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown class {architecture!r}, valid: {', '.join(ARCHITECTURES)}")
    if architecture == LLAMA:
        write_language_model(path, model, dtype)
        return []
    if dtype != "float32":
        raise ValueError(f"dtype={dtype!r} is for {LLAMA}; a {architecture} is written in float32, leave it out")
    layout, said = _outgoing(architecture, model, _SIDES.get(architecture, side))
    untied_document = side == "document" and model.retriever is not None and not model.retriever.tied
    kept = model.unused if model.architecture == architecture and not untied_document else {}  # they are the queries'
    tensors = spread(layout, model.params, kept)
    if architecture == "RealmForOpenQA":
        if model.block_embeds is None or model.retriever is None:
            raise ValueError("RealmForOpenQA holds the embeddings of its documents; give the model block_embeds")
        tensors[_BLOCKS] = np.ascontiguousarray(model.block_embeds, np.float32)
        if tensors[_BLOCKS].ndim != 2 or tensors[_BLOCKS].shape[1] != model.retriever.embed_dim:
            raise ValueError(
                f"block_embeds are {list(tensors[_BLOCKS].shape)}, expected [num_documents, {model.retriever.embed_dim}]"
            )
        said["num_block_records"] = len(tensors[_BLOCKS])
    fresh = {"architectures": [architecture if architecture != SENTENCE_TRANSFORMER else "BertModel"],
             "model_type": _model_type(architecture), "torch_dtype": "float32"}  # fmt: skip
    earlier = model.settings if model.settings.get("model_type", fresh["model_type"]) == fresh["model_type"] else {}
    write_folder(path, {**earlier, **said, **fresh}, tensors)
    _write_tokenizers(path, architecture, model, said)
    if architecture == SENTENCE_TRANSFORMER and model.retriever is not None:
        write_modules(path, model.retriever, model.max_seq_length)
    if model.generation and fresh["model_type"] in ("bart", "rag") and earlier:
        write_json_atomically(path / GENERATION_FILE, dict(model.generation))
    # the class has none of them, though files of it may
    if architecture in ("BertForMaskedLM", CONTRIEVER, *rag.CLASSES):
        return []
    return [name for name in layout.unused if name not in tensors]


# Which encoder of an untied retriever a class holds; the others hold the one that is asked for.
_SIDES: Mapping[str, Side] = {
    "RealmForOpenQA": "query",
    "DPRQuestionEncoder": "query",
    "DPRContextEncoder": "document",
    **dict.fromkeys(rag.RAG_CLASSES, "query"),
}


def _model_type(architecture: str) -> str:
    for kind, classes in (
        ("realm", REALM_CLASSES),
        ("dpr", rag.DPR_CLASSES),
        ("bart", rag.BART_CLASSES),
        ("rag", rag.RAG_CLASSES),
    ):
        if architecture in classes:
            return kind
    return "bert"


_TOKENIZERS = {
    "DPRContextEncoder": "DPRContextEncoderTokenizer",
    **dict.fromkeys(REALM_CLASSES, "RealmTokenizer"),
    **dict.fromkeys(("DPRQuestionEncoder", *rag.RAG_CLASSES), "DPRQuestionEncoderTokenizer"),
}


def _write_tokenizers(path: Path, architecture: str, model: Model, said: Mapping[str, Any]) -> None:
    of_question, of_generator = _tokenizer_folders(path, architecture)
    if model.tokenizer is not None and architecture not in rag.BART_CLASSES:
        length = said.get("question_encoder", said)["max_position_embeddings"]
        write_tokenizer(of_question, model.tokenizer, length, _TOKENIZERS.get(architecture, "BertTokenizer"))
    if model.generator_tokenizer is not None and architecture in (*rag.BART_CLASSES, *rag.RAG_CLASSES):
        length = said.get("generator", said)["max_position_embeddings"]
        write_generator_tokenizer(of_generator, model.generator_tokenizer, length)


def _tokenizer_folders(path: Path, architecture: str) -> tuple[Path, Path]:
    """Of the question encoder's tokenizer, or the only one, and of the generator's."""
    return (path / QUESTION_FOLDER, path / GENERATOR_FOLDER) if architecture in rag.RAG_CLASSES else (path, path)


def _outgoing(architecture: str, model: Model, side: Side) -> tuple[Layout, dict[str, Any]]:
    retriever, reader = model.retriever, model.span_reader
    encoder = "shared_encoder" if retriever is None or retriever.tied else f"{side}_encoder"
    if architecture in rag.CLASSES:
        return rag.outgoing(architecture, model, encoder)
    if architecture in REALM_CLASSES:
        layout = realm_layout(architecture, retriever, model.knowledge_encoder, reader, encoder)
        if architecture == "RealmKnowledgeAugEncoder" and model.knowledge_encoder:
            return layout, settings.encoder_settings(model.knowledge_encoder, "knowledge encoder")
        said = settings.retriever_settings(retriever) if retriever and architecture != "RealmReader" else {}
        if reader and architecture in ("RealmReader", "RealmForOpenQA"):
            said = settings.same_encoder(said, settings.span_reader_settings(reader))
        return layout, said
    if architecture in ("BertForMaskedLM", "BertForPreTraining"):
        if model.knowledge_encoder is None:
            raise ValueError(f"{architecture} holds a knowledge_encoder; this model has none")
        layout = bert_knowledge_encoder_layout(model.knowledge_encoder, "bert.")
        return layout, settings.encoder_settings(model.knowledge_encoder, "knowledge encoder")
    if retriever is None:
        raise ValueError(f"{architecture} holds a retriever's encoder; this model has none")
    if retriever.projection_size is not None:
        raise ValueError(
            f"the retriever projects to {retriever.projection_size}, and {architecture} has no projection; write a RealmEmbedder "
            "(of pooling='pooler'), or train with projection_size=None"
        )
    if architecture == SENTENCE_TRANSFORMER and retriever.pooling == "pooler":
        raise ValueError("the retriever has pooling='pooler'; sentence-transformers pools by 'cls' or 'mean'")
    if architecture == CONTRIEVER:
        settings.check_contriever(retriever)
    said = settings.encoder_settings(retriever.encoder, "retriever")
    return bert_retriever_layout(retriever, "", encoder), said
