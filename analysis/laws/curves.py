"""Laws of the loss along training, as functions of the learning-rate schedule.

A law of a curve is a `Law` whose variables are computed from the schedule up to a step:
the sum of the learning rates, and one value for each group of drops of the learning rate
before that step (`analysis.curves.features`). Its coefficients and exponents are fitted
by the solver of all laws.

To add one, write its terms and register it in this file. The variables that terms may
read, with n rows and K groups of drops each:

    S1      [n]     sum of the learning rates
    drop    [n, K]  by how much the learning rate fell in a group; negative where it rose
    log_lr  [n, K]  log of the learning rate after the drop
    S       [n, K]  sum of the learning rates since the drop, its own step included
    age     [n, K]  steps since the drop, its own step included

Units: steps; learning rates as they are; loss in nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws.base import (
    Array,
    Law,
    Nonlinear,
    Params,
    Variables,
    namespace,
    power,
)
from analysis.laws.registry import EXPONENT, add_law, find_law

WARMUPS = ("rises", "peak")

_MEANINGS = (
    ("S1", "sum of the learning rates so far"),
    ("drop", "by how much the learning rate fell in a group of drops"),
    ("log_lr", "log of the learning rate after the drop"),
    ("S", "sum of the learning rates since the drop"),
    ("age", "steps since the drop"),
)


@dataclass(frozen=True)
class CurveLaw(Law):
    """A law of the loss along training.

    Attributes:
        warmup: how the warm-up counts. "rises": as it was, from a learning rate of 0, so
            that every rise is a negative drop. "peak": as if the learning rate had been
            at its peak from the first step.
    """

    warmup: str = "rises"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup not in WARMUPS:
            raise ValueError(
                f"law {self.name!r}: warmup is {self.warmup!r}; choose one of "
                f"{', '.join(WARMUPS)}"
            )

    def choose_reference(self, x: Variables) -> dict[str, Array]:
        """The groups of drops of the row whose learning rate has changed most in all,
        with the geometric mean of S1.
        """
        row = int(np.argmax(np.abs(x["drop"].sum(axis=-1))))
        reference = {name: values[row] for name, values in x.items()}
        reference["S1"] = float(np.exp(np.mean(np.log(x["S1"]))))
        return reference

    def predict(self, params: Params, **x: Array) -> np.ndarray:
        """[n] loss in nats per token at the features of a schedule.

        Raises:
            ValueError: a feature is missing.
        """
        missing = [name for name in self.variables if x.get(name) is None]
        if missing:
            raise ValueError(
                f"law {self.name!r} needs {missing[0]}=; compute the features of a "
                "schedule with analysis.curves.features.compute_features"
            )
        return self._sum_terms(params, x)


CURVE_LAWS: dict[str, CurveLaw] = {}
"""All laws of curves by name; `register_curve_law` adds one."""


def register_curve_law(law: CurveLaw) -> CurveLaw:
    """Add a law, so that `fit_curves` and `CurveFit.from_json` find it by its name.

    Raises:
        ValueError: another law has that name.
    """
    return add_law(CURVE_LAWS, law, kind="law of curves")


def get_curve_law(law: str | CurveLaw) -> CurveLaw:
    """Return the law of that name, or the law itself.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(law, CurveLaw):
        return law
    return find_law(CURVE_LAWS, law, kind="law of curves")


def add_axis(parameter: Array) -> Array:
    """The parameter with an axis for the groups, where it has one for draws."""
    return parameter[..., None] if getattr(parameter, "ndim", 0) else parameter


# --- Learning-rate annealing ----------------------------------------------------------


def annealing_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    """The annealing area S2 is the sum of m_i, m_i = lambda m_(i-1) + lr_(i-1) - lr_i.

    A drop d steps ago has added 1 + lambda + ... + lambda^(d-1) = tau (1 - lambda^d)
    times its size, with tau = 1 / (1 - lambda).
    """
    xp = namespace(x["age"])
    tau = add_axis(p["tau"])
    log_momentum = xp.log1p(-1.0 / tau)
    share = -xp.expm1(x["age"] * log_momentum)
    area = (tau * x["drop"] * share).sum(axis=-1)
    return 1.0, power(x["S1"], -p["alpha"]), -area


def derive_momentum(p: Params) -> Array:
    """lambda, per step."""
    return 1.0 - 1.0 / p["tau"]


register_curve_law(
    CurveLaw(
        name="annealing",
        formula="L0 + A S1^-alpha - C S2, S2 with momentum lambda = 1 - 1/tau",
        variables=("S1", "drop", "age"),
        linear=("L0", "A", "C"),
        nonlinear=(("alpha", *EXPONENT), Nonlinear("tau", 2.0, 1e5, log=True)),
        terms=annealing_terms,
        derived=(("lambda", derive_momentum),),
        source="Tissue et al. 2024, arXiv:2408.11029, warm-up as in section 3.4",
        floor="L0",
        meanings=_MEANINGS,
        verified="simulated curves",
        warmup="peak",
    )
)


# --- Multi-power law ------------------------------------------------------------------


def multi_power_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    """The reduction of the loss is the sum over drops of
    drop * (1 - (1 + C lr^-gamma S)^-beta).
    """
    xp = namespace(x["S"])
    power_of_sum = power(x["S1"], -p["alpha"])
    if all(namespace(p[name]) is not np for name in ("beta", "gamma", "C")):
        # The solver differentiates by the parameters.
        from analysis.laws.curve_derivatives import sum_reductions

        reduction = sum_reductions(
            p["beta"], xp.log(p["C"]), p["gamma"], x["drop"], x["S"], x["log_lr"]
        )
        return 1.0, power_of_sum, -reduction
    C, beta, gamma = (add_axis(p[name]) for name in ("C", "beta", "gamma"))
    distance = C * x["S"] * xp.exp(-gamma * x["log_lr"])
    share = -xp.expm1(-beta * xp.log1p(distance))
    reduction = (x["drop"] * share).sum(axis=-1)
    return 1.0, power_of_sum, -reduction


register_curve_law(
    CurveLaw(
        name="multi_power",
        formula=(
            "L0 + A S1^-alpha - B sum_k (lr_(k-1) - lr_k) G(lr_k^-gamma S_k), "
            "G(x) = 1 - (C x + 1)^-beta"
        ),
        variables=("S1", "drop", "log_lr", "S"),
        linear=("L0", "A", "B"),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
            ("gamma", 0.01, 2.0),
            Nonlinear("C", 1e-6, 1e4, log=True),
        ),
        terms=multi_power_terms,
        source="Luo et al. 2025, arXiv:2503.12811; S1 and the sum include the warm-up",
        floor="L0",
        meanings=_MEANINGS,
        verified="published parameters and errors",
    )
)
