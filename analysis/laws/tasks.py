"""Laws of what is measured after pre-training: errors, accuracies, rewards, coverage."""

from __future__ import annotations

import numpy as np

from analysis.laws.base import (
    Array,
    Law,
    Link,
    Nonlinear,
    Params,
    Variables,
    namespace,
    power,
)
from analysis.laws.registry import EXPONENT, register


def downstream_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["loss"])
    return 1.0, -xp.exp(-p["gamma"] * x["loss"])


register(
    Law(
        name="downstream",
        formula="error = epsilon - k exp(-gamma loss)",
        variables=("loss",),
        linear=("epsilon", "k"),
        nonlinear=(("gamma", 0.02, 20.0),),
        terms=downstream_terms,
        target="error",
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 5",
        verified="published errors of 104 models",
        ceiling="epsilon",
    )
)


def compute_accuracy_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["loss"])
    return 1.0, xp.exp(-xp.logaddexp(0.0, p["k"] * (x["loss"] - p["L_0"])))


register(
    Law(
        name="task_accuracy",
        formula="accuracy = b + a / (1 + exp(k (loss - L_0)))",
        variables=("loss",),
        linear=("b", "a"),
        nonlinear=(
            Nonlinear("k", 0.1, 1e3, log=True, unit=(("loss", -1.0),)),
            Nonlinear("L_0", 0.1, 10.0, log=True, unit=(("loss", 1.0),)),
        ),
        terms=compute_accuracy_terms,
        target="accuracy",
        source="Bhagia et al. 2024, arXiv:2412.04403: the second step of a ladder",
        constants=("b",),
        meanings=(("loss", "of the correct answers of a task"),),
        verified="parameters of published size",
    )
)


def compute_exponential_accuracy_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return 1.0, namespace(x["loss"]).exp(-p["gamma"] * x["loss"])


register(
    Law(
        name="exponential_accuracy",
        formula="accuracy = b + k exp(-gamma loss)",
        variables=("loss",),
        linear=("b", "k"),
        nonlinear=(("gamma", 0.02, 20.0),),
        terms=compute_exponential_accuracy_terms,
        target="accuracy",
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 5, with accuracy = 1 - error",
        constants=("b",),
        verified="parameters of published size",
    )
)


class EmergenceLaw(Law):
    """A law with a term that is 0 above some loss."""

    def choose_reference(self, x: Variables) -> dict[str, Array]:
        """The lowest loss, at which the term is not 0 if it is anywhere."""
        return {"loss": float(np.min(x["loss"]))}


def compute_emergence_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    below = namespace(x["loss"]).maximum(p["L_0"] - x["loss"], 0.0)
    # The solver divides by the term at the reference.
    return 1.0, below + 1e-300


register(
    EmergenceLaw(
        name="emergence",
        formula="accuracy = b + a max(L_0 - loss, 0)",
        variables=("loss",),
        linear=("b", "a"),
        nonlinear=(Nonlinear("L_0", 0.1, 10.0, log=True, unit=(("loss", 1.0),)),),
        terms=compute_emergence_terms,
        target="accuracy",
        source="Du et al. 2024, arXiv:2403.15796: none above a loss, linear below it",
        constants=("b",),
        verified="parameters of published size",
    )
)


def compute_transfer_of_loss_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    above = namespace(x["loss_0"]).maximum(x["loss_0"] - p["E_0"], 0.0)
    # The logarithm of 0 is no number, and its power is 0.
    return 1.0, power(above + 1e-300, p["kappa"])


register(
    Law(
        name="loss_to_loss",
        formula="loss_1 = E_1 + K (loss_0 - E_0)^kappa",
        variables=("loss_0",),
        linear=("E_1", "K"),
        nonlinear=(
            ("kappa", 0.05, 5.0),
            Nonlinear("E_0", 1e-3, 1.0, log=True, unit=(("loss_0", 1.0),)),
        ),
        terms=compute_transfer_of_loss_terms,
        target="loss_1",
        source="Brandfonbrener et al. 2024, arXiv:2411.12925",
        constants=("E_1",),
        meanings=(("loss_0", "on one text, or of one family of models"),),
        verified="parameters of published size",
    )
)


def compute_coverage_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return (power(x["k"], -p["b"]),)


def compute_coverage(p: Params, s: Array) -> Array:
    return namespace(s).exp(-s)


def invert_coverage(p: Params, coverage: Array) -> Array:
    xp = namespace(coverage)
    return -xp.log(xp.clip(coverage, 1e-300, 1.0 - 1e-15))


register(
    Law(
        name="repeated_sampling",
        formula="coverage = exp(-a / k^b)",
        variables=("k",),
        linear=("a",),
        nonlinear=(("b", *EXPONENT),),
        terms=compute_coverage_terms,
        link=Link(compute_coverage, invert_coverage),
        target="coverage",
        source="Brown et al. 2024, arXiv:2407.21787",
        meanings=(("k", "samples of a problem"),),
        verified="parameters of published size",
    )
)


def compute_reward_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["C"])
    log_ratio = p["B"] * (xp.log(p["C_mid"]) - xp.log(x["C"]))
    gained = xp.exp(-xp.logaddexp(0.0, log_ratio))
    left = xp.exp(-xp.logaddexp(0.0, -log_ratio))
    return left, gained


register(
    Law(
        name="reinforcement_learning",
        formula="reward = R_0 + (A - R_0) / (1 + (C_mid/C)^B)",
        variables=("C",),
        linear=("R_0", "A"),
        nonlinear=(
            ("B", *EXPONENT),
            Nonlinear("C_mid", 1e-4, 1e4, log=True, unit=(("C", 1.0),)),
        ),
        terms=compute_reward_terms,
        target="reward",
        source="Khatri et al. 2025, arXiv:2510.13786",
        meanings=(("C", "compute of reinforcement learning"),),
        verified="parameters of published size",
    )
)
