"""Folders of weights from elsewhere: every file of one in turn is the input."""

import functools
import importlib.util
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realm_jax.convert.hugging_face import load_hugging_face, save_hugging_face
from realm_jax.convert.rag import BART_CLASSES, RAG_CLASSES
from realm_jax.convert.run_files import gin_files
from realm_jax.convert.tensorflow import load_tensorflow
from realm_jax.text.llama_tokenizer import LlamaTokenizer
from tests.convert.made import golden_folder, sentence_transformer
from tests.convert.made_llama import llama_folder
from tests.convert.made_rag import made
from tests.fuzz.target import Target
from tests.text.made_llama import write_llama2, write_llama3

_JSON_WORDS = (
    b'"hidden_size": 0', b'"num_attention_heads": 0', b"1000000000", b'"hidden_act": []', b'"@os.system(\'true\')"',
    b'"gelu\\nimport antigravity"', b'"../../out"', b'"/etc/hostname"', b'"a\\u0000"',
)  # fmt: skip
_GENERATION_WORDS = (
    b'"num_beams": 1000000000', b'"max_length": null', b'"bad_words_ids": [[]]', b'"early_stopping": "never"', b"NaN", b"1e999", b"-1",
    b'"forced_bos_token_id": []', b'"n_docs": 0',
)  # fmt: skip
_TENSOR_WORDS = (
    b'"F8_E4M3"',
    b'"BF16"',
    b'"F64"',
    b'"data_offsets":[0,99999999999]',
    b"[-1]",
    b'"dtype"',
    b"\xff" * 8,
    b"\x00" * 8,
)


class _Runs:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


_LEARNERS = {"retriever.gin": "retriever", "span_reader.gin": "span_reader", "reader.gin": "knowledge_encoder",
             "generator.gin": "generator", "rag.gin": "generator", "language_model.gin": "language_model"}  # fmt: skip
_LLAMA_WORDS = (
    b'"num_key_value_heads": 3', b'"head_dim": 1', b'"rope_scaling": {"type": "linear", "factor": -1}', b'"rope_theta": 1e400',
    b'"tie_word_embeddings": true', b'"eos_token_id": [[]]', b'"vocab_size": 1000000000000', b'"num_hidden_layers": 1000',
    b'"max_position_embeddings": 0',
)  # fmt: skip
_PIECES_WORDS = (
    b'"Unigram"', b'"WordLevel"', b'"ignore_merges": true', b'"byte_fallback": false', b'"dropout": 0.5', b'"<0x00>"',
    b'"prepend_scheme": "never"', b'"use_regex": true', b'{"Regex": "(a+)+$"}', b'{"Regex": "(?<x>("}', b'"individual_digits": true',
    b'"pair_template": null', b'"id": 4294967296', b'"content": ""', b'"normalized": true', b'"single_word": true', b'"lstrip": true',
    b"\xe2\x96\x81", b'"bos_token": "a"', b'"pad_token": []', b'"added_tokens_decoder": {"-1": {}}',
)  # fmt: skip


def _load(folder: Path) -> None:
    model = load_hugging_face(folder)
    for name, text in gin_files(model).items():  # what was said of the model is settings in these, and nothing else
        assert getattr(model, _LEARNERS[name]) is not None
        assert "import antigravity" not in text.splitlines()


def _made(name: str, kind: str) -> Callable[[Path], Sequence[bytes]]:
    def make(folder: Path) -> Sequence[bytes]:
        if kind in (*RAG_CLASSES, *BART_CLASSES):
            save_hugging_face(folder / "model", kind, made(retriever=kind in RAG_CLASSES))
        elif kind == "SentenceTransformer":
            sentence_transformer(folder / "model")
        else:
            golden_folder(kind, folder / "model")
        place = folder / "model" / name
        if name == "model.safetensors.index.json":
            shutil.copy(folder / "model" / "model.safetensors", folder / "model" / "model-1.safetensors")
            return [json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}).encode()]
        if name == "generation_config.json":
            return [
                b'{"num_beams": 4, "max_length": 30, "early_stopping": true, "length_penalty": 2.0, "forced_bos_token_id": 0}',
                b'{"do_sample": true, "top_k": 5, "top_p": 0.5, "temperature": 0.1, "bad_words_ids": [[0, 0]]}',
            ]
        if name == "tokenizer_config.json":
            return [b'{"do_lower_case": true, "strip_accents": null, "tokenize_chinese_chars": true}']
        return [place.read_bytes()]

    return make


