"""The retrieve job: finds documents for instruction examples, and asks a language model how well each explains its answer.

Both fine-tunings of RA-DIT (arXiv:2310.01352) read what it writes: the language model's the documents, the retriever's the scores of a
frozen language model, which are made once and used again.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from tqdm import tqdm

from realm_jax.answering.documents import CorpusDocuments
from realm_jax.answering.language_models import check_language_model
from realm_jax.answering.loading import served_version
from realm_jax.answering.retrieving import RetrievingAnswerer
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.judge import LanguageModelJudge, judge_identity, prefer
from realm_jax.instructions.retrieved import (
    JUDGED,
    RETRIEVED,
    now,
    open_retrieved,
    provenance_of,
    save_retrieved,
)
from realm_jax.instructions.self_supervision import DATASET, CorpusContinuations
from realm_jax.instructions.sources import MAX_EXAMPLES, read_examples
from realm_jax.instructions.template_file import own_templates, read_templates
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.manifest import Backend
from realm_jax.retrieval.versions import load_version, verify, version_dir
from realm_jax.run_dir import RunDir, check_can_write
from realm_jax.storage import require_local
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.rag import open_generator_tokenizer
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from realm_jax.text.loading import load_generator_tokenizer
from realm_jax.training.checkpoint import check_tokenizer, load_params, newest_step, params_checksum

logger = logging.getLogger(__name__)

_QUERIES_AT_ONCE = 64


def retrieve(
    *,
    run_dir: str,
    corpus: str,
    retriever: RetrieverConfig,
    name: str = "train",
    sources: str | tuple[str, ...] = (),
    corpus_examples: int = 0,
    prompt_tokens: int = 50,
    answer_tokens: int = 50,
    templates: str = "",
    max_examples: int | None = MAX_EXAMPLES,
    num_documents: int = 10,
    query_len: int = 64,
    tokenizer: str = "",
    judge: LanguageModelJudge | None = None,
    step: int | None = None,
    index_version: int | None = None,
    backend: Backend | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Finds documents for instruction examples with a run's retriever and index, and writes both to RUN/retrieved/NAME.

    What is there already and was made with the same settings is used again; a judge that was stopped goes on where it was.

    Args:
      run_dir: the retriever's run, with an index.
      corpus: that the index is of.
      retriever: shape of the retriever.
      name: of what is written.
      sources: of instruction examples, see `instructions.sources.read_examples`.
      corpus_examples: that many more are made of the corpus's own documents: the first `prompt_tokens` of one ask for its last
        `answer_tokens`; the document itself is not among those found for it.
      prompt_tokens, answer_tokens: of these.
      templates: file of templates; empty: the project's own.
      max_examples: of each source at the most; None: all.
      num_documents: for each example.
      query_len: pieces of `[CLS] query [SEP]`.
      tokenizer: directory of the language model's tokenizer; empty: the corpus's own.
      judge: the language model that scores the documents, for the retriever's fine-tuning; None: they are found alone.
      step: of the retriever's checkpoint; None for the newest.
      index_version: which version; None for the one that the run serves, or its newest.
      backend: None for the one that the index was built for; "exact" searches all documents.
      seed: of the draws.

    Returns:
      "examples", "directory", "mean_score_first", and with a judge "preferred_first": the share of examples whose answer is likeliest after
      the first document, of those that have an answer and two documents to compare.

    Raises:
      FileNotFoundError: no such source or checkpoint.
      ValueError: nothing to retrieve for, parts that do not fit each other, or examples of the same name made with other settings.
    """
    run = RunDir.of(run_dir)
    require_local(run.path, "retrieve's --run_dir")
    directory = Path(str(run.retrieved(name)))
    check_can_write(directory.parent, "retrieve's --run_dir")
    the_corpus = Corpus.open(corpus)
    lm_tokenizer = load_generator_tokenizer(tokenizer) if tokenizer else as_generator_tokenizer(the_corpus.tokenizer)
    if num_documents < 1 or corpus_examples < 0:
        raise ValueError(
            f"retrieve: num_documents must be at least 1 and corpus_examples at least 0, got {num_documents} and {corpus_examples}"
        )
    if judge is not None:  # before anything slow
        open_generator_tokenizer(tokenizer, the_corpus, judge.language_model, "LanguageModelJudge", "language_model")
        open_pieces(the_corpus, lm_tokenizer)
        check_language_model(RunDir.of(judge.run), judge.language_model, lm_tokenizer.fingerprint, judge.step)
    files = (sources,) if isinstance(sources, str) else sources
    version = served_version(run, index_version)
    of_corpus = [corpus_examples, prompt_tokens, answer_tokens, lm_tokenizer.fingerprint] if corpus_examples else 0
    identity: dict[str, Any] = {
        "corpus": the_corpus.fingerprint,
        "retriever_run": str(run.path),
        "retriever_step": newest_step(run, step),
        "retriever_checksum": params_checksum(run, step),
        "retriever": repr(retriever),
        "index_version": version,
        "sources": list(files),
        "source_files": [_digest(file) for file in files],
        "templates": templates and [templates, _digest(templates)],
        "backend": backend,
        "max_examples": max_examples,
        "corpus_examples": of_corpus,
        "num_documents": num_documents,
        "query_len": query_len,
        "seed": seed,
    }
    if not _is_there(directory, RETRIEVED, identity):
        examples, dropped = _examples(files, templates, max_examples, seed)
        if corpus_examples:
            own = CorpusContinuations(
                the_corpus, lm_tokenizer, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, seed=seed
            )
            dropped |= {f"{the_corpus.directory}: {cause}": count for cause, count in own.left_out.items()}
            examples += [own[number] for number in range(min(corpus_examples, len(own)))]
        if not examples:
            raise ValueError("retrieve: nothing to retrieve for; name sources, or set corpus_examples")
        finder, search_recall = _finder(
            run, the_corpus, retriever, identity["retriever_step"], version, backend, query_len, num_documents
        )
        documents, scores = find(finder, examples, num_documents)
        provenance = {
            "identity": identity,
            "corpus": the_corpus.fingerprint,
            "search_recall": search_recall,
            "dropped": dropped,
            "groups": dict(Counter(example.group for example in examples)),
            "made_at": now(),
        }
        save_retrieved(directory, examples, documents, scores, provenance)
    found = open_retrieved(str(directory), the_corpus)
    first = found.scores[:, 0][np.isfinite(found.scores[:, 0])]
    said: dict[str, Any] = {
        "examples": len(found.examples),
        "directory": str(directory),
        "mean_score_first": round(float(first.mean()), 3) if len(first) else None,
    }
    if judge is not None:
        preferences = found.preferences
        judged_by = judge_identity(judge, lm_tokenizer)
        if not _is_there(directory, JUDGED, judged_by):
            preferences = prefer(judge, judged_by, directory, found.examples, found.documents, the_corpus, lm_tokenizer)
        assert preferences is not None
        known = preferences.log_likelihoods[preferences.comparable()]
        favourites = np.where(np.isnan(known), -np.inf, known).argmax(axis=1)
        said["preferred_first"] = round(float(np.mean(favourites == 0)), 4) if len(known) else None
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in said.items()))
    return said


