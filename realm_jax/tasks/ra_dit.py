"""A language model and a retriever put together to answer (RA-DIT, Lin et al. 2023, arXiv:2310.01352, section 2.1).

There is nothing to train here: `tasks.instruction_tuning` and `tasks.retriever_tuning` do that, apart. The jobs that answer take these
settings, the run of the retriever being theirs and the language model's named here.
"""

import dataclasses
from typing import ClassVar, Literal

from realm_jax.corpus.store import Corpus
from realm_jax.data.questions import Question
from realm_jax.generation import GenerationConfig
from realm_jax.generation.readers import check_lengths
from realm_jax.models import LanguageModelConfig, RetrieverConfig, check_heads
from realm_jax.tasks.rag import open_generator_tokenizer
from realm_jax.text.generator_tokenizer import GeneratorTokenizer
from realm_jax.training.sharding import MeshConfig
from realm_jax.typed import check_fields

QUESTION = "{question}"


@dataclasses.dataclass(frozen=True)
class RaDit:
    """Settings of a language model that retrieves.

    Attributes:
      corpus: the knowledge corpus; with pieces of the language model's tokenizer, where that is another.
      retriever: shape of the retriever.
      language_model: shape of the language model, with its adapter if it was trained with one.
      language_model_run: its run; empty: the run that answers.
      tokenizer: directory of its tokenizer; empty: the corpus's.
      prompt: how a question is put, with `{question}` in it once.
      num_documents: retrieved for a question.
      marginal: "sequence" and "token" read each document in a prompt of its own and add up the probabilities by p_R, of whole answers (as
        published) or token by token; "joint" reads all documents in one prompt, the best nearest to the question.
      query_len: pieces of `[CLS] question [SEP]`.
      source_len: tokens of `[bos] background question`; the background is cut to that.
      document_len: pieces of `[CLS] title [SEP] body [SEP]`, of documents that are added while it answers.
      mesh: of the language model, over the devices of the process that answers; its parameters are read straight to them. Its tensor axis
        divides the heads.
      generation: how answers are written.
    """

    name: ClassVar[str] = "ra_dit"

    corpus: str
    retriever: RetrieverConfig
    language_model: LanguageModelConfig
    language_model_run: str = ""
    tokenizer: str = ""
    prompt: str = "Q: {question}\nA:"
    num_documents: int = 10
    marginal: Literal["sequence", "token", "joint"] = "sequence"
    query_len: int = 64
    source_len: int = 2000
    document_len: int = 288
    generation: GenerationConfig = GenerationConfig(num_beams=1, max_length=33)
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prompt.count(QUESTION) != 1:
            raise ValueError(f"RaDit.prompt: expected {QUESTION} in it once, got {self.prompt!r}")
        if self.num_documents < 1:
            raise ValueError(f"RaDit.num_documents must be at least 1, got {self.num_documents}")
        if self.source_len < 16:
            raise ValueError(f"RaDit.source_len must be at least 16, got {self.source_len}")
        if self.mesh.tensor > 0:  # -1 is known where the devices are
            check_heads(self.language_model, self.mesh.tensor)
        check_lengths(self.language_model, self.generation, self.source_len)

    @property
    def learners(self) -> tuple[str, ...]:
        """What of the run that answers it reads."""
        own = ("language_model",) if self.language_model.lora is None else ("language_model", "adapter")
        return ("retriever",) if self.language_model_run else ("retriever", *own)

    def known_questions(self) -> tuple[Question, ...]:
        """None: what a language model was trained on is not said here."""
        return ()

    def asked(self, question: str) -> str:
        """The prompt of a question."""
        before, after = self.prompt.split(QUESTION)
        return before + question + after

    def open_generator_tokenizer(self, corpus: Corpus) -> GeneratorTokenizer:
        """The language model's tokenizer, whose ids are those of `language_model`.

        Raises:
          ValueError: when they are not.
        """
        return open_generator_tokenizer(self.tokenizer, corpus, self.language_model, "RaDit", "language_model")
