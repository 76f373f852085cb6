"""The papers' equations as functions of arrays.

Shapes use the project's glossary: `batch` examples, `num_candidates` documents an example (index 0 is the null document),
`num_masks` masked tokens an example. Everything is computed in float32 log space; reductions over the batch are written
over the *global* batch, so under `jit` with a sharded batch they are the same on any number of devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

MASKED_SCORE = -1e9  # finite, so that a row with no valid candidate gives a large number to find, not NaN gradients


class WeightedSum(NamedTuple):
    """A numerator and its weight: sums of these over micro-batches divide to the same mean as one large batch."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


def inverse_cloze(
    query_embeds: Float[Array, "batch embed"],
    document_embeds: Float[Array, "batch embed"],
    document_ids: Int32[Array, "batch"],
) -> tuple[WeightedSum, Float[Array, "batch"]]:
    """Inverse Cloze Task: −log p(own document | query), negatives from the whole batch (arXiv:1906.00300, section 5).

    Row i's own document is column i. Written over global arrays: with the batch sharded over devices the compiler brings
    the documents of all together (by a gather, or by a sum of rows among zeros, as on TPUs), so a query's negatives are those of all devices and its label needs no offset.

    A block drawn twice into one batch would be its own negative; such columns are left out of the softmax (the paper's
    batches of 4096 out of 13M blocks hardly ever meet one, small corpora do).

    Args:
      query_embeds: Embed_input of the sentences.
      document_embeds: Embed_doc of their blocks; row i belongs to query i.
      document_ids: which block each row is.

    Returns:
      The loss as (sum, number of queries), and per query 1.0 where its own document ranks first, else 0.0.
    """
    batch = document_ids.shape[0]
    scores = jnp.einsum("qe,de->qd", query_embeds, document_embeds).astype(jnp.float32)
    same = (document_ids[:, None] == document_ids[None, :]) & ~jnp.eye(batch, dtype=bool)
    scores = jnp.where(same, MASKED_SCORE, scores)
    own_log_probs = jnp.diagonal(jax.nn.log_softmax(scores, axis=-1))
    hits = (jnp.argmax(scores, axis=-1) == jnp.arange(batch)).astype(jnp.float32)
    return WeightedSum(-own_log_probs.sum(), jnp.float32(batch)), hits


def candidate_log_probs(
    retrieval_scores: Float[Array, "batch num_candidates"],
    candidate_mask: Bool[Array, "batch num_candidates"],
) -> Float[Array, "batch num_candidates"]:
    """log p(z | x) over the retrieved candidates (REALM, arXiv:2002.08909, eq. 2); masked candidates get no mass."""
    return jax.nn.log_softmax(jnp.where(candidate_mask, retrieval_scores.astype(jnp.float32), MASKED_SCORE), axis=-1)


