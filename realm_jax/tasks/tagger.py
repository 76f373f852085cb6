"""The salient-span tagger: BERT with a token head, trained on CoNLL files (REALM, arXiv:2002.08909, section 3.4)."""

import dataclasses
import functools
import hashlib
import logging

import jax
import jax.numpy as jnp

from realm_jax.corpus.build import TRAIN, TRAIN_BPE, Training
from realm_jax.data.conll import AnnotatedText, joined, read_conll
from realm_jax.data.inputs import SpecialIds
from realm_jax.data.tagger import NO_LABEL, Labels, TaggerBatch, TaggerExamples
from realm_jax.losses import WeightedSum, token_cross_entropy
from realm_jax.models import TransformerConfig, forward_flops
from realm_jax.models.token_tagger import TokenTagger, TokenTaggerConfig
from realm_jax.tasks.task import EncoderPass, Metrics, Params, Program, Task, array_shape, input_shapes
from realm_jax.text.loading import load_tokenizer
from realm_jax.text.tokenizer import Tokenizer
from realm_jax.training.rng import dropout_rngs
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)


def as_files(files: str | tuple[str, ...]) -> tuple[str, ...]:
    """One file as a tuple of it."""
    return (files,) if isinstance(files, str) else files


def tagger_loss(
    params: Params, batch: TaggerBatch, rng: jax.Array | None, *, config: TokenTaggerConfig
) -> tuple[WeightedSum, Metrics]:
    """−Σ log p(label of a word | sentence), mean over words."""
    logits = TokenTagger(config).apply(
        {"params": params["tagger"]},
        batch.inputs.ids,
        batch.inputs.segment_ids,
        batch.inputs.ids != 0,
        rng is None,
        rngs=dropout_rngs(rng, 0),
    )
    assert isinstance(logits, jax.Array)
    loss = token_cross_entropy(logits, batch.labels)
    in_name = (batch.labels > 0).astype(jnp.float32)
    right = (logits.argmax(axis=-1) == batch.labels).astype(jnp.float32)
    return loss, {
        "label_accuracy": WeightedSum((right * (batch.labels != NO_LABEL)).sum(), loss.weight),
        "name_accuracy": WeightedSum((right * in_name).sum(), in_name.sum()),
    }


def init_tagger(rng: jax.Array, config: TokenTaggerConfig) -> Params:
    """Random parameters under the learner's name, `tagger`."""
    ids = jnp.ones((1, 8), jnp.int32)
    return {"tagger": TokenTagger(config).init(rng, ids, ids * 0, ids > 0)["params"]}


def adopt(found: Params) -> Params:
    """Another run's learners as the tagger's: a tagger whole, of any other run one BERT as the encoder, the head left at random
    (REALM, section 3.4: "a BERT-based tagger").

    Of several encoders in a run, in this order: the knowledge encoder's, which was trained to say what stands at each
    position; the retriever's shared or document encoder, trained for the position of [CLS]; the span reader's, bent to
    questions. A question encoder is none.
    """
    retriever = found.get("retriever", {})
    learners = (
        found.get("knowledge_encoder"),
        retriever.get("shared_encoder", retriever.get("document_encoder")),
        found.get("span_reader"),
    )
    encoders = [learner["encoder"] for learner in learners if learner is not None]
    if "tagger" in found or not encoders:
        return dict(found)
    return {"tagger": {"encoder": encoders[0]}}


