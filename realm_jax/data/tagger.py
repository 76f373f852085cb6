"""Training examples of a tagger: annotated sentences as pieces, with a label on the first piece of each word."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from realm_jax.data.conll import AnnotatedText, Name, decode_tags
from realm_jax.data.inputs import Inputs, SpecialIds
from realm_jax.data.order import ExampleOrder, batch_positions, example_rng
from realm_jax.data.tagger_inputs import NO_PIECE, SentencePieces, sentence_pieces, tagger_inputs, windows
from realm_jax.text.tokenizer import Tokenizer

NO_LABEL = -1
ANY_KIND = "NAME"


class Labels:
    """Numbers for tags: 0 is O, then B and I of each kind (IOB2). Without kinds, a name of any kind is a `NAME`.

    >>> labels = Labels(("PER", "LOC"))
    >>> labels.tags
    ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')
    >>> labels.encode(4, [Name(1, 3, "LOC")]).tolist()
    [0, 3, 4, 0]
    >>> labels.decode([0, 3, 4, 0])
    [Name(start=1, end=3, kind='LOC')]
    """

    def __init__(self, kinds: tuple[str, ...] = ()):
        self.kinds = kinds
        self.tags = ("O", *(f"{prefix}-{kind}" for kind in kinds or (ANY_KIND,) for prefix in "BI"))

    def encode(self, num_words: int, names: Sequence[Name]) -> Int32[np.ndarray, "num_words"]:
        """The label of every word.

        Raises:
          ValueError: a name of a kind that is not one of these.
        """
        labels = np.zeros(num_words, np.int32)
        for start, end, kind in names:
            if self.kinds and kind not in self.kinds:
                raise ValueError(
                    f"a name is of kind {kind}, the tagger's kinds are {', '.join(self.kinds)}; add it, or set kinds to () to "
                    "learn names of any kind"
                )
            first = 1 + 2 * (self.kinds.index(kind) if self.kinds else 0)
            labels[start] = first
            labels[start + 1 : end] = first + 1
        return labels

    def decode(self, labels: Sequence[int]) -> list[Name]:
        """The names of a sentence's labels, also where I follows O."""
        return decode_tags([self.tags[label] for label in labels])


class TaggerBatch(NamedTuple):
    """Some rows of a batch: `[CLS] x [SEP]` with the shapes of words as segments, and labels on first pieces."""

    inputs: Inputs
    labels: Int32[np.ndarray, "batch length"]  # NO_LABEL on other pieces, special pieces and padding


class _Row(NamedTuple):
    ids: np.ndarray
    shapes: np.ndarray
    labels: np.ndarray


class TaggerExamples:
    """Draws windows of annotated sentences, those of a batch of about one length.

    A window goes to the smallest of `lengths` that holds it. A step draws one of the lengths, as often as there are
    windows of it, then its rows in shuffled epochs: few programs, little padding, and still a function of (seed, step).
    """

    def __init__(
        self,
        texts: Sequence[AnnotatedText],
        tokenizer: Tokenizer,
        labels: Labels,
        *,
        lengths: tuple[int, ...],
        num_shapes: int,
        seed: int,
    ):
        self.special, self.seed = SpecialIds.of(tokenizer), seed
        size = lengths[-1] - 2
        rows: list[list[_Row]] = [[] for _ in lengths]
        encoded = sentence_pieces([text.text for text in texts], tokenizer, num_shapes)
        for text, pieces in zip(texts, encoded, strict=True):
            of_pieces = piece_labels(text, pieces, labels)
            for window in windows(len(pieces.ids), size):
                kept = np.full(window.end - window.start, NO_LABEL, np.int32)
                inner = slice(window.keep_start - window.start, window.keep_end - window.start)
                kept[inner] = of_pieces[window.keep_start : window.keep_end]
                if (kept != NO_LABEL).any():
                    bucket = int(np.searchsorted(lengths, window.end - window.start + 2))
                    part = slice(window.start, window.end)
                    rows[bucket].append(_Row(pieces.ids[part], pieces.shapes[part], kept))
        filled = [(length, bucket) for length, bucket in zip(lengths, rows, strict=True) if bucket]
        if not filled:
            raise ValueError(
                f"none of the {len(texts)} sentences has a word that the tokenizer knows; train another one"
            )
        self.lengths, self.rows = zip(*filled, strict=True)
        counts = np.array([len(bucket) for bucket in self.rows])
        self.num_examples, self.shares = int(counts.sum()), counts / counts.sum()
        self.orders = [ExampleOrder(len(bucket), seed) for bucket in self.rows]

    def batch(self, step: int, batch_size: int, rows: slice) -> TaggerBatch:
        """The given rows of the batch of a step: a pure function of (seed, step, row)."""
        bucket = int(example_rng(self.seed, step).choice(len(self.shares), p=self.shares))
        drawn = [self.rows[bucket][i] for i in self.orders[bucket](batch_positions(step, batch_size, rows))]
        length = self.lengths[bucket]
        labels = np.full((len(drawn), length), NO_LABEL, np.int32)
        for place, row in enumerate(drawn):
            labels[place, 1 : 1 + len(row.labels)] = row.labels
        inputs = tagger_inputs([row.ids for row in drawn], [row.shapes for row in drawn], length, self.special)
        return TaggerBatch(inputs, labels)


def piece_labels(text: AnnotatedText, pieces: SentencePieces, labels: Labels) -> Int32[np.ndarray, "num_pieces"]:
    """Labels of the first pieces of a sentence's words, `NO_LABEL` on the others.

    The words here are `tagger_inputs.word_spans`, which are finer than the annotators': a word is in a name if it shares a
    character with it.
    """
    starts, ends = pieces.words.T
    names = []
    for (start, end), name in zip(text.name_spans(), text.names, strict=True):
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(starts, end, side="left")
        if first < last:
            names.append(Name(int(first), int(last), name.kind))
    of_words = labels.encode(len(pieces.words), names)
    found = np.full(len(pieces.ids), NO_LABEL, np.int32)
    there = pieces.first_pieces != NO_PIECE
    # the first of several words that share a piece gives it its label
    found[pieces.first_pieces[there][::-1]] = of_words[there][::-1]
    return found
