"""Tokens per second of decoding: behind the cache, by computing every window anew, and by
`transformers` on the same exported models.

    python benchmarks/generate.py FOLDER ... [--python OTHER/bin/python] [--rounds 5]

Each folder is one that `scaling export --format hf` wrote. `--python` names a Python that
has torch and transformers; without it they are left out. All write `--new` tokens greedily
after random prompts of `--prompt` tokens, the prompt read within the call. The three are
timed in turn, round by round, and the table gives the median of each, and of the ratio to
the decoding behind the cache, with the lowest and the highest. Recomputation is one
compiled program too: a loop whose every step computes the whole window. Without a folder
nothing is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import scaling
from scaling.config import ModelConfig
from scaling.inference.decoding import (
    CHUNK,
    choose_cache_length,
    get_decoder,
    make_row_keys,
)
from scaling.inference.sampling import SamplingConfig
from scaling.model.family import Family, build_family

TRANSFORMERS = Path(__file__).with_name("transformers_generate.py")


def make_cached(
    config: ModelConfig, params: dict, prompts: np.ndarray, new: int
) -> Callable[[], None]:
    """A call that writes tokens behind the cache."""
    batch, length = prompts.shape
    sampling = SamplingConfig(temperature=0.0)
    decoder = get_decoder(
        config, choose_cache_length(config, length + new), sampling.kind, end=-1
    )
    counts = np.full(batch, length, np.int32)
    none = np.zeros((batch, config.vocab), bool)
    keys = make_row_keys(0, np.zeros((batch, 2), np.int64))
    values = sampling.make_values(config.vocab)

    def write() -> None:
        state = decoder.start(params, prompts, counts, none, np.zeros(batch, bool))
        for written in range(0, new, CHUNK):
            count = np.int32(min(CHUNK, new - written))
            state, _ = decoder.write(params, state, count, keys, values)
        jax.block_until_ready(state)

    return write


def recompute(
    params: dict, window: jax.Array, *, family: Family, start: int, new: int
) -> jax.Array:
    """Write tokens by computing the whole window for each."""

    def write_one(i: jax.Array, window: jax.Array) -> jax.Array:
        logits = family.apply(params, window)
        token = jnp.argmax(
            jax.lax.dynamic_index_in_dim(logits, i - 1, axis=1, keepdims=False), axis=-1
        )
        return window.at[:, i].set(token)

    return jax.lax.fori_loop(start, start + new, write_one, window)


def make_recomputed(
    config: ModelConfig, params: dict, prompts: np.ndarray, new: int
) -> Callable[[], None]:
    """A call that writes the same tokens without a cache."""
    start = prompts.shape[1]
    window = np.pad(prompts, ((0, 0), (0, new)))
    program = jax.jit(
        functools.partial(recompute, family=build_family(config), start=start, new=new)
    )
    return lambda: jax.block_until_ready(program(params, window))


def time_call(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def time_transformers(
    python: str, folder: Path, batch: int, arguments: argparse.Namespace
) -> float:
    """New tokens per second of one call in a process of its own."""
    command = [
        python,
        str(TRANSFORMERS),
        str(folder),
        "--batch",
        str(batch),
        "--threads",
        str(arguments.threads),
    ]
    command += [
        "--prompt",
        str(arguments.prompt),
        "--new",
        str(arguments.new),
        "--rounds",
        "1",
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)["rows"][0]["tokens_per_second"]


def describe_ratio(rates: list[float], cached: list[float]) -> str:
    ratios = np.array(cached) / np.array(rates)
    return f"{np.median(ratios):.3g} [{ratios.min():.3g}, {ratios.max():.3g}]"


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--python")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.folders:
        print("no folder is given: nothing is measured", file=sys.stderr)
        return
    names = ("model", "width", "batch", "cached, tokens/s")
    print_row(*names, "over recomputation", "over transformers")
    print_row(*["---"] * 6)
    for folder in arguments.folders:
        imported = scaling.import_hugging_face(folder)
        config = imported.config
        params = jax.tree.map(jnp.asarray, imported.params)
        for batch in arguments.batch:
            shape = (batch, arguments.prompt)
            prompts = np.random.default_rng(0).integers(
                1, config.vocab, shape, dtype=np.int32
            )
            cached = make_cached(config, params, prompts, arguments.new)
            recomputed = make_recomputed(config, params, prompts, arguments.new)
            cached()
            recomputed()
            rates: dict[str, list[float]] = {
                "cached": [],
                "recomputed": [],
                "transformers": [],
            }
            new = batch * arguments.new
            for _ in range(arguments.rounds):
                rates["cached"].append(new / time_call(cached))
                rates["recomputed"].append(new / time_call(recomputed))
                if arguments.python:
                    rates["transformers"].append(
                        time_transformers(arguments.python, folder, batch, arguments)
                    )
            beside = "-"
            if arguments.python:
                beside = describe_ratio(rates["transformers"], rates["cached"])
            slower = describe_ratio(rates["recomputed"], rates["cached"])
            speed = f"{np.median(rates['cached']):,.0f}"
            print_row(config.activation, config.width, batch, speed, slower, beside)


if __name__ == "__main__":
    main()
