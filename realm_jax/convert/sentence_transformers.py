"""Folders of sentence-transformers: BERT, then pooling, then unit length, each a module that modules.json lists."""

import json
import re
from pathlib import Path
from typing import Literal, NamedTuple

from realm_jax.convert.settings import parse_settings
from realm_jax.models import RetrieverConfig
from realm_jax.run_dir import write_json_atomically

MODULES_FILE = "modules.json"
_LENGTH_FILE = "sentence_bert_config.json"
_POOLING_FOLDER = "1_Pooling"
_KIND = "sentence_transformers.models."
_MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


class Modules(NamedTuple):
    """What follows BERT."""

    pooling: Literal["cls", "mean"]
    normalize: bool
    max_seq_length: int | None  # pieces at which the folder's own library cuts a text, where it says so


def read_modules(path: Path) -> Modules:
    """Reads modules.json and the pooling's settings.

    Raises:
      ValueError: for modules or a pooling that are not computed here, named.
    """
    try:
        listed = json.loads((path / MODULES_FILE).read_text(encoding="utf-8"))
        modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MODULES_FILE} lists no modules with type and path ({error})") from error
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0][1]:
        raise ValueError(
            f"{path / MODULES_FILE} lists {', '.join(kinds) or 'nothing'}; only Transformer (in the folder itself), Pooling and "
            "perhaps Normalize are computed here"
        )
    if not re.fullmatch(r"\w{1,100}", modules[1][1]):
        raise ValueError(
            f"{path / MODULES_FILE} has the path {modules[1][1][:100]!r}, expected a folder beside it such as {_POOLING_FOLDER}"
        )
    place = path / modules[1][1] / "config.json"
    if not place.is_file():
        raise ValueError(f"{place} is not there, but {MODULES_FILE} names it; fetch the folder again")
    said = parse_settings(place.read_text(encoding="utf-8"), str(place))
    modes = [name for name, value in said.items() if name.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in said:  # how the newer versions write it
        modes = [f"pooling_mode_{said['pooling_mode']}{'_token' if said['pooling_mode'] == 'cls' else '_tokens'}"]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ValueError(f"{place} has {', '.join(modes) or 'no pooling mode'}, valid: one of {', '.join(_MODES)}")
    if said.get("include_prompt", True) is not True:
        raise ValueError(f"{place} leaves the prompt out of the pooling (include_prompt), which is not computed here")
    place = path / _LENGTH_FILE
    length = (
        parse_settings(place.read_text(encoding="utf-8"), str(place)).get("max_seq_length") if place.is_file() else None
    )
    if length is not None and (type(length) is not int or length < 1):
        raise ValueError(f"{place} has max_seq_length={length!r}, expected a number of pieces; correct it")
    return Modules("cls" if _MODES[modes[0]] == "cls" else "mean", "Normalize" in kinds, length)


def write_modules(path: Path, config: RetrieverConfig, max_seq_length: int | None = None) -> None:
    """Writes modules.json, the pooling's settings and sentence_bert_config.json beside the weights.

    `score_scale` has no place there: it changes no ranking.

    Args:
      path: of the weights.
      config: of the retriever.
      max_seq_length: pieces at which texts are cut; None takes all that the encoder has positions for.
    """
    parts = [("", "Transformer"), (_POOLING_FOLDER, "Pooling"), *([("2_Normalize", "Normalize")] * config.normalize)]
    listed = [
        {"idx": number, "name": str(number), "path": place, "type": f"{_KIND}{kind}"}
        for number, (place, kind) in enumerate(parts)
    ]
    (path / MODULES_FILE).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    (path / _POOLING_FOLDER).mkdir()
    modes = {name: mode == config.pooling for name, mode in _MODES.items()}
    others = {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    write_json_atomically(
        path / _POOLING_FOLDER / "config.json",
        {"word_embedding_dimension": config.encoder.hidden_size, **modes, **others},
    )
    write_json_atomically(
        path / _LENGTH_FILE,
        {"max_seq_length": max_seq_length or config.encoder.max_length, "do_lower_case": False},
    )
