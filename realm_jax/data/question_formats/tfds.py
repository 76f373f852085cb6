"""Questions of TensorFlow Datasets, read without TensorFlow (so: prepared in the ArrayRecord format)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from realm_jax.corpus.sources.article import NOT_UTF8
from realm_jax.corpus.sources.tfds import open_data_source, parse_spec, read_records
from realm_jax.data.question_formats.question import OnCause, Passage, Question, answers_of, as_text

EXAMPLE = "tfds:natural_questions_open?split=validation"
_ID_KEYS = ("id", "question_id")


class TfdsQuestions(NamedTuple):
    """What `tfds:NAME?split=train&question=question&answer=KEY&data_dir=DIR` says; all but the name may be left out."""

    name: str
    split: str = "train"
    question: str = "question"
    answer: str = ""  # "": "answer" or "answers", whichever the data set has
    data_dir: str | None = None

    @classmethod
    def parse(cls, spec: str) -> "TfdsQuestions":
        """Raises ValueError for a parameter that does not exist."""
        name, parameters = parse_spec(spec, [field for field in cls._fields if field != "name"], EXAMPLE)
        return cls(name, **parameters)


def read_tfds_questions(spec: str, on_drop: OnCause) -> Iterator[Question]:
    """One question a record; the data set is downloaded and prepared if it is not there yet.

    Made for natural_questions_open, web_questions, trivia_qa (value and all aliases; the answers of its test part, which
    are "<unk>", are none) and squad (with its passages, which have no ids there).

    Raises:
      ValueError: when there is no such data set, split or feature, or a record does not hold what its feature says.
    """
    wanted = TfdsQuestions.parse(spec)
    source = open_data_source(wanted.name, wanted.split, wanted.data_dir, EXAMPLE)
    features = sorted(source.dataset_info.features)
    answer_key = wanted.answer or next((key for key in ("answer", "answers") if key in features), "answer")
    for key in (wanted.question, answer_key):
        if key not in features:
            raise ValueError(
                f"{spec}: expected a feature {key!r}, got a data set with {features}; name it with ?question=, ?answer="
            )
    for place, record in read_records(source):
        try:
            text, answers = as_text(record[wanted.question]), answers_of(record[answer_key])
            answers = () if set(answers) <= {"<unk>"} else answers
            question_id = next((as_text(record[key]) for key in _ID_KEYS if key in record), "")
            yield Question(text, answers, False, None, question_id or str(place + 1), _passage(record))
        except UnicodeDecodeError:
            on_drop(NOT_UTF8)
        except TypeError as error:
            raise ValueError(f"{spec}, record {place + 1}: expected a question and its answers: {error}") from error


def _passage(record: dict[str, Any]) -> Passage | None:
    if not isinstance(record.get("context"), bytes | str):
        return None
    return Passage(as_text(record.get("title", "")), as_text(record["context"]))
