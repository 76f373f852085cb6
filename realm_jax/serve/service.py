"""What the page and the API have in common: a run that answers, as plain dicts, lists and numbers."""

import time
from typing import Any

from realm_jax.answering.answer import Answer, WeighedDocument
from realm_jax.answering.collection import AddedText, Collection, CorpusChanged
from realm_jax.answering.loading import Loaded
from realm_jax.retrieval.versions import list_versions
from realm_jax.run_dir import RunDir


class Service:
    """A loaded run and its collection of documents. May be used from several threads."""

    def __init__(self, run: RunDir, loaded: Loaded, collection: Collection, *, editable: bool = True):
        """Args:
        run: what is served.
        loaded: its checkpoint and index.
        collection: its documents, to which some may be added.
        editable: whether documents may be added and removed.
        """
        self.run, self.loaded, self.collection, self.editable = run, loaded, collection, editable
        self._started = time.time()

    def answer(self, question: str) -> dict[str, Any]:
        """An answer with the documents that were read; errors as `Collection.answer`."""
        begin = time.perf_counter()
        answer = self.collection.answer(question)
        milliseconds = (time.perf_counter() - begin) * 1e3
        manifest, answering = self.loaded.manifest, answer.document
        return {
            "question": answer.question,
            "answer": answer.text,
            "prob": answer.prob,
            "document": None if answering is None else self.collection.name_of(answering.document),
            "documents": [self._document(found, found is answering) for found in answer.documents],
            "tokens": [token._asdict() for token in answer.tokens],
            "pieces_left_out": answer.pieces_left_out,
            "index": {
                "version": manifest.version,
                "age_secs": round(time.time() - manifest.built_at, 1),
                "search_recall": manifest.search_recall,
            },
            "ms": round(milliseconds, 1),
        }

    def _document(self, found: WeighedDocument, answered: bool) -> dict[str, Any]:
        span = found.best_span
        is_null = found.document < 0
        return {
            "id": None if is_null else self.collection.name_of(found.document),
            "number": found.document,
            "is_null": is_null,
            "is_answer": answered,
            "is_added": found.document >= self.loaded.corpus.num_documents,
            "title": found.title,
            "text": found.text,
            "score": found.retrieval_score,
            "prob": found.prob,
            "posterior": found.posterior,
            "span": None if span is None else span._asdict(),
        }

    def add(self, title: str, text: str) -> dict[str, Any]:
        """Adds a text; errors as `Collection.add`."""
        return _added(self.collection.add(title, text))

    def documents(self) -> dict[str, Any]:
        """What differs from the corpus."""
        removed = []
        for number in self.collection.removed:
            removed.append({"id": str(number), "title": self.collection.text(number).title})
        return {"added": [_added(text) for text in self.collection.added], "removed": removed}

    def status(self) -> dict[str, Any]:
        """What is served, and how old it is."""
        manifest, collection = self.loaded.manifest, self.collection
        versions = list_versions(self.run.index)
        try:
            collection.check_corpus()
            problem = None
        except CorpusChanged as error:
            problem = str(error)
        return {
            "run": self.run.path.name,
            "checkpoint_step": self.loaded.step,
            "index": {
                "version": manifest.version,
                "newest_version": versions[-1] if versions else None,
                "age_secs": round(time.time() - manifest.built_at, 1),
                "age_steps": max(0, self.loaded.step - manifest.version),
                "backend": manifest.backend,
                "search_recall": manifest.search_recall,
            },
            "documents": {
                "searched": collection.num_documents,
                "corpus": self.loaded.corpus.num_documents,
                "added": sum(len(text.documents) for text in collection.added),
                "removed": len(collection.removed),
            },
            "limits": {
                "question_chars": collection.max_question_chars,
                "document_chars": collection.max_document_chars,
            },
            "editable": self.editable,
            "problem": problem,
            "up_secs": round(time.time() - self._started, 1),
        }

    def warm_up(self) -> Answer:
        """Answers a question of the corpus's own words, so that what is compiled first is compiled now."""
        text = self.collection.text(0)
        words = f"{text.title} {text.text}".split()[:8]
        return self.collection.answer(" ".join(words)[: self.collection.max_question_chars] or "?")


def _added(text: AddedText) -> dict[str, Any]:
    return {"id": text.name, "title": text.title, "numbers": list(text.documents)}
