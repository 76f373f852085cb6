"""The corpus job: reads articles, cuts them into blocks, tags salient spans, tokenizes, writes a corpus directory."""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from realm_jax.corpus import dataset
from realm_jax.corpus.blocks import PieceRows
from realm_jax.corpus.cutting import CutBatch, CutBatches, Cutter, available_cores, cut_in_order, in_batches
from realm_jax.corpus.generator_pieces import add_pieces
from realm_jax.corpus.info import CORPUS_FILE, CorpusInfo, read_info
from realm_jax.corpus.salient_spans import RuleTagger, SalientSpanTagger, SpacyTagger
from realm_jax.corpus.source_text import DUPLICATE, TOO_SHORT, SourceText, listed
from realm_jax.corpus.sources import Article
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.world import WorldConfig
from realm_jax.corpus.writer import DEFAULT_TITLE_LEN, CorpusWriter
from realm_jax.run_dir import RunDir, check_can_write
from realm_jax.storage import (
    Place,
    as_place,
    clear_scratch,
    copy_of,
    fetch,
    is_remote,
    publish_folder,
    require_local,
    scratch_of,
)
from realm_jax.text.loading import load_generator_tokenizer, load_tokenizer
from realm_jax.text.sentence_piece import ModelType, VocabularyTooLargeError, train_sentencepiece
from realm_jax.text.tokenizer import SPECIAL_PIECES, Tokenizer

logger = logging.getLogger(__name__)

TELL_EVERY_SECS = 15.0  # of how far it is, where no bar is drawn

WORLD = "world"
TRAIN = "train"
TRAIN_BPE = "train:bpe"
RULES = "rules"
MODEL = "model"
WORDS_FILE = "salient_spans.json"
_SMALLEST_BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Training:
    """A SentencePiece model to train: `vocab_size` pieces, or as many as the texts can give."""

    vocab_size: int
    model_type: ModelType = "unigram"
    character_coverage: float = 0.9995

    def learn(self, texts: Sequence[str]) -> Tokenizer:
        """Trains on the texts.

        Raises:
          ValueError: there is no text, or more different characters than pieces.
        """
        num_chars = sum(map(len, texts))
        if num_chars == 0:
            raise ValueError("expected text to train a tokenizer on, got none; check the source")
        logger.info("training a tokenizer of %d pieces on %.1f million characters", self.vocab_size, num_chars / 1e6)
        try:
            return train_sentencepiece(texts, self.vocab_size, self.character_coverage, self.model_type)
        except VocabularyTooLargeError as error:
            logger.warning(
                "the text gives at most %d pieces: vocabulary lowered from %d", error.maximum, self.vocab_size
            )
            return train_sentencepiece(texts, error.maximum, self.character_coverage, self.model_type)


class Documents(NamedTuple):
    """Documents of a batch as they entered the corpus, from row `first` on, and what each was cut from."""

    first: int
    articles: list[Article]
    texts: list[str]