def gold_log_probs(
    logits: Float[Array, "*rows num_masks vocab"], targets: Int32[Array, "*rows num_masks"]
) -> Float[Array, "*rows num_masks"]:
    """log p(y_j | z, x) of the true token at each mask, softmax over the vocabulary (REALM, section 3.2)."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


def marginal_per_token(
    log_retrieval_probs: Float[Array, "batch num_candidates"],
    gold_log_probs: Float[Array, "batch num_candidates num_masks"],
) -> Float[Array, "batch num_masks"]:
    """log Σ_z p(z|x) p(y_j|z,x) for each masked token on its own: what the released REALM code computes.

    It differs from the paper, which marginalizes all masked tokens of an example together: see `marginal_per_span`.

    >>> import jax.numpy as jnp
    >>> log_p_z = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> log_p_y = jnp.log(jnp.array([[[0.8, 0.5], [0.4, 0.1]]]))
    >>> [f"{prob:.3f}" for prob in jnp.exp(marginal_per_token(log_p_z, log_p_y))[0].tolist()]
    ['0.500', '0.200']
    """
    return jax.nn.logsumexp(log_retrieval_probs[:, :, None] + gold_log_probs, axis=1)


def marginal_per_span(
    log_retrieval_probs: Float[Array, "batch num_candidates"],
    gold_log_probs: Float[Array, "batch num_candidates num_masks"],
    mask_weights: Float[Array, "batch num_masks"],
) -> Float[Array, "batch"]:
    """log Σ_z p(z|x) Π_j p(y_j|z,x): all masked tokens of an example must come from one document (REALM, eq. 1).

    Unused mask slots (weight 0) contribute a factor 1.

    >>> import jax.numpy as jnp
    >>> log_p_z = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> log_p_y = jnp.log(jnp.array([[[0.8, 0.5], [0.4, 0.1]]]))
    >>> print(f"{jnp.exp(marginal_per_span(log_p_z, log_p_y, jnp.ones((1, 2))))[0]:.3f}")
    0.130
    """
    span_log_probs = jnp.where(mask_weights[:, None, :] > 0, gold_log_probs, 0.0).sum(axis=-1)
    return jax.nn.logsumexp(log_retrieval_probs + span_log_probs, axis=1)


def per_token_loss(
    marginal_log_probs: Float[Array, "batch num_masks"], mask_weights: Float[Array, "batch num_masks"]
) -> WeightedSum:
    """−Σ_j log p(y_j|x) over the masks in use, with their number as weight (the released mean over masks)."""
    total = jnp.where(mask_weights > 0, marginal_log_probs * mask_weights, 0.0).sum()
    return WeightedSum(-total, mask_weights.sum())


def per_span_loss(
    marginal_log_probs: Float[Array, "batch"], mask_weights: Float[Array, "batch num_masks"]
) -> WeightedSum:
    """−log p(y|x) of the examples that have a mask, divided by masks so that it compares with `per_token_loss`."""
    used = (mask_weights > 0).any(axis=-1)
    return WeightedSum(-jnp.where(used, marginal_log_probs, 0.0).sum(), mask_weights.sum())


def retrieval_utility(
    marginal_log_probs: Float[Array, "batch num_masks"],
    gold_log_probs: Float[Array, "batch num_candidates num_masks"],
    mask_weights: Float[Array, "batch num_masks"],
) -> WeightedSum:
    """log p(y_j|x) − log p(y_j|∅,x), mean over masks: what retrieval adds to the log-likelihood of a masked token.

    The run metric of released REALM; candidate 0 is ∅. The paper's RU(z|x) (REALM, section 5.1) is of one document.
    """
    gain = jnp.where(mask_weights > 0, (marginal_log_probs - gold_log_probs[:, 0]) * mask_weights, 0.0)
    return WeightedSum(gain.sum(), mask_weights.sum())


def retrieval_entropy(
    log_retrieval_probs: Float[Array, "batch num_candidates"],
) -> Float[Array, "batch"]:
    """Entropy of p(z|x) over the candidates, in nats: 0 when one document takes all, log num_candidates when even."""
    probs = jnp.exp(log_retrieval_probs)
    return -jnp.where(probs > 0, probs * log_retrieval_probs, 0.0).sum(axis=-1)


def log_sum_over(
    logits: Float[Array, "*batch choices"], chosen: Bool[Array, "*batch choices"]
) -> Float[Array, "*batch"]:
    """log Σ exp(logit) over the chosen entries; about `MASKED_SCORE` where none is."""
    return jax.nn.logsumexp(jnp.where(chosen, logits.astype(jnp.float32), MASKED_SCORE), axis=-1)


def span_marginal_loss(
    span_logits: Float[Array, "batch num_documents num_spans"],
    retrieval_scores: Float[Array, "batch num_documents"],
    span_mask: Bool[Array, "batch num_documents num_spans"],
    is_answer: Bool[Array, "batch num_documents num_spans"],
) -> tuple[WeightedSum, Float[Array, "batch"]]:
    """−log Σ_{answer spans} exp(s) / Σ_{all spans of all documents} exp(s), s with its document's retrieval score added
    (ORQA, arXiv:1906.00300, eq. 5; REALM, section 3.2). A question none of whose spans is an answer counts nothing.

    >>> import jax.numpy as jnp
    >>> logits, scores = jnp.log(jnp.array([[[1.0, 2.0], [3.0, 9.0]]])), jnp.log(jnp.array([[2.0, 1.0]]))
    >>> mask = jnp.array([[[True, True], [True, False]]])
    >>> answers = jnp.array([[[False, True], [True, False]]])
    >>> loss, _ = span_marginal_loss(logits, scores, mask, answers)
    >>> f"{jnp.exp(-loss.total):.4f}"  # (2·2 + 3) / (2·1 + 2·2 + 3)
    '0.7778'

    Args:
      span_logits: of the reader, see `models.SpanReader`.
      retrieval_scores: f(x, z) of the documents read.
      span_mask: which spans lie in the document's text.
      is_answer: which spans are an answer; only those in `span_mask` count.

    Returns:
      The loss as (sum, number of questions), and 1.0 per question that had an answer to learn from, else 0.0.
    """
    scores = (span_logits.astype(jnp.float32) + retrieval_scores.astype(jnp.float32)[:, :, None]).reshape(
        span_logits.shape[0], -1
    )
    flat_mask = span_mask.reshape(scores.shape)
    flat_answer = is_answer.reshape(scores.shape) & flat_mask
    learns = flat_answer.any(axis=-1)
    log_probs = log_sum_over(scores, flat_answer) - log_sum_over(scores, flat_mask)
    total = -jnp.where(learns, log_probs, 0.0).sum()
    return WeightedSum(total, jnp.float32(scores.shape[0])), learns.astype(jnp.float32)


def early_update_loss(
    retrieval_scores: Float[Array, "batch num_retrieved"],
    retrieved_mask: Bool[Array, "batch num_retrieved"],
    has_answer: Bool[Array, "batch num_retrieved"],
) -> tuple[WeightedSum, Float[Array, "batch"]]:
    """−log Σ_{z retrieved, z has an answer} p(z|x): the retriever learns before the reader can read (ORQA, eq. 7).

    The probability is over all retrieved documents (5000 in the papers). A question whose retrieved documents hold no
    answer counts nothing.

    >>> import jax.numpy as jnp
    >>> scores = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))
    >>> valid = jnp.array([[True, True, True]])
    >>> loss, _ = early_update_loss(scores, valid, jnp.array([[True, False, True]]))
    >>> f"{jnp.exp(-loss.total):.2f}"
    '0.75'

    Returns:
      The loss as (sum, number of questions), and 1.0 per question with an answer among its documents, else 0.0.
    """
    learns = (has_answer & retrieved_mask).any(axis=-1)
    log_probs = log_sum_over(retrieval_scores, has_answer & retrieved_mask) - log_sum_over(
        retrieval_scores, retrieved_mask
    )
    total = -jnp.where(learns, log_probs, 0.0).sum()
    return WeightedSum(total, jnp.float32(retrieval_scores.shape[0])), learns.astype(jnp.float32)


def contrastive_loss(
    query_embeds: Float[Array, "batch embed"],
    document_embeds: Float[Array, "batch num_contrasted embed"],
    document_ids: Int32[Array, "batch num_contrasted"],
    document_mask: Bool[Array, "batch num_contrasted"],
    is_positive: Bool[Array, "batch num_contrasted"],
) -> tuple[WeightedSum, Float[Array, "batch"]]:
    """−log p(own positive | question) over the documents of the whole batch: positives and hard negatives of all questions
    (DPR, arXiv:2004.04906, eq. 2).

    Document 0 of a row is its positive; a row whose positive is missing counts nothing. A document that is some question's
    positive and stands in the batch twice is left out where it would be its own negative. Written over global arrays, so
    that negatives come from all devices.

    Returns:
      The loss as (sum, number of questions), and per question 1.0 where its positive ranks first, else 0.0.
    """
    batch, num_contrasted, embed = document_embeds.shape
    scores = jnp.einsum("qe,de->qd", query_embeds, document_embeds.reshape(-1, embed)).astype(jnp.float32)
    flat_ids, flat_mask = document_ids.reshape(-1), document_mask.reshape(-1)
    own = jnp.arange(batch) * num_contrasted  # column of each row's positive
    is_own = jnp.arange(batch * num_contrasted)[None, :] == own[:, None]
    again = (flat_ids[None, :] == document_ids[:, :1]) & ~is_own
    scores = jnp.where(flat_mask[None, :] & ~again, scores, MASKED_SCORE)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), own[:, None], axis=1)[:, 0]
    learns = is_positive[:, 0] & document_mask[:, 0]
    hits = (jnp.argmax(scores, axis=-1) == own) & learns
    total = -jnp.where(learns, log_probs, 0.0).sum()
    return WeightedSum(total, jnp.float32(batch)), hits.astype(jnp.float32)


def token_cross_entropy(
    logits: Float[Array, "batch length num_labels"], labels: Int32[Array, "batch length"]
) -> WeightedSum:
    """−Σ log p(label of a token) over the tokens that have one; a negative label is none (padding, later pieces of a word).

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    >>> loss = token_cross_entropy(logits, jnp.array([[1, -1]], jnp.int32))
    >>> round(float(jnp.exp(-loss.total)), 3), float(loss.weight)
    (0.25, 1.0)
    """
    has_label = labels >= 0
    log_probs = gold_log_probs(logits, jnp.maximum(labels, 0))
    return WeightedSum(-jnp.where(has_label, log_probs, 0.0).sum(), has_label.sum().astype(jnp.float32))


def rag_sequence_loss(
    logits: Float[Array, "batch num_documents length vocab"],
    log_retrieval_probs: Float[Array, "batch num_documents"],
    targets: Int32[Array, "batch length"],
    target_mask: Bool[Array, "batch length"],
    *,
    label_smoothing: float = 0.0,
    unscored: Bool[Array, "batch length"] | None = None,
) -> tuple[WeightedSum, Float[Array, "batch"]]:
    """−log Σ_z p(z|x) Π_i p(y_i|x,z,y_<i): one document explains the whole answer (RAG, arXiv:2005.11401, section 2.1).

    >>> import jax.numpy as jnp
    >>> log_p_z = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> logits = jnp.log(jnp.array([[[[0.8, 0.2], [0.5, 0.5]], [[0.4, 0.6], [0.1, 0.9]]]]))
    >>> y = jnp.zeros((1, 2), jnp.int32)
    >>> loss, _ = rag_sequence_loss(logits, log_p_z, y, y == 0)
    >>> f"{jnp.exp(-loss.total):.3f}"  # 0.25 · 0.8 · 0.5 + 0.75 · 0.4 · 0.1
    '0.130'

    Label smoothing mixes in, as the released RAG does, −log Σ_z Π_v (p(z|x) Π_i p(v|x,z,y_<i)), divided by the vocabulary's size:
    every word's likelihood, of one document.

    Args:
      logits: of the generator that reads document z, for the token at each place of the target.
      log_retrieval_probs: log p(z|x); documents that are not there have (about) `MASKED_SCORE`.
      targets: y, ended by the end-of-sequence token.
      target_mask: which of them are y's; a row without any counts nothing.
      label_smoothing: share ε of the smoothed loss.
      unscored: tokens of y that are read and not scored (the released `exclude_bos_score`); smoothing scores them still.

    Returns:
      The loss as (sum, number of examples with a target), and log p(y|x) of each example.
    """
    scored = target_mask if unscored is None else target_mask & ~unscored
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    gold = _gold(log_probs, targets[:, None])  # [batch, num_documents, length]
    log_marginal = jax.nn.logsumexp(log_retrieval_probs + jnp.where(scored[:, None], gold, 0.0).sum(axis=-1), axis=1)
    smoothed = None
    if label_smoothing:
        every = jnp.where(target_mask[:, None], log_probs.sum(axis=-1), 0.0).sum(axis=-1)
        smoothed = jax.nn.logsumexp(logits.shape[-1] * log_retrieval_probs + every, axis=1)
    return _sequence_loss(log_marginal, smoothed, target_mask, label_smoothing, logits.shape[-1])


def rag_token_loss(
    logits: Float[Array, "batch num_documents length vocab"],
    log_retrieval_probs: Float[Array, "batch num_documents"],
    targets: Int32[Array, "batch length"],
    target_mask: Bool[Array, "batch length"],
    *,
    label_smoothing: float = 0.0,
) -> tuple[WeightedSum, Float[Array, "batch"]]:
    """−Σ_i log Σ_z p(z|x) p(y_i|x,z,y_<i): each token from any document (RAG, arXiv:2005.11401, section 2.1).

    >>> import jax.numpy as jnp
    >>> log_p_z = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> logits = jnp.log(jnp.array([[[[0.8, 0.2], [0.5, 0.5]], [[0.4, 0.6], [0.1, 0.9]]]]))
    >>> y = jnp.zeros((1, 2), jnp.int32)
    >>> loss, _ = rag_token_loss(logits, log_p_z, y, y == 0)
    >>> f"{jnp.exp(-loss.total):.3f}"  # (0.25 · 0.8 + 0.75 · 0.4) · (0.25 · 0.5 + 0.75 · 0.1)
    '0.100'

    Arguments and results: `rag_sequence_loss`. Smoothing is over the marginal distribution of the next token.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if label_smoothing:
        marginal = jax.nn.logsumexp(log_retrieval_probs[:, :, None, None] + log_probs, axis=1)
        gold = _gold(marginal, targets)
        smoothed = jnp.where(target_mask, marginal.sum(axis=-1), 0.0).sum(axis=-1)
    else:
        gold = jax.nn.logsumexp(log_retrieval_probs[:, :, None] + _gold(log_probs, targets[:, None]), axis=1)
        smoothed = None
    log_marginal = jnp.where(target_mask, gold, 0.0).sum(axis=-1)
    return _sequence_loss(log_marginal, smoothed, target_mask, label_smoothing, logits.shape[-1])


