"""SQuAD and whatever else is published in its form."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from realm_jax.data.question_formats.question import OnCause, Passage, Question, shortened

UNANSWERABLE = "question that its passage does not answer"
WRONG_START = "answer_start that does not point at the answer"


class Paragraph(NamedTuple):
    """A paragraph of such a file with what is asked about it."""

    id: str
    passage: Passage
    questions: list[Any]


def read_squad(document: Any, where: str, on_drop: OnCause, on_note: OnCause) -> Iterator[Question]:
    """SQuAD 1.1 (arXiv:1606.05250): questions with the passage that answers each.

    The passage's id is `TITLE#PLACE`, as the corpus job names the paragraphs of such a file. Questions that SQuAD 2.0
    marks as impossible are left out and counted.

    Raises:
      ValueError: for an object of another form, naming file and place.
    """
    for paragraph in paragraphs(document, where):
        for record in paragraph.questions:
            try:
                text, spans = record["question"], [(span["text"], span["answer_start"]) for span in record["answers"]]
                if not isinstance(text, str) or not all(isinstance(a, str) and isinstance(s, int) for a, s in spans):
                    raise TypeError
            except (TypeError, KeyError) as error:
                raise ValueError(
                    f'{where}, passage {paragraph.id}: expected {{"question", "id", "answers": [{{"text", '
                    f'"answer_start"}}]}}, got {shortened(record)}'
                ) from error
            if record.get("is_impossible"):
                on_drop(UNANSWERABLE)
                continue
            for answer, start in spans:
                if not paragraph.passage.text.startswith(answer, start):
                    on_note(WRONG_START)
            answers = tuple(dict.fromkeys(answer for answer, _ in spans))
            yield Question(text, answers, False, paragraph.id, str(record.get("id", "")), paragraph.passage)


def paragraphs(document: Any, where: str) -> Iterator[Paragraph]:
    """The paragraphs of such a file in order.

    Raises:
      ValueError: for an object of another form, naming file and place.
    """
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise ValueError(f'{where}: expected {{"data": [{{"title", "paragraphs"}}, …]}}, got {shortened(document)}')
    places: dict[str, int] = {}
    for number, article in enumerate(document["data"], 1):
        try:
            title = article.get("title", "")
            for paragraph in article["paragraphs"]:
                context, questions = paragraph["context"], paragraph["qas"]
                if not isinstance(context, str) or not isinstance(title, str) or not isinstance(questions, list):
                    raise TypeError
                place = places[title] = places.get(title, -1) + 1  # an article may stand in the file twice
                # the title as it reads: the files write "New_York_City"
                yield Paragraph(f"{title}#{place}", Passage(title.replace("_", " "), context), questions)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f'{where}, article {number}: expected {{"title", "paragraphs": [{{"context", "qas"}}]}}, '
                f"got {shortened(article)}"
            ) from error
