"""Runs where transformers and torch are: small Llamas with random weights, their logits, and what they generate greedily.

python llama_reference.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CASES = {
    "llama2": {},
    "grouped": {"num_key_value_heads": 2},
    "linear": {"num_key_value_heads": 1, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0},
    "tied": {"tie_word_embeddings": True, "attention_bias": True, "rms_norm_eps": 1e-4},
}


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
                max_new_tokens=12,
                do_sample=False,
                num_beams=1,
                pad_token_id=0,
            )
            beams = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                num_beams=3,
                pad_token_id=0,
            )
        np.savez(
            folder / f"{name}.npz",
            ids=ids.numpy(),
            logits=logits.numpy(),
            generated=generated.numpy(),
            beams=beams.numpy(),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