@dataclasses.dataclass(frozen=True)
class Build:
    """How to write one corpus directory from a stream of articles.

    Attributes:
      directory: the corpus.
      tokenizer: gives the pieces.
      tagger: finds salient spans where articles bring none.
      block_len, title_len, min_pieces, num_workers: see `corpus`.
      drop_duplicates: leave out blocks whose text was there before.
      gold_document: the row of the knowledge corpus that an article belongs to, for a stream of sentences.
      on_documents: told of every batch that was written.
    """

    directory: Path
    tokenizer: Tokenizer
    tagger: SalientSpanTagger | None
    block_len: int
    title_len: int = DEFAULT_TITLE_LEN
    min_pieces: int = 1
    num_workers: int = 0
    drop_duplicates: bool = True
    gold_document: Callable[[Article], int] | None = None
    on_documents: Callable[[Documents], None] | None = None

    def cutter(self) -> Cutter:
        """Cuts articles into the documents of this corpus."""
        keep_texts = self.on_documents is not None
        return Cutter(self.tokenizer, self.tagger, self.block_len, self.title_len, self.min_pieces, keep_texts)

    def cut(self, articles: Iterable[Article]) -> CutBatches:
        """Cuts articles on this machine, in order."""
        return cut_in_order(self.cutter(), in_batches(articles), self.num_workers)

    def write(
        self,
        cut_batches: CutBatches,
        dropped: Counter[str],
        total_chars: int | None = None,
        before_finish: Callable[[Counter[str]], None] = lambda counts: None,
        **info: Any,
    ) -> CorpusInfo:
        """Writes the corpus; corpus.json comes last, so a build that fails or is killed leaves none.

        Args:
          cut_batches: the documents, in order, as `cut` gives them.
          dropped: counts by cause; those of the source are in it once the batches are read through.
          total_chars: of all articles, for the progress bar.
          before_finish: called with the counts when all but corpus.json is there; its errors leave no corpus.
          **info: fields of corpus.json: source, licence, settings.
        """
        counts: Counter[str] = Counter()
        seen: set[int] = set()
        characters, told_at = 0, time.monotonic()
        with (
            CorpusWriter(self.directory, self.tokenizer, self.block_len, self.title_len) as writer,
            dataset.BlockWriter(self.directory / "blocks") as block_writer,
            tqdm(total=total_chars, unit="char", unit_scale=True, desc=self.directory.name, disable=None) as bar,
            contextlib.closing(cut_batches) as batches,
        ):
            for batch, cut in batches:
                keep = self._keep(cut, seen)
                rows = cut.rows.select(keep)
                origins = [batch[a] for a in cut.articles[keep].tolist()]
                places = np.flatnonzero(keep).tolist()
                if self.on_documents is not None:
                    texts = [cut.texts[i] for i in places]
                    self.on_documents(Documents(writer.num_documents, origins, texts))
                writer.add(rows, [article.id for article in origins], *self._gold(origins))
                block_writer.add(cut.records[i] for i in places)
                dropped[TOO_SHORT] += cut.too_short
                dropped[DUPLICATE] += len(keep) - len(places)
                counts.update(_counts(batch, cut, rows))
                bar.update(cut.characters)
                bar.set_postfix(documents=writer.num_documents, refresh=False)
                characters += cut.characters
                if bar.disable and time.monotonic() - told_at >= TELL_EVERY_SECS:
                    told_at = time.monotonic()
                    share = f", {100 * characters // total_chars} % of the text" if total_chars else ""
                    logger.info("%d documents so far%s", writer.num_documents, share)
            dropped += Counter()  # forgets causes that did not occur
            if writer.num_documents == 0:
                causes = listed(dropped) or "nothing was read"
                raise ValueError(f"no text for a corpus in {info.get('source')} ({causes}); expected some article")
            block_writer.finish()
            before_finish(counts)
            return writer.finish(dropped=dropped, counts=counts, has_blocks=True, **info)

    def _keep(self, cut: CutBatch, seen: set[int]) -> Bool[np.ndarray, "num_documents"]:
        keep = np.ones(len(cut.records), bool)
        if self.drop_duplicates:
            for i, digest in enumerate(cut.hashes):
                keep[i] = digest not in seen
                seen.add(digest)
        return keep

    def _gold(self, origins: list[Article]) -> tuple[list[int] | None, list[tuple[str, ...]] | None]:
        if self.gold_document is None:
            return None, None
        return [self.gold_document(article) for article in origins], [article.answers for article in origins]


