"""Parametrisations as data: role -> initialisation, multiplier, learning rate, weight
decay, epsilon.

Every parameter of the model carries a *role* and the rule that follows from it: the
model reads standard deviations and forward multipliers, the optimiser rates. Nothing
matches names, and a parameter whose role has no rule is an error.

Adding a parametrisation is adding a row to `PARAMETRIZATIONS`.

Notation: n fan-in of a matrix, m = n / its fan-in at `base_width`, m_d = width / base
width, m_L = depth / base depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from scaling.config import ConfigError, ModelConfig
from scaling.model.ops import Ops, ResidualWeights
from scaling.model.unit_scaling import UnitOps, residual_weights

Role = Literal[
    "embedding",  # token (and learned position) embeddings: fan-in is the vocabulary, constant in width
    "hidden",  # matrices that read the residual stream: q, k, v, feed-forward in and gate
    "residual_out",  # matrices that write to the residual stream: attention and feed-forward out
    "readout",  # output head
    "gain",  # scale of a norm in a block
    "bias",  # shift of a norm in a block
    "final_gain",  # of the norm before the output head
    "final_bias",
    "scale",  # learned scale of a matrix's outputs, where the matrix itself is held at unit norm
]
ROLES: tuple[Role, ...] = get_args(Role)
Constraint = Literal["none", "tensor", "unit"]


@dataclass(frozen=True)
class Rule:
    """What a parametrisation says of one parameter; `lr`, `weight_decay`, `epsilon`
    multiply the recipe's values.

    Attributes:
        weight_decay: of decay that is independent of the rate: AdamW's lambda x rate,
        both as the parametrisation has
            them.
        constraint: what holds after every step. "tensor": the whole parameter has norm
        1; "unit": each column of a
            matrix (the weights into one unit), each row of an embedding has.
    """

    init_std: float | int
    multiplier: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    epsilon: float = 1.0
    constraint: Constraint = "none"


@dataclass(frozen=True)
class ParameterSizes:
    """The sizes a rule may depend on."""

    fan_in: int
    fan_ratio: float  # fan-in / fan-in at the base width
    width: int
    width_ratio: float
    depth: int
    depth_ratio: float


RuleOf = Callable[[ParameterSizes], Rule]
Rules = Mapping[Role, RuleOf]


def _inverse_sqrt(config: ModelConfig) -> float:
    return config.key_dim**-0.5


def _inverse(config: ModelConfig) -> float:
    return 1 / config.key_dim


def _inverse_from_base(config: ModelConfig) -> float:
    """1 / head dimension, and its inverse square root at the base width (Yang et al.
    2022, definition 4.1).
    """
    base = (
        config.key_dim
        if config.head_dim is not None
        else config.base_width / config.heads
    )
    return base**0.5 / config.key_dim


def _plain(config: ModelConfig, branch: int) -> ResidualWeights:
    del config, branch
    return ResidualWeights(1.0, 1.0)


@dataclass(frozen=True)
class ParametrizationSpec:
    """One row of the table."""

    rules: Rules
    attention: Callable[[ModelConfig], float] = _inverse_sqrt  # factor on q.k
    residual: Callable[[ModelConfig, int], ResidualWeights] = (
        _plain  # branch -> weights of skip and branch
    )
    ops: Callable[[ModelConfig], Ops] = lambda config: Ops()
    learned_scales: bool = False  # a scale for each output of each matrix


def _undecayed(init_std: float = 0.0) -> RuleOf:
    return lambda s: Rule(init_std, weight_decay=0.0)


_VECTORS: dict[Role, RuleOf] = {
    role: _undecayed() for role in ("gain", "bias", "final_gain", "final_bias", "scale")
}
Powers = tuple[
    float | int, float | int, float | int
]  # of embedding, hidden and readout


def _by_width(
    std: Powers,
    multiplier: Powers,
    lr: Powers,
    *,
    epsilon: float = 0.0,
    depth: float = 1.0,
) -> dict:
    """Rules that follow powers of width and equal the standard ones at the base width.

    std, multiplier, lr: powers of 1 / m in each (of 1 / m_d in the embedding's), as a,
    b, c of Everett et al. 2024 (arXiv:2407.05872) with std = b and multiplier = a.
    epsilon: power of 1 / m_d in the blocks'. depth: a of Dey et al. 2025
    (arXiv:2505.01618): rates in the blocks times m_L^(a - 1); 1 for none.
    """

    def embedding(s: ParameterSizes) -> Rule:
        m = s.width_ratio
        return Rule(0.1 * m ** -std[0], m ** -multiplier[0], m ** -lr[0], 0.0)

    def hidden(s: ParameterSizes) -> Rule:
        m, deeper = s.fan_ratio, s.depth_ratio ** (depth - 1)
        init_std = s.fan_in**-0.5 * m ** (0.5 - std[1])
        return Rule(
            init_std,
            m ** -multiplier[1],
            m ** -lr[1] * deeper,
            deeper,
            s.width_ratio**-epsilon,
        )

    def readout(s: ParameterSizes) -> Rule:
        m = s.fan_ratio
        return Rule(
            s.fan_in**-0.5 * m ** (0.5 - std[2]), m ** -multiplier[2], m ** -lr[2]
        )

    def vector(s: ParameterSizes) -> Rule:
        return Rule(
            0.0,
            lr=s.depth_ratio ** (depth - 1),
            weight_decay=0.0,
            epsilon=s.width_ratio**-epsilon,
        )

    matrices: dict[Role, RuleOf] = {
        "hidden": hidden,
        "residual_out": hidden,
        "readout": readout,
    }
    return {
        **_VECTORS,
        **matrices,
        "embedding": embedding,
        "gain": vector,
        "bias": vector,
    }


# Standard deviation, multiplier, learning rate as powers of 1/width. muP: Yang et al.
# 2022 (arXiv:2203.03466), tables 8 and 3; the others: Everett et al. 2024, with full or
# no alignment between updates and activations. Mean-field rates were derived from that
# paper's conditions (rate = 1 - multiplier, or 1/2 - multiplier), not read from its
# table.
_SP = _by_width((0, 0.5, 0.5), (0, 0, 0), (0, 0, 0))
_MUP = ((0, 0.5, 0), (0, 0, 1), (0, 1, 0))
_EVERETT: dict[str, tuple[Powers, Powers, Powers]] = {
    "standard_full": ((0, 0.5, 0.5), (0, 0, 0), (0, 1, 1)),
    "standard_none": ((0, 0.5, 0.5), (0, 0, 0), (0, 0.5, 0.5)),
    "ntk_full": ((0, 0, 0), (0, 0.5, 0.5), (0, 0.5, 0.5)),
    "ntk_none": ((0, 0, 0), (0, 0.5, 0.5), (0, 0, 0)),
    "everett_mup_full": ((0.5, 0.5, 0.5), (-0.5, 0, 0.5), (0.5, 1, 0.5)),
    "everett_mup_none": ((0.5, 0.5, 0.5), (-0.5, 0, 0.5), (0.5, 0.5, 0)),
    "mean_field_full": ((0, 0, 0), (0, 0.5, 1), (0, 0.5, 0)),
    "mean_field_none": ((0, 0, 0), (0, 0.5, 1), (0, 0, -0.5)),
}


def _completep(a: float) -> ParametrizationSpec:
    """muP in width; branches weighted m_L^-a (Dey et al. 2025, table 1). a = 1 is
    CompleteP.
    """
    rules = _by_width(*_MUP, epsilon=1.0, depth=a)

    def in_blocks(rule_of: RuleOf) -> RuleOf:
        return lambda s: replace(
            rule_of(s), epsilon=rule_of(s).epsilon * s.depth_ratio**-a
        )

    blocks: tuple[Role, ...] = ("hidden", "residual_out", "gain", "bias")
    rules |= {role: in_blocks(rules[role]) for role in blocks}
    return ParametrizationSpec(
        rules,
        _inverse_from_base,
        lambda config, _: ResidualWeights(
            1.0, (config.depth / config.base_depth) ** -a
        ),
    )


def _unit() -> ParametrizationSpec:
    """Unit scaling (Blake et al. 2023): unit variance everywhere, one learning rate, x
    <- (x + F(x)) / sqrt 2.
    """
    matrix: RuleOf = lambda s: Rule(1.0, s.fan_in**-0.5)
    matrices: dict[Role, RuleOf] = {
        role: matrix for role in ("hidden", "residual_out", "readout")
    }
    rules: Rules = {**_VECTORS, **matrices, "embedding": _undecayed(1.0)}
    halves = lambda config, branch: ResidualWeights(2**-0.5, 2**-0.5)
    return ParametrizationSpec(
        rules, _inverse, halves, lambda config: UnitOps(config.unit)
    )


def _umup() -> ParametrizationSpec:
    """u-muP (Blake et al. 2024, table 2): unit scaling with muP's rates, and residual
    weights by depth.
    """

    def hidden(s: ParameterSizes) -> Rule:
        return Rule(1.0, s.fan_in**-0.5, (s.fan_in * s.depth) ** -0.5)

    vector: RuleOf = lambda s: Rule(0.0, lr=s.depth**-0.5, weight_decay=0.0)
    rules: Rules = {
        **_VECTORS,
        "embedding": lambda s: Rule(1.0, lr=s.width**-0.5, weight_decay=0.0),
        "hidden": hidden,
        "residual_out": hidden,
        "readout": lambda s: Rule(1.0, 1 / s.fan_in),
        "gain": vector,
        "bias": vector,
    }
    weights = lambda config, branch: residual_weights(branch, config.depth, config.unit)
    return ParametrizationSpec(
        rules, _inverse, weights, lambda config: UnitOps(config.unit)
    )


def _normalized() -> ParametrizationSpec:
    """The weights into every unit, and every embedding, at norm 1 after each step, with
    a learned scale per unit.

    As nGPT (arXiv:2410.01131) and EDM2 (arXiv:2312.02696) do: rates fall as m^-1/2, so
    that a step turns a column of any length by the same angle; the embedding's
    multiplier gives it the standard deviation of `sp`.
    """

    def matrix(s: ParameterSizes) -> Rule:
        return Rule(
            s.fan_in**-0.5, lr=s.fan_ratio**-0.5, weight_decay=0.0, constraint="unit"
        )

    def embedding(s: ParameterSizes) -> Rule:
        std = s.width**-0.5
        return Rule(std, 0.1 / std, s.width_ratio**-0.5, 0.0, constraint="unit")

    matrices: dict[Role, RuleOf] = {
        role: matrix for role in ("hidden", "residual_out", "readout")
    }
    return ParametrizationSpec(
        {**_VECTORS, **matrices, "embedding": embedding}, learned_scales=True
    )


def _literal(power: float, constraint: Constraint) -> ParametrizationSpec:
    """The documents' initialisation N(0, 1/sqrt(n)) and W <- W / ||W||, b <- b / ||b||
    after each step, by the letter.

    power: the standard deviation is n^-power: 1/2 if 1/sqrt(n) is the deviation, 1/4 if
    it is the variance.
    """

    def matrix(s: ParameterSizes) -> Rule:
        decay = 1.0 if constraint == "none" else 0.0
        return Rule(s.fan_in**-power, weight_decay=decay, constraint=constraint)

    bias: RuleOf = lambda s: Rule(0.0, weight_decay=0.0, constraint=constraint)
    embedding: RuleOf = lambda s: Rule(0.1, weight_decay=0.0, constraint=constraint)
    matrices: dict[Role, RuleOf] = {
        role: matrix for role in ("hidden", "residual_out", "readout")
    }
    rules: Rules = {
        **_VECTORS,
        **matrices,
        "embedding": embedding,
        "bias": bias,
        "final_bias": bias,
    }
    return ParametrizationSpec(rules)


PARAMETRIZATIONS: dict[str, ParametrizationSpec] = {
    "sp": ParametrizationSpec(_SP),
    "sp_variance": _literal(0.25, "none"),
    "mup": ParametrizationSpec(_by_width(*_MUP, epsilon=1.0), _inverse_from_base),
    "mup_table3": ParametrizationSpec(
        _by_width((0, 0.5, 1), (0, 0, 0), (0, 1, 1), epsilon=1.0), _inverse_from_base
    ),
    "completep": _completep(1.0),
    "completep_half": _completep(0.5),
    **{
        name: ParametrizationSpec(_by_width(*powers))
        for name, powers in _EVERETT.items()
    },
    "unit": _unit(),
    "umup": _umup(),
    "normalized": _normalized(),
    "normalized_literal": _literal(0.5, "tensor"),
    "normalized_literal_variance": _literal(0.25, "tensor"),
}


@dataclass(
    frozen=True, eq=False
)  # compared by identity, so that it may stand in a module's static structure
class Parametrization:
    """One row of the table, bound to a model's shape."""

    config: ModelConfig
    row: ParametrizationSpec
    ops: Ops

    def rule(
        self, role: Role, fan_in: int, base_fan_in: float | int | None = None
    ) -> Rule:
        """The rule of a parameter; `base_fan_in` is its fan-in at the base width, None
        where that is the same.

        Raises:
            ConfigError: the role has no rule here.
        """
        config = self.config
        if role not in self.row.rules:
            known = ", ".join(self.row.rules)
            raise ConfigError(
                f"role {role!r} has no rule in parametrization {config.parametrization!r}; it has: {known}"
            )
        scale = ParameterSizes(
            fan_in=fan_in,
            fan_ratio=1.0 if base_fan_in is None else fan_in / base_fan_in,
            width=config.width,
            width_ratio=config.width / config.base_width,
            depth=config.depth,
            depth_ratio=config.depth / config.base_depth,
        )
        return self.row.rules[role](scale)

    @property
    def attention_scale(self) -> float:
        """Factor on q.k."""
        return self.row.attention(self.config)

    def residual(self, branch: int) -> ResidualWeights:
        """Weights of skip connection and branch, of branch 0 .. 2 depth - 1; None where
        there is no connection.
        """
        skip, weight = self.row.residual(self.config, branch)
        return ResidualWeights(skip if self.config.residual else None, weight)


def find_parametrization_spec(config: ModelConfig) -> ParametrizationSpec:
    """The row that a model names.

    Raises:
        ConfigError: no such parametrisation, or multipliers that it does not read.
    """
    if config.parametrization not in PARAMETRIZATIONS:
        known = ", ".join(PARAMETRIZATIONS)
        raise ConfigError(
            f"model.parametrization = {config.parametrization!r}: choose one of {known}"
        )
    row = PARAMETRIZATIONS[config.parametrization]
    if (
        config.unit != type(config.unit)()
        and not row.ops(config).reads_unit_multipliers
    ):
        remedy = "only 'unit' and 'umup' read it; leave it out, or choose one of those as model.parametrization"
        raise ConfigError(f"model.unit = {config.unit}: {remedy}")
    return row


def bind_parametrization(config: ModelConfig) -> Parametrization:
    """The parametrisation of a model; raises as `row_of`."""
    row = find_parametrization_spec(config)
    return Parametrization(config, row, row.ops(config))
