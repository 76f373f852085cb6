"""One instruction and its answer: what both fine-tunings of RA-DIT (arXiv:2310.01352, section 2) are trained on."""

from typing import NamedTuple

GROUPS = ("dialogue", "open_qa", "reading_comprehension", "summarization", "chain_of_thought", "plain_text")


class InstructionExample(NamedTuple):
    """A prompt x and the answer y that the language model is to write after it.

    Attributes:
      dataset: the name that the data set has in the template file.
      group: one of `GROUPS`; the mixture of training is drawn by group.
      prompt: x, with its markers filled in. It ends where the answer begins ("…\\nA:"), without white space at its end.
      answer: y, without white space at its ends; written after the prompt and one space.
      query: what the retriever is asked.
      references: every correct answer, `answer` among them.
      id: names the record in its source; for plain text the id of the document it was cut from. Empty for none.
    """

    dataset: str
    group: str
    prompt: str
    answer: str
    query: str
    references: tuple[str, ...]
    id: str = ""