def _read(name: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        (folder / "model" / name).write_bytes(data)
        _load(folder / "model")

    return run


def _llama(name: str, kind: str = "llama2", drop: Sequence[str] = ()) -> Callable[[Path], Sequence[bytes]]:
    def make(folder: Path) -> Sequence[bytes]:
        place = llama_folder(folder / "model", kind)
        for other in drop:
            (place / other).unlink()
        return [(place / name).read_bytes()]

    return make


def _pieces_seeds(name: str, kinds: Sequence[str]) -> Callable[[Path], Sequence[bytes]]:
    """Of each kind of tokenizer; the folder is then the last one's."""

    def make(folder: Path) -> Sequence[bytes]:
        seeds = []
        for kind in kinds:
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)
            place = write_llama3(folder / "tokenizer") if kind == "llama3" else write_llama2(folder / "tokenizer", kind)
            seeds.append((place / name).read_bytes())
        return seeds

    return make


def _read_pieces(name: str) -> Callable[[bytes, Path], None]:
    """What is loaded cuts texts, gives back what it cut where nothing is normalised, and makes no special id of them."""

    def run(data: bytes, folder: Path) -> None:
        (folder / "tokenizer" / name).write_bytes(data)
        tokenizer = LlamaTokenizer.from_folder(folder / "tokenizer")
        for text in ("", "The lower river, 1967", " <s> goes on</s>\n<|eot_id|>", "Zo\u00eb \u65e5\x00"):
            encoding = tokenizer.encode(text)
            assert {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}.isdisjoint(encoding.ids.tolist())
            assert encoding.offsets.shape == (len(encoding.ids), 2) and encoding.offsets.max(initial=0) <= len(text)
            assert encoding.ids.max(initial=0) < tokenizer.vocab_size
            tokenizer.decode(encoding.ids)
        tokenizer.decode(range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 1000))

    return run


def _torch_seeds(folder: Path) -> Sequence[bytes]:
    import torch

    golden_folder("BertModel", folder / "model")
    from safetensors.numpy import load_file

    (folder / "model" / "model.safetensors").rename(folder / "weights")
    state = {name: torch.from_numpy(np.array(value)) for name, value in load_file(folder / "weights").items()}
    seeds = []
    for content in (
        state,
        {"a": _Runs()},
        {"a": torch.eye(3).to_sparse()},
        {1: torch.zeros(2)},
        {"a": torch.zeros(1, dtype=torch.half).expand(1 << 40)},
    ):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            seeds.append(file.getvalue())
    return [*seeds, pickle.dumps(state), pickle.dumps(_Runs())]


def _read_torch(data: bytes, folder: Path) -> None:
    (folder / "model" / "pytorch_model.bin").write_bytes(data)
    _load(folder / "model")


def _tensorflow_seeds(folder: Path) -> Sequence[bytes]:
    """A checkpoint as one zip: its index and its data."""
    import tensorflow

    from tests.convert.test_tensorflow import tensorflow_variables

    place, case = golden_folder("BertForPreTraining", folder / "model")
    graph = tensorflow.Graph()
    with graph.as_default(), tensorflow.compat.v1.Session() as session:
        for name, value in tensorflow_variables("BertForPreTraining", case.named("model/")).items():
            tensorflow.compat.v1.get_variable(name, initializer=value)
        session.run(tensorflow.compat.v1.global_variables_initializer())
        tensorflow.compat.v1.train.Saver().save(session, str(folder / "model" / "bert"))
    shutil.copy(place / "config.json", place / "bert_config.json")
    return [_zipped(place)]


