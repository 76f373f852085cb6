"""Runs where transformers and torch are: small Llamas with random weights, their logits, and what they generate greedily and with beams.

python llama_reference.py FOLDER
"""

import collections
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CASES = {
    "llama2": {},
    "grouped": {"num_key_value_heads": 2},
    "linear": {"num_key_value_heads": 1, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0},
    "tied": {"tie_word_embeddings": True, "attention_bias": True, "rms_norm_eps": 1e-4},
}
BEAMS = {
    "beams": {"num_beams": 3},
    "long": {"num_beams": 4, "length_penalty": 2.0},
    "short": {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True},
    "never": {"num_beams": 3, "length_penalty": 0.5, "early_stopping": "never"},
}
NEW_TOKENS = 12


def beams_of(model: LlamaForCausalLM, ids: torch.Tensor, settings: dict[str, Any], eos: int) -> list:
    """For each prompt its hypotheses, best first: the tokens that were generated, and their score."""
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_return_sequences=settings["num_beams"],
        pad_token_id=0,
        eos_token_id=eos,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    hypotheses = []
    for tokens, score in zip(found.sequences[:, ids.shape[1] :].tolist(), found.sequences_scores.tolist(), strict=True):
        hypotheses.append((tokens[: tokens.index(eos) + 1] if eos in tokens else tokens, score))
    beams = settings["num_beams"]
    return [hypotheses[first : first + beams] for first in range(0, len(hypotheses), beams)]


def num_lengths(model: LlamaForCausalLM, ids: torch.Tensor, eos: int) -> int:
    found = (beams_of(model, ids, BEAMS[key], eos) for key in ("beams", "short"))
    return len({len(tokens) for rows in found for row in rows for tokens, _ in row})


def main(folder: Path) -> None:
    for seed, (name, changes) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=99, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
            max_position_embeddings=64, initializer_range=0.2, eos_token_id=98, **changes,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        for parameter_name, parameter in model.named_parameters():  # nothing hides behind a one or a zero
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter.data = torch.randn_like(parameter) * 0.3 + float("norm" in parameter_name)
        model.save_pretrained(folder / name, max_shard_size="60KB" if name == "grouped" else "5GB")
        ids = torch.randint(3, 98, (3, 17))
        with torch.no_grad():
            logits = model(ids).logits
            generated = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                num_beams=1,
                pad_token_id=0,
            )
            # of the tokens that beams write that which, ending them, makes them end at the most lengths
            written = beams_of(model, ids, BEAMS["beams"], eos=98)
            often = collections.Counter(token for row in written for tokens, _ in row for token in tokens[2:])
            eos = max((token for token, _ in often.most_common(16)), key=lambda token: num_lengths(model, ids, token))
            beams = {key: beams_of(model, ids, settings, eos) for key, settings in BEAMS.items()}
        made = {"eos": eos, "settings": BEAMS, "beams": beams}
        (folder / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
        np.savez(
            folder / f"{name}.npz",
            ids=ids.numpy(),
            logits=logits.numpy(),
            generated=generated.numpy(),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
