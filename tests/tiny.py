"""A corpus of a few dozen made-up people, and models small enough to train in a test."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from realm_jax.corpus.blocks import Block
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.models import (
    EncoderDecoderConfig,
    LanguageModelConfig,
    RetrieverConfig,
    SpanReaderConfig,
    TransformerConfig,
)
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings, build_version
from realm_jax.retrieval.embedder import Embedder
from realm_jax.run_dir import RunDir
from realm_jax.tasks.ict import Ict
from realm_jax.tasks.open_qa import OpenQa
from realm_jax.tasks.rag import Rag
from realm_jax.tasks.realm import Realm
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from realm_jax.training.snapshots import list_snapshots, load_snapshot, snapshot_checksum

NAMES = ["ann", "bob", "cem", "dan", "eva", "fay", "gus", "hal", "ida", "jon", "kim", "lee"]
TOWNS = ["oslo", "rome", "bern", "kyiv", "lima", "cork", "nice", "graz"]
YEARS = [str(year) for year in range(1900, 1912)]
WORDS = [
    *NAMES,
    *TOWNS,
    *YEARS,
    "was",
    "born",
    "in",
    ".",
    "lived",
    "worked",
    "then",
    "and",
    "often",
    "[",
    "]",
    "mask",
    "so",
]
NUM_DOCUMENTS = 40


def tokenizer(words: Sequence[str] = WORDS) -> WordPieceTokenizer:
    """Whole words only, so that pieces are easy to tell."""
    return WordPieceTokenizer([*SPECIAL_PIECES, *words])


def article(title: str, sentences: list[str], salient: tuple[str, ...] = (), source: str | None = None) -> Block:
    """A block of sentences; `salient` words are its salient spans, wherever they stand."""
    text, sentence_spans = "", []
    for sentence in sentences:
        start = len(text) + bool(text)
        text += (" " if text else "") + sentence
        sentence_spans.append((start, len(text)))
    spans, place = [], 0
    for word in text.split(" "):
        if word in salient:
            spans.append((place, place + len(word)))
        place += len(word) + 1
    name = source or title or "untitled"
    as_array = [np.asarray(pairs, np.int32).reshape(-1, 2) for pairs in (sentence_spans, spans)]
    return Block(f"{name}#0", name, title, text, *as_array)


def blocks() -> list[Block]:
    """People with two to four sentences; document 5 has a single sentence, 7 a very long one, 9 no salient span."""
    made = []
    for number in range(NUM_DOCUMENTS):
        name, town = NAMES[number % len(NAMES)], TOWNS[(number * 5) % len(TOWNS)]
        year = YEARS[(number * 7 + number // 12) % len(YEARS)]
        sentences = [
            f"{name} was born in {town} .",
            f"{name} lived in {year} .",
            f"then {name} worked in {town} and so .",
        ]
        sentences.append("often " * (number % 5 + 1) + f"{name} lived in {TOWNS[number % 8]} .")
        kept = sentences[: 2 + number % 3]
        if number == 5:
            kept = kept[:1]
        if number == 7:
            kept = [("often " * 30) + f"{name} lived in {town} {year} " + "and so " * 20 + ".", kept[0]]
        salient = () if number == 9 else (town, year)
        made.append(article(f"{name} {year}" if number % 6 else "", kept, salient, source=f"person {number}"))
    return made


def corpus(directory: Path, words: Sequence[str] = WORDS) -> Corpus:
    return make_corpus(directory, blocks(), tokenizer(words), with_text=False)


def sentences_corpus(directory: Path) -> Corpus:
    """A separate X: one sentence a document of Z, worded otherwise, the town masked, its gold document known."""
    made = []
    for number, block in enumerate(blocks()):
        town = next(word for word in block.text.split() if word in TOWNS)
        name = next(word for word in block.text.split() if word in NAMES)
        made.append(article("", [f"in {town} {name} was ."], (town,), source=f"news {number}"))
    return make_corpus(directory, made, tokenizer(), gold_documents=range(NUM_DOCUMENTS), with_text=False)


def encoder(**changes: Any) -> TransformerConfig:
    return dataclasses.replace(
        TransformerConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=1,  # compiling takes most of a test's time, and grows with every layer
            num_heads=4,
            intermediate_size=48,
            max_length=64,
            dropout_rate=0.1,
            attention_dropout_rate=0.1,
            initializer_range=0.2,
        ),
        **changes,
    )


def encoder_decoder(**changes: Any) -> EncoderDecoderConfig:
    return dataclasses.replace(
        EncoderDecoderConfig(
            vocab_size=64,
            hidden_size=32,
            num_encoder_layers=1,
            num_decoder_layers=2,
            num_encoder_heads=4,
            num_decoder_heads=2,
            encoder_intermediate_size=48,
            decoder_intermediate_size=40,
            max_length=64,
            initializer_range=0.2,
        ),
        **changes,
    )


def language_model(**changes: Any) -> LanguageModelConfig:
    return dataclasses.replace(
        LanguageModelConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            intermediate_size=48,
            max_length=64,
            initializer_range=0.2,
        ),
        **changes,
    )


def retriever(**changes: Any) -> RetrieverConfig:
    return dataclasses.replace(RetrieverConfig(encoder=encoder(), projection_size=16, score_scale=0.25), **changes)


def ict(directory: Path, **changes: Any) -> Ict:
    return dataclasses.replace(
        Ict(corpus=str(directory), retriever=retriever(), query_len=12, document_len=32), **changes
    )


def realm(directory: Path, **changes: Any) -> Realm:
    return dataclasses.replace(
        Realm(
            corpus=str(directory),
            retriever=retriever(),
            reader=encoder(),
            num_candidates=4,
            query_len=16,
            document_len=24,
            joint_len=32,
            extra_results=4,
        ),
        **changes,
    )


def build_index(run: RunDir, step: int, config: RetrieverConfig, knowledge: Corpus, backend: Any = "exact") -> None:
    """What the embed job does with one snapshot."""
    embedder = Embedder(config, load_snapshot(run, step))
    build_version(
        run.index,
        step,
        embedder.embed_documents,
        knowledge,
        IndexSettings(backend=backend, recall_queries=8, recall_results=4),
        embed_dim=config.embed_dim,
        snapshot_checksum=snapshot_checksum(run, step),
        batches=BatchSettings(document_len=24, batch_size=jax.local_device_count(), num_lengths=1, query_len=16),
    )


def missing_versions(run: RunDir) -> list[int]:
    """Snapshots that have no index version yet."""
    return [step for step in list_snapshots(run) if not (run.index_version(step) / "manifest.json").exists()]


def questions_file(path: Path) -> Path:
    """Where everyone of the made-up people lived or worked: one question a document, its article the gold passage."""
    rows = []
    for number, block in enumerate(blocks()):
        name, year = NAMES[number % len(NAMES)], YEARS[(number * 7 + number // 12) % len(YEARS)]
        town = next(word for word in block.text.split() if word in TOWNS)
        rows.append({"question": f"{name} {year} lived in", "answer": [town], "gold_id": f"person {number}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def open_qa(directory: Path, questions: Path, **changes: Any) -> OpenQa:
    return dataclasses.replace(
        OpenQa(
            corpus=str(directory),
            questions=str(questions),
            retriever=retriever(tied=False),
            reader=SpanReaderConfig(encoder(), span_hidden_size=24, max_span_width=3),
            num_retrieved=10,
            num_read=3,
            query_len=8,
            joint_len=32,
            document_len=24,
        ),
        **changes,
    )


def rag(directory: Path, questions: Path, **changes: Any) -> Rag:
    """On the corpus's own pieces, which pad with 0 and begin and end with [CLS] and [SEP]."""
    return dataclasses.replace(
        Rag(
            corpus=str(directory),
            questions=str(questions),
            retriever=retriever(tied=False),
            generator=encoder_decoder(pad_id=0, bos_id=2, eos_id=3, decoder_start_id=3, forced_eos_id=3),
            num_documents=3,
            query_len=8,
            source_len=32,
            target_len=8,
            document_len=24,
        ),
        **changes,
    )