def _zipped(place: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in sorted(place.glob("bert.*")):
            archive.write(file, file.name)
    return content.getvalue()


def _read_tensorflow(data: bytes, folder: Path) -> None:
    """The changes of a zip that is stored as it is are changes of the files in it; one that is no zip any more is skipped."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive._didModify = False  # type: ignore[attr-defined]
            for info in archive.infolist():
                start = data.index(info.filename.encode(), info.header_offset) + len(info.filename)
                (folder / "model" / Path(info.filename).name).write_bytes(data[start : start + info.file_size])
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return
    load_tensorflow(str(folder / "model" / "bert"), "")


@functools.cache
def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


TARGETS = [
    Target("weights_safetensors", _made("model.safetensors", "BertModel"), _read("model.safetensors"), words=_TENSOR_WORDS, mib=512),
    Target("weights_config", _made("config.json", "RealmReader"), _read("config.json"), words=_JSON_WORDS, mib=512),
    Target("weights_config_open_qa", _made("config.json", "RealmForOpenQA"), _read("config.json"), words=_JSON_WORDS, mib=512),
    Target("weights_config_rag", _made("config.json", "RagTokenForGeneration"), _read("config.json"), words=(*_JSON_WORDS, *_GENERATION_WORDS), mib=512),
    Target("weights_generation", _made("generation_config.json", "RagSequenceForGeneration"), _read("generation_config.json"), words=_GENERATION_WORDS, mib=512),
    Target("weights_byte_level_vocabulary", _made("vocab.json", "BartForConditionalGeneration"), _read("vocab.json"), words=_JSON_WORDS, mib=512),
    Target("weights_merges", _made("merges.txt", "BartForConditionalGeneration"), _read("merges.txt"), mib=512),
    Target("weights_index", _made("model.safetensors.index.json", "BertModel"), _read("model.safetensors.index.json"), words=_JSON_WORDS),
    Target("weights_vocabulary", _made("vocab.txt", "SentenceTransformer"), _read("vocab.txt")),
    Target("weights_tokenizer", _made("tokenizer_config.json", "SentenceTransformer"), _read("tokenizer_config.json"), words=_JSON_WORDS),
    Target("weights_modules", _made("modules.json", "SentenceTransformer"), _read("modules.json"), words=_JSON_WORDS),
    Target("weights_pooling", _made("1_Pooling/config.json", "SentenceTransformer"), _read("1_Pooling/config.json"), words=_JSON_WORDS),
    Target("weights_config_llama", _llama("config.json"), _read("config.json"), words=(*_JSON_WORDS, *_LLAMA_WORDS), mib=512),
    Target("weights_index_llama", _llama("model.safetensors.index.json"), _read("model.safetensors.index.json"), words=_JSON_WORDS, mib=512),
    Target("weights_shard_llama", _llama("model-00001-of-00005.safetensors"), _read("model-00001-of-00005.safetensors"), words=_TENSOR_WORDS, mib=512),
    Target("pieces_json", _pieces_seeds("tokenizer.json", ("json", "newer", "llama3")), _read_pieces("tokenizer.json"), words=_PIECES_WORDS, mib=512),
    Target("pieces_model", _pieces_seeds("tokenizer.model", ("model",)), _read_pieces("tokenizer.model"), mib=512),
    Target("pieces_config", _pieces_seeds("tokenizer_config.json", ("llama3", "model")), _read_pieces("tokenizer_config.json"), words=_PIECES_WORDS, mib=512),
]  # fmt: skip
if _has("torch"):
    TARGETS.append(Target("weights_torch", _torch_seeds, _read_torch, mib=4096))
if _has("tensorflow"):
    TARGETS.append(Target("weights_tensorflow", _tensorflow_seeds, _read_tensorflow, mib=4096))
