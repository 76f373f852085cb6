"""Articles cut into blocks: whole sentences, packed greedily, and the same in piece units.

Every article is tokenized once. Where its sentences, salient spans and blocks lie among the pieces follows from the
pieces' character offsets by binary search, for a whole batch of articles at a time: their texts are thought of as one
long text, with one character between two articles.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from realm_jax.text.tokenizer import Tokenizer

Spans = Sequence[tuple[int, int]]

# Where a sentence longer than a block is cut, the cut moves back by up to this many pieces to the start of a word.
_WORD_SEARCH_PIECES = 32


class Block(NamedTuple):
    """A row of the corpus as text.

    `id` is the source's id, "#" and the block's number in it. Spans are characters [start, end) of `text`, sorted and
    disjoint; `text[start:end]` of a sentence span is the sentence, and what lies between two is the source's white
    space.
    """

    id: str
    source_id: str
    title: str
    text: str
    sentence_spans: Int32[np.ndarray, "num_sentences 2"]
    salient_spans: Int32[np.ndarray, "num_spans 2"]


class TaggedArticle(NamedTuple):
    """An article with its sentences and salient spans: sorted, disjoint characters [start, end) of `text`.

    What is not white space must lie in a sentence.
    """

    id: str
    title: str
    text: str
    sentences: Spans
    salient_spans: Spans


class PieceRows(NamedTuple):
    """Documents in piece units, as columns: flat values and one length a document.

    `sentence_ends` are piece indexes into the body, exclusive; a document's last is its body's length.
    `salient_spans` are piece [start, end) in the body, sorted and disjoint.
    """

    titles: Int32[np.ndarray, "num_title_pieces"]
    title_lengths: Int64[np.ndarray, "num_documents"]
    bodies: Int32[np.ndarray, "num_pieces"]
    body_lengths: Int64[np.ndarray, "num_documents"]
    sentence_ends: Int32[np.ndarray, "num_sentences"]
    sentence_counts: Int64[np.ndarray, "num_documents"]
    salient_spans: Int32[np.ndarray, "num_spans 2"]
    span_counts: Int64[np.ndarray, "num_documents"]

    def select(self, keep: Bool[np.ndarray, "num_documents"]) -> "PieceRows":
        """The documents where `keep` is true."""
        if keep.all():
            return self
        columns: list[np.ndarray] = []
        for values, lengths in zip(self[::2], self[1::2], strict=True):
            columns += [values[np.repeat(keep, lengths)], lengths[keep]]
        return PieceRows(*columns)


class CutArticles(NamedTuple):
    """Blocks of a batch of articles, as text and as pieces, in order.

    Attributes:
      blocks: as text; a block's `id` ends with its number in its article.
      rows: as pieces; row i is block i.
      articles: which article of the batch each block is of.
      split_sentences: sentences longer than a block, which had to be cut.
      lost_spans: salient spans that a block's edge cuts or that no piece belongs to; they are left out.
    """

    blocks: list[Block]
    rows: PieceRows
    articles: Int64[np.ndarray, "num_documents"]
    split_sentences: int
    lost_spans: int


def cut_articles(
    articles: Sequence[TaggedArticle], tokenizer: Tokenizer, block_len: int, title_len: int
) -> CutArticles:
    """Cuts articles into blocks of whole sentences, packed greedily to at most `block_len` pieces.

    The title does not count towards `block_len`. A sentence longer than a block is cut at a piece boundary, at the
    start of a word where there is one near. A salient span that does not begin or end with a piece is widened to the
    pieces that cover it; spans that then overlap become one.
    """
    pieces = _Pieces(tokenizer, [article.text for article in articles])
    sentences, sentence_counts = pieces.to_global([article.sentences for article in articles])
    article_of = np.repeat(np.arange(len(articles)), sentence_counts)
    # A piece that lies across two sentences belongs to the first; a piece of white space between two to the second.
    last = np.searchsorted(pieces.starts, sentences[:, 1], side="left")
    first = np.maximum(pieces.bounds[article_of], np.append(0, last[:-1])[: len(last)])
    present = last > first  # false for a sentence of characters that the tokenizer drops
    table = np.stack([first, last, sentences[:, 0], sentences[:, 1], article_of], axis=1)[present]
    table, split_sentences = _split_long_sentences(table, pieces, block_len)
    bounds = _pack(table, block_len, len(articles))
    first, last, char_start, char_end, article_of = table.T

    begin, end = bounds[:, 0], bounds[:, 1]  # [num_blocks], indexes of sentences
    block_first, block_last = first[begin], last[end - 1]  # [num_blocks], pieces
    block_start, block_end = char_start[begin], char_end[end - 1]  # [num_blocks], characters
    counts = end - begin
    sentence_ends = last - np.repeat(block_first, counts)
    sentence_spans = np.stack([char_start, char_end], axis=1) - np.repeat(block_start, counts)[:, None]

    spans, _ = pieces.to_global([article.salient_spans for article in articles])
    num_spans = sum(len(article.salient_spans) for article in articles)
    spans, span_block = _inside(spans, block_start, block_end)
    piece_spans, has_pieces = _widen(spans, span_block, pieces, block_first, block_last)
    spans, span_block = spans[has_pieces], span_block[has_pieces]
    salient_spans, span_counts = _merge(piece_spans, span_block, block_first)

    block_article = article_of[begin]
    title_ids = [encoding.ids[:title_len] for encoding in tokenizer.encode_batch([a.title for a in articles])]
    titles, title_lengths = _concatenate([title_ids[a] for a in block_article.tolist()])
    rows = PieceRows(
        titles=titles,
        title_lengths=title_lengths,
        bodies=pieces.ids[_covered(block_first, block_last, len(pieces.ids))],
        body_lengths=block_last - block_first,
        sentence_ends=sentence_ends.astype(np.int32),
        sentence_counts=counts,
        salient_spans=salient_spans,
        span_counts=span_counts,
    )
    blocks = _text_blocks(
        articles,
        pieces.text,
        np.stack([block_article, block_start, block_end, begin, end], axis=1),
        sentence_spans.astype(np.int32),
        (spans - block_start[span_block][:, None]).astype(np.int32),
        np.searchsorted(span_block, np.arange(len(begin) + 1)),
    )
    return CutArticles(blocks, rows, block_article, split_sentences, num_spans - len(spans))


def piece_rows(blocks: Sequence[Block], tokenizer: Tokenizer, title_len: int) -> PieceRows:
    """The pieces of given blocks, uncut."""
    pieces = _Pieces(tokenizer, [block.text for block in blocks])
    block_first, block_last = pieces.bounds[:-1], pieces.bounds[1:]
    sentences, sentence_counts = pieces.to_global([block.sentence_spans for block in blocks])
    sentence_block = np.repeat(np.arange(len(blocks)), sentence_counts)
    last = np.searchsorted(pieces.starts, sentences[:, 1], side="left")
    is_final = np.append(sentence_block[1:] != sentence_block[:-1], True)[: len(last)]
    last = np.where(is_final, block_last[sentence_block], last)  # characters the tokenizer drops end no sentence
    spans, span_counts = pieces.to_global([block.salient_spans for block in blocks])
    span_block = np.repeat(np.arange(len(blocks)), span_counts)
    piece_spans, has_pieces = _widen(spans, span_block, pieces, block_first, block_last)
    salient_spans, span_counts = _merge(piece_spans, span_block[has_pieces], block_first)
    encodings = tokenizer.encode_batch([block.title for block in blocks])
    titles, title_lengths = _concatenate([encoding.ids[:title_len] for encoding in encodings])
    return PieceRows(
        titles=titles,
        title_lengths=title_lengths,
        bodies=pieces.ids,
        body_lengths=block_last - block_first,
        sentence_ends=(last - block_first[sentence_block]).astype(np.int32),
        sentence_counts=sentence_counts,
        salient_spans=salient_spans,
        span_counts=span_counts,
    )


class _Pieces:
    """Pieces of many texts with offsets into the texts joined by one character.

    `starts` and `ends` ascend; text i begins at character `bases[i]` and its pieces are `bounds[i]` to `bounds[i + 1]`.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]):
        encodings = tokenizer.encode_batch(texts)
        self.text = "\n".join(texts)
        self.lengths = np.asarray([len(text) for text in texts], np.int64)
        self.bases = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths + 1)])[: len(texts)]
        counts = np.asarray([len(encoding.ids) for encoding in encodings], np.int64)
        self.bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.ids = np.concatenate([np.zeros(0, np.int32), *(encoding.ids for encoding in encodings)])
        offsets = np.concatenate([np.zeros((0, 2), np.int32), *(encoding.offsets for encoding in encodings)])
        shift = np.repeat(self.bases, counts)
        # A tokenizer may order the pieces of one character oddly; binary search needs them ascending.
        self.starts = np.maximum.accumulate(offsets[:, 0] + shift)
        self.ends = np.maximum.accumulate(offsets[:, 1] + shift)

    def to_global(
        self, spans: Sequence[Spans | np.ndarray]
    ) -> tuple[Int64[np.ndarray, "num_spans 2"], Int64[np.ndarray, "num_texts"]]:
        """Spans of all texts in characters of the joined text, and how many each text has.

        Raises:
          ValueError: a span outside its text, empty, or before the one in front of it.
        """
        counts = np.asarray([len(s) for s in spans], np.int64)
        ends = itertools.chain.from_iterable(pair for s in spans for pair in s)
        flat = np.fromiter(ends, np.int64, 2 * int(counts.sum())).reshape(-1, 2)
        of_text = np.repeat(np.arange(len(spans)), counts)
        bad = (flat[:, 0] < 0) | (flat[:, 1] <= flat[:, 0]) | (flat[:, 1] > self.lengths[of_text])
        bad[1:] |= (of_text[1:] == of_text[:-1]) & (flat[1:, 0] < flat[:-1, 1])
        if bad.any():
            worst = int(np.argmax(bad))
            raise ValueError(
                f"expected sorted, disjoint, non-empty spans inside a text of {self.lengths[of_text[worst]]} "
                f"characters, got {tuple(flat[worst].tolist())}"
            )
        return flat + self.bases[of_text][:, None], counts


