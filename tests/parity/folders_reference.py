"""Runs where transformers and torch are: retrievers to convert, and what the Auto classes make of folders that were written here.

python folders_reference.py make FOLDER         # DRAGON's two encoders and a Contriever at random, and what they embed
python folders_reference.py embed FOLDER        # loads a retriever's encoder and embeds again
python folders_reference.py generate FOLDER     # loads a language model with its tokenizer, and goes on with a text
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

CASES = {"dragon-query": ("BertModel", 0), "dragon-context": ("BertModel", 1), "contriever": ("Contriever", 2)}
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def embeds(model: torch.nn.Module, kind: str) -> np.ndarray:
    """The state at [CLS], or the mean over all pieces, as the models' cards compute them; padded rows."""
    ids = torch.tensor([[2, 7, 9, 11, 30, 3, 0, 0], [2, 5, 3, 0, 0, 0, 0, 0], [2, 8, 8, 12, 20, 21, 22, 3]])
    mask = ids != 0
    with torch.no_grad():
        hidden = model.eval()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    if kind == "BertModel":
        return hidden[:, 0].numpy()
    return (hidden.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1)[..., None]).numpy()


def make(folder: Path) -> None:
    for name, (kind, seed) in CASES.items():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=31, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
            max_position_embeddings=32, initializer_range=0.3,
        )  # fmt: skip
        model = BertModel(config, add_pooling_layer=kind == "BertModel")
        model.save_pretrained(folder / name)
        place = folder / name / "config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"architectures": [kind]}))
        (folder / name / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
        np.save(folder / f"{name}.npy", embeds(model, kind))


def embed(folder: Path) -> None:
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, said = AutoModel.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    missing = [name for name in said["missing_keys"] if "pooler" not in name]
    print(json.dumps({"missing": missing, "unexpected": said["unexpected_keys"], "ids": tokenizer("a b z").input_ids}))
    np.save(folder / "embeds.npy", embeds(model, kind))


def generate(folder: Path) -> None:
    model, said = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The lower river was", return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
    print(json.dumps({
        "class": type(model).__name__, "missing": said["missing_keys"], "unexpected": said["unexpected_keys"],
        "ids": inputs.input_ids[0].tolist(), "generated": ids[0].tolist(), "text": tokenizer.decode(ids[0], skip_special_tokens=True),
    }))  # fmt: skip
    np.save(folder / "logits.npy", logits.numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"make": make, "embed": embed, "generate": generate}[sys.argv[1]](Path(sys.argv[2]))
