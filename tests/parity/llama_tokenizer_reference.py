"""Runs where transformers is: ids and texts by Llama's tokenizers, slow and fast, and a folder that the fast one saves.

python llama_tokenizer_reference.py FOLDER ASKED ANSWERED
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast


def main(folder: Path, asked: Path, answered: Path) -> None:
    said = json.loads(asked.read_text(encoding="utf-8"))
    kinds = {"auto": AutoTokenizer.from_pretrained(folder)}
    if (folder / "tokenizer.model").is_file():
        kinds |= {f"slow {legacy=}": LlamaTokenizer.from_pretrained(folder, legacy=legacy) for legacy in (True, False)}
        kinds["fast"] = LlamaTokenizerFast.from_pretrained(
            folder
        )  # made from tokenizer.model where there is nothing else
        kinds["fast"].save_pretrained(folder.with_name(f"{folder.name}-saved"))
    results = {}
    for kind, tokenizer in kinds.items():
        results[kind] = {
            "class": type(tokenizer).__name__,
            "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
            "ids": [tokenizer(text, add_special_tokens=False).input_ids for text in said["texts"]],
            "texts": tokenizer.batch_decode(said["rows"], skip_special_tokens=True),
        }
    answered.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