def _finder(
    run: RunDir,
    corpus: Corpus,
    retriever: RetrieverConfig,
    step: int,
    version: int,
    backend: Backend | None,
    query_len: int,
    num_documents: int,
) -> tuple[RetrievingAnswerer, float]:
    """A run's retriever over its index, and how well the latter finds; one document more than is wanted, since an example's own is none."""
    check_vocabulary(corpus, retriever.encoder.vocab_size, "retriever")
    check_tokenizer(run, corpus.info.tokenizer_fingerprint, step)
    place = version_dir(run.index, version)
    manifest = verify(
        place,
        corpus_fingerprint=corpus.fingerprint,
        embed_dim=retriever.embed_dim,
        num_documents=corpus.num_documents,
    )
    _, params = load_params(run, step)
    index = load_version(place, backend=backend, manifest=manifest)
    finder = RetrievingAnswerer(
        CorpusDocuments(corpus), index, retriever, params["retriever"],
        query_len=query_len, document_len=query_len, num_read=min(num_documents + 1, corpus.num_documents),
    )  # fmt: skip
    return finder, manifest.search_recall


def find(
    finder: RetrievingAnswerer, examples: Sequence[InstructionExample], num_documents: int
) -> tuple[Int64[np.ndarray, "examples num_documents"], Float32[np.ndarray, "examples num_documents"]]:
    """The best documents of each example's query, and their scores; of plain text without the document that it was cut from."""
    documents = np.full((len(examples), num_documents), -1, np.int64)
    scores = np.full(documents.shape, -np.inf, np.float32)
    with tqdm(total=len(examples), desc="retrieve", unit=" examples", mininterval=1.0) as bar:
        for first in range(0, len(examples), _QUERIES_AT_ONCE):
            some = examples[first : first + _QUERIES_AT_ONCE]
            result = finder.retrieve([example.query for example in some], None, lambda stage: None)
            own = np.asarray([int(example.id) if example.dataset == DATASET and example.id.isdecimal() else -1 for example in some])  # fmt: skip
            kept = (result.ids >= 0) & (result.ids != own[:, None])
            order = np.argsort(~kept, axis=1, kind="stable")[:, :num_documents]
            kept, width = np.take_along_axis(kept, order, 1), order.shape[1]
            rows = slice(first, first + len(some))
            documents[rows, :width] = np.where(kept, np.take_along_axis(result.ids, order, 1), -1)
            scores[rows, :width] = np.where(kept, np.take_along_axis(result.scores, order, 1), -np.inf)
            bar.update(len(some))
    return documents, scores


