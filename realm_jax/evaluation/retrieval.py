"""The evaluate job: how well documents are found, by a checkpoint, by the served index, by BM25, in one table."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from realm_jax.answering.loading import Answering, served_version
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.evaluation.answering import answer_queries, check_answering
from realm_jax.evaluation.asked import query_sets
from realm_jax.evaluation.beir import rank_documents
from realm_jax.evaluation.bm25 import Bm25Index
from realm_jax.evaluation.judging import Judge, SearchFunction, evaluate_rankings
from realm_jax.evaluation.queries import RetrievalQuery, check_any, texts_for_search, window
from realm_jax.evaluation.reading import check_reader, evaluate_reading, reading_table
from realm_jax.evaluation.retrieval_table import table
from realm_jax.evaluation.trec import score_run, write_qrels, write_run
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.build_version import BatchSettings
from realm_jax.retrieval.embedder import Embedder, check_inputs, check_params
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.retrieval.index import Index, SearchResult
from realm_jax.retrieval.manifest import Manifest
from realm_jax.retrieval.recall import embed_sentences
from realm_jax.retrieval.versions import list_versions, load_version, verify, version_dir
from realm_jax.run_dir import RunDir, write_json_atomically
from realm_jax.tasks.ict import check_vocabulary
from realm_jax.tasks.realm import Realm
from realm_jax.training.checkpoint import check_tokenizer, load_params
from realm_jax.training.snapshots import list_snapshots, load_snapshot

logger = logging.getLogger(__name__)

_QUERIES_AT_ONCE = 64

Rows = dict[str, dict[str, Any]]  # figures by row of the table


def evaluate(
    *,
    run_dir: str,
    corpus: str,
    retriever: RetrieverConfig | None = None,
    x_corpus: str | None = None,
    questions: str | tuple[str, ...] | None = None,
    answers_are_regex: bool | None = None,
    name: str = "retrieval",
    step: int | None = None,
    index_version: int | None = None,
    stages: tuple[str, ...] = ("ict",),
    query_len: int = 96,
    document_len: int = 288,
    batch_size: int = 64,
    afresh: bool = True,
    served: bool = True,
    max_queries: int | None = None,
    bm25: bool = True,
    reading: Realm | None = None,
    num_masked_sentences: int = 1000,
    answering: Answering | None = None,
    answer_texts: bool = False,
    random_documents: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures retrieval: recall@1/5/20/100, MRR and nDCG@10 by gold document and by contained answer.

    Rows of the table: BM25; warm starts of the run; the checkpoint with all documents embedded afresh and searched
    exactly; and, if the run serves an index, the checkpoint's queries searched in it, with its own search recall.

    Args:
      run_dir: the run; the figures go to RUN/evaluation/NAME.json, of several files of questions to NAME-FILE.json.
      corpus: directory of the knowledge corpus.
      retriever: shape of the run's retriever; None measures BM25 alone.
      x_corpus: directory of a sentence stream; its answers are masked. Either this or `questions`. The knowledge corpus
        itself: sentences of the documents, each of which should find its own document.
      questions: a file in any format that `realm_jax.data.questions` reads, `tfds:NAME?split=…`, or a BEIR folder or one
        of its qrels files. Of several each gets a table; documents are embedded once. A BEIR split is scored with
        ir-measures too, the rankings written to RUN/evaluation/NAME-ROW.run.
      answers_are_regex: whether the questions' answers are regular expressions; None believes the file.
      name: of the evaluation.
      step: which checkpoint or snapshot; None for the newest.
      index_version: which index version; None for the one that the run serves, or its newest.
      stages: warm starts to measure beside it, those that the run has (RUN/stages/NAME).
      query_len: pieces of `[CLS] x [SEP]`.
      document_len: pieces of `[CLS] title [SEP] body [SEP]`.
      batch_size: documents embedded at once.
      afresh: embed all documents with the checkpoint and the warm starts; False measures the served index alone, which is
        the same where the document side is frozen, and needs no embedding.
      served: measure the index that the run serves, too. False for another corpus than the run's: what has been trained is
        asked about documents that it has never seen.
      max_queries: how many queries, drawn by `seed`; None for all.
      bm25: whether to measure BM25.
      reading: the settings of a `realm` run; given them, how well masked spans of `x_corpus` are filled is measured too,
        and written to RUN/evaluation/reading.json and RUN/examples.json.
      num_masked_sentences: how many for that.
      answering: the settings of an `open_qa` or `rag` run, or of RA-DIT's pair; given them, its answers to the questions are scored too, with the served
        index, and written to RUN/evaluation/NAME-answers.json.
      answer_texts: score the answers by ROUGE-L and BLEU, too: for answers of more than a name (realm_jax[text-scores]).
      random_documents: answer from documents drawn at random, too: what harm those do that do not help.
      seed: of the draws.

    Returns:
      What was written: "rows" holds one object a row. Of several files of questions: that of each by its name.

    Raises:
      ValueError: for corpora, indexes and models that do not fit each other, before any slow work.
      FileNotFoundError: when the run has no such checkpoint.
    """
    begin = time.monotonic()
    run = RunDir.of(run_dir)
    if not (afresh or served):
        raise ValueError(
            "evaluate.afresh and evaluate.served are both False, so that nothing would be searched; leave one out"
        )
    if (x_corpus is None) == (questions is None):
        raise ValueError(
            "evaluate needs either x_corpus (sentences to mask) or questions (a file, a TFDS name or a BEIR folder), "
            f"got {'neither' if questions is None else 'both: set evaluate.x_corpus to None to use the questions'}"
        )
    if reading is not None:
        check_reader(run)
    if answering is not None:
        check_answering(run, retriever, answering, questions, answer_texts)
    knowledge = Corpus.open(corpus)
    asked = query_sets(knowledge, x_corpus, questions, name, max_queries, seed, answers_are_regex)
    queries = {set_name: check_any(query_set) for set_name, query_set in asked.items()}
    batches = BatchSettings(document_len=document_len, batch_size=batch_size, query_len=query_len)
    learned = None
    if retriever is not None:
        learned = _load_learned(
            run, retriever, knowledge, batches, stages if afresh else (), step, index_version, served
        )
        if not afresh and learned.served is None:
            raise ValueError(
                f"evaluate.afresh=False measures the index that a run serves, but {run.index} has no version; make one with "
                "the embed job, or set afresh to True"
            )

    rows: dict[str, Rows] = {set_name: {} for set_name in asked}
    judge = Judge(knowledge)
    words = Bm25Index(texts_for_search(knowledge)) if bm25 else None
    indexes: dict[str, Index] = {}
    for row, figures, search in _searches(run, knowledge, batches, words, learned, indexes, afresh):
        for set_name in asked:
            rows[set_name][row] = {**figures, **evaluate_rankings(queries[set_name], search, judge)}
            if judgements := asked[set_name].judgements:
                ranked = rank_documents(queries[set_name], search, knowledge)
                write_run(run.ranking(set_name, row), ranked, row)
                rows[set_name][row]["beir"] = score_run(ranked, judgements)
        logger.info("retrieval of %s measured, %.0f s so far", row, time.monotonic() - begin)
    results = {}
    for set_name, query_set in asked.items():
        results[set_name] = {
            "name": set_name,
            "queries": {
                "kind": query_set.kind,
                "source": query_set.source,
                "count": len(queries[set_name]),
                "dropped": query_set.dropped,
            },
            "corpus": {"directory": str(knowledge.directory), "documents": knowledge.num_documents},
            "rows": rows[set_name],
            "wall_secs": round(time.monotonic() - begin, 3),
        }
        write_json_atomically(run.evaluation(set_name), results[set_name])
        if query_set.judgements:
            write_qrels(run.judgements(set_name), query_set.judgements)
        print(table(rows[set_name], query_set))
        if answering is not None:
            searched = "served_index" if "served_index" in rows[set_name] else "checkpoint"
            results[set_name]["answers"] = answer_queries(
                run,
                set_name,
                answering,
                knowledge,
                indexes.get(searched),
                queries[set_name],
                step=step,
                retrieval={
                    answering.name: rows[set_name].get(searched, {}),
                    "bm25": rows[set_name].get("bm25", {}),
                },
                bm25=words,
                texts=answer_texts,
                random_seed=seed if random_documents else None,
            )
    if reading is not None:
        # the reader is measured with the newest checkpoint: the indexes of another step are of no use to it
        made = {"realm": "checkpoint", "ict": "ict"} if step is None else {}
        spans, examples = evaluate_reading(
            run,
            reading,
            x_corpus or corpus,
            num_sentences=num_masked_sentences,
            seed=seed,
            indexes={row: indexes[name] for row, name in made.items() if name in indexes},
            bm25=words,
        )
        write_json_atomically(run.evaluation("reading"), {"name": "reading", "rows": spans})
        write_json_atomically(run.examples, examples)
        print(reading_table(spans))
    return results.get(name, results)


