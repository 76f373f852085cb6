"""The texts of RealmForOpenQA's documents as JSON lines. The port keeps them as a pickle, which is never opened here."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

RECORDS_FILE = "block_records.jsonl"
PICKLED_FILE = "block_records.npy"
# For a file whose origin the user trusts, since it runs what the pickle says; block_records.npy is one of numpy objects.
REMEDY = (
    "python -c \"import json, numpy; [print(json.dumps({'text': block.decode()})) for block in "
    f"numpy.load('{PICKLED_FILE}', allow_pickle=True)]\" > {RECORDS_FILE}"
)


def find_block_records(named: str, source: str) -> Path | None:
    """The file of texts: the one named, or block_records.jsonl in the source folder; None where there is none.

    Raises:
      FileNotFoundError: the one named is not there.
      ValueError: it, or all that the source has, is a pickle.
    """
    place = Path(named) if named else Path(source) / RECORDS_FILE
    pickled = place if place.suffix == ".npy" else Path(source) / PICKLED_FILE
    if place.is_file() and place != pickled:
        return place
    if pickled.is_file():
        raise ValueError(
            f"{pickled} is a pickle of Python objects, which could run anything and is not opened here; if you trust where it "
            f"is from, make JSON lines of it beside it, in another process: {REMEDY}"
        )
    if named:
        raise FileNotFoundError(f'no {named}; expected JSON lines {{"text": …}}, one for each row of block_emb')
    return None


def check_block_records(place: Path, expected: int) -> None:
    """Reads the records through.

    Raises:
      ValueError: a line that is no {"text": …}, or another number of them than embeddings.
    """
    count = sum(1 for _ in block_texts(place))
    if count != expected:
        raise ValueError(f"{place} has {count} lines, block_emb {expected} rows; take the records that belong to it")


def block_texts(place: Path) -> Iterator[str]:
    """The texts, in the order of the embeddings; one in memory at a time, for the published model has 13 million.

    Raises:
      ValueError: a line that is no {"text": …}, or half a surrogate pair in it.
    """
    with place.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = json.loads(line)["text"]
                if isinstance(text, str):
                    text.encode()  # JSON can smuggle in half a surrogate pair, which no tokenizer or file takes
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f'{place}, line {number}: expected {{"text": …}} ({error!r})') from error
            if not isinstance(text, str):
                raise ValueError(f"{place}, line {number}: text is a {type(text).__name__}, expected a string")
            yield text


def write_block_records(place: Path, texts: Iterable[str]) -> None:
    """Writes the documents' texts, a JSON object a line, in the order of the embeddings; whole or not at all."""
    temporary = place.with_name(f".{place.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    temporary.replace(place)
