"""Laws that are one product of powers: learning rates, batch sizes, data transferred."""

from __future__ import annotations

from analysis.laws.base import Array, Law, Params, Variables, power
from analysis.laws.registry import SIGNED, register


def monomial(
    target: str,
    variables: tuple[str, ...],
    name: str,
    source: str = "",
    meanings: tuple[tuple[str, str], ...] = (),
    verified: str = "",
) -> Law:
    """target = A * product of variable^exponent, exponents of either sign, named
    p_<variable>.

    The form of the laws of the best learning rate and batch size in N and D, and of the
    effective data transferred.

    Args:
        target: the column that the law predicts.
        variables: the factors.
        name: of the law.
        source: where it was published.
        meanings: (variable or target, what it is).
        verified: what the tests hold the law against.
    """

    def terms(p: Params, x: Variables) -> tuple[Array, ...]:
        product: Array = 1.0
        for v in variables:
            product = product * power(x[v], p[f"p_{v}"])
        return (product,)

    factors = " ".join(f"{v}^p_{v}" for v in variables)
    return Law(
        name=name,
        formula=f"{target} = A {factors}",
        variables=variables,
        linear=("A",),
        nonlinear=tuple((f"p_{v}", *SIGNED) for v in variables),
        terms=terms,
        target=target,
        source=source,
        meanings=meanings,
        verified=verified,
    )


register(
    monomial(
        target="D_T",
        variables=("D_F", "N"),
        name="transfer",
        source="Hernandez et al. 2021, arXiv:2102.01293",
        meanings=(
            ("D_F", "data that a model is fine-tuned on"),
            ("D_T", "data that pre-training was worth"),
        ),
        verified="parameters of published size",
    )
)
register(
    monomial(
        target="lr",
        variables=("N", "D"),
        name="learning_rate",
        source="Li et al. 2025, arXiv:2503.04715",
        meanings=(("lr", "best learning rate"),),
        verified="published parameters",
    )
)
register(
    monomial(
        target="batch_tokens",
        variables=("D",),
        name="batch_size",
        source="Li et al. 2025, arXiv:2503.04715; Bergsma et al. 2025, arXiv:2505.13738",
        meanings=(("batch_tokens", "best or critical batch"),),
        verified="published parameters",
    )
)
register(
    monomial(
        target="tau",
        variables=("TPP",),
        name="time_scale",
        source="Bergsma et al. 2025, arXiv:2505.13738",
        meanings=(
            ("tau", "best batch / (learning rate x weight decay x tokens) of AdamW"),
            ("TPP", "tokens per parameter, D / N"),
        ),
        verified="parameters of published size",
    )
)
