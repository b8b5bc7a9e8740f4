"""Laws of smaller models: trained in few bits, quantized after training, distilled."""

from __future__ import annotations

from analysis.laws.base import (
    Array,
    Law,
    Nonlinear,
    Params,
    Variables,
    namespace,
    power,
)
from analysis.laws.pretraining import derive_a, derive_b
from analysis.laws.registry import EXPONENT, register


def precision_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["bits"])
    effective = x["N"] * -xp.expm1(-x["bits"] / p["gamma"])
    return 1.0, power(effective, -p["alpha"]), power(x["D"], -p["beta"])


register(
    Law(
        name="precision",
        formula="E + A / N'^alpha + B / D^beta, N' = N (1 - exp(-bits/gamma))",
        variables=("N", "D", "bits"),
        linear=("E", "A", "B"),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
            Nonlinear("gamma", 0.05, 50.0, log=True),
        ),
        terms=precision_terms,
        derived=(("a", derive_a), ("b", derive_b)),
        source="Kumar et al. 2024, arXiv:2411.04330, eq. 3",
        meanings=(("bits", "of a weight in training"),),
        verified="parameters of published size",
        floor="E",
    )
)


def compute_quantization_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    fineness = namespace(x["bits"]).exp(-x["bits"] / p["gamma_bits"])
    return (power(x["D"], p["gamma_D"]) * power(x["N"], -p["gamma_N"]) * fineness,)


register(
    Law(
        name="quantization",
        formula="loss_rise = C D^gamma_D / N^gamma_N exp(-bits/gamma_bits)",
        variables=("N", "D", "bits"),
        linear=("C",),
        nonlinear=(
            ("gamma_D", *EXPONENT),
            ("gamma_N", *EXPONENT),
            Nonlinear("gamma_bits", 0.05, 50.0, log=True),
        ),
        terms=compute_quantization_terms,
        target="loss_rise",
        source="Kumar et al. 2024, arXiv:2411.04330: quantized after training",
        meanings=(("bits", "of a quantized weight"),),
        verified="published parameters",
    )
)


def compute_low_bit_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return (
        power(x["D"], p["beta"])
        * power(x["N"], -p["alpha"])
        * power(x["bits"], -p["gamma"]),
    )


register(
    Law(
        name="low_bit",
        formula="loss_rise = k D^beta / (N^alpha bits^gamma)",
        variables=("N", "D", "bits"),
        linear=("k",),
        nonlinear=(("beta", *EXPONENT), ("alpha", *EXPONENT), ("gamma", 0.01, 20.0)),
        terms=compute_low_bit_terms,
        target="loss_rise",
        source="Ouyang et al. 2024, arXiv:2411.17691: quantized after training",
        meanings=(("bits", "of a quantized weight"),),
        verified="parameters of published size",
    )
)


def compute_distillation_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["L_T"])
    log_teacher = xp.log(x["L_T"])
    gap = log_teacher - xp.log(x["L_S"] * p["d_1"])
    bend = xp.logaddexp(0.0, gap / p["f_1"])
    teacher = xp.exp(-p["c_0"] * log_teacher - p["c_1"] * p["f_1"] * bend)
    size_and_tokens = power(x["N"], -p["alpha"]) + power(x["D"] / p["D_0"], -p["beta"])
    return (teacher * power(size_and_tokens, p["gamma"]),)


def read_teacher_loss(p: Params, x: Variables) -> Array:
    return x["L_T"]


register(
    Law(
        name="distillation",
        formula=(
            "L_T + K / L_T^c_0 (1 + (L_T / (L_S d_1))^(1/f_1))^(-c_1 f_1) "
            "(1 / N^alpha + (D_0/D)^beta)^gamma"
        ),
        variables=("N", "D", "L_T", "L_S"),
        linear=("K",),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
            ("gamma", *EXPONENT),
            ("c_0", 0.0, 10.0),
            Nonlinear("c_1", 0.1, 1e4, log=True),
            Nonlinear("d_1", 0.1, 10.0, log=True),
            Nonlinear("f_1", 0.01, 4.0, log=True),
            Nonlinear("D_0", 1e-12, 1e6, log=True, unit=(("D", 1.0),)),
        ),
        terms=compute_distillation_terms,
        source=(
            "Busbridge et al. 2025, arXiv:2502.08606, eq. 8, with K = A'^gamma' and "
            "D_0 = (B'/A')^(1/beta')"
        ),
        offset=read_teacher_loss,
        meanings=(
            ("N", "parameters of the student"),
            ("D", "tokens that it is distilled on"),
            ("L_T", "the teacher's loss"),
            ("L_S", "the student's own loss at N and D without a teacher"),
        ),
        verified="parameters of published size",
    )
)
