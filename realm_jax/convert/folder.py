"""Folders of weights as Hugging Face lays them out: config.json, safetensors or torch files, vocabularies. No pickle is run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from realm_jax.convert.settings import parse_settings
from realm_jax.convert.torch_pickles import check_texts
from realm_jax.run_dir import write_json_atomically

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
SAFETENSORS_FILE, TORCH_FILE = "model.safetensors", "pytorch_model.bin"
_HUB_FILES = ("*.json", "*.safetensors", "*vocab.txt", "*merges.txt", "*/config.json", "tokenizer.model")
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Folder(NamedTuple):
    """What was read: the settings of config.json and generation_config.json, the tensors by name, and where from."""

    path: Path
    settings: dict[str, Any]
    tensors: dict[str, np.ndarray]
    generation: dict[str, Any] = {}  # noqa: RUF012  a default of a NamedTuple, which nothing changes


def find_folder(source: str, revision: str = "main") -> Path:
    """A folder on this machine: the one named, or the snapshot of a Hugging Face hub id such as `google/realm-orqa-nq-reader`.

    Raises:
      FileNotFoundError: there is no such folder, and it cannot be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise FileNotFoundError(
            f"no folder {source!r}; expected one with {CONFIG_FILE} and weights, or a hub id OWNER/NAME"
        )
    import huggingface_hub

    try:
        place = Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(_HUB_FILES)))
        if not weight_files(place, required=False):  # published before safetensors
            patterns = [*_HUB_FILES, "pytorch_model*"]
            place = Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # no network, no such repository, an id that is none
        raise FileNotFoundError(
            f"{source!r} is no folder here, and could not be fetched from the Hugging Face hub "
            f"({' '.join(str(error).split())[:200]}); name a folder, or fetch it where there is internet"
        ) from error
    return place


def read_folder(path: Path) -> Folder:
    """Reads config.json and all tensors, older names (gamma, beta) made today's.

    Raises:
      FileNotFoundError: there is no config.json or no weights.
      ValueError: a file that cannot be read, or a torch file where torch is not installed.
    """
    if not (path / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG_FILE}; expected a folder as save_pretrained writes it")
    settings = read_settings(path / CONFIG_FILE)
    tensors: dict[str, np.ndarray] = {}
    for file in weight_files(path):
        tensors |= _read_torch(file) if file.suffix == ".bin" else read_safetensors(file)
    generation = read_settings(path / GENERATION_FILE) if (path / GENERATION_FILE).is_file() else {}
    return Folder(path, settings, {_new_name(name): value for name, value in tensors.items()}, generation)


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of settings."""
    return parse_settings(path.read_text(encoding="utf-8"), str(path))


def _new_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def weight_files(path: Path, required: bool = True) -> list[Path]:
    """The files with tensors: one, or the shards that an index names."""
    for name in (SAFETENSORS_FILE, TORCH_FILE):
        index = path / f"{name}.index.json"
        if index.is_file():
            weight_map = read_settings(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{index} has no weight_map")
            names = sorted({str(name) for name in weight_map.values()})
            wrong = [name for name in names if not re.fullmatch(r"[\w.-]{1,200}", name) or not (path / name).is_file()]
            if wrong:
                listed = ", ".join(name[:200] for name in wrong[:5])
                raise FileNotFoundError(f"{index} names {listed}, not in {path}; fetch the folder again")
            return [path / name for name in names]
        if (path / name).is_file():
            return [path / name]
    if not required:
        return []
    raise FileNotFoundError(
        f"{path} has no weights; expected {SAFETENSORS_FILE} or {TORCH_FILE}, or the .index.json of several files"
    )


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, bfloat16 included.

    Raises:
      ValueError: when it is damaged or no such file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a torch file and torch is not installed; install torch, or save the model as {SAFETENSORS_FILE} "
            "(save_pretrained(folder, safe_serialization=True))"
        ) from error
    try:
        check_texts(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that would run something, or no torch file: the kinds differ by version
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ValueError(f"{path} holds more than tensors, or is damaged ({reason}); nothing of it was run") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(f"{path} holds no tensors by name; expected what torch.save(model.state_dict()) writes")
    num_bytes = path.stat().st_size
    try:
        for name, value in state.items():
            if (
                value.numel() * value.element_size() > num_bytes
            ):  # a view that repeats a number: a copy takes any memory
                raise ValueError(f"{name} {list(value.shape)} is larger than the file")
        # numpy has no bfloat16; what is no float (position_ids) stays as it is
        return {
            name: (value.float() if value.is_floating_point() else value).detach().numpy()
            for name, value in state.items()
        }
    except (ValueError, TypeError, RuntimeError) as error:  # sparse, quantised, without storage
        raise ValueError(
            f"{path} has a tensor that is no plain array ({error}); save it as dense float tensors"
        ) from error


def write_folder(path: Path, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors.

    Raises:
      FileExistsError: the folder holds something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already and holds something; name another folder, or remove it")
    path.mkdir(parents=True, exist_ok=True)
    content = {name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())}
    safetensors.numpy.save_file(content, path / SAFETENSORS_FILE, metadata={"format": "pt"})
    write_json_atomically(path / CONFIG_FILE, dict(settings))