def _gold(log_probs: Float[Array, "*rows vocab"], targets: Int32[Array, "*some_rows"]) -> Float[Array, "*rows"]:
    """The entries of the targets, which are repeated over axes of size 1."""
    indices = jnp.broadcast_to(targets, log_probs.shape[:-1])[..., None]
    return jnp.take_along_axis(log_probs, indices, axis=-1)[..., 0]


def _sequence_loss(
    log_marginal: Float[Array, "batch"],
    smoothed: Float[Array, "batch"] | None,
    target_mask: Bool[Array, "batch length"],
    label_smoothing: float,
    vocab_size: int,
) -> tuple[WeightedSum, Float[Array, "batch"]]:
    has_target = target_mask.any(axis=-1)
    loss = -log_marginal
    if smoothed is not None:
        loss = (1 - label_smoothing) * loss - label_smoothing / vocab_size * smoothed
    return WeightedSum(jnp.where(has_target, loss, 0.0).sum(), has_target.sum().astype(jnp.float32)), log_marginal


def language_model_preference(
    log_likelihoods: Float[Array, "batch num_documents"],
    num_tokens: Int32[Array, "batch"],
    document_mask: Bool[Array, "batch num_documents"],
    temperature: float,
) -> Float[Array, "batch num_documents"]:
    """log p_LSR(c|x,y), softmax over documents of p_LM(y|c∘x)^(1/|y|) / τ: a *probability* is divided by τ, not its logarithm
    (RA-DIT, arXiv:2310.01352, section 2.4; REPLUG, arXiv:2301.12652).

    >>> import jax.numpy as jnp
    >>> of_two_tokens = jnp.log(jnp.array([[0.25, 0.16]]))
    >>> there = jnp.array([[True, True]])
    >>> log_probs = language_model_preference(of_two_tokens, jnp.array([2], jnp.int32), there, 0.1)
    >>> f"{jnp.exp(log_probs)[0, 0]:.4f}"  # e^(0.5 / 0.1) / (e^(0.5 / 0.1) + e^(0.4 / 0.1))
    '0.7311'

    Args:
      log_likelihoods: log p_LM(y|c∘x) of the whole answer.
      num_tokens: |y|, the tokens of the answer that these are sums over.
      document_mask: which documents are there; the others get no mass.
      temperature: τ.
    """
    lengths = jnp.maximum(num_tokens, 1).astype(jnp.float32)[:, None]
    probs = jnp.exp(log_likelihoods.astype(jnp.float32) / lengths)
    return candidate_log_probs(probs / temperature, document_mask)


def kl_divergence(
    log_p: Float[Array, "batch num_documents"],
    log_q: Float[Array, "batch num_documents"],
    document_mask: Bool[Array, "batch num_documents"],
) -> Float[Array, "batch"]:
    """KL(p ‖ q) = Σ p (log p − log q) over the documents that are there; 0 where there is none."""
    return jnp.where(document_mask, jnp.exp(log_p) * (log_p - log_q), 0.0).sum(axis=-1)


def expected_likelihood_loss(
    log_retrieval_probs: Float[Array, "batch num_documents"],
    log_likelihoods: Float[Array, "batch num_documents"],
    document_mask: Bool[Array, "batch num_documents"],
) -> Float[Array, "batch"]:
    """−log Σ_c p_R(c|x) p_LM(y|c∘x), the language model's part a constant: the retriever's objective in EMDR² (Singh et al. 2021,
    arXiv:2106.05346); 0 where there is no document."""
    constant = jax.lax.stop_gradient(log_likelihoods.astype(jnp.float32))
    joint = jnp.where(document_mask, log_retrieval_probs + constant, MASKED_SCORE)
    return jnp.where(document_mask.any(axis=-1), -jax.nn.logsumexp(joint, axis=-1), 0.0)