def _split_long_sentences(table: np.ndarray, pieces: _Pieces, block_len: int) -> tuple[np.ndarray, int]:
    """Replaces rows (first piece, last piece, first character, last character, article) longer than a block."""
    long = np.flatnonzero(table[:, 1] - table[:, 0] > block_len)
    if not len(long):
        return table, 0
    parts, done = [], 0
    for row in long.tolist():
        parts += [table[done:row], _split_sentence(table[row], pieces, block_len)]
        done = row + 1
    return np.concatenate([*parts, table[done:]]), len(long)


def _split_sentence(row: np.ndarray, pieces: _Pieces, block_len: int) -> np.ndarray:
    first, last, start, end, article = row.tolist()
    parts = []
    while last - first > block_len:
        cut = _word_start(pieces, first, first + block_len)
        at = int(pieces.starts[cut])
        stop = start + len(pieces.text[start:at].rstrip())
        parts.append((first, cut, start, max(stop, start + 1), article))
        # A SentencePiece piece includes the white space before its word; the part's text does not.
        first, start = cut, at + len(pieces.text[at:end]) - len(pieces.text[at:end].lstrip())
    return np.asarray([*parts, (first, last, start, end, article)], np.int64)


def _word_start(pieces: _Pieces, first: int, limit: int) -> int:
    for cut in range(limit, max(limit - _WORD_SEARCH_PIECES, first), -1):
        start = int(pieces.starts[cut])
        if pieces.text[start].isspace() or pieces.text[start - 1].isspace():
            return cut
    for cut in range(limit, first, -1):  # never between two pieces of one character
        if pieces.starts[cut] > pieces.starts[cut - 1]:
            return cut
    return limit


