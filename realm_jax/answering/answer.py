"""An answer and the documents that it came from."""

from typing import NamedTuple


class Span(NamedTuple):
    """A run of characters of a document's text."""

    start: int
    end: int
    text: str
    score: float  # span logit + retrieval score, as the reader ranks spans of all documents
    prob: float  # of all spans of all documents read


class WeighedDocument(NamedTuple):
    """A document that was read."""

    document: int  # -1: the null document
    title: str
    text: str
    retrieval_score: float
    prob: float  # p(z|x) over the documents read and the null document
    best_span: Span | None  # of a reader that extracts; None of the null document, and of a document without text
    posterior: float | None = None  # of a generator: p(z|x, y), how much of the answer is this document's


class GeneratedToken(NamedTuple):
    """A piece of a generated answer, and the documents that it leaned on."""

    text: str
    posteriors: tuple[float, ...]  # p(z|x, y_≤i) of each document of the answer, in their order


class Answer(NamedTuple):
    """The best span of all documents read, or what a generator wrote; `text` is empty where nothing could be read."""

    question: str
    text: str
    prob: float
    documents: tuple[WeighedDocument, ...]  # best first, the null document last
    pieces_left_out: int = 0  # of a question too long to be read whole
    tokens: tuple[GeneratedToken, ...] = ()  # of RAG-Token, whose tokens may come from different documents

    @property
    def document(self) -> WeighedDocument | None:
        """The document that answered: of the best span, or of the highest posterior."""
        posteriors = [
            (found.posterior, -rank) for rank, found in enumerate(self.documents) if found.posterior is not None
        ]
        if posteriors:
            return self.documents[-max(posteriors)[1]]
        spans = [(found.best_span.score, -rank) for rank, found in enumerate(self.documents) if found.best_span]
        return self.documents[-max(spans)[1]] if spans else None