class _Retriever(NamedTuple):
    """A retriever at a step of its training."""

    step: int
    params: Mapping[str, Any]


class _Learned(NamedTuple):
    """What a run has learned: parameters by row of the table, the checkpoint's last; the index that it serves, if any."""

    config: RetrieverConfig
    retrievers: dict[str, _Retriever]
    served: Manifest | None


def _load_learned(
    run: RunDir,
    config: RetrieverConfig,
    knowledge: Corpus,
    batches: BatchSettings,
    stages: tuple[str, ...],
    step: int | None,
    index_version: int | None,
    served: bool,
) -> _Learned:
    """Loads what is measured, and refuses what does not fit before anything is embedded."""
    check_vocabulary(knowledge, config.encoder.vocab_size, "retriever")
    retrievers = {}
    for stage in stages:
        if run.stage(stage).checkpoints.is_dir() or list_snapshots(run.stage(stage)):
            retrievers[stage] = _Retriever(*retriever_params(run.stage(stage), knowledge))
    retrievers["checkpoint"] = _Retriever(*retriever_params(run, knowledge, step))
    there = served and (index_version is not None or list_versions(run.index))
    version, manifest = served_version(run, index_version) if there else None, None
    if version is not None:
        manifest = verify(
            version_dir(run.index, version),
            corpus_fingerprint=knowledge.fingerprint,
            embed_dim=config.embed_dim,
            num_documents=knowledge.num_documents,
        )
    for retriever in retrievers.values():
        check_params(config, retriever.params)
    check_inputs(config, knowledge, batches)
    return _Learned(config, retrievers, manifest)


