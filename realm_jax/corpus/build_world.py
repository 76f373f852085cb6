"""The generated encyclopedia as corpora: the articles, two streams of sentences to mask, and the questions.

CORPUS/                  the articles
CORPUS/x_train           sentences to mask about training entities, each with its gold document
CORPUS/x_heldout         the same about held-out entities: for evaluation only
CORPUS/questions.jsonl   one {"id", "question", "answer", "gold_id", "gold_document", "split"} a line
CORPUS/questions_train.jsonl, questions_heldout.jsonl   the same by split: no training question is about a held-out entity
"""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from realm_jax.corpus.build import Build, Documents, Training
from realm_jax.corpus.info import CorpusInfo
from realm_jax.corpus.sample import sample_texts
from realm_jax.corpus.sources import Article
from realm_jax.corpus.world import Question, Split, World, WorldConfig, generate
from realm_jax.text.tokenizer import Tokenizer

QUESTIONS_FILE = "questions.jsonl"
_SAMPLE_CHARS = 1_000_000
STREAMS: dict[str, Split] = {"x_train": "train", "x_heldout": "heldout"}


def build_world(
    directory: Path,
    config: WorldConfig,
    tokenizer: Tokenizer | Training,
    block_len: int,
    title_len: int,
    licence: str,
    settings: Mapping[str, Any],
) -> CorpusInfo:
    """Generates a world and writes its corpora; the articles' corpus.json comes last of all.

    A tokenizer to train is trained on the articles and on what belongs to training entities.
    """
    world = generate(config)
    if isinstance(tokenizer, Training):
        texts = [article.text for article in world.articles]
        texts += [question.question for question in world.questions if question.split == "train"]
        texts += [sentence.text for sentence in world.sentences_of("train")]
        sample = sample_texts(texts, _SAMPLE_CHARS, config.seed).texts
        # Names are made of few letters, some of them rare: none may become unknown.
        tokenizer = dataclasses.replace(tokenizer, character_coverage=1.0).learn(sample)
    for name in STREAMS:
        shutil.rmtree(directory / name, ignore_errors=True)
    rows = _Rows()
    info = {"source": f"generated encyclopedia, seed {config.seed}", "licence": licence, "settings": settings}

    def before_finish(counts: Counter[str]) -> None:
        for name, split in STREAMS.items():
            _write_stream(directory / name, world, split, rows, tokenizer, block_len, info)
        _write_questions(directory / QUESTIONS_FILE, world.questions, rows)
        for split in ("train", "heldout"):
            own = [question for question in world.questions if question.split == split]
            _write_questions(directory / f"questions_{split}.jsonl", own, rows)

    build = Build(directory, tokenizer, None, block_len, title_len, drop_duplicates=False, on_documents=rows.add)
    total_chars = sum(len(article.text) for article in world.articles)
    return build.write(build.cut(world.articles), Counter(), total_chars, before_finish, **info)


class _Rows:
    """Where each article went: its documents' rows and texts."""

    def __init__(self) -> None:
        self._of: dict[str, list[tuple[int, str]]] = {}

    def add(self, documents: Documents) -> None:
        for row, (article, text) in enumerate(zip(documents.articles, documents.texts, strict=True), documents.first):
            self._of.setdefault(article.id, []).append((row, text))

    def gold(self, article_id: str, answers: Sequence[str]) -> int:
        """The document of the article that holds an answer; its first, should a cut have gone through the answer."""
        documents = self._of[article_id]
        holding = (row for row, text in documents if any(answer in text for answer in answers))
        return next(holding, documents[0][0])


def _write_stream(
    directory: Path,
    world: World,
    split: Split,
    rows: _Rows,
    tokenizer: Tokenizer,
    block_len: int,
    info: Mapping[str, Any],
) -> None:
    sentences = [
        Article(sentence.id, "", sentence.text, sentence.salient_spans, sentence.gold_id, (sentence.answer,))
        for sentence in world.sentences_of(split)
    ]
    if not sentences:  # heldout_share 0 or 1
        return
    stream = Build(
        directory,
        tokenizer,
        None,
        block_len,
        drop_duplicates=False,
        gold_document=lambda article: rows.gold(article.gold_id, article.answers),
    )
    stream.write(stream.cut(sentences), Counter(), sum(len(s.text) for s in sentences), **info)


def _write_questions(path: Path, questions: Sequence[Question], rows: _Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        for question in questions:
            record = {
                "id": question.id,
                "question": question.question,
                "answer": [question.answer],
                "gold_id": question.gold_id,
                "gold_document": rows.gold(question.gold_id, [question.answer]),
                "split": question.split,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
