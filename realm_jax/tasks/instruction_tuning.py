"""RA-DIT's fine-tuning of the language model (Lin et al. 2023, arXiv:2310.01352, section 2.3).

Each instruction is learned once after each of its documents: the language model learns to use what helps, and to go by what it knows
where the document does not. The documents come from the `retrieve` job.
"""

import dataclasses
import logging
from collections import Counter
from typing import ClassVar

import numpy as np

from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds
from realm_jax.data.packing import PackedTexts, TextGroup
from realm_jax.instructions.example import GROUPS
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.instructions.retrieved import RetrievedExamples, open_retrieved, retrieved_fingerprint
from realm_jax.instructions.texts import DocumentTexts, InstructionTexts
from realm_jax.models import LanguageModelConfig
from realm_jax.tasks.language_modeling import check_row_length, packed_program
from realm_jax.tasks.rag import open_generator_tokenizer
from realm_jax.tasks.task import Program, Task, fingerprints
from realm_jax.typed import check_fields

logger = logging.getLogger(__name__)

DOCUMENTS = "plain_text"
"""The group of texts that are learned whole: the corpus's own documents."""


@dataclasses.dataclass(frozen=True)
class InstructionTuning:
    """Settings of the language model's fine-tuning; the defaults are the paper's.

    Attributes:
      corpus: that the documents are of; with pieces of the language model's tokenizer, where that is another.
      retrieved: a folder RUN/retrieved/NAME of the retrieve job, or several.
      language_model: its shape, with an adapter (`lora`) if that alone is to be trained.
      tokenizer: directory of its tokenizer; empty: the corpus's.
      num_documents: of each instruction, each in a text of its own; 0: instruction tuning without retrieval.
      length: tokens of a row, into which several texts are packed; none sees another.
      shares: of texts, by group; what they leave is drawn from all other groups of instructions, by their numbers. "plain_text" are the
        corpus's own documents, of which every token is learned; they are drawn only if they are named. A group that the examples have
        not must not be named.
    """

    name: ClassVar[str] = "instruction_tuning"

    corpus: str
    retrieved: str | tuple[str, ...]
    language_model: LanguageModelConfig
    tokenizer: str = ""
    num_documents: int = 3
    length: int = 2048
    shares: tuple[tuple[str, float], ...] = ((DOCUMENTS, 0.10), ("dialogue", 0.05))

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.retrieved:
            raise ValueError(
                "InstructionTuning.retrieved: expected a folder RUN/retrieved/NAME of the retrieve job, or several, got none"
            )
        check_row_length("InstructionTuning", self.length, self.language_model)
        if self.num_documents < 0:
            raise ValueError(f"InstructionTuning.num_documents must be 0 or more, got {self.num_documents}")
        check_shares("InstructionTuning", self.shares)

    def build(self, seed: int) -> Task:
        corpus = Corpus.open(self.corpus)
        tokenizer = open_generator_tokenizer(
            self.tokenizer, corpus, self.language_model, "InstructionTuning", "language_model"
        )
        pieces = open_pieces(corpus, tokenizer)
        places = (self.retrieved,) if isinstance(self.retrieved, str) else self.retrieved
        found = [open_retrieved(place, corpus) for place in places]
        self._check_documents(found)
        groups: dict[str, TextGroup] = {DOCUMENTS: DocumentTexts(pieces, PromptFormat.of(tokenizer), self.length)}
        left_out: Counter[str] = Counter()
        for name in GROUPS:
            chosen = [
                (example, row[: self.num_documents])
                for one in found
                for example, row in zip(one.examples, one.documents, strict=True)
                if example.group == name and name != DOCUMENTS
            ]
            if not chosen:
                continue
            examples, documents = zip(*chosen, strict=True)
            texts = InstructionTexts(examples, np.stack(documents), pieces, tokenizer, self.length)
            groups[name] = texts
            left_out.update(
                {
                    "instructions too long for a row, left out": texts.num_too_long,
                    "instructions without an answer in the tokenizer's pieces, left out": texts.num_unanswered,
                    "texts whose document is cut": texts.num_cut,
                    "texts whose document has no room or no piece": texts.num_without,
                }
            )
            logger.info("%s: %d instructions, %d texts", name, len(examples), len(texts.lengths))
        for cause, count in left_out.items():
            if count:
                logger.warning("%d %s (InstructionTuning.length=%d)", count, cause, self.length)
        sizes = {name: len(texts.lengths) for name, texts in groups.items()}
        # never by its size: a corpus has far more documents than there are instructions
        said = {DOCUMENTS: 0.0} | dict(self.shares)
        shares = shares_of_groups("InstructionTuning", sizes, tuple(said.items()))
        rows = PackedTexts(
            list(groups.values()),
            [shares[name] for name in groups],
            length=self.length,
            pad_id=self.language_model.pad_id,
            seed=seed,
        )
        return self.program(SpecialIds.of(corpus.tokenizer)).task(
            rows.batch,
            lambda batch: batch,
            data=fingerprints(corpus)
            | {"generator_tokenizer": tokenizer.fingerprint, "retrieved": retrieved_fingerprint(found)},
        )

    def program(self, special: SpecialIds) -> Program:
        """What is compiled of it; the corpus's special pieces make no difference."""
        del special
        return packed_program(self.name, self.language_model, self.length)

    def _check_documents(self, found: list[RetrievedExamples]) -> None:
        fewest = min(one.documents.shape[1] for one in found)
        if self.num_documents > fewest:
            raise ValueError(
                f"InstructionTuning.num_documents={self.num_documents}, but {fewest} documents were retrieved for each example; "
                "retrieve more (retrieve.num_documents), or read fewer"
            )


def check_shares(task: str, shares: tuple[tuple[str, float], ...]) -> None:
    """Refuses shares that are none.

    Raises:
      ValueError: naming the group.
    """
    for name, share in shares:
        if name not in GROUPS or not 0 <= share <= 1:
            raise ValueError(f"{task}.shares: expected groups among {', '.join(GROUPS)} with a share from 0 to 1, got {name}: {share}")  # fmt: skip
    if sum(share for _, share in shares) > 1 + 1e-9 or len(dict(shares)) < len(shares):
        raise ValueError(f"{task}.shares: expected each group once, and at most 1 together, got {shares}")


def shares_of_groups(task: str, sizes: dict[str, int], shares: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """The share of each group: what is said, and the rest in proportion to the sizes.

    >>> shares_of_groups("task", {"plain_text": 90, "open_qa": 30, "dialogue": 10}, (("plain_text", 0.25),))
    {'plain_text': 0.25, 'open_qa': 0.5625, 'dialogue': 0.1875}

    Raises:
      ValueError: a share of a group that there is not.
    """
    said = dict(shares)
    absent = [name for name, share in said.items() if share > 0 and not sizes.get(name)]
    if absent:
        raise ValueError(
            f"{task}.shares names {', '.join(absent)}, of which there is no example; the groups that there are: "
            f"{', '.join(name for name, size in sizes.items() if size)}; name those alone"
        )
    rest = {name: size for name, size in sizes.items() if name not in said}
    left = 1.0 - sum(said.values())
    total = max(1, sum(rest.values()))
    return {name: said[name] if name in said else left * sizes[name] / total for name in sizes}
