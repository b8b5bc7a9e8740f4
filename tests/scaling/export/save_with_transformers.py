"""Small checkpoints that `transformers` itself made, with their logits.

    python save_with_transformers.py FOLDER

FOLDER then holds one folder for each architecture, with `logits.json`. This is no test,
but what tests run, under a Python that may have none of this library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# What each architecture must be told to be one that this library computes.
SETTINGS = {
    "qwen3": {"head_dim": 8},
    "llama": {"hidden_act": "relu"},
    "apertus": {
        "hidden_act": "gelu_new",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "arcee": {"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "stablelm": {"layer_norm_eps": 1e-6, "partial_rotary_factor": 1.0},
    "starcoder2": {"norm_epsilon": 1e-6, "use_bias": False},
}


def save_checkpoint(model_type: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model_type,
        vocab_size=64,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **SETTINGS[model_type],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
        tokens = torch.randint(0, 64, (2, 16))
        logits = model(tokens).logits
    model.save_pretrained(folder)
    given = {"tokens": tokens.tolist(), "logits": logits.tolist()}
    (folder / "logits.json").write_text(json.dumps(given))


if __name__ == "__main__":
    for model_type in SETTINGS:
        save_checkpoint(model_type, Path(sys.argv[1]) / model_type)
