"""Time of the gradient of causal attention: ours against
`jax.nn.dot_product_attention`.

    python benchmarks/attention.py

Both compute the same numbers (tests/scaling/model/test_kernels.py). They take turns on
this machine's default device. The output is the median times, and the ratio of each
pair with its median and range. Expect a ratio near 0.3 on CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scaling.model.kernels import causal_attention

ROUNDS, CALLS = 15, 5
SHAPES = ((4, 4, 128, 16), (32, 4, 128, 16), (8, 4, 256, 32))  # B, H, T, K


def attend_with_jax(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float
) -> jax.Array:
    """The library's attention on the same layout."""
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
    return jnp.moveaxis(
        jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True), 2, 1
    )


def compile_gradient(
    attention: Callable[..., jax.Array], scale: float
) -> Callable[..., tuple[jax.Array, ...]]:
    """Compiled gradient of the sum of squares of the output."""
    return jax.jit(
        jax.grad(
            lambda q, k, v: jnp.square(attention(q, k, v, scale)).sum(),
            argnums=(0, 1, 2),
        )
    )


def time_call(
    function: Callable[..., object], arguments: tuple[jax.Array, ...]
) -> float:
    """Seconds of one call, over a few."""
    start = time.perf_counter()
    for _ in range(CALLS):
        jax.block_until_ready(function(*arguments))
    return (time.perf_counter() - start) / CALLS


def main() -> None:
    """Time every shape and print a line for each."""
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind} x{jax.device_count()}, "
        "float32"
    )
    for shape in SHAPES:
        arguments = tuple(
            jax.random.normal(key, shape)
            for key in jax.random.split(jax.random.key(0), 3)
        )
        functions = [
            compile_gradient(f, shape[-1] ** -0.5)
            for f in (causal_attention, attend_with_jax)
        ]
        for function in functions:
            time_call(function, arguments)
        times = np.array(
            [
                [time_call(function, arguments) for function in functions]
                for _ in range(ROUNDS)
            ]
        )
        ours, library = 1e3 * np.median(times, axis=0)
        low, middle, high = np.quantile(times[:, 0] / times[:, 1], [0.0, 0.5, 1.0])
        print(
            f"B, H, T, K = {shape}: {ours:.2f} ms against {library:.2f} ms, ratio "
            f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        )


if __name__ == "__main__":
    main()
