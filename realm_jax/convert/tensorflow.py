"""TensorFlow-1 checkpoints of BERT and REALM, by way of the Hugging Face names. Reading needs the extra `tensorflow`."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from realm_jax.convert.folder import CONFIG_FILE, Folder, read_settings
from realm_jax.convert.hugging_face import Model, Pooling, make_model

_OPTIMIZER = re.compile(r"(^|/)(adam_[mv]|AdamWeightDecayOptimizer(_\d+)?|global_step|beta[12]_power)(/|$|:)")
_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "output_bias": "bias", "output_weights": "weight"}
# Scopes of the released checkpoints, and the module that each became; the first that fits decides.
_SCOPES = {
    "RealmEmbedder": (
        (r"^(module/)+(bert/)", "realm/"),
        (r"^(module/)+(cls/predictions/)", "cls/predictions/"),
        (r"^(module/)+(LayerNorm|dense)/", r"cls/\2/"),
    ),
    "RealmKnowledgeAugEncoder": ((r"^bert/", "realm/"),),
    "RealmReader": (
        (r"^reader/module/bert/", "realm/"),
        (r"^reader/module/cls/", "cls/"),
        (r"^reader/dense/", "qa_outputs/dense_intermediate/"),
        (r"^reader/dense_1/", "qa_outputs/dense_output/"),
        (r"^reader/layer_normalization(_\d+)?/", "qa_outputs/layer_normalization/"),
    ),
    "BertModel": (),
    "BertForMaskedLM": (),
    "BertForPreTraining": (),
}
TENSORFLOW_CLASSES = tuple(_SCOPES)


def is_checkpoint(source: str) -> bool:
    """Whether a source is the prefix of a TensorFlow checkpoint: NAME, where NAME.index lies."""
    return Path(f"{source}.index").is_file()


def hugging_face_name(variable: str, architecture: str) -> str | None:
    """The Hugging Face class's name of a TensorFlow variable; None for an optimizer's, or one of another module.

    >>> hugging_face_name("bert/encoder/layer_3/attention/self/query/kernel", "BertModel")
    'bert.encoder.layer.3.attention.self.query.weight'
    >>> hugging_face_name("reader/dense_1/bias", "RealmReader")
    'qa_outputs.dense_output.bias'
    >>> hugging_face_name("bert/pooler/dense/kernel/adam_m", "BertModel") is None
    True
    """
    if _OPTIMIZER.search(variable):
        return None
    name = variable
    scopes = _SCOPES[architecture]
    for pattern, replacement in scopes:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    else:
        if scopes and not name.startswith(("cls/", "realm/")):
            return None  # of another module: a reader's checkpoint holds the retriever too
    *path, leaf = name.split("/")
    parts = [re.sub(r"^layer_(\d+)$", r"layer.\1", part) for part in path]
    if leaf.endswith("_embeddings"):
        return ".".join([*parts, leaf, "weight"])
    if leaf == "output_bias" and path[-1:] == ["predictions"]:
        return ".".join([*parts, "bias"])
    return ".".join([*parts, _LEAVES.get(leaf, leaf)])


def renamed(variables: Mapping[str, np.ndarray], architecture: str) -> dict[str, np.ndarray]:
    """Tensors by the names, and in the layout, of the Hugging Face class: kernels are [in, out] in TensorFlow."""
    tensors = {}
    for variable, value in variables.items():
        name = hugging_face_name(variable, architecture)
        if name is not None:
            tensors[name] = value.T if variable.endswith("/kernel") else value
    return tensors


def load_tensorflow(prefix: str, architecture: str, pooling: Pooling = "cls") -> Model:
    """Loads a TensorFlow-1 checkpoint; bert_config.json (or config.json) and vocab.txt lie beside it.

    A BERT without a class is a BertForPreTraining, as Google published it.

    Args:
      prefix: NAME of NAME.index and NAME.data-….
      architecture: one of `TENSORFLOW_CLASSES`, or empty for BERT.
      pooling: of BERT as a retriever.

    Raises:
      ValueError: TensorFlow is not installed, the class is not there in TensorFlow, or the tensors do not fit.
    """
    architecture = architecture or "BertForPreTraining"
    if architecture not in TENSORFLOW_CLASSES:
        raise ValueError(
            f"{architecture} is not read from TensorFlow, valid: {', '.join(TENSORFLOW_CLASSES)}; convert its parts one by one"
        )
    folder = Path(prefix).parent
    configs = [folder / name for name in ("bert_config.json", CONFIG_FILE) if (folder / name).is_file()]
    if not configs:
        raise FileNotFoundError(f"{folder} has no bert_config.json; put the one of the checkpoint there")
    variables = _read(prefix)
    tensors = renamed(variables, architecture)
    settings = read_settings(configs[0])
    return make_model(Folder(folder, settings, tensors), architecture, pooling)


def _read(prefix: str) -> dict[str, np.ndarray]:
    try:
        import tensorflow
    except ImportError as error:
        raise ValueError(
            f"{prefix} is a TensorFlow checkpoint and TensorFlow is not installed; pip install 'realm_jax[tensorflow]'"
        ) from error
    try:
        reader = tensorflow.train.load_checkpoint(prefix)
        names = [name for name in reader.get_variable_to_shape_map() if not _OPTIMIZER.search(name)]
        return {name: reader.get_tensor(name) for name in names}
    except (tensorflow.errors.OpError, ValueError, RuntimeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ValueError(f"{prefix} is damaged or no TensorFlow checkpoint ({reason}); fetch it again") from error
