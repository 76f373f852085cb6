"""The documents that a page answers from: a corpus, less what was removed, with what was added since it was opened."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from realm_jax.answering.answer import Answer
from realm_jax.answering.documents import CorpusDocuments, Text
from realm_jax.answering.live import AddedDocument, LiveDocuments, LiveIndex
from realm_jax.answering.retrieving import RetrievingAnswerer
from realm_jax.corpus.blocks import TaggedArticle, cut_articles
from realm_jax.corpus.info import read_info
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.sources.article import clean_text
from realm_jax.corpus.store import Corpus
from realm_jax.data.question_formats.question import one_line
from realm_jax.retrieval.index import Index

ADDED = "added-"


class NotUsable(ValueError):  # noqa: N818 - it says what happened to the input
    """A question or document that cannot be used, in words for who sent it."""


class UnknownDocument(LookupError):  # noqa: N818
    """There is no such document, in words for who asked."""


class CorpusChanged(OSError):  # noqa: N818
    """The corpus is not what it was when it was opened."""


class AddedText(NamedTuple):
    """A text that was added: one or more documents, as it was cut into blocks."""

    name: str
    title: str
    documents: tuple[int, ...]


class _State(NamedTuple):
    """All that changes; replaced as a whole."""

    answerer: RetrievingAnswerer
    texts: dict[str, AddedText]
    added: tuple[AddedDocument, ...]
    removed: frozenset[int]


def _check(text: str, what: str, most_chars: int) -> None:
    """Raises:
    NotUsable: too long, or no Unicode text.
    """
    if len(text) > most_chars:
        raise NotUsable(f"{what} may have {most_chars} characters, got {len(text)}; shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotUsable(f"{what} is no Unicode text: it holds half a surrogate pair") from error


class Collection:
    """A corpus that can be added to and removed from while it is asked. May be used from several threads."""

    def __init__(
        self,
        answerer: RetrievingAnswerer,
        corpus: Corpus,
        index: Index,
        *,
        max_question_chars: int = 1_000,
        max_document_chars: int = 100_000,
        max_added: int = 2_000,
        max_removed: int = 1_000,
    ):
        """Args:
        answerer: over the corpus.
        corpus: with its text.
        index: of the corpus.
        max_question_chars: a longer question is refused.
        max_document_chars: a longer text is refused.
        max_added: blocks that may be added in all; each is searched exactly.
        max_removed: documents of the corpus that may be removed in all; the index is asked for that many more.
        """
        self.corpus, self._index = corpus, index
        self._documents = CorpusDocuments(corpus)
        self.max_question_chars, self.max_document_chars = max_question_chars, max_document_chars
        self._max_added, self._max_removed = max_added, max_removed
        self._changing = threading.Lock()
        self._count = 0  # texts ever added: a name is not used twice
        self._next_document = corpus.num_documents
        self._state = _State(answerer.over(self._documents, index), {}, (), frozenset())

    @property
    def added(self) -> tuple[AddedText, ...]:
        """The added texts, the oldest first."""
        return tuple(self._state.texts.values())

    @property
    def removed(self) -> tuple[int, ...]:
        """Documents of the corpus that are left out, ascending."""
        return tuple(sorted(self._state.removed))

    @property
    def num_documents(self) -> int:
        """Documents that are searched now."""
        return self._state.answerer.index.num_documents

    def name_of(self, document: int) -> str:
        """What a document is called: its number, or of an added one the name of its text."""
        for text in self._state.texts.values():
            if document in text.documents:
                return text.name
        return str(document)

    def text(self, document: int) -> Text:
        """Title and text of a document of the corpus."""
        return self._documents.text(document)

    def answer(self, question: str) -> Answer:
        """Answers one question from the documents that are there now.

        Raises:
          NotUsable: an empty, over-long or undecodable question.
          CorpusChanged: the corpus was removed or built anew.
        """
        _check(question, "the question", self.max_question_chars)
        question = one_line(question)
        if not question:
            raise NotUsable("the question is empty; ask something")
        self.check_corpus()
        return self._state.answerer.answer([question])[0]

    def add(self, title: str, text: str) -> AddedText:
        """Adds a text, cut into blocks as the corpus job cuts articles. It is found from now on.

        Raises:
          NotUsable: an empty, over-long or undecodable text, or too many of them.
        """
        _check(title, "the title", self.max_question_chars)
        _check(text, "the document", self.max_document_chars)
        title, text = one_line(title), clean_text(text).strip()
        if not text:
            raise NotUsable("the document is empty; give it some text")
        info, tokenizer = self.corpus.info, self.corpus.tokenizer
        article = TaggedArticle("", title, text, sentence_spans(text), ())
        cut = cut_articles([article], tokenizer, info.block_len, info.title_len)
        if not cut.blocks:
            raise NotUsable("the document has no character that the tokenizer of this corpus knows")
        self._check_room(len(cut.blocks))
        bodies = np.split(cut.rows.bodies, np.cumsum(cut.rows.body_lengths)[:-1])
        titles = np.split(cut.rows.titles, np.cumsum(cut.rows.title_lengths)[:-1])
        embeds = self._state.answerer.embed_documents(titles, bodies)
        with self._changing:
            self._check_room(len(cut.blocks))  # others may have added some meanwhile
            self._count += 1
            numbers = range(self._next_document, self._next_document + len(cut.blocks))
            self._next_document = numbers.stop
            made = AddedText(f"{ADDED}{self._count}", title, tuple(numbers))
            new = [
                AddedDocument(number, Text(title, block.text), body, embed)
                for number, block, body, embed in zip(numbers, cut.blocks, bodies, embeds, strict=True)
            ]
            self._replace({**self._state.texts, made.name: made}, (*self._state.added, *new), self._state.removed)
        return made

    def remove(self, name: str) -> None:
        """Takes away a document of the corpus by its number, or an added text by its name.

        Raises:
          UnknownDocument: there is none of that name (any more).
          NotUsable: too many are removed.
        """
        with self._changing:
            state = self._state
            if name in state.texts:
                gone = set(state.texts[name].documents)
                texts = {other: text for other, text in state.texts.items() if other != name}
                kept = tuple(document for document in state.added if document.document not in gone)
                self._replace(texts, kept, state.removed)
                return
            document = self._corpus_document(name)
            if document in state.removed:
                raise UnknownDocument(f"document {document} is removed already")
            if len(state.removed) >= self._max_removed:
                raise NotUsable(
                    f"{self._max_removed} documents of the corpus may be removed; restore one, or build another corpus"
                )
            self._replace(state.texts, state.added, state.removed | {document})

    def restore(self, name: str) -> None:
        """Puts back a removed document of the corpus.

        Raises:
          UnknownDocument: it was not removed.
        """
        with self._changing:
            document = self._corpus_document(name)
            if document not in self._state.removed:
                raise UnknownDocument(f"document {document} was not removed")
            self._replace(self._state.texts, self._state.added, self._state.removed - {document})

    def check_corpus(self) -> None:
        """Refuses to go on with pieces of one corpus and texts of another.

        Raises:
          CorpusChanged: it was removed or built anew since it was opened.
        """
        directory = self.corpus.directory
        try:
            same = read_info(directory).fingerprint == self.corpus.fingerprint
        except (ValueError, OSError) as error:
            raise CorpusChanged(
                f"the corpus at {directory} is gone ({error}); start the page again with one"
            ) from error
        if not same:
            raise CorpusChanged(f"the corpus at {directory} was built anew; embed it and start the page again")

    def _check_room(self, num_blocks: int) -> None:
        room = self._max_added - len(self._state.added)
        if num_blocks > room:
            raise NotUsable(
                f"{self._max_added} blocks may be added in all, {room} more; the document has {num_blocks}: "
                "remove an added document, or build a corpus with the corpus job"
            )

    def _corpus_document(self, name: str) -> int:
        if name.isascii() and name.isdigit() and len(name) < 19 and int(name) < self.corpus.num_documents:
            return int(name)
        raise UnknownDocument(
            f"there is no document {name[:40]!r}; those of the corpus are 0 to {self.corpus.num_documents - 1}, "
            f"added ones: {', '.join(self._state.texts) or 'none'}"
        )

    def _replace(self, texts: dict[str, AddedText], added: Sequence[AddedDocument], removed: frozenset[int]) -> None:
        documents, index = LiveDocuments(self._documents, added), LiveIndex(self._index, removed, added)
        self._state = _State(self._state.answerer.over(documents, index), texts, tuple(added), removed)
