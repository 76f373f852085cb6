"""Small folders of weights to convert, out of the golden files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from realm_jax.run_dir import write_json_atomically
from realm_jax.text.tokenizer import SPECIAL_PIECES
from tests.convert.cases import Case, read_case

GOLDEN = Path(__file__).parent / "golden"
VOCAB = [*SPECIAL_PIECES, *"abcdefghijklmnopqrstuvwxyz"]  # 31 pieces, as many as the golden BERTs have rows


def golden_folder(name: str, place: Path, vocab: list[str] | None = None, **settings: Any) -> tuple[Path, Case]:
    """A folder as the port would have saved it, and its case."""
    case = read_case(GOLDEN / f"{name}.safetensors")
    place.mkdir(parents=True)
    said = case.metadata["config"] | {"architectures": [name.partition("-")[0]]} | settings
    write_json_atomically(place / "config.json", said)
    safetensors.numpy.save_file(case.named("model/"), place / "model.safetensors")
    vocab = vocab or case.metadata["texts"].get("vocab")
    if vocab:
        (place / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return place, case


def change(folder: Path, **changes: np.ndarray | None) -> None:
    """Replaces (or, with None, removes) tensors of a folder; "__" in a name stands for a dot."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def sentence_transformer(place: Path, pooling: str = "mean_tokens", normalize: bool = True) -> Path:
    """A folder as sentence-transformers saves it."""
    golden_folder("BertModel", place, VOCAB)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (path, kind) in enumerate(kinds)]  # fmt: skip
    (place / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (place / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
    write_json_atomically(place / "1_Pooling" / "config.json", {"word_embedding_dimension": 8, **modes})
    return place
