"""LoRA: matrices that stay as they are, and beside each the product of two narrow ones that are trained (Hu et al. 2021, arXiv:2106.09685)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from realm_jax.models.products import dense_dot_general, dense_product
from realm_jax.typed import check_fields

LORA = "lora"
"""The collection of variables that an adapter lies in, apart from the model's "params"."""

PRODUCTS = ("query", "key", "value", "out", "gate", "wi", "wo")
"""A layer's products with a matrix: attention's four and the feed-forward's three."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which products of every layer get an adapter, and how wide; the defaults are the paper's choice for GPT-3.

    Attributes:
      rank: columns of A and rows of B (r).
      alpha: the product is scaled by alpha / rank, so that another rank needs no other learning rate (section 4.1).
      products: any of query, key, value, out, gate, wi, wo.
      dropout_rate: of what A reads, where the model is applied with a "dropout" rng.
    """

    rank: int = 8
    alpha: float = 16.0
    products: tuple[str, ...] = ("query", "value")
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank < 1:
            raise ValueError(f"LoraConfig.rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"LoraConfig.alpha must be above 0, got {self.alpha}; without an adapter set lora=None")
        unknown = [name for name in self.products if name not in PRODUCTS]
        if unknown or not self.products or len(set(self.products)) < len(self.products):
            raise ValueError(
                f"LoraConfig.products: expected some of {', '.join(PRODUCTS)}, each once, got {self.products}"
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"LoraConfig.dropout_rate: expected at least 0 and below 1, got {self.dropout_rate}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class AdaptedDense(nn.Module):
    """x W + (alpha / rank) (x A) B (eq. 3): `nn.Dense` with an adapter, by which W is never written.

    A is Gaussian, of which the paper says no width; with 1 / √features x A is as large as x. B is 0, so that a model begins as what it
    was. The product with B is not kept for the backward pass by name, as large as it is, but made again from x A.
    """

    features: int
    adapter: LoraConfig
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, inputs: Float[Array, "*rows features"]) -> Float[Array, "*rows outputs"]:
        inputs, features = inputs.astype(self.dtype), inputs.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (features, self.features))
        made = dense_dot_general(inputs, kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(self.dtype)
            made += jnp.expand_dims(bias, tuple(range(made.ndim - 1)))
        down, up = self._matrices(features)
        read = inputs
        if self.adapter.dropout_rate and self.has_rng("dropout"):
            read = nn.Dropout(self.adapter.dropout_rate, deterministic=False)(inputs)
        narrow = dense_dot_general(read, down.astype(self.dtype))
        return made + self.adapter.scale * dense_product(narrow, up.astype(self.dtype))

    def _matrices(self, features: int) -> tuple[Float[Array, "features rank"], Float[Array, "rank outputs"]]:
        if not self.is_initializing() and not self.has_variable(LORA, "lora_a"):
            raise ValueError(
                f"the model's configuration has an adapter for {self.name!r}, and none was given; apply the model with "
                '{"params": …, "lora": …}, or with lora=None in its configuration'
            )
        of_a, of_b = (features, self.adapter.rank), (self.adapter.rank, self.features)
        down = self.variable(LORA, "lora_a", self._gaussian, of_a).value
        up = self.variable(LORA, "lora_b", jnp.zeros, of_b).value
        if (down.shape, up.shape) != (of_a, of_b):
            raise ValueError(
                f"the adapter of {self.name!r}: expected A and B of shapes {of_a} and {of_b}, got {down.shape} and {up.shape}; "
                "set LoraConfig.rank as it was trained"
            )
        return down, up

    def _gaussian(self, shape: tuple[int, int]) -> Float[Array, "features rank"]:
        return shape[0] ** -0.5 * jax.random.normal(self.make_rng("params"), shape)


def merge_lora(params: Mapping[str, Any], adapter: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
    """A model's parameters with its adapter added, W + (alpha / rank) A B: the same model as one without LoRA, to save and to serve.

    Args:
      params: of a `LanguageModel`; they are not changed.
      adapter: its "lora" collection, as trained.
      config: of the adapter.

    Returns:
      Parameters of the same names and shapes as `params`, equal to the adapted model within float32's rounding.

    Raises:
      ValueError: for an adapter of another model, or another configuration.
    """
    return _merged(params, adapter, config, "")


def _merged(params: Mapping[str, Any], adapter: Mapping[str, Any], config: LoraConfig, path: str) -> dict[str, Any]:
    found = dict(params)
    if "lora_a" in adapter:
        down, up = adapter["lora_a"], adapter["lora_b"]
        kernel = params.get("kernel")
        shape = (*down.shape[:-1], up.shape[-1])
        if kernel is None or kernel.shape != shape or down.shape[-1] != config.rank:
            told = "none" if kernel is None else kernel.shape
            raise ValueError(
                f"{path or 'the adapter'} is of a matrix of shape {shape} and of rank {down.shape[-1]}; the model's is {told}, and "
                f"LoraConfig.rank is {config.rank}; merge an adapter into the model that it was trained with"
            )
        product = jnp.einsum("...ir,...ro->...io", down, up, precision=jax.lax.Precision.HIGHEST)
        found["kernel"] = kernel + (config.scale * product).astype(kernel.dtype)
        return found
    for name, part in adapter.items():
        if name not in params:
            raise ValueError(
                f"the model has no {path}{name}, for which there is an adapter; merge an adapter into the model that it was "
                f"trained with; the model has {', '.join(sorted(params))}"
            )
        found[name] = _merged(params[name], part, config, f"{path}{name}/")
    return found