def corpus(
    *,
    run_dir: str,
    output_dir: str | None = None,
    source: str | tuple[str, ...] = WORLD,
    source_format: str = "auto",
    block_len: int = 288,
    title_len: int = DEFAULT_TITLE_LEN,
    min_pieces: int = 4,
    tokenizer: str = TRAIN,
    vocab_size: int = 30522,
    tagger: str = "rules",
    sample_chars: int = 10_000_000,
    max_dropped_share: float = 0.1,
    licence: str = "unknown",
    world: WorldConfig | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    pipeline_options: tuple[str, ...] | None = None,
    pipeline_dir: str | None = None,
    generator_tokenizer: str = "",
) -> CorpusInfo:
    """Builds a corpus: text cut into blocks, tagged, tokenized, and stored for random access.

    A finished corpus of the same settings and the same text is used again. See docs/corpus.md.

    Args:
      run_dir: the run; the corpus is written to RUN/corpus unless `output_dir` says otherwise.
      output_dir: where to write the corpus.
      source: a file, a folder, `tfds:NAME`, or a tuple of several; or "world", the generated encyclopedia. An id that
        an earlier source has given gets the number of its source in front. `run_dir` and `output_dir` may lie below a
        folder, and are no part of it.
      source_format: a name of `sources.FORMATS`, or "auto".
      block_len: most pieces of a block; its title is not counted.
      title_len: most pieces of a title; the rest is cut.
      min_pieces: articles of fewer pieces are left out.
      tokenizer: "train" trains a SentencePiece unigram model on a sample, "train:bpe" one by byte-pair merges (some ten
        times faster); else a tokenizer directory (that of another corpus), a SentencePiece model or a BERT vocab.txt.
      vocab_size: of the tokenizer to train; less if the text is too small for it.
      tagger: "rules", "rules:FILE" with the word counts of another corpus, "model:DIR" for a trained one (docs/tagger.md),
        "spacy:PIPELINE" or "none".
      sample_chars: how much text to train the tokenizer on and to count words in.
      max_dropped_share: the job fails if more of the records are empty, malformed, not UTF-8 or too long.
      licence: of the text, kept in corpus.json.
      world: the generated encyclopedia's settings, for source "world".
      seed: of the sample.
      num_workers: processes beside this one, which start once the text proves long; 0 does everything here, None has
        one for each core (with a trained tagger: 0, since its model uses all cores). The corpus does not depend on it.
      pipeline_options: reads and cuts in an Apache Beam pipeline with these flags, such as ("--runner=FlinkRunner",
        "--flink_master=HOST:8081"); () takes Beam's own defaults. The corpus does not depend on them. None: no Beam.
      pipeline_dir: a folder that this machine and the runner's workers share, for what they hand back; it is removed in
        the end. By default one in the corpus directory.
      generator_tokenizer: directory of a second tokenizer, in whose pieces the documents are kept too: for generators that
        have another one than the retriever (RAG). May be given when the corpus is there already.

    Raises:
      ValueError: for settings that make no sense, a finished corpus of other settings in the same place, a source
        without usable text, or too much dropped.
      FileNotFoundError: the source is not there.
    """
    sources = (source,) if isinstance(source, str) else source
    _check_pipeline(sources, pipeline_options, pipeline_dir, num_workers)
    if num_workers is None:
        cores = available_cores()
        num_workers = cores if cores > 1 and not tagger.startswith(f"{MODEL}:") else 0
    run = RunDir.of(run_dir)
    place = as_place(output_dir) if output_dir else run.corpus
    directory = scratch_of(place)  # where it is built; the place itself if that is local
    _check_sources(sources, world)
    _check_apart(sources, run_dir=run.path, output_dir=place)
    _check_at_least(_SMALLEST_BLOCK, " pieces", block_len=block_len)
    _check_at_least(len(SPECIAL_PIECES) + 1, " pieces", vocab_size=vocab_size)
    _check_at_least(0, title_len=title_len, num_workers=num_workers)
    _check_at_least(1, min_pieces=min_pieces)
    if not 0 <= max_dropped_share <= 1:
        raise ValueError(f"expected max_dropped_share between 0 and 1, got {max_dropped_share}")
    if tagger != RULES:
        make_tagger(tagger, ())  # refuses an unknown name before the slow work
    given = None if tokenizer in (TRAIN, TRAIN_BPE) else load_tokenizer(tokenizer)
    learner = given or Training(vocab_size, "bpe" if tokenizer == TRAIN_BPE else "unigram")
    paths = tuple(str(fetch(path)) if is_remote(path) else path for path in sources if path != WORLD)
    text = SourceText(paths, source_format, max_dropped_share, (copy_of(run.path), copy_of(place)))
    settings = {
        "source": list(sources),
        "source_format": source_format,
        "source_stamp": text.stamp(),
        "block_len": block_len,
        "title_len": title_len,
        "min_pieces": min_pieces,
        "tokenizer": tokenizer if given is None else given.fingerprint,
        "vocab_size": learner.vocab_size,
        "tagger": _tagger_identity(tagger),
        "sample_chars": sample_chars,
        "seed": seed,
    }
    if WORLD in sources:
        world = world or WorldConfig()
        settings["world"] = dataclasses.asdict(world)
    second = load_generator_tokenizer(generator_tokenizer) if generator_tokenizer else None
    if (finished := _finished(place, settings)) is not None:
        logger.info("%s holds this corpus already (%d documents): used again", place, finished.num_documents)
        if second is not None:
            require_local(place, "a corpus that generator_tokenizer is added to")
            add_pieces(Corpus.open(place), second)
        return finished
    clear_scratch(place)
    check_can_write(place, "corpus.output_dir" if output_dir else "the corpus")
    if world is not None:
        from realm_jax.corpus.build_world import build_world

        info = build_world(directory, world, learner, block_len, title_len, licence, settings)
    else:
        learned = _learn(text, learner, tagger, sample_chars, seed)
        build = Build(
            directory, learned.tokenizer, learned.tagger, block_len, title_len, min_pieces, num_workers=num_workers
        )
        pipeline = _pipeline(place, pipeline_options, pipeline_dir)
        info = _build_from_text(build, text, learned.total_chars, licence, settings, pipeline)
    if second is not None:
        add_pieces(Corpus.open(directory), second)
    publish_folder(place, CORPUS_FILE)
    log_statistics(place, info)
    return info


