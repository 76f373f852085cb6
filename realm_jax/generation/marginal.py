"""RAG's marginals over documents while generating (Lewis et al. 2020, arXiv:2005.11401, sections 2.1 and 2.5), in log space.

A document that is not there has log p(z|x) = −∞: it gives no mass to anything, whatever the generator says of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def document_log_probs(
    log_doc_probs: Float[Array, "batch num_documents"], present: Bool[Array, "batch num_documents"]
) -> Float[Array, "batch num_documents"]:
    """log p(z|x) over the documents that are there, −∞ for the others; −∞ everywhere where there is none.

    Args:
      log_doc_probs: of these documents, or retrieval scores: they are normalised here.
      present: false for a place that no document fills.

    >>> import jax.numpy as jnp
    >>> scores, present = jnp.log(jnp.array([[1.0, 3.0, 9.0]])), jnp.array([[True, True, False]])
    >>> jnp.exp(document_log_probs(scores, present))
    Array([[0.25, 0.75, 0.  ]], dtype=float32)
    """
    scores = jnp.where(present, log_doc_probs.astype(jnp.float32), -jnp.inf)
    return jnp.where(present, scores - log_sum(scores, axis=1)[:, None], -jnp.inf)


def log_sum(log_values: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """log Σ exp along an axis; −∞ where all are −∞."""
    return jax.nn.logsumexp(log_values, axis=axis)


def marginal_next_token(
    log_doc_probs: Float[Array, "batch num_documents"], log_probs: Float[Array, "batch num_documents beams vocab"]
) -> Float[Array, "batch beams vocab"]:
    """RAG-Token's next-token distribution: log Σ_z p(z|x) p(y_i|x, z, y_<i) (section 2.5, p'θ).

    Args:
      log_doc_probs: of `document_log_probs`.
      log_probs: of the next token with each document, all beams having generated the same with every document.
    """
    return log_sum(log_doc_probs[:, :, None, None] + log_probs, axis=1)


def token_posteriors(
    log_doc_probs: Float[Array, "batch num_documents"],
    token_log_probs: Float[Array, "batch num_hypotheses target_len num_documents"],
) -> Float[Array, "batch num_hypotheses target_len num_documents"]:
    """p(z | x, y_<i, y_i) of each generated token: the share of each document in the token's marginal probability.

    RAG-Token draws a document for every token (section 2.1); this is the posterior that figure 2 of the paper shows.

    Args:
      log_doc_probs: of `document_log_probs`.
      token_log_probs: log p(y_i|x, z, y_<i).
    """
    return _normalised(log_doc_probs[:, None, None, :] + token_log_probs)


def answer_posteriors(
    log_doc_probs: Float[Array, "batch num_documents"],
    sequence_log_probs: Float[Array, "batch num_hypotheses num_documents"],
) -> Float[Array, "batch num_hypotheses num_documents"]:
    """p(z|x, y) ∝ p(z|x) p(y|x, z) of a whole answer; zeros where no document gives it any probability."""
    return _normalised(log_doc_probs[:, None, :] + sequence_log_probs)


def _normalised(log_joint: jax.Array) -> jax.Array:
    total = log_sum(log_joint, axis=-1)[..., None]
    return jnp.where(total > -jnp.inf, jnp.exp(log_joint - jnp.where(total > -jnp.inf, total, 0.0)), 0.0)


class Distinct(NamedTuple):
    """Which of many hypotheses of a question are the same."""

    equals: Bool[Array, "batch hypotheses hypotheses"]  # at [b, i, j]: both are there, and equal
    order: Int32[Array, "batch hypotheses"]  # the first of each kind in their order, then all others
    num_kinds: Int32[Array, "batch"]


def distinct(ids: Int32[Array, "batch hypotheses target_len"], present: Bool[Array, "batch hypotheses"]) -> Distinct:
    """Finds the hypotheses that several documents' beams have found.

    Args:
      ids: with one padding after the end, so that equal hypotheses are equal rows.
      present: false for a place without a hypothesis.

    >>> import jax.numpy as jnp
    >>> found = distinct(jnp.array([[[5, 2], [7, 2], [5, 2]]]), jnp.array([[True, True, True]]))
    >>> found.order.tolist(), found.num_kinds.tolist()
    ([[0, 1, 2]], [2])
    """
    same = (ids[:, :, None, :] == ids[:, None, :, :]).all(axis=-1)
    equals = same & present[:, :, None] & present[:, None, :]
    # the first hypothesis equal to it is itself
    is_first = present & (jnp.argmax(equals, axis=2) == jnp.arange(ids.shape[1])[None])
    order = jnp.argsort(~is_first, axis=1, stable=True).astype(jnp.int32)
    return Distinct(equals, order, is_first.sum(axis=1, dtype=jnp.int32))


def fast_log_probs(
    found_log_probs: Float[Array, "batch num_documents beams"],
    equals: Bool[Array, "batch hypotheses hypotheses"],
) -> Float[Array, "batch hypotheses num_documents"]:
    """log p(y|x, z) as fast decoding knows it: of the document's own beam, and 0 probability where it is not in it (section 2.5).

    Args:
      found_log_probs: of the hypotheses of every document's beam; the documents' beams one after the other are `hypotheses`.
      equals: of `distinct`.
    """
    batch, num_documents, beams = found_log_probs.shape
    of_beam = equals.reshape(batch, -1, num_documents, beams)
    return jnp.where(of_beam, found_log_probs[:, None], -jnp.inf).max(axis=-1)


def marginal_sequence(
    log_doc_probs: Float[Array, "batch num_documents"],
    sequence_log_probs: Float[Array, "batch hypotheses num_documents"],
) -> Float[Array, "batch hypotheses"]:
    """RAG-Sequence: log p(y|x) = log Σ_z p(z|x) p(y|x, z) (section 2.1)."""
    return log_sum(log_doc_probs[:, None, :] + sequence_log_probs, axis=-1)
