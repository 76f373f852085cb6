"""The texts of RealmForOpenQA's documents as JSON lines. The port keeps them as a pickle, which is never opened here."""

import json
from collections.abc import Iterable
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


def read_block_records(place: Path, expected: int) -> list[str]:
    """The texts, in the order of the embeddings.

    Raises:
      ValueError: a line that is no {"text": …}, or another number of them than embeddings.
    """
    texts = []
    with place.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{place}, line {number}: expected {{"text": …}} ({error!r})') from error
            if not isinstance(text, str):
                raise ValueError(f"{place}, line {number}: text is a {type(text).__name__}, expected a string")
            texts.append(text)
    if len(texts) != expected:
        raise ValueError(
            f"{place} has {len(texts)} lines, block_emb {expected} rows; take the records that belong to it"
        )
    return texts


def write_block_records(place: Path, texts: Iterable[str]) -> None:
    """Writes the documents' texts, a JSON object a line, in the order of the embeddings."""
    with place.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
