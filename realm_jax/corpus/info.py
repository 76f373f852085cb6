"""corpus.json: what a corpus is, and whether there is one."""

import dataclasses
import os
from typing import Any

from realm_jax.run_dir import read_json
from realm_jax.storage import as_place
from realm_jax.typed import check_fields, conforms

CORPUS_FILE = "corpus.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CorpusInfo:
    """What corpus.json says.

    Attributes:
      fingerprint: of the arrays and the tokenizer; an index of a corpus carries the same.
      tokenizer_fingerprint: of the tokenizer that made the pieces.
      num_documents: rows.
      num_sources: articles, files or records that the documents were cut from.
      num_pieces: of all bodies together.
      vocab_size: of the tokenizer.
      block_len: most pieces of a body; the title is not counted.
      title_len: most pieces of a title; longer titles are cut.
      source: where the text came from.
      licence: of the text, as far as it is known.
      dropped: records that did not become documents, by cause.
      counts: further figures of the build by name, such as documents without salient spans.
      settings: what the build was asked for; a second build of the same settings reuses the corpus.
      has_blocks: whether blocks/ holds the text.
      format_version: of the files.
    """

    fingerprint: str
    tokenizer_fingerprint: str
    num_documents: int
    num_sources: int
    num_pieces: int
    vocab_size: int
    block_len: int
    title_len: int
    source: str = ""
    licence: str = "unknown"
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_blocks: bool = False
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_fields(self)


def read_info(directory: str | os.PathLike[str]) -> CorpusInfo:
    """Reads corpus.json.

    Raises:
      ValueError: not a corpus, an unfinished build, or a corpus.json of another kind.
    """
    directory = as_place(directory)
    path = directory / CORPUS_FILE
    if not path.is_file():
        if (directory / "tokens").is_dir():
            raise ValueError(f"{directory} holds an unfinished corpus (no {CORPUS_FILE}); run the corpus job again")
        raise ValueError(f"no corpus at {directory} (expected a {CORPUS_FILE}); build one with the corpus job")
    again = f"remove {directory} and build the corpus again"
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {again}") from error
    names = {field.name for field in dataclasses.fields(CorpusInfo)}
    if not conforms(content, dict[str, Any]) or content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected format_version {FORMAT_VERSION}, got {found}; {again}")
    try:
        return CorpusInfo(**{name: value for name, value in content.items() if name in names})
    except TypeError as error:
        raise ValueError(f"{path} lacks a field: {error}; {again}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {again}") from error
