"""Where the answers of a question stand in documents, as pieces: found once for a document and remembered."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_patterns import contains_match, matches
from realm_jax.data.questions import Question
from realm_jax.text.tokenizer import Tokenizer
from realm_jax.text.word_edges import WordEdges

Pieces = tuple[int, ...]


def answer_pieces(answers: Sequence[str], tokenizer: Tokenizer) -> tuple[Pieces, ...]:
    """The piece sequences that an answer can have inside a text, each once; empty answers have none.

    A SentencePiece piece that begins a word holds the white space before it, so that "1966" after a bracket is cut into
    other pieces than after a space. Both are looked for.
    """
    found: dict[Pieces, None] = {}
    for answer in answers:
        stripped = answer.strip()
        if not stripped:
            continue
        found[tuple(tokenizer.encode(stripped).ids.tolist())] = None
        ids, offsets = tokenizer.encode(f"({stripped}")
        inside = offsets[:, 0] >= 1
        if inside.any() and not (offsets[~inside, 1] > 1).any():  # the bracket is a piece of its own
            found[tuple(ids[inside].tolist())] = None
    return tuple(pieces for pieces in found if pieces and tokenizer.unk_id not in pieces)


def occurrences(
    rows: Int[np.ndarray, "rows length"], wanted: Sequence[Pieces], edges: WordEdges | None = None
) -> tuple[Int64[np.ndarray, "found"], Int64[np.ndarray, "found"], Int64[np.ndarray, "found"]]:
    """Every place where one of the piece sequences stands: (row, first position, number of pieces).

    With `edges` only places where it is whole words, as the official scorers compare: "Ann" does not stand in "annual".

    Cost is one look at each piece, and a comparison wherever a sequence's first piece stands.
    """
    by_first: dict[int, list[Pieces]] = {}
    for pieces in wanted:
        by_first.setdefault(pieces[0], []).append(pieces)
    found: list[tuple[np.ndarray, np.ndarray, int]] = []
    for first, sequences in by_first.items():
        row, start = np.nonzero(rows == first)
        for pieces in sequences:
            fits = start + len(pieces) <= rows.shape[1]
            r, s = row[fits], start[fits]
            for offset, piece in enumerate(pieces[1:], start=1):
                same = rows[r, s + offset] == piece
                r, s = r[same], s[same]
            found.append((r, s, len(pieces)))
    if not found:
        return (np.zeros(0, np.int64),) * 3
    row = np.concatenate([r for r, _, _ in found]).astype(np.int64)
    start = np.concatenate([s for _, s, _ in found]).astype(np.int64)
    size = np.concatenate([np.full(len(r), length, np.int64) for r, _, length in found])
    if edges is None:
        return row, start, size
    whole = edges.are_whole(rows, row, start, size)
    return row[whole], start[whole], size[whole]


class AnswerFinder:
    """Says which documents hold an answer of a question, reading each document once for it.

    Pieces come from the corpus as they were cut when it was built; nothing is tokenised again. What has been found is
    remembered for the questions seen last, within a bound of memory: a question's documents hardly change from one epoch
    to the next.
    """

    def __init__(
        self,
        corpus: Corpus,
        document_text: Callable[[int], str] | None = None,
        max_remembered: int = 20_000_000,
        whole_words: bool = True,
    ):
        """Args:
        corpus: the knowledge corpus.
        document_text: text of a document, needed for answers that are regular expressions.
        max_remembered: (question, document) pairs kept, at 9 bytes each.
        whole_words: an answer inside a longer word is none; the ports of REALM take it for one.
        """
        self.edges = WordEdges(corpus.tokenizer) if whole_words else None
        self._corpus, self._text, self._max = corpus, document_text, max_remembered
        self._known: OrderedDict[Question, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._num_known = 0
        self._pieces = functools.lru_cache(100_000)(lambda answers: answer_pieces(answers, corpus.tokenizer))
        self._matches = functools.lru_cache(1_000_000)(
            lambda patterns, document: frozenset(matches(self._read(document), patterns))
        )

    def has_answer(
        self, question: Question, document_ids: Int64[np.ndarray, "documents"]
    ) -> Bool[np.ndarray, "documents"]:
        """Whether each document holds an answer; false for negative ids."""
        ids, flags = self._known.pop(question, (np.zeros(0, np.int64), np.zeros(0, bool)))
        self._num_known -= len(ids)
        new = np.setdiff1d(document_ids[document_ids >= 0], ids)
        if len(new):
            order = np.argsort(np.concatenate([ids, new]), kind="stable")
            ids = np.concatenate([ids, new])[order]
            flags = np.concatenate([flags, self._look(question, new)])[order]
        self._known[question] = ids, flags
        self._num_known += len(ids)
        while self._num_known > self._max and len(self._known) > 1:
            _, (oldest, _) = self._known.popitem(last=False)
            self._num_known -= len(oldest)
        if not len(ids):
            return np.zeros(len(document_ids), bool)
        place = np.minimum(np.searchsorted(ids, document_ids), len(ids) - 1)
        return flags[place] & (document_ids >= 0)

    def _look(self, question: Question, document_ids: np.ndarray) -> np.ndarray:
        if question.is_regex:
            return np.array([contains_match(self._read(int(d)), question.answers) for d in document_ids], bool)
        flags = np.zeros(len(document_ids), bool)
        longest = int(self._corpus.bodies.lengths(document_ids).max(initial=0))
        rows = self._corpus.bodies.gather(document_ids, longest, pad=-1)
        flags[occurrences(rows, self._pieces(question.answers), self.edges)[0]] = True
        return flags

    def pieces(self, question: Question, document_ids: Sequence[int]) -> tuple[Pieces, ...]:
        """The piece sequences that answer a question: of a regular expression, of what it matches in these documents."""
        if not question.is_regex:
            return self._pieces(question.answers)
        found = [self._matches(question.answers, int(document)) for document in document_ids if document >= 0]
        return self._pieces(tuple(sorted(frozenset().union(*found))))

    def _read(self, document: int) -> str:
        if self._text is None:
            raise ValueError("answers that are regular expressions need the documents' texts")
        return self._text(document)


def answer_spans(
    joint_ids: Int32[np.ndarray, "documents length"],
    in_document: Bool[np.ndarray, "documents length"],
    wanted: Sequence[Pieces],
    max_span_width: int,
    edges: WordEdges | None = None,
) -> Bool[np.ndarray, "documents num_spans"]:
    """Which spans of reader inputs are an answer, in the order of `models.span_bounds`; wider answers are left out."""
    length = joint_ids.shape[1]
    widths = np.arange(1, min(max_span_width, length) + 1)
    firsts = np.concatenate([[0], np.cumsum(length - widths + 1)])  # where each width's spans begin
    spans = np.zeros((len(joint_ids), int(firsts[-1])), bool)
    rows, starts, sizes = occurrences(np.where(in_document, joint_ids, -1), wanted, edges)
    short = sizes <= len(widths)
    rows, starts, sizes = rows[short], starts[short], sizes[short]
    spans[rows, firsts[sizes - 1] + starts] = True
    return spans
