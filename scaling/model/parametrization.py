"""Parametrizations as data: what follows from a parameter's role and sizes.

Every parameter of the model carries a *role*. A parametrization gives a rule for each
role: initialization, forward multiplier, learning rate, weight decay, epsilon and norm
constraint. The model reads the standard deviations and the forward multipliers, and the
optimizer reads the rates. Nothing matches names, and a role without a rule is an error.

To add a parametrization, add a row to `PARAMETRIZATIONS`.

Notation: n fan-in of a matrix, m = n / its fan-in at `base_width`, m_d = width / base
width, m_L = depth / base depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from scaling.config import ArchitectureConfig, ConfigError
from scaling.model.ops import Ops, ResidualWeights
from scaling.model.unit_scaling import UnitOps, residual_weights

Role = Literal[
    # Token and learned position embeddings. The fan-in is the vocabulary, which does
    # not grow with width.
    "embedding",
    # Matrices that read the residual stream: queries, keys, values, feed-forward in.
    "hidden",
    # Matrices that write to the residual stream: attention out, feed-forward out.
    "residual_out",
    # The output head.
    "readout",
    # The stacked matrices of the experts of a layer: feed-forward in and out.
    "expert_in",
    "expert_out",
    # The matrix from the residual stream to the scores of the experts. Like the output
    # head it has a fan-in that grows with width and a fan-out that does not.
    "router",
    # What is added to the scores for the choice alone. No gradient trains it: the
    # training step sets it from the loads.
    "router_bias",
    # Scale and shift of a norm in a block.
    "gain",
    "bias",
    # Scale and shift of the norm before the output head.
    "final_gain",
    "final_bias",
    # Learned scales of the outputs of a matrix that is itself held at unit norm.
    "scale",
]
ROLES: tuple[Role, ...] = get_args(Role)
MATRIX_ROLES: tuple[Role, ...] = ("hidden", "residual_out", "readout")
EXPERT_ROLES: tuple[Role, ...] = ("expert_in", "expert_out")
PRODUCT_ROLES: tuple[Role, ...] = (*MATRIX_ROLES, *EXPERT_ROLES, "router")
"""All that multiply activations."""
VECTOR_ROLES: tuple[Role, ...] = ("gain", "bias", "final_gain", "final_bias", "scale")

Constraint = Literal["none", "tensor", "unit"]


@dataclass(frozen=True)
class Rule:
    """What a parametrization says of one parameter.

    Attributes:
        init_std: Standard deviation of the initial values; 0 for zeros.
        multiplier: Factor on the output of the matrix, or on the looked-up embedding.
        lr: Factor on the learning rate of the configuration.
        weight_decay: Factor on the weight decay of the configuration, which is
            independent of the learning rate: it is what AdamW has as lambda x rate.
        epsilon: Factor on the optimizer's epsilon.
        constraint: What holds after every step. "tensor": the whole parameter has norm
            1. "unit": each column of a matrix (the weights into one unit) has norm 1,
            and so has each row of an embedding.
    """

    init_std: float | int
    multiplier: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    epsilon: float = 1.0
    constraint: Constraint = "none"


@dataclass(frozen=True)
class ParameterSizes:
    """The sizes on which a rule may depend.

    Attributes:
        fan_in: Inputs of each output of the parameter.
        fan_ratio: fan_in / the fan-in at the base width.
        width: Width of the model.
        width_ratio: width / the base width.
        depth: Number of layers of the model.
        depth_ratio: depth / the base depth.
    """

    fan_in: int
    fan_ratio: float
    width: int
    width_ratio: float
    depth: int
    depth_ratio: float


RuleOf = Callable[[ParameterSizes], Rule]
Rules = Mapping[Role, RuleOf]


# --- parts of a row -------------------------------------------------------------------


def _inverse_sqrt_head_dim(key_dim: int, base_key_dim: float | int) -> float:
    del base_key_dim
    return key_dim**-0.5


def _inverse_head_dim(key_dim: int, base_key_dim: float | int) -> float:
    del base_key_dim
    return 1 / key_dim


def _inverse_head_dim_from_base(key_dim: int, base_key_dim: float | int) -> float:
    """1 / head dimension, equal to its inverse square root at the base width.

    Yang et al. 2022 (arXiv:2203.03466), definition 4.1.
    """
    return base_key_dim**0.5 / key_dim


def _unweighted_residual(config: ArchitectureConfig, branch: int) -> ResidualWeights:
    del config, branch
    return ResidualWeights(skip=1.0, branch=1.0)


def _make_plain_ops(config: ArchitectureConfig) -> Ops:
    del config
    return Ops()


def _make_unit_ops(config: ArchitectureConfig) -> Ops:
    return UnitOps(config.unit, config.context)


@dataclass(frozen=True)
class ParametrizationSpec:
    """One row of the table.

    Attributes:
        rules: The rule of each role, as a function of the parameter's sizes.
        attention: Factor on the products of queries and keys, from the dimension of a
            head and its dimension at the base width.
        residual: Weights of the skip connection and of its branch, for the branches
            0 .. 2 depth - 1.
        ops: The operations between the matrices.
        learned_scales: Whether every output of every matrix has a learned scale.
    """

    rules: Rules
    attention: Callable[[int, float | int], float] = _inverse_sqrt_head_dim
    residual: Callable[[ArchitectureConfig, int], ResidualWeights] = (
        _unweighted_residual
    )
    ops: Callable[[ArchitectureConfig], Ops] = _make_plain_ops
    learned_scales: bool = False


def _constant_vector(s: ParameterSizes) -> Rule:
    """The rule of a vector whose rate does not depend on the shape of the model."""
    del s
    return Rule(0.0, weight_decay=0.0)


def _set_by_the_step(s: ParameterSizes) -> Rule:
    """The rule of a parameter that the optimizer leaves as it is."""
    del s
    return Rule(0.0, lr=0.0, weight_decay=0.0)


_VECTOR_RULES: dict[Role, RuleOf] = {
    **dict.fromkeys(VECTOR_ROLES, _constant_vector),
    "router_bias": _set_by_the_step,
}


# --- powers of width ------------------------------------------------------------------


class Powers(NamedTuple):
    """Powers of 1 / m for three kinds of parameters; of 1 / m_d for the embedding."""

    embedding: float | int
    hidden: float | int
    readout: float | int


class WidthPowers(NamedTuple):
    """How standard deviation, multiplier and learning rate follow width.

    Everett et al. 2024 (arXiv:2407.05872) call the powers b, a and c.
    """

    std: Powers
    multiplier: Powers
    lr: Powers


def _make_width_rules(
    powers: WidthPowers, *, epsilon: float = 0.0, depth: float = 1.0
) -> dict[Role, RuleOf]:
    """Rules that follow powers of width and equal `sp` at the base width.

    The matrices of experts have both sides grow with width, as hidden ones. Their number
    does not grow, so that the router has the rule of the output head: a matrix from a
    width without bound to a fixed number of outputs (Yang et al. 2022, arXiv:2203.03466,
    table 8; Malasnicki et al. 2025, arXiv:2508.09752, study such rules for experts).

    Args:
        powers: The powers of width.
        epsilon: Power of 1 / m_d by which epsilon falls in the blocks.
        depth: a of Dey et al. 2025 (arXiv:2505.01618): rates in the blocks are
            multiplied by m_L^(a - 1). 1 for none.
    """
    std, multiplier, lr = powers

    def embedding(s: ParameterSizes) -> Rule:
        m = s.width_ratio
        return Rule(
            init_std=0.1 * m**-std.embedding,
            multiplier=m**-multiplier.embedding,
            lr=m**-lr.embedding,
            weight_decay=0.0,
        )

    def hidden(s: ParameterSizes) -> Rule:
        m = s.fan_ratio
        deeper = s.depth_ratio ** (depth - 1)
        return Rule(
            init_std=s.fan_in**-0.5 * m ** (0.5 - std.hidden),
            multiplier=m**-multiplier.hidden,
            lr=m**-lr.hidden * deeper,
            weight_decay=deeper,
            epsilon=s.width_ratio**-epsilon,
        )

    def readout(s: ParameterSizes) -> Rule:
        m = s.fan_ratio
        return Rule(
            init_std=s.fan_in**-0.5 * m ** (0.5 - std.readout),
            multiplier=m**-multiplier.readout,
            lr=m**-lr.readout,
        )

    def router(s: ParameterSizes) -> Rule:
        """That of the output head, for a matrix in a block."""
        deeper = s.depth_ratio ** (depth - 1)
        return replace(
            readout(s),
            lr=readout(s).lr * deeper,
            weight_decay=deeper,
            epsilon=s.width_ratio**-epsilon,
        )

    def vector(s: ParameterSizes) -> Rule:
        return Rule(
            init_std=0.0,
            lr=s.depth_ratio ** (depth - 1),
            weight_decay=0.0,
            epsilon=s.width_ratio**-epsilon,
        )

    return {
        **_VECTOR_RULES,
        "embedding": embedding,
        "hidden": hidden,
        "residual_out": hidden,
        "readout": readout,
        "expert_in": hidden,
        "expert_out": hidden,
        "router": router,
        "gain": vector,
        "bias": vector,
    }


_SP = WidthPowers(
    std=Powers(0, 0.5, 0.5), multiplier=Powers(0, 0, 0), lr=Powers(0, 0, 0)
)

# Yang et al. 2022 (arXiv:2203.03466), tables 8 and 3.
_MUP = WidthPowers(
    std=Powers(0, 0.5, 0), multiplier=Powers(0, 0, 1), lr=Powers(0, 1, 0)
)
_MUP_TABLE3 = WidthPowers(
    std=Powers(0, 0.5, 1), multiplier=Powers(0, 0, 0), lr=Powers(0, 1, 1)
)

# Everett et al. 2024 (arXiv:2407.05872), with full or no alignment between updates and
# activations. The mean-field rates are derived from that paper's conditions (rate = 1 -
# multiplier, or 1/2 - multiplier). They are not read from its table.
_EVERETT = {
    "standard_full": WidthPowers(
        std=Powers(0, 0.5, 0.5), multiplier=Powers(0, 0, 0), lr=Powers(0, 1, 1)
    ),
    "standard_none": WidthPowers(
        std=Powers(0, 0.5, 0.5), multiplier=Powers(0, 0, 0), lr=Powers(0, 0.5, 0.5)
    ),
    "ntk_full": WidthPowers(
        std=Powers(0, 0, 0), multiplier=Powers(0, 0.5, 0.5), lr=Powers(0, 0.5, 0.5)
    ),
    "ntk_none": WidthPowers(
        std=Powers(0, 0, 0), multiplier=Powers(0, 0.5, 0.5), lr=Powers(0, 0, 0)
    ),
    "everett_mup_full": WidthPowers(
        std=Powers(0.5, 0.5, 0.5),
        multiplier=Powers(-0.5, 0, 0.5),
        lr=Powers(0.5, 1, 0.5),
    ),
    "everett_mup_none": WidthPowers(
        std=Powers(0.5, 0.5, 0.5),
        multiplier=Powers(-0.5, 0, 0.5),
        lr=Powers(0.5, 0.5, 0),
    ),
    "mean_field_full": WidthPowers(
        std=Powers(0, 0, 0), multiplier=Powers(0, 0.5, 1), lr=Powers(0, 0.5, 0)
    ),
    "mean_field_none": WidthPowers(
        std=Powers(0, 0, 0), multiplier=Powers(0, 0.5, 1), lr=Powers(0, 0, -0.5)
    ),
}


# --- other rows -----------------------------------------------------------------------


def _make_completep(a: float) -> ParametrizationSpec:
    """muP in width, with branches weighted by m_L^-a.

    Dey et al. 2025 (arXiv:2505.01618), table 1. a = 1 is CompleteP.
    """
    rules = _make_width_rules(_MUP, epsilon=1.0, depth=a)

    def lower_epsilon(rule_of: RuleOf) -> RuleOf:
        def lowered(s: ParameterSizes) -> Rule:
            rule = rule_of(s)
            return replace(rule, epsilon=rule.epsilon * s.depth_ratio**-a)

        return lowered

    blocks: tuple[Role, ...] = (
        "hidden",
        "residual_out",
        *EXPERT_ROLES,
        "router",
        "gain",
        "bias",
    )
    for role in blocks:
        rules[role] = lower_epsilon(rules[role])

    def residual(config: ArchitectureConfig, branch: int) -> ResidualWeights:
        del branch
        weight = (config.depth / config.base_depth) ** -a
        return ResidualWeights(skip=1.0, branch=weight)

    return ParametrizationSpec(
        rules, attention=_inverse_head_dim_from_base, residual=residual
    )


def _make_unit() -> ParametrizationSpec:
    """Unit scaling: unit variance everywhere, one learning rate, x <- (x + F(x)) / sqrt
    2.

    Blake et al. 2023 (arXiv:2303.11257).
    """

    def matrix(s: ParameterSizes) -> Rule:
        return Rule(1.0, multiplier=s.fan_in**-0.5)

    def embedding(s: ParameterSizes) -> Rule:
        del s
        return Rule(1.0, weight_decay=0.0)

    def residual(config: ArchitectureConfig, branch: int) -> ResidualWeights:
        del config, branch
        return ResidualWeights(skip=2**-0.5, branch=2**-0.5)

    matrices = dict.fromkeys(PRODUCT_ROLES, matrix)
    return ParametrizationSpec(
        {**_VECTOR_RULES, **matrices, "embedding": embedding},
        attention=_inverse_head_dim,
        residual=residual,
        ops=_make_unit_ops,
    )


def _make_umup() -> ParametrizationSpec:
    """u-muP: unit scaling with muP's rates, and residual weights that depend on depth.

    Blake et al. 2024 (arXiv:2407.17465), table 2.
    """

    def embedding(s: ParameterSizes) -> Rule:
        return Rule(1.0, lr=s.width**-0.5, weight_decay=0.0)

    def hidden(s: ParameterSizes) -> Rule:
        return Rule(1.0, multiplier=s.fan_in**-0.5, lr=(s.fan_in * s.depth) ** -0.5)

    def readout(s: ParameterSizes) -> Rule:
        return Rule(1.0, multiplier=1 / s.fan_in)

    def vector(s: ParameterSizes) -> Rule:
        return Rule(0.0, lr=s.depth**-0.5, weight_decay=0.0)

    def residual(config: ArchitectureConfig, branch: int) -> ResidualWeights:
        return residual_weights(branch, config.depth, config.unit)

    rules: Rules = {
        **_VECTOR_RULES,
        "embedding": embedding,
        "hidden": hidden,
        "residual_out": hidden,
        "readout": readout,
        "expert_in": hidden,
        "expert_out": hidden,
        "router": readout,
        "gain": vector,
        "bias": vector,
    }
    return ParametrizationSpec(
        rules, attention=_inverse_head_dim, residual=residual, ops=_make_unit_ops
    )


def _make_normalized() -> ParametrizationSpec:
    """Weights held at norm 1 after each step, with a learned scale for each unit.

    The weights into every unit have norm 1, and so has every embedding, as in nGPT
    (arXiv:2410.01131) and EDM2 (arXiv:2312.02696). Rates fall as m^-1/2, so that a step
    turns a column of any length by the same angle. The embedding's multiplier gives it
    the standard deviation that it has in `sp`.
    """

    def matrix(s: ParameterSizes) -> Rule:
        return Rule(
            init_std=s.fan_in**-0.5,
            lr=s.fan_ratio**-0.5,
            weight_decay=0.0,
            constraint="unit",
        )

    def embedding(s: ParameterSizes) -> Rule:
        std = s.width**-0.5
        return Rule(
            init_std=std,
            multiplier=0.1 / std,
            lr=s.width_ratio**-0.5,
            weight_decay=0.0,
            constraint="unit",
        )

    matrices = dict.fromkeys(PRODUCT_ROLES, matrix)
    return ParametrizationSpec(
        {**_VECTOR_RULES, **matrices, "embedding": embedding}, learned_scales=True
    )


def _make_literal(power: float, constraint: Constraint) -> ParametrizationSpec:
    """The documents' recipe by the letter.

    They initialize with N(0, 1/sqrt(n)), and set W <- W / ||W|| and b <- b / ||b||
    after each step.

    Args:
        power: The standard deviation is n^-power. 1/2 reads 1/sqrt(n) as the standard
            deviation, 1/4 reads it as the variance.
        constraint: "tensor" for the normalization, "none" without it.
    """

    def matrix(s: ParameterSizes) -> Rule:
        decay = 1.0 if constraint == "none" else 0.0
        return Rule(s.fan_in**-power, weight_decay=decay, constraint=constraint)

    def bias(s: ParameterSizes) -> Rule:
        del s
        return Rule(0.0, weight_decay=0.0, constraint=constraint)

    def embedding(s: ParameterSizes) -> Rule:
        del s
        return Rule(0.1, weight_decay=0.0, constraint=constraint)

    rules: Rules = {
        **_VECTOR_RULES,
        **dict.fromkeys(PRODUCT_ROLES, matrix),
        "embedding": embedding,
        "bias": bias,
        "final_bias": bias,
    }
    return ParametrizationSpec(rules)


# --- the table ------------------------------------------------------------------------

PARAMETRIZATIONS: dict[str, ParametrizationSpec] = {
    "sp": ParametrizationSpec(_make_width_rules(_SP)),
    "sp_variance": _make_literal(0.25, "none"),
    "mup": ParametrizationSpec(
        _make_width_rules(_MUP, epsilon=1.0), attention=_inverse_head_dim_from_base
    ),
    "mup_table3": ParametrizationSpec(
        _make_width_rules(_MUP_TABLE3, epsilon=1.0),
        attention=_inverse_head_dim_from_base,
    ),
    "completep": _make_completep(1.0),
    "completep_half": _make_completep(0.5),
    **{
        name: ParametrizationSpec(_make_width_rules(powers))
        for name, powers in _EVERETT.items()
    },
    "unit": _make_unit(),
    "umup": _make_umup(),
    "normalized": _make_normalized(),
    "normalized_literal": _make_literal(0.5, "tensor"),
    "normalized_literal_variance": _make_literal(0.25, "tensor"),
}


# It is compared by identity, so that it may be part of a module's static structure.
@dataclass(frozen=True, eq=False)
class Parametrization:
    """One row of the table, bound to the shape of a model."""

    config: ArchitectureConfig
    spec: ParametrizationSpec
    ops: Ops

    def rule(
        self, role: Role, fan_in: int, base_fan_in: float | int | None = None
    ) -> Rule:
        """The rule of a parameter.

        Args:
            role: The parameter's role.
            fan_in: Its fan-in.
            base_fan_in: Its fan-in at the base width; None if that is the same.

        Raises:
            ConfigError: the role has no rule in this parametrization.
        """
        config = self.config
        if role not in self.spec.rules:
            known = ", ".join(self.spec.rules)
            raise ConfigError(
                f"role {role!r} has no rule in parametrization "
                f"{config.parametrization!r}; it has: {known}"
            )
        sizes = ParameterSizes(
            fan_in=fan_in,
            fan_ratio=1.0 if base_fan_in is None else fan_in / base_fan_in,
            width=config.width,
            width_ratio=config.width / config.base_width,
            depth=config.depth,
            depth_ratio=config.depth / config.base_depth,
        )
        return self.spec.rules[role](sizes)

    def scale_attention(self, key_dim: int, base_key_dim: float | int) -> float:
        """Factor on the products of queries and keys.

        Args:
            key_dim: Dimension of one head.
            base_key_dim: The same at the base width.
        """
        return self.spec.attention(key_dim, base_key_dim)

    def residual(self, branch: int) -> ResidualWeights:
        """Weights of the skip connection and of branch 0 .. 2 depth - 1."""
        return self.spec.residual(self.config, branch)


def find_parametrization_spec(config: ArchitectureConfig) -> ParametrizationSpec:
    """The row that a model names.

    Raises:
        ConfigError: no parametrization has that name, or the model sets multipliers
            that its parametrization does not read.
    """
    if config.parametrization not in PARAMETRIZATIONS:
        known = ", ".join(PARAMETRIZATIONS)
        raise ConfigError(
            f"model.parametrization = {config.parametrization!r}: choose one of {known}"
        )
    spec = PARAMETRIZATIONS[config.parametrization]
    has_multipliers = config.unit != type(config.unit)()
    if has_multipliers and not spec.ops(config).reads_unit_multipliers:
        raise ConfigError(
            f"model.unit = {config.unit}: only 'unit' and 'umup' read it; leave it "
            "out, "
            "or choose one of those as model.parametrization"
        )
    return spec


def bind_parametrization(config: ArchitectureConfig) -> Parametrization:
    """The parametrization of a model.

    Raises:
        ConfigError: as `find_parametrization_spec`.
    """
    spec = find_parametrization_spec(config)
    return Parametrization(config, spec, spec.ops(config))
