"""Runs where transformers 5 and torch are, without realm_jax: a small Llama with `llama3` rotary scaling and a head_dim of its own.

    python tests/parity/llama3_reference.py tests/parity/llama3.npz

transformers 4.39.3, which the other scripts here run in, knows neither. llama3.npz was written with transformers 5.24.0, torch 2.13.0
(CPU) and numpy 2.4.6. It holds token ids [2, 80] and their logits [2, 80, 41]; the weights are drawn again wherever they are read.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

# Of the eight wavelengths, in positions, the first (6.3) is kept, three (11.2, 19.9, 35.3) lie between 40 / 4 and 40 / 1, and four are
# stretched; 80 positions go twice as far as the texts of training did.
ROTARY = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 40}
SETTINGS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 40, "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rope_theta": 100.0, "rope_scaling": {"rope_type": "llama3", **ROTARY},
}  # fmt: skip


def drawn() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of the folder, float32 by their names there, and token ids [2, 80]."""
    rng = np.random.default_rng(0)
    hidden, wide, heads, shared = 24, 40, 4 * 16, 2 * 16

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (rng.uniform(-1.0, 1.0, (rows, columns)) * scale * (3.0 / columns) ** 0.5).astype(np.float32)

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, hidden).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(41, hidden),
        "model.norm.weight": norm(),
        "lm_head.weight": matrix(41, hidden, 2.0),
    }
    for layer in range(2):
        tensors |= {
            f"model.layers.{layer}.{name}": value
            for name, value in {
                "input_layernorm.weight": norm(),
                "self_attn.q_proj.weight": matrix(heads, hidden, 1.5),  # attention that picks out single places
                "self_attn.k_proj.weight": matrix(shared, hidden, 1.5),
                "self_attn.v_proj.weight": matrix(shared, hidden),
                "self_attn.o_proj.weight": matrix(hidden, heads, 1.5),
                "post_attention_layernorm.weight": norm(),
                "mlp.gate_proj.weight": matrix(wide, hidden),
                "mlp.up_proj.weight": matrix(wide, hidden),
                "mlp.down_proj.weight": matrix(hidden, wide),
            }.items()
        }
    return tensors, rng.integers(3, 41, (2, 80)).astype(np.int32)


def write_folder(place: Path, **changes: Any) -> np.ndarray:
    """A folder as `save_pretrained` writes it, with `changes` of its config.json; token ids [2, 80]."""
    tensors, ids = drawn()
    place.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(SETTINGS | changes), encoding="utf-8")
    return ids


def main(file: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        ids = write_folder(Path(folder))
        model, said = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(ids).long()).logits
    np.savez_compressed(file, ids=ids, logits=logits.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
