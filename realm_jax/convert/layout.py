"""Which tensor of a weights file is which parameter: a table that is read in both directions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from realm_jax.training.snapshots import flatten_params, nest_params

Tensors = Mapping[str, np.ndarray]


class Slot(NamedTuple):
    """A tensor of a file and its place in the parameters.

    `path` is joined by "/" and begins with the learner. `layer` is the row of a parameter that stacks the layers.
    `transposed`: torch keeps the matrix of a linear layer as [out, in], flax as [in, out]. `one_row`: the file has a vector as a
    matrix of one row.
    """

    name: str
    path: str
    shape: tuple[int, ...]  # in the file
    layer: int | None = None
    transposed: bool = False
    one_row: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a file of some class holds.

    Attributes:
      slots: what is computed with. A name may fill several places.
      copies: names of tensors that repeat another one (tied weights), and of which; a file may leave them out, or hold one of
        them instead of it.
      unused: shapes of what the class has and nothing here computes with; a file may leave them out.
      ignored: endings of buffers that hold no weights.
    """

    slots: tuple[Slot, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = (
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "encoder.version",
        "decoder.version",
    )

    def __add__(self, other: "Layout") -> "Layout":
        """Both in one file. What one of them uses is not unused."""
        slots = tuple(dict.fromkeys(self.slots + other.slots))
        names = {slot.name for slot in slots}
        copies = {**self.copies, **other.copies}
        unused = {
            name: shape
            for name, shape in {**self.unused, **other.unused}.items()
            if name not in names and name not in copies
        }
        return Layout(slots, copies, unused, self.ignored)


class Filled(NamedTuple):
    """Parameters out of a file, and what the file held beside them."""

    params: dict[str, Any]
    unused: dict[str, np.ndarray]


def fill(layout: Layout, tensors: Tensors, what: str) -> Filled:
    """Makes parameters of a file's tensors.

    Args:
      layout: of the file.
      tensors: by name, of any float type.
      what: names file and class in the error.

    Raises:
      ValueError: missing, extra and misshapen tensors, and copies that are none, all of them in one message.
    """
    # transformers keeps one name of tied tensors, no matter which
    tensors = {**{layout.copies[name]: value for name, value in tensors.items() if name in layout.copies}, **tensors}
    misfits = _misfits(layout, tensors)
    if misfits:
        incomplete = any(slot.name not in tensors for slot in layout.slots)
        raise ValueError(
            f"{what} does not fit: {'; '.join(misfits)}. Name the class that the file was saved from "
            f"(--gin.convert.architecture=CLASS), or correct its config.json"
            f"{', or the file is incomplete: get it again' if incomplete else ''}"
        )
    flat: dict[str, np.ndarray] = {}
    stacked: dict[str, dict[int, np.ndarray]] = {}
    for slot in layout.slots:
        value = as_float32(tensors[slot.name])
        value = value.T if slot.transposed else value[0] if slot.one_row else value
        if slot.layer is None:
            flat[slot.path] = np.ascontiguousarray(value)
        else:
            stacked.setdefault(slot.path, {})[slot.layer] = value
    flat |= {path: np.stack([rows[i] for i in range(len(rows))]) for path, rows in stacked.items()}
    unused = {name: as_float32(tensors[name]) for name in layout.unused if name in tensors}
    return Filled(nest_params(flat), unused)


def spread(layout: Layout, params: Mapping[str, Any], unused: Tensors) -> dict[str, np.ndarray]:
    """The inverse of `fill`: tensors by name. Copies are left out, as Hugging Face leaves them out of safetensors.

    Args:
      layout: of the file.
      params: nested, learners first.
      unused: as `fill` gave it; what is of another shape or class is left out.

    Raises:
      ValueError: parameters that are missing or of another shape, all named.
    """
    flat = flatten_params(params)
    wrong, tensors = [], {}
    for slot in layout.slots:
        if slot.path not in flat:
            wrong.append(f"no {slot.path}")
            continue
        value = flat[slot.path]
        if slot.layer is not None:
            value = value[slot.layer] if slot.layer < len(value) else value[:0]
        value = value.T if slot.transposed else value[None] if slot.one_row else value
        if value.shape != slot.shape:
            wrong.append(f"{slot.path} makes {slot.name} {list(value.shape)}, expected {list(slot.shape)}")
            continue
        tensors[slot.name] = np.ascontiguousarray(value, np.float32)
    if wrong:
        raise ValueError(f"the parameters are not of the configuration: {'; '.join(dict.fromkeys(wrong))}")
    kept = {
        name: unused[name] for name, shape in layout.unused.items() if name in unused and unused[name].shape == shape
    }
    return tensors | kept


def as_float32(array: np.ndarray) -> np.ndarray:
    """float16, bfloat16 and float64 as float32."""
    return np.asarray(array).astype(np.float32)


def _misfits(layout: Layout, tensors: Tensors) -> list[str]:
    expected = {slot.name: slot.shape for slot in layout.slots}
    known = {**expected, **layout.unused}
    missing = [name for name in expected if name not in tensors]
    extra = [
        name for name in tensors
        if name not in known and name not in layout.copies and not name.endswith(layout.ignored)
    ]  # fmt: skip
    misshapen = [
        f"{name} {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in known.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    loose = [
        f"{name} is not {original}"
        for name, original in layout.copies.items()
        if name in tensors and original in tensors and not same(tensors[name], tensors[original])
    ]
    parts = (("missing", missing), ("extra", extra), ("misshapen", misshapen), ("not tied", loose))
    return [f"{len(found)} {kind}: {', '.join(found)}" for kind, found in parts if found]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two tensors are the same to the bit."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
