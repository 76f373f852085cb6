"""Llama folders of Hugging Face, read tensor by tensor into place, and written in shards.

A model of 70 billion parameters fits no host. Names and shapes of all files are checked by their headers alone; then every device's part
of every parameter is read where it lies, by the host that has the device, and again for each device that holds the same part. Nothing is
ever whole but one layer of one parameter on the host that writes.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from realm_jax.convert.folder import CONFIG_FILE, SAFETENSORS_FILE, read_settings, weight_files
from realm_jax.convert.settings import Settings, check_fixed, check_sizes, number
from realm_jax.models import LanguageModel, LanguageModelConfig, RotaryConfig
from realm_jax.run_dir import write_json_atomically

ARCHITECTURE = "LlamaForCausalLM"
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_MAX_SIZE = 10**8  # of what is there to be refused by its shapes, and no number that nothing can hold
_FIXED = {"hidden_act": "silu", "mlp_bias": False}
_LAYER = "layers/"
# Our path of a parameter, theirs, and whether theirs is the transposed matrix. In layers `{}` is the layer's number.
_NAMES: tuple[tuple[str, str, bool], ...] = (
    ("token_embedding/embedding", "model.embed_tokens.weight", False),
    ("norm/scale", "model.norm.weight", False),
    ("output", "lm_head.weight", True),
    ("layers/attention_norm/scale", "model.layers.{}.input_layernorm.weight", False),
    ("layers/output_norm/scale", "model.layers.{}.post_attention_layernorm.weight", False),
    *(
        (f"layers/attention/{ours}/{part}", f"model.layers.{{}}.self_attn.{theirs}_proj.{name}", part == "kernel")
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
        for part, name in (("kernel", "weight"), ("bias", "bias"))
    ),
    *(
        (f"layers/feed_forward/{ours}/kernel", f"model.layers.{{}}.mlp.{theirs}_proj.weight", True)
        for ours, theirs in (("gate", "gate"), ("wi", "up"), ("wo", "down"))
    ),
)
_UNUSED = ("rotary_emb.inv_freq",)  # constants that older files hold
MAX_SHARD_BYTES = 5 * 10**9


def language_model_config(settings: Settings) -> LanguageModelConfig:
    """The configuration of a Llama; the ids are those that its settings say.

    Raises:
      ValueError: a size that is not there, something that is not computed here.
    """
    check_sizes(settings, _SIZES, "a Llama", ("num_hidden_layers",))
    for name in (*_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        if (_size(settings, name) or 1) > _MAX_SIZE:
            raise ValueError(f"config.json has {name}={str(settings[name])[:80]}, expected at most {_MAX_SIZE}")
    check_fixed(settings, _FIXED)
    return LanguageModelConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        num_layers=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        num_kv_heads=_size(settings, "num_key_value_heads") or settings["num_attention_heads"],
        head_dim=_size(settings, "head_dim"),
        max_length=_size(settings, "max_position_embeddings") or 2048,
        intermediate_size=settings["intermediate_size"],
        rotary=_rotary(settings),
        rms_norm_eps=number(settings, "rms_norm_eps", 1e-6),
        initializer_range=number(settings, "initializer_range", 0.02),
        tied_output=settings.get("tie_word_embeddings") is True,
        attention_bias=settings.get("attention_bias") is True,
        bos_id=_token_id(settings, "bos_token_id", 1),
        eos_id=_token_id(settings, "eos_token_id", 2),
        pad_id=_token_id(settings, "pad_token_id", 0),
    )


def _size(settings: Settings, name: str) -> int | None:
    value = settings.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"config.json has {name}={value!r}, expected a whole number above 0")
    return value


def _token_id(settings: Settings, name: str, default: int) -> int:
    value = settings.get(name)
    if name == "eos_token_id" and isinstance(value, list) and value:
        value = value[0]  # of several texts may end with, the first ends them here
    if value is None or (name == "pad_token_id" and value == -1):
        return default
    if type(value) is not int or value < 0:
        raise ValueError(f"config.json has {name}={value!r}, expected a token id")
    return value


def _rotary(settings: Settings) -> RotaryConfig:
    """Llama's positions; of newer files `rope_parameters` says both, of older ones `rope_theta` and `rope_scaling`."""
    said = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(said, dict):
        raise ValueError(f"config.json has a rope_scaling that is no object: {said!r}")
    theta = number(said if "rope_theta" in said else settings, "rope_theta", 10000.0, most=1e12)
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "default":
        return RotaryConfig(theta=theta)
    if kind == "linear":
        return RotaryConfig(theta=theta, scaling="linear", factor=number(said, "factor", 1.0))
    if kind == "llama3":
        original = said.get("original_max_position_embeddings", 8192)
        if type(original) is not int or not 0 < original <= _MAX_SIZE:
            raise ValueError(
                f"config.json has original_max_position_embeddings={str(original)[:80]}, expected a whole number above 0, at most "
                f"{_MAX_SIZE}"
            )
        return RotaryConfig(
            theta=theta,
            scaling="llama3",
            factor=number(said, "factor", 8.0),
            low_frequency_factor=number(said, "low_freq_factor", 1.0),
            high_frequency_factor=number(said, "high_freq_factor", 4.0),
            original_max_length=original,
        )
    raise ValueError(
        f"config.json has rotary positions of the kind {kind!r}; only default, linear, llama3 are computed here"
    )


