"""How much the first steps of training change each activation.

Under a parametrization whose learning rates transfer, they change every activation by the
same amount at every size: the coordinate check of Yang et al. 2022 (arXiv:2203.03466,
appendix D.1).

Axes: S steps, B batch, P sequences of the probe, T position, T1 = T + 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scaling.config import ArchitectureConfig, OptimConfig
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.model.probes import record_activations
from scaling.training.optimizer import make_optimizer
from scaling.training.step import StepSpec, TrainState, train_step


def measure_activation_changes(
    model: ArchitectureConfig,
    optim: OptimConfig,
    windows: Int[Array, "S B T1"],
    probe: Int[Array, "P T"],
    seeds: int,
) -> dict[str, np.ndarray]:
    """Root mean square change of each activation since initialization, after each step.

    Args:
        model: The model.
        optim: The optimizer, and the constant rate.
        windows: The batches of the steps.
        probe: Tokens at which activations are compared.
        seeds: Number of initializations, over which changes are averaged.

    Returns:
        For each activation an array [S].
    """
    family = build_family(model)
    spec = StepSpec(
        family=family,
        optimizer=make_optimizer(optim, family),
        accumulate=1,
    )
    rate = jnp.float32(optim.lr)
    no_decay = jnp.float32(0)

    @jax.jit
    def record(params: Params) -> dict[str, Array]:
        return record_activations(family, params, probe)

    @jax.jit
    def step(state: TrainState, batch: Int[Array, "B T1"]) -> TrainState:
        state, _ = train_step(spec, state, batch, rate, no_decay, None, None)
        return state

    changes: dict[str, np.ndarray] = {}
    for seed in range(seeds):
        state = spec.init(seed)
        start = jax.device_get(record(state.params))
        for k, batch in enumerate(windows):
            state = step(state, batch)
            for name, now in jax.device_get(record(state.params)).items():
                change = np.sqrt(np.mean(np.square(now - start[name])))
                by_step = changes.setdefault(name, np.zeros(len(windows)))
                by_step[k] += change / seeds
    return changes
