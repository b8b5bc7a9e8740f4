"""Logits, ids and greedy text of exported folders, by `transformers` alone.

    python load_with_transformers.py FOLDER ...

Each folder holds an exported model and `tokens.json`. The answers are printed as JSON.
This is no test, but what tests run, under a Python that may have none of this library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def load_folder(folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = json.loads((folder / "tokens.json").read_text())
    with torch.no_grad():
        tokens = torch.tensor(given["tokens"])
        logits = model(tokens).logits
        prompt = tokens[:1, :4]
        continued = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=8,
        )
    ids = [tokenizer(text)["input_ids"] for text in given["texts"]]
    return {
        "class_name": type(model).__name__,
        "dtype": str(model.dtype),
        "unread": sorted(
            map(str, (*report["missing_keys"], *report["unexpected_keys"]))
        ),
        "logits": logits.tolist(),
        "continued": continued[0].tolist(),
        "ids": ids,
        "texts": [tokenizer.decode(x) for x in ids],
        "eos": tokenizer.eos_token_id,
        "generation_eos": model.generation_config.eos_token_id,
    }


if __name__ == "__main__":
    answers = [load_folder(Path(folder)) for folder in sys.argv[1:]]
    print(json.dumps(answers))