def _check_sources(sources: Sequence[str], world: WorldConfig | None) -> None:
    if not sources or (WORLD in sources and len(sources) > 1):
        raise ValueError(f"expected one source, or several paths, got {sources!r}")
    if world is not None and WORLD not in sources:
        raise ValueError(f'world settings are for source="{WORLD}", got source={sources!r}; leave one of them out')


def _check_pipeline(
    sources: Sequence[str], options: tuple[str, ...] | None, shared_dir: str | None, num_workers: int | None
) -> None:
    if options is None:
        if shared_dir is not None:
            raise ValueError(
                "pipeline_dir is for a pipeline; give pipeline_options (() for Beam's own), or leave it out"
            )
        return
    if WORLD in sources:
        raise ValueError(
            f'expected source to name text for a pipeline, got "{WORLD}"; leave pipeline_options out for it'
        )
    if num_workers is not None:
        raise ValueError(
            f"a pipeline has the workers that its runner gives it, got num_workers={num_workers}; leave it out, and tell "
            "the runner in pipeline_options (--direct_num_workers, --num_workers, --parallelism)"
        )
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError("pipeline_options needs Apache Beam: pip install 'realm_jax[beam]', on the workers too")
    from realm_jax.corpus.beam_pipeline import check_options  # Beam, which the job does without otherwise

    check_options(options)


def _pipeline(
    place: Place, options: tuple[str, ...] | None, shared_dir: str | None
) -> Callable[[Cutter, SourceText, Counter[str], Counter[str]], CutBatches] | None:
    if options is None:
        return None
    from realm_jax.corpus.beam_pipeline import cut_in_pipeline, folder_in

    folder = folder_in(shared_dir) if shared_dir else str(place.absolute() / "unfinished-pipeline")
    return functools.partial(cut_in_pipeline, options=options, shared_dir=folder)


def _check_apart(sources: Sequence[str], **places: Place) -> None:
    """Refuses to write among the user's documents; a folder below them is left out of the source instead."""
    for name, place in places.items():
        for source in sources:
            if source != WORLD and not source.startswith("tfds:") and as_place(source).resolve() == place.resolve():
                raise ValueError(
                    f"expected a folder of its own for what is written, got {name}={place}, which is the source; "
                    f"name another {name}"
                )


def _check_at_least(least: int, unit: str = "", **settings: int) -> None:
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"expected {name} of at least {least}{unit}, got {value}")


class _Learned(NamedTuple):
    tokenizer: Tokenizer
    tagger: SalientSpanTagger | None
    total_chars: int | None  # of the source, if it was read whole


def _learn(text: SourceText, tokenizer: Tokenizer | Training, tagger: str, sample_chars: int, seed: int) -> _Learned:
    """Trains the tokenizer and counts words on a sample of the text, as far as they are not given."""
    if not isinstance(tokenizer, Training) and tagger != RULES:
        return _Learned(tokenizer, make_tagger(tagger, ()), None)
    sample = text.sample(sample_chars, seed)
    if isinstance(tokenizer, Training):
        tokenizer = tokenizer.learn(sample.texts)
    return _Learned(tokenizer, make_tagger(tagger, sample.texts), sample.chars_read if sample.is_whole else None)