def _searches(
    run: RunDir,
    knowledge: Corpus,
    batches: BatchSettings,
    words: Bm25Index | None,
    learned: _Learned | None,
    indexes: dict[str, Index],
    afresh: bool,
) -> Iterator[tuple[str, dict[str, Any], SearchFunction]]:
    """(row, what is known of it, its search), one after the other.

    Each retriever searches exactly in all documents embedded afresh, the checkpoint's in the served index too; what is
    searched is kept in `indexes`.
    """
    if words is not None:
        yield "bm25", {}, bm25_search(words)
    if learned is None:
        return
    special = SpecialIds.of(knowledge.tokenizer)
    for name, retriever in learned.retrievers.items():
        embedder = Embedder(learned.config, retriever.params)
        if not afresh:
            continue
        indexes[name] = ExactIndex(embedder.embed_corpus(knowledge, batches))
        yield name, {"step": retriever.step}, retriever_search(embedder, indexes[name], batches.query_len, special)
    if learned.served is not None:  # with the queries of the checkpoint, which came last
        version = learned.served.version
        index = indexes["served_index"] = load_version(version_dir(run.index, version), manifest=learned.served)
        known = {"step": retriever.step, "version": version, "search_recall": learned.served.search_recall}
        yield "served_index", known, retriever_search(embedder, index, batches.query_len, special)


def bm25_search(index: Bm25Index) -> SearchFunction:
    """Search with the words of the queries."""
    return lambda queries, num_results: index.search([query.text for query in queries], num_results)


def retriever_search(embedder: Embedder, index: Index, query_len: int, special: SpecialIds) -> SearchFunction:
    """Search with queries embedded by a retriever, in any index."""

    def search(queries: Sequence[RetrievalQuery], num_results: int) -> SearchResult:
        pieces = [window(query.pieces, query_len - 2, special.mask) for query in queries]
        at_once = embedder.rounded(_QUERIES_AT_ONCE)
        return index.search(embed_sentences(pieces, embedder.embed_queries, query_len, at_once, special), num_results)

    return search


def retriever_params(run: RunDir, corpus: Corpus, step: int | None = None) -> tuple[int, Mapping[str, Any]]:
    """The retriever's parameters of a checkpoint or, where there is none of that step, of a snapshot.

    Returns:
      (step, parameters).

    Raises:
      FileNotFoundError: when the run has neither.
      ValueError: a run without a retriever, or one that reads other pieces than the corpus has.
    """
    tokenizer = corpus.info.tokenizer_fingerprint
    check_tokenizer(run, tokenizer, step)
    try:
        found, params = load_params(run, step)
    except FileNotFoundError:
        snapshots = list_snapshots(run)
        wanted = snapshots[-1] if step is None and snapshots else step
        if wanted not in snapshots:
            raise
        assert wanted is not None
        return wanted, load_snapshot(run, wanted, tokenizer)
    if "retriever" not in params:
        raise ValueError(f"{run.path} has trained {', '.join(params)} and no retriever; name a run that has one")
    return found, params["retriever"]
