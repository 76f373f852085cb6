"""Self-supervision from a corpus: the beginning of a document asks for its end (RA-DIT, arXiv:2310.01352)."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Int64

from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.data.order import ExampleOrder
from realm_jax.instructions.example import InstructionExample
from realm_jax.text.generator_tokenizer import GeneratorTokenizer

DATASET, GROUP = "plain_text", "plain_text"
_AT_ONCE = 1000


class CorpusContinuations:
    """Documents in a random order, each as its first tokens (the prompt and the query) and its last ones (the answer).

    Item i is a pure function of (corpus, tokenizer, seed, i), and made when it is asked for; the first n are a sample of all.
    A cut that would part a word is moved to the white space inside, so that either part may be a few tokens shorter: the
    answer is written behind the prompt and a space. `example.id` is the number of the document, which retrieval must leave
    out: it holds the answer word for word.

    Attributes:
      documents: those drawn from, ascending.
      left_out: how many of the corpus's documents are not, by cause.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: GeneratorTokenizer,
        *,
        prompt_tokens: int = 50,
        answer_tokens: int = 50,
        part: Literal["last", "next"] = "last",
        seed: int,
    ):
        """Args:
        corpus: the documents. Their lengths are known at once where the corpus job was given the same tokenizer
          (`corpus.generator_tokenizer`); else every document is tokenised once.
        tokenizer: the language model's.
        prompt_tokens: of the beginning of a document.
        answer_tokens: of its end.
        part: "last", as published, or "next": the answer follows the prompt without a gap.
        seed: of the order.

        Raises:
          ValueError: no document is long enough.
        """
        if prompt_tokens < 1 or answer_tokens < 1:
            raise ValueError(f"expected at least 1 token in prompt and answer, got {prompt_tokens} and {answer_tokens}")
        if part not in ("last", "next"):
            raise ValueError(f"expected part 'last' or 'next', got {part!r}")
        self._corpus, self._tokenizer, self._part = corpus, tokenizer, part
        self._prompt_tokens, self._answer_tokens = prompt_tokens, answer_tokens
        shortest = prompt_tokens + answer_tokens
        lengths = _lengths(corpus, tokenizer)
        self.documents = np.flatnonzero(lengths >= shortest).astype(np.int64)
        num_short = int(np.sum((lengths > 0) & (lengths < shortest)))
        causes = {
            f"document of fewer than {shortest} tokens": num_short,
            "document without text": int(np.sum(lengths == 0)),
        }
        self.left_out = {cause: count for cause, count in causes.items() if count}
        if not len(self.documents):
            raise ValueError(
                f"no document of {corpus.directory} has the {shortest} tokens that self-supervision takes of it (the longest "
                f"has {int(lengths.max(initial=0))}); build the corpus with longer blocks, or ask for fewer tokens"
            )
        self._order = ExampleOrder(len(self.documents), seed)

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, number: int) -> int:
        """The document of an item."""
        if not 0 <= number < len(self):
            raise IndexError(f"example {number} of {len(self)}")
        return int(self.documents[self._order(np.array([number]))[0]])

    def __getitem__(self, number: int) -> InstructionExample:
        document = self.document(number)
        _, text = document_text(self._corpus, document)
        offsets = self._tokenizer.encode(text).offsets
        end = _moved_back(text, int(offsets[self._prompt_tokens - 1, 1]))
        if self._part == "next":
            last = min(self._prompt_tokens + self._answer_tokens, len(offsets)) - 1
            start, stop = end, _moved_back(text, int(offsets[last, 1]), after=end)
        else:
            first = max(self._prompt_tokens, len(offsets) - self._answer_tokens)
            start, stop = _moved_on(text, int(offsets[first, 0])), len(text)
        prompt, answer = text[:end].strip(), text[start:stop].strip()
        return InstructionExample(DATASET, GROUP, prompt, answer, prompt, (answer,), str(document))

    def __iter__(self) -> Iterator[InstructionExample]:
        return (self[number] for number in range(len(self)))


def _lengths(corpus: Corpus, tokenizer: GeneratorTokenizer) -> Int64[np.ndarray, "num_documents"]:
    try:
        return open_pieces(corpus, tokenizer).bodies.lengths().astype(np.int64)
    except ValueError:  # the corpus has no such pieces
        counts = []
        for first in range(0, corpus.num_documents, _AT_ONCE):
            documents = range(first, min(first + _AT_ONCE, corpus.num_documents))
            texts = [document_text(corpus, document)[1] for document in documents]
            counts += [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
        return np.asarray(counts, np.int64)


def _moved_back(text: str, place: int, after: int = 0) -> int:
    """The end of the last whole word before a place that parts a word; the place itself where there is no such word."""
    if place >= len(text) or text[place].isspace():
        return place
    found = max((i for i in range(after, place) if text[i].isspace()), default=after)
    return found if text[after:found].strip() else place


def _moved_on(text: str, place: int) -> int:
    """The beginning of the first whole word from a place on; the place itself where there is none."""
    if place == 0 or text[place].isspace() or text[place - 1].isspace():
        return place
    found = next((i for i in range(place, len(text)) if text[i].isspace()), len(text))
    return found if text[found:].strip() else place
