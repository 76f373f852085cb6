"""What a generator asks of a tokenizer: the pieces of texts, and the ids that its inputs begin, end and are padded with."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, SupportsInt, runtime_checkable

from realm_jax.text.tokenizer import Encoding, Tokenizer


@runtime_checkable
class GeneratorTokenizer(Protocol):
    """A tokenizer whose padding may have any id. Special ids are never produced from text."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def keeps_spelling(self) -> bool:
        """Whether what is decoded is the text that was encoded: capitals, accents, white space."""
        ...

    def encode(self, text: str) -> Encoding: ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]: ...

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Readable text without special ids."""
        ...

    def save(self, directory: str | Path) -> None: ...


@runtime_checkable
class MaskingTokenizer(GeneratorTokenizer, Protocol):
    """One that has a piece for what is hidden, as BART's and BERT's do and a language model's does not."""

    @property
    def mask_id(self) -> int: ...


class _FirstAndLast:
    """A retriever's tokenizer as a generator's: its texts begin with [CLS] and end with [SEP]."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.vocab_size, self.pad_id = tokenizer.vocab_size, tokenizer.pad_id
        self.bos_id, self.eos_id = tokenizer.cls_id, tokenizer.sep_id
        self.mask_id = tokenizer.mask_id
        self.fingerprint, self.keeps_spelling = tokenizer.fingerprint, tokenizer.keeps_spelling
        self.encode, self.encode_batch = tokenizer.encode, tokenizer.encode_batch
        self.decode, self.save = tokenizer.decode, tokenizer.save


def as_generator_tokenizer(tokenizer: Tokenizer | GeneratorTokenizer) -> GeneratorTokenizer:
    """The tokenizer itself, or one of [CLS] and [SEP] for a generator that begins and ends its texts with these."""
    return tokenizer if isinstance(tokenizer, GeneratorTokenizer) else _FirstAndLast(tokenizer)


def mask_id_of(tokenizer: GeneratorTokenizer) -> int:
    """The id that stands for hidden text.

    Raises:
      ValueError: the tokenizer has none.
    """
    if not isinstance(tokenizer, MaskingTokenizer):
        raise ValueError(
            f"expected a tokenizer with a piece for hidden text, such as BART's <mask>, got a {type(tokenizer).__name__} without; "
            "a language model's has none, and learns by the next token alone: name another generator_tokenizer"
        )
    return tokenizer.mask_id