def language_model_settings(config: LanguageModelConfig) -> dict[str, Any]:
    """The inverse of `language_model_config`."""
    rotary = config.rotary
    scaling: dict[str, Any] | None = None
    if rotary.scaling == "linear":
        scaling = {"type": "linear", "rope_type": "linear", "factor": rotary.factor}
    elif rotary.scaling == "llama3":
        scaling = {
            "rope_type": "llama3",
            "factor": rotary.factor,
            "low_freq_factor": rotary.low_frequency_factor,
            "high_freq_factor": rotary.high_frequency_factor,
            "original_max_position_embeddings": rotary.original_max_length,
        }
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        **({} if config.head_dim is None else {"head_dim": config.head_dim}),
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_length,
        "rope_theta": rotary.theta,
        "rope_scaling": scaling,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied_output,
        "attention_bias": config.attention_bias,
        "hidden_act": "silu",
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
    }


class _Wanted(NamedTuple):
    """A parameter: its shape here, the names of the tensors that it is made of (one, or one a layer), and their shape there."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    of_each: tuple[int, ...]
    transposed: bool
    stacked: bool


@functools.lru_cache(maxsize=4)  # a folder that is read asks twice
def shapes_of(config: LanguageModelConfig) -> Any:
    """The parameters of a model as jax.ShapeDtypeStruct, which is what `training.sharding.state_shardings` asks for."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids, ids)["params"]


