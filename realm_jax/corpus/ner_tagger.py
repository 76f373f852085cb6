"""A trained tagger at work: names by the model of `tasks/tagger.py`, dates by regular expressions, as in the paper.

A tagger is a directory that needs no run beside it:

    TAGGER/tagger.json          the model's shape, its kinds, fingerprints; written last, so that it vouches for the rest
    TAGGER/params.safetensors   the parameters
    TAGGER/tokenizer/           its own: it need not be the corpus's
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int32

from realm_jax.corpus.salient_spans import RuleTagger, Spans, TaggedSpan
from realm_jax.data.inputs import SpecialIds
from realm_jax.data.tagger import Labels
from realm_jax.data.tagger_inputs import NO_PIECE, SentencePieces, Window, sentence_pieces, tagger_inputs, windows
from realm_jax.models import TransformerConfig
from realm_jax.models.token_tagger import TokenTagger, TokenTaggerConfig
from realm_jax.run_dir import read_json, write_json_atomically
from realm_jax.storage import fetch
from realm_jax.text.loading import load_tokenizer
from realm_jax.text.tokenizer import Tokenizer
from realm_jax.training.snapshots import flatten_params, nest_params

logger = logging.getLogger(__name__)

TAGGER_FILE, PARAMS_FILE, TOKENIZER_DIR = "tagger.json", "params.safetensors", "tokenizer"
FORMAT = "realm_jax tagger 1"


@functools.partial(jax.jit, static_argnames="config")
def predict_labels(
    params: Mapping[str, Any],
    ids: Int32[Array, "batch length"],
    segment_ids: Int32[Array, "batch length"],
    *,
    config: TokenTaggerConfig,
) -> Int32[Array, "batch length"]:
    """The likeliest label at every position: the one jitted program of the tagger."""
    logits = TokenTagger(config).apply({"params": params}, ids, segment_ids, ids != 0)
    assert isinstance(logits, jax.Array)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


class NerTagger:
    """Names by a trained model, dates by rules; tags many texts at once, in batches of few shapes, on all local devices.

    Args:
      config: of the model.
      params: its parameters.
      tokenizer: that it was trained with.
      kinds: of names, see `Labels`.
      lengths: of the rows, as in training.
      batch_size: rows of a batch; rounded up to a multiple of the devices.

    Raises:
      ValueError: parameters of another shape than the config's, or more pieces than it knows.
    """

    def __init__(
        self,
        config: TokenTaggerConfig,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        kinds: tuple[str, ...] = (),
        lengths: tuple[int, ...] = (32, 128),
        batch_size: int = 64,
    ):
        _check_params(config, params)
        if tokenizer.vocab_size > config.encoder.vocab_size:
            raise ValueError(
                f"the tagger knows {config.encoder.vocab_size} pieces, its tokenizer has {tokenizer.vocab_size}; give it the "
                "tokenizer that it was trained with"
            )
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.labels, self.lengths = Labels(kinds), lengths
        self.special = SpecialIds.of(tokenizer)
        self._dates = RuleTagger()
        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self._rows, self._placed = NamedSharding(mesh, P("data")), jax.device_put(params, NamedSharding(mesh, P()))
        self.batch_size = -(-batch_size // len(devices)) * len(devices)

    def spans(self, text: str, sentences: Sequence[tuple[int, int]]) -> Spans:
        """Half-open character spans in the text, sorted and disjoint, each within one of the given sentences."""
        return self.batch_spans([text], [sentences])[0]

    def batch_spans(self, texts: Sequence[str], sentences: Sequence[Sequence[tuple[int, int]]]) -> list[Spans]:
        """`spans` of many texts, read together."""
        return [[(start, end) for start, end, _ in tagged] for tagged in self.batch_tagged(texts, sentences)]

    def batch_tagged(
        self, texts: Sequence[str], sentences: Sequence[Sequence[tuple[int, int]]]
    ) -> list[list[TaggedSpan]]:
        """The same spans with their kinds: the model's, and "date". Where a name and a date meet, the longer stays."""
        names = iter(self._names([text[a:b] for text, spans in zip(texts, sentences, strict=True) for a, b in spans]))
        found = []
        for text, spans in zip(texts, sentences, strict=True):
            tagged = [span for span in self._dates.tagged_spans(text, spans) if span.kind == "date"]
            for first, _ in spans:
                tagged += [TaggedSpan(first + start, first + end, kind) for start, end, kind in next(names)]
            found.append(_disjoint(tagged))
        return found

    def names(self, texts: Sequence[str]) -> list[list[TaggedSpan]]:
        """What the model alone finds, each text taken for one sentence."""
        return self._names(texts)

    def _names(self, sentences: Sequence[str]) -> list[list[TaggedSpan]]:
        pieces = sentence_pieces(sentences, self.tokenizer, self.config.encoder.num_segments)
        found = []
        for sentence, labels in zip(pieces, self._piece_labels(pieces), strict=True):
            there = sentence.first_pieces != NO_PIECE
            of_words = np.where(there, labels[np.where(there, sentence.first_pieces, 0)], 0) if len(labels) else ()
            found.append(
                [
                    TaggedSpan(int(sentence.words[name.start, 0]), int(sentence.words[name.end - 1, 1]), name.kind)
                    for name in self.labels.decode(np.asarray(of_words, np.int32).tolist())
                ]
            )
        return found

    def _piece_labels(self, sentences: Sequence[SentencePieces]) -> list[np.ndarray]:
        """The label of every piece of every sentence."""
        found = [np.zeros(len(sentence.ids), np.int32) for sentence in sentences]
        buckets: dict[int, list[tuple[int, Window]]] = {length: [] for length in self.lengths}
        for number, sentence in enumerate(sentences):
            for window in windows(len(sentence.ids), self.lengths[-1] - 2):
                if window.end > window.start:
                    fitting = int(np.searchsorted(self.lengths, window.end - window.start + 2))
                    buckets[self.lengths[fitting]].append((number, window))
        for length, bucket in buckets.items():
            for first in range(0, len(bucket), self.batch_size):
                part = bucket[first : first + self.batch_size]
                labels = self._predict(sentences, part, length)
                for row, (number, window) in enumerate(part):
                    kept = slice(window.keep_start, window.keep_end)
                    begin = 1 - window.start  # of the sentence in the row, after [CLS]
                    found[number][kept] = labels[row, begin + window.keep_start : begin + window.keep_end]
        return found

    def _predict(
        self, sentences: Sequence[SentencePieces], part: Sequence[tuple[int, Window]], length: int
    ) -> np.ndarray:
        """Labels of up to `batch_size` windows; empty rows make the batch full, so that there is one shape a length."""
        inputs = tagger_inputs(
            [sentences[number].ids[window.start : window.end] for number, window in part],
            [sentences[number].shapes[window.start : window.end] for number, window in part],
            length,
            self.special,
        )
        missing = ((0, self.batch_size - len(part)), (0, 0))
        placed = jax.device_put(tuple(np.pad(array, missing) for array in inputs), self._rows)
        return np.asarray(predict_labels(self._placed, *placed, config=self.config))

    def save(self, directory: str | Path) -> None:
        """Writes the tagger's directory beside its place and renames it; one that was there goes."""
        directory = Path(directory)
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self.tokenizer.save(temporary / TOKENIZER_DIR)
            flat = {name: np.ascontiguousarray(value) for name, value in sorted(flatten_params(self.params).items())}
            content = safetensors.numpy.save(flat)
            (temporary / PARAMS_FILE).write_bytes(content)
            record = {
                "format": FORMAT,
                "encoder": dataclasses.asdict(self.config.encoder),
                "kinds": list(self.labels.kinds),
                "lengths": list(self.lengths),
                "tokenizer": self.tokenizer.fingerprint,
                "params_sha256": hashlib.sha256(content).hexdigest(),
            }
            write_json_atomically(temporary / TAGGER_FILE, record)
            if directory.exists():
                shutil.rmtree(directory)
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, directory: str | Path, batch_size: int = 64) -> "NerTagger":
        """Loads what `save` wrote.

        Raises:
          ValueError: the directory holds no tagger, or its files are not those that were saved together.
        """
        directory = fetch(directory)
        record = read_record(directory)
        content = (directory / PARAMS_FILE).read_bytes() if (directory / PARAMS_FILE).is_file() else b""
        if hashlib.sha256(content).hexdigest() != record["params_sha256"]:
            raise ValueError(
                f"{directory / PARAMS_FILE} does not have the checksum of {TAGGER_FILE}; export the tagger again"
            )
        tokenizer = load_tokenizer(directory / TOKENIZER_DIR)
        if tokenizer.fingerprint != record["tokenizer"]:
            raise ValueError(
                f"the tagger in {directory} was trained on the pieces of tokenizer {record['tokenizer'][:12]}, its folder "
                f"{TOKENIZER_DIR} has {tokenizer.fingerprint[:12]}; put that one back, or export the tagger again"
            )
        kinds = tuple(record["kinds"])
        config = TokenTaggerConfig(TransformerConfig(**record["encoder"]), len(Labels(kinds).tags))
        lengths = tuple(record["lengths"])
        tagger = cls(
            config,
            nest_params(safetensors.numpy.load(content)),
            tokenizer,
            kinds=kinds,
            lengths=lengths,
            batch_size=batch_size,
        )
        tagger.directory = directory
        return tagger

    directory: Path | None = None  # where it was loaded from: a worker process loads it there too

    def __reduce__(self) -> tuple:
        if self.directory is None:
            raise ValueError(
                "only a tagger that was loaded from its directory can go to another process; save it first"
            )
        return NerTagger.load, (str(self.directory), self.batch_size)