def _pack(table: np.ndarray, block_len: int, num_articles: int) -> Int64[np.ndarray, "num_blocks 2"]:
    """Sentences [begin, end) of every block."""
    first, last = table[:, 0].tolist(), table[:, 1].tolist()
    article_ends = np.searchsorted(table[:, 4], np.arange(num_articles), side="right").tolist()
    bounds = []
    begin = 0
    for article_end in article_ends:
        while begin < article_end:
            end = bisect.bisect_right(last, first[begin] + block_len, begin + 1, article_end)
            bounds.append((begin, end))
            begin = end
    return np.asarray(bounds, np.int64).reshape(-1, 2)


def _inside(spans: np.ndarray, block_start: np.ndarray, block_end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The spans that lie whole in a block, and the block of each."""
    block = np.searchsorted(block_start, spans[:, 0], side="right") - 1
    if not len(block_start):
        return spans[:0], block[:0]
    inside = (block >= 0) & (spans[:, 1] <= block_end[block])
    return spans[inside], block[inside]


def _widen(
    spans: np.ndarray, span_block: np.ndarray, pieces: _Pieces, block_first: np.ndarray, block_last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pieces [start, end) that cover each span, for those spans that have any, and which those are."""
    start = np.maximum(np.searchsorted(pieces.ends, spans[:, 0], side="right"), block_first[span_block])
    end = np.minimum(np.searchsorted(pieces.starts, spans[:, 1], side="left"), block_last[span_block])
    has_pieces = end > start
    return np.stack([start, end], axis=1)[has_pieces], has_pieces


def _merge(
    spans: np.ndarray, span_block: np.ndarray, block_first: np.ndarray
) -> tuple[Int32[np.ndarray, "num_merged 2"], Int64[np.ndarray, "num_blocks"]]:
    """Joins sorted piece spans that overlap, and counts them from the start of their block."""
    if len(spans):
        furthest = np.maximum.accumulate(spans[:, 1])
        new = np.append(True, spans[1:, 0] >= furthest[:-1])
        group_start = np.flatnonzero(new)
        spans = np.stack([spans[group_start, 0], np.maximum.reduceat(spans[:, 1], group_start)], axis=1)
        span_block = span_block[group_start]
    relative = spans - block_first[span_block][:, None]
    return relative.astype(np.int32), np.bincount(span_block, minlength=len(block_first)).astype(np.int64)


def _covered(first: np.ndarray, last: np.ndarray, length: int) -> Bool[np.ndarray, "num_pieces"]:
    """True where an index lies in one of the ascending, disjoint ranges."""
    change = np.zeros(length + 1, np.int8)
    change[first] += 1
    change[last] -= 1
    return np.cumsum(change[:-1], dtype=np.int8).astype(bool)


def _concatenate(rows: Sequence[np.ndarray]) -> tuple[Int32[np.ndarray, "num_values"], Int64[np.ndarray, "num_rows"]]:
    lengths = np.asarray([len(row) for row in rows], np.int64)
    return np.concatenate([np.zeros(0, np.int32), *rows]), lengths


def _text_blocks(
    articles: Sequence[TaggedArticle],
    text: str,
    bounds: Int64[np.ndarray, "num_blocks 5"],
    sentence_spans: np.ndarray,
    salient_spans: np.ndarray,
    span_bounds: np.ndarray,
) -> list[Block]:
    blocks = []
    previous, number = -1, 0
    ends = span_bounds.tolist()
    for i, (a, start, stop, begin, end) in enumerate(bounds.tolist()):
        number = number + 1 if a == previous else 0
        previous = a
        article = articles[a]
        blocks.append(
            Block(
                id=f"{article.id}#{number}",
                source_id=article.id,
                title=article.title,
                text=text[start:stop],
                sentence_spans=sentence_spans[begin:end],
                salient_spans=salient_spans[ends[i] : ends[i + 1]],
            )
        )
    return blocks