def _build_from_text(
    build: Build,
    text: SourceText,
    total_chars: int | None,
    licence: str,
    settings: Mapping[str, Any],
    pipeline: Callable[[Cutter, SourceText, Counter[str], Counter[str]], CutBatches] | None,
) -> CorpusInfo:
    dropped: Counter[str] = Counter()
    renamed: Counter[str] = Counter()

    def before_finish(counts: Counter[str]) -> None:
        counts.update(renamed)
        text.check_dropped(dropped, counts["articles"])
        if isinstance(build.tagger, RuleTagger):
            build.tagger.save(build.directory / WORDS_FILE)

    if pipeline is None:
        batches = build.cut(text.read(dropped, renamed))
    else:
        batches = pipeline(build.cutter(), text, dropped, renamed)
    return build.write(
        batches,
        dropped,
        total_chars,
        before_finish,
        source=", ".join(settings["source"]),
        licence=licence,
        settings=settings,
    )


def make_tagger(name: str, texts: Iterable[str]) -> SalientSpanTagger | None:
    """A tagger by name: "rules", "rules:FILE", "model:DIR", "spacy:PIPELINE" or "none"."""
    kind, _, argument = name.partition(":")
    if name == RULES:
        return RuleTagger.fit(texts)
    if kind == RULES and argument:
        return RuleTagger.load(argument)
    if kind == MODEL and argument:
        from realm_jax.corpus.ner_tagger import NerTagger  # jax, which the other taggers do without

        return NerTagger.load(argument)
    if kind == "spacy" and argument:
        return SpacyTagger(argument)
    if name == "none":
        return None
    raise ValueError(f'expected tagger "rules", "rules:FILE", "model:DIR", "spacy:PIPELINE" or "none", got {name!r}')


def _tagger_identity(name: str) -> str:
    """What corpus.json keeps of a tagger's name: of a trained one its fingerprint, wherever it lies."""
    kind, _, argument = name.partition(":")
    if kind != MODEL:
        return name
    from realm_jax.corpus.ner_tagger import fingerprint

    return f"{MODEL}:{fingerprint(argument)}"


def log_statistics(directory: Place, info: CorpusInfo) -> None:
    """Says in a few lines what a finished corpus holds."""
    counts = info.counts
    logger.info(
        "%s: %d documents of %d articles, %d pieces (%.0f a document), vocabulary %d",
        directory,
        info.num_documents,
        counts["articles"],
        info.num_pieces,
        info.num_pieces / info.num_documents,
        info.vocab_size,
    )
    logger.info(
        "%d sentences, %d salient spans; %d documents without any; unknown pieces %.3f %%",
        counts["sentences"],
        counts["salient_spans"],
        counts["documents_without_salient_spans"],
        100 * counts["unknown_pieces"] / info.num_pieces,
    )
    if info.dropped:
        logger.info("dropped: %s", listed(info.dropped))


def _counts(batch: list[Article], cut: CutBatch, rows: PieceRows) -> dict[str, int]:
    return {
        "articles": len(batch),
        "characters": cut.characters,
        "sentences": len(rows.sentence_ends),
        "salient_spans": len(rows.salient_spans),
        "documents_without_salient_spans": int(np.count_nonzero(rows.span_counts == 0)),
        "split_sentences": cut.split_sentences,
        "lost_salient_spans": cut.lost_spans,
        "unknown_pieces": cut.unknown_pieces,
    }


def _finished(directory: Place, settings: Mapping[str, Any]) -> CorpusInfo | None:
    """The finished corpus of the same settings in the directory, if there is one."""
    if not (directory / CORPUS_FILE).exists():
        return None
    info = read_info(directory)
    differing = {
        name: f"{name}={info.settings.get(name)!r} there, {value!r} asked for"
        for name, value in settings.items()
        if info.settings.get(name) != value
    }
    if "source_stamp" in differing:
        differing["source_stamp"] = "the text has changed"
    if differing:
        raise ValueError(
            f"{directory} holds a corpus of other settings ({'; '.join(differing.values())}); "
            "give another place (output_dir), or delete that corpus to build it again"
        )
    try:
        return info if is_remote(directory) else Corpus.open(directory).info
    except ValueError as error:
        logger.warning("%s; building it again", error)
        return None
