"""Tokens per second that `transformers` generates with exported models on CPU.

    python benchmarks/transformers_generate.py FOLDER ... [--threads 1 2] [--batch 1 16]

It needs torch and transformers and nothing of this library, so that it runs under a
Python that has only those. Each folder is one that `scaling export --format hf` wrote.
Generation is greedy, with the key-value cache, from random prompts of `--prompt` tokens;
it does not stop at an end of text. The output is JSON: for each folder, number of
threads and size of the batch, the new tokens per second of the whole call (the prompt is
read within it), as the median of `--rounds` calls after one to warm up, with the slowest
and the fastest call. Without a folder nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def load_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.eval()
    model.generation_config.eos_token_id = None  # every call makes as many tokens
    model.generation_config.pad_token_id = None
    return model


def time_generation(model: Any, batch: int, prompt: int, new: int) -> float:
    """Seconds of one call."""
    import torch

    tokens = torch.randint(1, model.config.vocab_size, (batch, prompt))
    mask = torch.ones_like(tokens)
    start = time.perf_counter()
    with torch.inference_mode():
        made = model.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=new
        )
    seconds = time.perf_counter() - start
    assert made.shape == (batch, prompt + new), made.shape
    return seconds


def measure_folder(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    torch.manual_seed(0)
    model = load_model(folder)
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for batch in arguments.batch:
            seconds = []
            for _ in range(1 + arguments.rounds):
                call = time_generation(model, batch, arguments.prompt, arguments.new)
                seconds.append(call)
            rates = [batch * arguments.new / each for each in seconds[1:]]
            row = {
                "folder": str(folder),
                "class_name": type(model).__name__,
                "width": model.config.hidden_size,
                "depth": model.config.num_hidden_layers,
                "threads": threads,
                "batch": batch,
                "tokens_per_second": round(statistics.median(rates), 1),
                "slowest": round(min(rates), 1),
                "fastest": round(max(rates), 1),
            }
            print(row, file=sys.stderr)
            rows.append(row)
    return rows


def main() -> None:
    arguments = parse_arguments()
    if not arguments.folders:
        print("no folder is given: nothing is measured", file=sys.stderr)
        return
    import torch
    import transformers

    rows = []
    for folder in arguments.folders:
        rows += measure_folder(folder, arguments)
    result = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": os.cpu_count(),
        "prompt": arguments.prompt,
        "new": arguments.new,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