@dataclasses.dataclass(frozen=True)
class Tagger:
    """Settings of the tagger.

    Attributes:
      files: a CoNLL file or several, see `read_conll`; one that is named twice counts twice.
      encoder: the model. Its `num_segments` says how many shapes of words it sees (`tagger_inputs.word_shape`): a
        tokenizer that lower-cases hides the capitals. 1: none; BERT has 2.
      kinds: of the names to tell apart; () learns names of any kind as one, as masking needs no more.
      tokenizer: "train" or "train:bpe" trains a SentencePiece model on the files; else a tokenizer directory, a
        SentencePiece model or a BERT vocab.txt.
      vocab_size: of the tokenizer to train; less if the files are too small for it.
      lengths: of the rows, ascending, with [CLS] and [SEP]; a longer sentence is cut into windows that overlap by half.
      max_dropped_share: of a file's sentences that may be malformed.
    """

    files: str | tuple[str, ...]
    encoder: TransformerConfig
    kinds: tuple[str, ...] = ()
    tokenizer: str = TRAIN
    vocab_size: int = 8192
    lengths: tuple[int, ...] = (32, 128)
    max_dropped_share: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.files:
            raise ValueError("Tagger.files names no CoNLL file; expected at least one")
        if not self.lengths or self.lengths[0] < 4 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"Tagger.lengths: expected ascending lengths of at least 4 pieces, got {self.lengths}")
        if self.encoder.positions == "learned" and self.lengths[-1] > self.encoder.max_length:
            raise ValueError(
                f"Tagger.lengths: the longest is {self.lengths[-1]}, the encoder has max_length={self.encoder.max_length}; "
                "change one of them"
            )

    @property
    def model(self) -> TokenTaggerConfig:
        return TokenTaggerConfig(self.encoder, len(Labels(self.kinds).tags))

    def read(self) -> list[AnnotatedText]:
        """The sentences of all files.

        Raises:
          FileNotFoundError, ValueError: see `read_conll`.
        """
        texts = []
        for file in as_files(self.files):
            texts += [joined(sentence) for sentence in read_conll(file, self.max_dropped_share).sentences]
        return texts

    def tokenizer_for(self, texts: list[AnnotatedText]) -> Tokenizer:
        """The tokenizer that is named, or that is trained on the texts: the same texts give the same.

        Raises:
          ValueError: no tokenizer there, or more pieces than the encoder knows.
        """
        if self.tokenizer in (TRAIN, TRAIN_BPE):
            training = Training(self.vocab_size, "bpe" if self.tokenizer == TRAIN_BPE else "unigram", 1.0)
            tokenizer = training.learn([text.text for text in texts])
        else:
            tokenizer = load_tokenizer(self.tokenizer)
        if self.encoder.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"the tagger has vocab_size={self.encoder.vocab_size}, but its tokenizer has {tokenizer.vocab_size} pieces; set "
                "TransformerConfig.vocab_size to at least that"
            )
        return tokenizer

    def build(self, seed: int) -> Task:
        texts = self.read()
        tokenizer = self.tokenizer_for(texts)
        labels = Labels(self.kinds)
        examples = TaggerExamples(
            texts, tokenizer, labels, lengths=self.lengths, num_shapes=self.encoder.num_segments, seed=seed
        )
        logger.info("%d annotated sentences, %d names", len(texts), sum(len(text.names) for text in texts))
        content = hashlib.sha256(repr((texts, self.kinds, self.lengths)).encode()).hexdigest()
        pairs = list(zip(examples.shares.tolist(), examples.lengths, strict=True))
        task = self.program(SpecialIds.of(tokenizer)).task(
            examples.batch,
            lambda batch: batch,
            data={"tokenizer": tokenizer.fingerprint, "corpus": content},
            adopt=adopt,
        )
        return task._replace(  # of the lengths that the rows really have
            tokens_per_example=round(sum(share * length for share, length in pairs)),
            flops_per_example=sum(share * 3 * forward_flops(self.encoder, length) for share, length in pairs),
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it, for batches of the longest rows; the special pieces' ids make no difference."""
        longest = self.lengths[-1]

        def batch_shapes(batch_size: int) -> TaggerBatch:
            return TaggerBatch(input_shapes(batch_size, longest), array_shape(jnp.int32, batch_size, longest))

        return Program(
            name="tagger",
            init=functools.partial(init_tagger, config=self.model),
            loss=functools.partial(tagger_loss, config=self.model),
            batch_shapes=batch_shapes,
            passes=(EncoderPass(self.encoder, 1, longest),),
            tokens_per_example=longest,
            can_accumulate=True,
        )