def read_record(directory: Path) -> dict[str, Any]:
    """The content of tagger.json.

    Raises:
      ValueError: there is none, or it is not such a record.
    """
    try:
        record = read_json(directory / TAGGER_FILE)
    except FileNotFoundError as error:
        raise ValueError(
            f"no tagger at {directory}: expected a directory with {TAGGER_FILE}, as the tagger job writes it to RUN/tagger"
        ) from error
    wanted = {"encoder", "kinds", "lengths", "tokenizer", "params_sha256"}
    if not isinstance(record, dict) or record.get("format") != FORMAT or not wanted <= set(record):
        raise ValueError(
            f"{directory / TAGGER_FILE}: expected a record of the format {FORMAT!r}; export the tagger again"
        )
    return record


def fingerprint(directory: str | Path) -> str:
    """What decides the spans of a saved tagger, as sha256: its record holds the checksums of all else."""
    record = read_record(fetch(directory))
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _disjoint(spans: list[TaggedSpan]) -> list[TaggedSpan]:
    """The spans without those that meet a longer one, sorted; of two equally long ones the first given stays."""
    kept: list[TaggedSpan] = []
    for span in sorted(spans, key=lambda span: span.start - span.end):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)


def _check_params(config: TokenTaggerConfig, params: Mapping[str, Any]) -> None:
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 8), jnp.bool_)
    tree = jax.eval_shape(TokenTagger(config).init, jax.random.key(0), ids, ids, mask)["params"]
    expected = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    got = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"the parameters are not of this tagger: parameter {name}: expected {expected.get(name, 'none')}, got "
                f"{got.get(name, 'none')}; use the TransformerConfig and the kinds that the run was trained with"
            )