def _wanted(config: LanguageModelConfig) -> dict[str, _Wanted]:
    """By our path, every parameter of a model."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes_of(config))
    }
    found = {}
    for ours, theirs, transposed in _NAMES:
        if ours not in leaves:
            continue
        stacked = ours.startswith(_LAYER)
        shape = leaves.pop(ours)
        of_each = shape[1:] if stacked else shape
        names = tuple(theirs.format(layer) for layer in range(config.num_layers)) if stacked else (theirs,)
        found[ours] = _Wanted(shape, names, of_each[::-1] if transposed else of_each, transposed, stacked)
    assert not leaves, leaves
    return found


class LlamaFolder:
    """The files of a folder, opened; tensors are read when they are asked for. Use as a context manager.

    Attributes:
      config: of the model.
      settings: what config.json says.
    """

    def __init__(self, path: Path):
        """Opens the files and checks the names and shapes of all tensors.

        Raises:
          FileNotFoundError: no config.json, or files that the index names.
          ValueError: settings that are not computed here; a file cut short or damaged; tensors that are missing, of another shape, or
            that nothing here has a use for, all named.
        """
        self.path = path
        if not (path / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{path} has no {CONFIG_FILE}; expected a folder as save_pretrained writes it")
        self.settings = read_settings(path / CONFIG_FILE)
        self.config = language_model_config(self.settings)
        self._wanted = _wanted(self.config)
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        try:
            for file in weight_files(path):
                if file.suffix == ".bin":
                    raise ValueError(
                        f"{file} is a torch file, which cannot be read in parts; save the model as {SAFETENSORS_FILE} "
                        "(save_pretrained(folder, safe_serialization=True))"
                    )
                opened = self._open(file)
                self._files |= dict.fromkeys(opened.keys(), opened)
            self._check()
        except BaseException:
            self._stack.close()
            raise

    def _open(self, file: Path) -> Any:
        try:
            return self._stack.enter_context(safetensors.safe_open(file, framework="np"))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{file} is damaged, cut short or no safetensors file ({error}); fetch it again"
            ) from error

    def _check(self) -> None:
        expected = {name: one.of_each for one in self._wanted.values() for name in one.names}
        there = {name for name in self._files if not name.endswith(_UNUSED)}
        if self.config.tied_output:
            there.discard("lm_head.weight")
        wrong = [f"{name} is missing" for name in sorted(expected.keys() - there)]
        wrong += [f"{name} has no place in the model" for name in sorted(there - expected.keys())]
        for name in sorted(expected.keys() & there):
            shape = tuple(self._files[name].get_slice(name).get_shape())
            if shape != expected[name]:
                wrong.append(f"{name} is {list(shape)}, expected {list(expected[name])}")
        if wrong:
            more = f", and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise ValueError(f"{self.path} does not hold what its {CONFIG_FILE} says: {'; '.join(wrong[:10])}{more}")

    def __enter__(self) -> "LlamaFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files = {}
        self._stack.close()

    def read(self, path: str, index: tuple[slice, ...], dtype: Any = np.float32) -> np.ndarray:
        """Part of a parameter.

        Args:
          path: of the parameter, such as layers/attention/query/kernel.
          index: a slice for each axis.
          dtype: of the result.
        """
        wanted = self._wanted[path]
        if not wanted.stacked:
            return self._part(wanted.names[0], index, wanted.transposed).astype(dtype)
        layers = range(*index[0].indices(wanted.shape[0]))
        sizes = [len(range(*part.indices(size))) for part, size in zip(index[1:], wanted.shape[1:], strict=True)]
        found = np.empty((len(layers), *sizes), dtype)  # filled layer by layer: a stack would hold all of it twice
        for row, layer in enumerate(layers):
            found[row] = self._part(wanted.names[layer], index[1:], wanted.transposed)
        return found

    def _part(self, name: str, index: tuple[slice, ...], transposed: bool) -> np.ndarray:
        tensor = self._files[name].get_slice(name)
        found = tensor[index[::-1] if transposed else index]
        return found.T if transposed else found

    def params(self, shardings: Any, dtype: Any = np.float32) -> dict[str, Any]:
        """All parameters, each device's part read into place.

        Args:
          shardings: a tree of shardings like the parameters (`training.sharding.state_shardings`), or one for all.
          dtype: of the parameters: float32 to train them, bfloat16 for a model that only reads.
        """
        of_path = functools.partial(_sharding_of, shardings)
        tree: dict[str, Any] = {}
        for path, wanted in self._wanted.items():
            array = jax.make_array_from_callback(
                wanted.shape, of_path(path), functools.partial(self.read, path, dtype=dtype)
            )
            *folders, last = path.split("/")
            place = tree
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = array
        return tree


def _sharding_of(shardings: Any, path: str) -> Any:
    if isinstance(shardings, jax.sharding.Sharding):
        return shardings
    for part in path.split("/"):
        shardings = shardings[part]
    return shardings


def save_llama(
    path: Path,
    config: LanguageModelConfig,
    params: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: Any = None,
) -> None:
    """Writes a folder as transformers' LlamaForCausalLM reads it: config.json, safetensors in shards, and their index.

    One layer of one parameter is on the host at a time, beside the shard that is being filled.

    Args:
      path: a folder that is not there yet, or is empty.
      config: of the model.
      params: of `LanguageModel(config)`, on any devices.
      max_shard_bytes: a shard is written before it exceeds this, unless a tensor alone does.
      dtype: of the weights; None: that of the parameters.

    Raises:
      FileExistsError: the folder holds something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already and holds something; name another folder, or remove it")
    path.mkdir(parents=True, exist_ok=True)
    shards = list(_plan(config, params, max_shard_bytes, dtype))
    weight_map: dict[str, str] = {}
    total = 0
    for place, names in enumerate(shards, start=1):
        name = SAFETENSORS_FILE
        if len(shards) > 1:
            name = f"model-{place:05d}-of-{len(shards):05d}.safetensors"
        content = {theirs: _tensor(params, dtype, *source) for theirs, source in names.items()}
        weight_map |= dict.fromkeys(content, name)
        total += sum(value.nbytes for value in content.values())
        safetensors.numpy.save_file(content, path / name, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json_atomically(path / f"{SAFETENSORS_FILE}.index.json", index)
    write_json_atomically(path / CONFIG_FILE, language_model_settings(config))


_Place = tuple[str, int | None, bool]  # path, layer, whether it is transposed there


def _plan(config: LanguageModelConfig, params: Mapping[str, Any], most: int, dtype: Any) -> Iterator[dict[str, _Place]]:
    """What is in each shard: by their name, where it comes from."""
    shard: dict[str, _Place] = {}
    filled = 0
    for path, wanted in _wanted(config).items():
        size = int(np.prod(wanted.of_each)) * np.dtype(dtype or _leaf(params, path).dtype).itemsize
        for layer, name in enumerate(wanted.names):
            if shard and filled + size > most:
                yield shard
                shard, filled = {}, 0
            shard[name] = (path, layer if wanted.stacked else None, wanted.transposed)
            filled += size
    yield shard


def _leaf(params: Mapping[str, Any], path: str) -> Any:
    found: Any = params
    for part in path.split("/"):
        found = found[part]
    return found


def _tensor(params: Mapping[str, Any], dtype: Any, path: str, layer: int | None, transposed: bool) -> np.ndarray:
    leaf = _leaf(params, path)
    value = np.asarray(leaf if layer is None else leaf[layer])
    value = value.astype(dtype or value.dtype, copy=False)
    return np.ascontiguousarray(value.T if transposed else value)
