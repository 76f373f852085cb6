"""BERT's AdamW with warm-up and decay, and its own rate for each learner of a task."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from realm_jax.typed import check_fields

DECAYED = ("kernel", "embedding", "output", "lora_a", "lora_b")
Schedule = Callable[[Any], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as BERT trains with it (and REALM: learning rate 3e-5).

    `learner_rates` gives a learner (top-level name of the parameters, such as "retriever") another peak rate;
    `frozen_steps` keeps a learner still for the first steps, while another adapts. Both are tuples of (name, value).
    """

    learning_rate: float = 3e-5
    warmup_steps: int | None = None  # none: min(10000, max(100, num_steps / 10)), the released REALM's rule
    decay: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up, to the end at num_steps
    final_share: float = 0.0  # of the peak rate, which is left at the end
    weight_decay: float = 0.01  # not on biases and norms
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    clip_norm: float = 1.0  # of the gradient of all learners together; 0 does not clip
    learner_rates: tuple[tuple[str, float], ...] = ()
    frozen_steps: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.learning_rate <= 0:
            raise ValueError(f"OptimizerConfig.learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"OptimizerConfig.final_share: expected a share between 0 and 1, got {self.final_share}")
        if self.decay == "constant" and self.final_share:
            raise ValueError(
                f"OptimizerConfig.final_share={self.final_share} is of a decay, and decay is 'constant'; set one of them"
            )

    def schedule(self, num_steps: int, learner: str | None = None) -> Schedule:
        """Learning rate of a step, of a learner or (none) the common one."""
        warmup = self.warmup_steps if self.warmup_steps is not None else min(10_000, max(100, num_steps // 10))
        peak = dict(self.learner_rates).get(learner or "", self.learning_rate)
        frozen = dict(self.frozen_steps).get(learner or "", 0)

        def rate(step: Any) -> Float[Array, ""]:
            step = jnp.asarray(step, jnp.float32)
            value = peak * jnp.minimum(1.0, (step + 1) / max(1, warmup))
            if self.decay != "constant":
                left = jnp.clip((num_steps - step) / max(1, num_steps - warmup), 0.0, 1.0)
                if self.decay == "cosine":
                    left = 0.5 - 0.5 * jnp.cos(jnp.pi * left)
                value = value * (self.final_share + (1.0 - self.final_share) * left)
            return jnp.where(step < frozen, 0.0, value)

        return rate

    def build(
        self, num_steps: int, learners: tuple[str, ...], frozen: tuple[str, ...] = ()
    ) -> optax.GradientTransformation:
        """The optimizer for parameters with these top-level names.

        Args:
          num_steps: of the run.
          learners: the top-level names.
          frozen: paths ("retriever/document_encoder") of parameters that stay as they are, weight decay included, and
            for which no moments are kept.

        Raises:
          ValueError: for a rate or a freeze of a learner that the task does not have.
        """
        for option in ("learner_rates", "frozen_steps"):
            unknown = sorted(set(dict(getattr(self, option))) - set(learners))
            if unknown:
                raise ValueError(
                    f"OptimizerConfig.{option} names {unknown}; this task's learners: {', '.join(learners)}"
                )
        adamw = optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm > 0 else optax.identity(),
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=decayed),
        )
        rates = {learner: optax.scale_by_learning_rate(self.schedule(num_steps, learner)) for learner in learners}
        trained = optax.chain(adamw, optax.partition(rates, learner_labels))
        if not frozen:
            return trained
        return optax.partition(
            {"trained": trained, "frozen": optax.set_to_zero()}, functools.partial(_frozen_labels, frozen=frozen)
        )


def decayed(params: Any) -> Any:
    """True for the parameters that weight decay shrinks: matrices and embeddings, not biases and norms."""

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        return jax.tree_util.keystr(path[-1:], simple=True) in DECAYED

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def _frozen_labels(params: Any, frozen: tuple[str, ...]) -> Any:
    """Labels every parameter "frozen" or "trained" by its path."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return "frozen" if any(name == prefix or name.startswith(prefix + "/") for prefix in frozen) else "trained"

    return jax.tree_util.tree_map_with_path(label, params)


def learner_labels(params: Any) -> Any:
    """Labels every parameter with its top-level name."""
    return {name: jax.tree.map(lambda _, name=name: name, subtree) for name, subtree in params.items()}