def _examples(
    files: Sequence[str], templates: str, max_examples: int | None, seed: int
) -> tuple[list[InstructionExample], dict[str, int]]:
    """Those of the sources, and what was dropped, by source and cause."""
    examples: list[InstructionExample] = []
    dropped: dict[str, int] = {}
    the_templates = read_templates(templates) if templates else own_templates()
    for source in files:
        found = read_examples(source, templates=the_templates, max_examples=max_examples, seed=seed)
        told = "; ".join(f"{cause}: {count}" for cause, count in found.dropped.items())
        logger.info("%s: %d of %d examples%s", found.source, len(found.examples), found.num_found, f" ({told})" if told else "")  # fmt: skip
        dropped |= {f"{found.source}: {cause}": count for cause, count in found.dropped.items()}
        examples += found.examples
    return examples, dropped


def _digest(source: str) -> str:
    """Of local files, a pattern's all together, also behind NAME=; empty of what is none."""
    for place in (Path(source), Path(source.partition("=")[2])):
        files = [place] if place.is_file() else sorted(place.parent.glob(place.name)) if "*" in place.name else []
        if source and files:
            content = hashlib.sha256()
            for file in files:
                with file.open("rb") as opened:
                    content.update(hashlib.file_digest(opened, "sha256").digest())
            return content.hexdigest()[:16]
    return ""


def _is_there(directory: Path, record: str, identity: dict[str, Any]) -> bool:
    """Whether a part was made with these settings.

    Raises:
      ValueError: it was made with others, or what says so is damaged.
    """
    try:
        said = provenance_of(directory, record)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / record} is damaged ({error}); remove {directory} and start again") from error
    if said is None:
        return False
    made = said.get("identity", {})
    different = [key for key in identity if made.get(key) != identity[key]]
    if different:
        name = different[0]
        told = f"with other settings ({name}: {made.get(name)}, now {identity[name]})"
        if name.endswith("_checksum"):
            told = f"by an earlier state of {identity[name.replace('_checksum', '_run')]}, which was trained anew since"
        raise ValueError(f"{directory / record} was made {told}; give another retrieve.name, or remove that file")
    logger.info("%s is there already, and used again", directory / record)
    return True
