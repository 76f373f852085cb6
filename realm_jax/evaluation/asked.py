"""What an evaluation asks: masked sentences of a corpus, files of questions, BEIR folders."""

import re
from pathlib import Path

from realm_jax.corpus.sources.tfds import PREFIX as TFDS_PREFIX
from realm_jax.corpus.store import Corpus
from realm_jax.evaluation import queries
from realm_jax.evaluation.beir import beir_queries, qrels_of
from realm_jax.evaluation.queries import QuerySet, known_items, masked_sentences
from realm_jax.evaluation.trec import require_ir_measures
from realm_jax.tasks.realm import check_same_tokenizer


def query_sets(
    knowledge: Corpus,
    x_corpus: str | None,
    questions: str | tuple[str, ...] | None,
    name: str,
    max_queries: int | None,
    seed: int,
    answers_are_regex: bool | None = None,
) -> dict[str, QuerySet]:
    """What is asked, by the name that its figures get.

    Raises:
      ValueError: two files of questions of the same name, or none.
    """
    if x_corpus is not None:
        sentences = Corpus.open(x_corpus)
        check_same_tokenizer(knowledge, sentences)
        if sentences.directory.resolve() == knowledge.directory.resolve():
            return {name: known_items(knowledge, max_queries, seed)}
        return {name: masked_sentences(sentences, max_queries, seed)}
    files = {name: questions} if isinstance(questions, str) else {}
    for file in questions if isinstance(questions, tuple) else ():
        set_name = f"{name}-{short_name(file)}"
        if set_name in files:
            raise ValueError(f"questions {files[set_name]} and {file} would both be written to {set_name}; rename one")
        files[set_name] = file
    if not files:
        raise ValueError("evaluate.questions holds no file")
    return {set_name: _asked(file, knowledge, max_queries, seed, answers_are_regex) for set_name, file in files.items()}


def short_name(source: str) -> str:
    """What a source of questions is called in file names: squad.dev for a/squad.dev.jsonl.gz, fiqa-dev for a BEIR split."""
    if source.startswith(TFDS_PREFIX):
        without_place = re.sub(r"data_dir=[^&]*", "", source.removeprefix(TFDS_PREFIX))
        return re.sub(r"[^\w.]+", "_", without_place).strip("_")
    path = Path(source)
    if path.parent.name == "qrels":
        return f"{path.parent.parent.name}-{path.stem}"
    return re.sub(r"(\.(jsonl|json|tsv|csv|txt))?(\.(gz|bz2|xz))?$", "", path.name)


def _asked(
    source: str, knowledge: Corpus, max_queries: int | None, seed: int, answers_are_regex: bool | None
) -> QuerySet:
    if source.startswith(TFDS_PREFIX) or (qrels := qrels_of(source)) is None:
        return queries.questions(source, knowledge, knowledge.tokenizer, max_queries, seed, answers_are_regex)
    require_ir_measures()
    return beir_queries(qrels, knowledge, knowledge.tokenizer, max_queries, seed)
