"""Next-token functions of a few tokens: a table with a row for every prefix, so that everything can be enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.generation import GenerationConfig, Prediction, TokenIds

TOKENS = TokenIds(pad=1, bos=0, eos=2, decoder_start=2, forced_bos=None, forced_eos=None)


def table(seed, batch, vocab, depth, sharpness=2.0):
    """Log-probabilities [batch, prefixes, vocab] of the token after every prefix of fewer than `depth` tokens."""
    prefixes = sum(vocab**length for length in range(depth))
    logits = np.random.default_rng(seed).normal(size=(batch, prefixes, vocab)) * sharpness
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))


def place(prefix, vocab):
    """The row of a prefix in a table."""
    node = 0
    for token in prefix:
        node = node * vocab + int(token) + 1
    return node


def next_token(rows):
    """The table as decoding sees it; the state is the row of each beam's prefix."""
    rows = jnp.asarray(rows)
    vocab = rows.shape[-1]

    def predict(tokens, position, state):
        state = jnp.where(position > 0, state * vocab + tokens + 1, 0)
        return Prediction(rows[jnp.arange(len(rows))[:, None], state], state)

    return predict


def reorder(state, beam_indices):
    return jnp.take_along_axis(state, beam_indices, axis=1)


def first_state(batch, beams):
    return jnp.zeros((batch, beams), jnp.int32)


def everything(rows, config: GenerationConfig, tokens: TokenIds = TOKENS):
    """All hypotheses of one question as (score, ids), best first: those that end, and those that reach max_length."""
    vocab, target_len = rows.shape[-1], config.target_len
    found = []
    for length in range(1, target_len + 1):
        for ids in itertools.product(range(vocab), repeat=length):
            ended = ids[-1] == tokens.eos
            if tokens.eos in ids[:-1] or not (ended or length == target_len):
                continue
            if ended and length < config.min_length:  # with the start token there are `length` tokens before it
                continue
            total = sum(rows[place(ids[:i], vocab), token] for i, token in enumerate(ids))
            found.append((total / length**config.length_penalty, ids))
    return sorted(found, reverse=True)


def plain_search(rows, config: GenerationConfig, tokens: TokenIds = TOKENS):
    """Beam search of one question, written down with lists: (score, ids) of the hypotheses, best first."""
    vocab, beams, penalty = rows.shape[-1], config.num_beams, config.length_penalty
    open_beams, finished, done = [(0.0, ())], [], False

    def add(total, ids):
        finished.append((total / len(ids) ** penalty, ids))
        finished.sort(key=lambda found: -found[0])
        del finished[beams:]

    for length in range(1, config.target_len + 1):
        candidates = []
        for total, ids in open_beams:
            allowed = rows[place(ids, vocab)].astype(np.float64)
            read = (tokens.decoder_start, *ids)
            size = config.no_repeat_ngram_size
            for start in range(len(read) - size + 1 if size else 0):
                if read[start : start + size - 1] == read[len(read) - size + 1 :]:
                    allowed[read[start + size - 1]] = -np.inf
            if not config.bos_after_bos and read[-1] == tokens.bos:
                allowed[tokens.bos] = -np.inf
            if length < config.min_length:
                allowed[tokens.eos] = -np.inf
            forced = tokens.forced_bos if length == 1 else None
            forced = tokens.forced_eos if length == config.target_len and tokens.forced_eos is not None else forced
            if forced is not None:
                allowed = np.where(np.arange(vocab) == forced, 0.0, -np.inf)
            candidates += [
                (total + allowed[token], (*ids, token)) for token in range(vocab) if np.isfinite(allowed[token])
            ]
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * beams]
        open_beams = [candidate for candidate in candidates if candidate[1][-1] != tokens.eos][:beams]
        for total, ids in candidates[:beams]:
            if ids[-1] == tokens.eos:
                add(total, ids)
        if len(finished) == beams and candidates:
            reached = config.target_len if config.early_stopping == "never" and penalty > 0 else length
            attainable = candidates[0][0] / reached**penalty
            done = config.early_stopping is True or beams == 1 or finished[-1][0] >= attainable
        if done:
            return finished
    for total, ids in open_beams:
        add(total, ids)
    return finished
