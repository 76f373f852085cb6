"""Rotary positions (Su et al. 2021, arXiv:2104.09864), and how they are stretched for texts longer than those of training."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
    """Wavelengths of rotary positions; the defaults are those of the paper.

    Attributes:
      theta: the longest wavelength is nearly 2π · theta positions.
      scaling: "linear" divides positions by `factor` (Chen et al. 2023, arXiv:2306.15595); "llama3" leaves the short wavelengths, divides
        the frequency of the long ones by `factor`, and goes from the one to the other between `original_max_length` /
        `high_frequency_factor` and `original_max_length` / `low_frequency_factor` positions, as Llama 3.1's release does.
      factor, low_frequency_factor, high_frequency_factor, original_max_length: of the scaling.
    """

    theta: float = 10000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("theta", "factor", "low_frequency_factor", "high_frequency_factor", "original_max_length"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"RotaryConfig.{name} must be above 0, got {value}")
        if self.scaling == "none" and self.factor != 1.0:
            raise ValueError(
                f"RotaryConfig.factor={self.factor} is of a scaling, and scaling is 'none'; set one of them"
            )
        if self.scaling == "llama3" and self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"RotaryConfig.high_frequency_factor must exceed low_frequency_factor={self.low_frequency_factor}, "
                f"got {self.high_frequency_factor}"
            )

    def frequencies(self, head_dim: int) -> Float[Array, "half"]:
        """Radians a position for each pair of a head's numbers."""
        plain = 1.0 / self.theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            turns = self.original_max_length * plain / (2 * math.pi)  # in the texts of training
            low, high = self.low_frequency_factor, self.high_frequency_factor
            kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
            return (1.0 - kept) * plain / self.factor + kept * plain
        return plain


def angles_of(positions: Int32[Array, "*rows"], config: RotaryConfig, head_dim: int) -> Float[Array, "*rows half"]:
    """By how much each pair is turned at each position."""
    frequencies = jnp.expand_dims(config.frequencies(head_dim), tuple(range(positions.ndim)))
    return positions[..., None].astype(jnp.float32) * frequencies


def turn(
    heads: Float[Array, "*#rows num_heads head_dim"], angles: Float[Array, "*#rows half"]
) -> Float[Array, "*rows num_heads head_dim"]:
    """Turns the pairs (i, i + head_dim / 2) of every head by the angles of its position (eq. 34), in float32."""
    half = heads.shape[-1] // 2
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = heads[..., :half].astype(jnp.float32), heads[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(heads.dtype)
