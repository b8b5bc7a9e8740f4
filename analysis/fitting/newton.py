"""The compiled float64 programs of the solver: the objective, a screen of the
exponents, and damped Newton.

Residual of row i: r_i = (g(prediction_i) - g(loss_i)) / scale_i, with g the logarithm
or the identity. Objective: sum of weight_i * side(r_i) * huber(r_i) + sum of precision
* (z - mean)^2 / 2 over the parameters with a prior. side is 2 q where the prediction is
below the run and 2 (1 - q) above it, 1 for the median q = 1/2. Where runs share the
effect of a trunk, r is whitened first (`analysis.fitting.effects`).

Coordinates: z = (c, theta). c_k = coefficient times its term at the geometric-mean run,
so that every c is of the order of the loss and rescaling N or D changes A or B alone;
theta = the other parameters, or ln(parameter / unit) where they are scales.

Shapes: n rows, P parameters, K coefficients, Q others, B replicates, G grid points, L
trajectories.

The module is a numeric kernel. A formula stays one expression where it is one on paper,
because a different order of operations would change the last digits of every fit. A
value such as |r| is written out wherever it is used for the same reason: sharing it
changes how XLA fuses the operations around it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from analysis.fitting.data import DeviceData, Named
from analysis.laws.base import Array, Binding

STEPS_PER_DISPATCH = 3
LARGEST_BLOCK = 16  # trajectories
DIAGONAL = 0.001  # share of the damping that ignores correlations between parameters
MOST_ENUMERATED = 5  # coefficients whose active sets are tried one by one
_TINY = 1e-300

Bounds = tuple[jax.Array, jax.Array]  # lowest and highest z


class Trajectory(NamedTuple):
    """One (replicate, start) on its way to a minimum, or several on a leading axis."""

    z: Array  # [P]
    damping: Array
    objective: Array
    gradient: Array


class Response(NamedTuple):
    """g(prediction) and its derivatives by z.

    Attributes:
        value: [n].
        jacobian: [P, n].
        curvature: pull [n] -> (w [n], H [P, P]), where J diag(w) J' + H is the sum over
            rows of pull times second derivatives.
    """

    value: jax.Array
    jacobian: jax.Array
    curvature: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Derivatives(NamedTuple):
    """The objective at one z, and what a Newton step needs there.

    Attributes:
        objective: scalar.
        gradient: [P].
        hessian: [P, P].
        metric: [P, P] Gauss-Newton matrix of the iteratively reweighted least squares.
        gross: [P] sum of the rows' contributions to the gradient without their signs.
            gradient / gross says how exactly they cancel, whatever the units of loss,
            parameters and objective.
    """

    objective: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    metric: jax.Array
    gross: jax.Array


class GridTerms(NamedTuple):
    """The terms of a law at each grid point.

    Attributes:
        theta: [G, Q] the grid points.
        terms: [G, K, n] terms over their value at the reference run.
        offset: [G, n] the part of the sum that fixed coefficients give.
        precision: [G, n] weight of a squared error of the sum of terms.
        penalty: [G] the prior's part of the objective for theta.
    """

    theta: jax.Array
    terms: jax.Array
    offset: jax.Array
    precision: jax.Array
    penalty: jax.Array


def compute_huber_loss(r: jax.Array, delta: jax.Array | float) -> jax.Array:
    """r^2/2 up to delta, delta (|r| - delta/2) beyond (Huber 1964)."""
    size = jnp.abs(r)
    inner = jnp.minimum(size, delta)
    return inner * (size - 0.5 * inner)


def compute_side_weight(r: jax.Array, quantile: jax.Array) -> jax.Array:
    """[n] 2 q where the prediction is below the run, 2 (1 - q) above it."""
    return 2.0 * jnp.where(r < 0, quantile, 1.0 - quantile)


def scale_parameters(binding: Binding, theta: jax.Array, data: DeviceData) -> Named:
    """The free nonlinear parameters in their own units."""
    scaled = {}
    for entry, value in zip(binding.nonlinear, theta, strict=True):
        if entry.log:
            scaled[entry.name] = data.unit[entry.name] * jnp.exp(value)
        else:
            scaled[entry.name] = value
    return scaled


def normalize_terms(
    binding: Binding, theta: jax.Array, data: DeviceData
) -> tuple[jax.Array, jax.Array]:
    """([K, n] terms over their value at the reference run, [n] sum given by fixed
    coefficients).
    """
    known = scale_parameters(binding, theta, data)
    columns, offset = binding.columns(known, data.fixed, data.x)
    at_reference, _ = binding.columns(known, data.fixed, data.reference)
    n = data.loss.shape[-1]
    scaled = []
    for column, reference in zip(columns, at_reference, strict=True):
        term = jnp.asarray(column) / jnp.abs(reference)
        scaled.append(jnp.broadcast_to(term, (n,)))
    terms = jnp.stack(scaled) if scaled else jnp.zeros((0, n))
    return terms, jnp.broadcast_to(jnp.asarray(offset, float), (n,))


def apply_link(
    binding: Binding, theta: jax.Array, total: jax.Array, data: DeviceData
) -> jax.Array:
    """The loss of a sum of terms."""
    link = binding.law.link
    if link is None:
        return total
    return link.forward(
        _complete_parameters(binding, theta, data), jnp.maximum(total, _TINY)
    )


def invert_link(
    binding: Binding, theta: jax.Array, loss: jax.Array, data: DeviceData
) -> jax.Array:
    """The sum of terms of a loss."""
    link = binding.law.link
    if link is None:
        return loss
    return link.inverse(_complete_parameters(binding, theta, data), loss)


def _complete_parameters(binding: Binding, theta: jax.Array, data: DeviceData) -> Named:
    return binding.complete({**data.fixed, **scale_parameters(binding, theta, data)})


def transform_loss(loss: jax.Array, data: DeviceData) -> jax.Array:
    """g: the logarithm or the value itself."""
    positive = jnp.maximum(loss, jnp.finfo(loss.dtype).tiny)
    return jnp.where(data.log, jnp.log(positive), loss)


def whiten_rows(values: jax.Array, data: DeviceData) -> jax.Array:
    """Values [..., n] with what the rows of a trunk share scaled down; see
    `analysis.fitting.effects.Trunks.whiten`. The map is linear and symmetric.
    """
    trunks = data.trunks
    if trunks is None:
        return values
    sums = jnp.zeros_like(values).at[..., trunks.label].add(values)
    share = jnp.broadcast_to(trunks.share, values.shape)
    return values - share * sums[..., trunks.label]


def predict_response(binding: Binding, z: jax.Array, data: DeviceData) -> jax.Array:
    """[n] g(prediction)."""
    k = len(binding.linear)
    terms, offset = normalize_terms(binding, z[k:], data)
    loss = apply_link(binding, z[k:], z[:k] @ terms + offset, data)
    return transform_loss(loss, data)


@functools.partial(jax.jit, static_argnums=0)
def compute_jacobian(binding: Binding, z: jax.Array, data: DeviceData) -> jax.Array:
    """[n, P] of g(prediction) by z."""
    return jax.jacfwd(lambda z: predict_response(binding, z, data))(z)


def compute_objective(
    binding: Binding,
    z: jax.Array,
    data: DeviceData,
    weight: jax.Array,
    observed: jax.Array,
) -> jax.Array:
    """The objective at z [P], for the weights and the observed g(loss) [n]."""
    r = (predict_response(binding, z, data) - observed) / data.scale
    r = whiten_rows(r, data)
    rows = jnp.dot(
        weight,
        compute_side_weight(r, data.quantile) * compute_huber_loss(r, data.delta),
    )
    return rows + 0.5 * jnp.dot(data.precision, (z - data.mean) ** 2)


def solve_positive(A: jax.Array, b: jax.Array) -> jax.Array:
    """x with A x = b for a symmetric A [P, P] by Cholesky's decomposition; NaN unless
    A > 0.

    JAX's own solver calls LAPACK, whose functions are found while a program is lowered:
    a program that calls them could not be loaded without it.
    """
    p = len(b)
    index = jnp.arange(p)

    def eliminate(i: jax.Array | int, system: jax.Array) -> jax.Array:
        """Take the i-th equation off those below it: [A | b] -> [L' | y]."""
        row = system[i] / jnp.sqrt(system[i, i])
        below = jnp.where(index > i, row[:p], 0.0)
        return (system - jnp.outer(below, row)).at[i].set(row)

    def substitute(step: jax.Array | int, x: jax.Array) -> jax.Array:
        i = p - 1 - step
        rest = system[i, p] - jnp.dot(jnp.where(index > i, system[i, :p], 0.0), x)
        return x.at[i].set(rest / system[i, i])

    system = jnp.concatenate([A, b[:, None]], axis=1)
    system = jax.lax.fori_loop(0, p, eliminate, system)
    return jax.lax.fori_loop(0, p, substitute, jnp.zeros(p))


def _solve_cholesky(A: jax.Array, b: jax.Array) -> jax.Array:
    """x with A x = b for a small symmetric A; NaN unless A > 0.

    The loops are unrolled, so that vmap makes every operation elementwise. A law whose
    coefficients are all given asks for none.
    """
    p = A.shape[0]
    if p == 0:
        return b
    lower: dict[tuple[int, int], jax.Array] = {}
    for i, j in itertools.combinations_with_replacement(range(p), 2):
        rest = A[i, j] - sum(lower[i, k] * lower[j, k] for k in range(i))
        lower[j, i] = jnp.sqrt(rest) if i == j else rest / lower[i, i]
    y: list[jax.Array] = []
    for i in range(p):
        y.append((b[i] - sum(lower[i, k] * y[k] for k in range(i))) / lower[i, i])
    x: dict[int, jax.Array] = {}
    for i in reversed(range(p)):
        known = sum(lower[k, i] * x[k] for k in range(i + 1, p))
        x[i] = (y[i] - known) / lower[i, i]
    return jnp.stack([x[i] for i in range(p)])


def solve_nnls(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """argmin_{c >= 0} c.gram.c/2 - rhs.c over all active sets; gram [K, K].

    With more coefficients than `MOST_ENUMERATED` their sets are too many to try:
    negative coefficients are dropped instead until none is left. The result may then be
    a little above the minimum, and Newton starts from it.
    """
    k = gram.shape[0]
    if k > MOST_ENUMERATED:
        return _drop_negative_coefficients(gram, rhs)
    masks = jnp.array(list(itertools.product((0.0, 1.0), repeat=k)))

    def solve_active(m: jax.Array) -> tuple[jax.Array, jax.Array]:
        c = _solve_cholesky(gram * jnp.outer(m, m) + jnp.diag(1 - m), rhs * m)
        # NaN compares false, so a singular active set is never the best.
        is_allowed = jnp.all(c >= 0)
        value = jnp.where(is_allowed, -0.5 * jnp.dot(rhs, c), jnp.inf)
        return jnp.where(is_allowed, c, 0.0), value

    coefficients, values = jax.vmap(solve_active)(masks)
    return coefficients[jnp.argmin(values)]


def _drop_negative_coefficients(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """[K] coefficients >= 0; in each round those below 0 are held at 0 for good."""
    k = gram.shape[0]
    gram = gram + 1e-12 * jnp.diag(jnp.diag(gram))

    def solve_active(active: jax.Array) -> jax.Array:
        system = gram * jnp.outer(active, active) + jnp.diag(1 - active)
        return _solve_cholesky(system, rhs * active)

    def drop_once(_: jax.Array, active: jax.Array) -> jax.Array:
        return active * (solve_active(active) > 0)

    active = jax.lax.fori_loop(0, k, drop_once, jnp.ones(k))
    return jnp.maximum(solve_active(active), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def screen_grid(
    binding: Binding,
    grid: jax.Array,
    data: DeviceData,
    weight: jax.Array,
    observed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Objective [B, G] and coefficients [B, G, K] at each grid point [G, Q]; weight,
    observed g(loss) [B, n].

    The coefficients are found in float64, the losses they give in float32: good enough
    to rank grid points by.
    """
    k = len(binding.linear)
    on_grid = _expand_on_grid(binding, grid, data)
    relative, precision = on_grid.terms, on_grid.precision
    if data.trunks is not None:
        relative = whiten_rows(relative * jnp.sqrt(precision)[:, None, :], data)
        precision = jnp.ones_like(precision)
    products = jnp.einsum("gkn,gln,gn->gkln", relative, relative, precision).reshape(
        -1, weight.shape[1]
    )
    gram = (weight @ products.T).reshape(len(weight), len(grid), k, k)
    gram = gram + jnp.diag(data.precision[:k])[None, None]

    def screen_one(
        replicate: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        return _screen_replicate(binding, on_grid, data, *replicate)

    return jax.lax.map(screen_one, (gram, weight, observed))


def _expand_on_grid(binding: Binding, grid: jax.Array, data: DeviceData) -> GridTerms:
    terms, offset = jax.vmap(lambda theta: normalize_terms(binding, theta, data))(grid)
    base = jax.vmap(lambda theta: invert_link(binding, theta, data.loss, data))(grid)
    base = jnp.broadcast_to(base, offset.shape)
    # Relative residuals stand in for residuals of the logarithm.
    is_relative = data.log | (binding.law.link is not None)
    k = len(binding.linear)
    away = (grid - data.mean[k:][None]) ** 2
    return GridTerms(
        theta=grid,
        terms=terms,
        offset=offset,
        precision=jnp.where(is_relative, 1 / base**2, 1.0) / data.scale[None, :] ** 2,
        penalty=0.5 * (away @ data.precision[k:]),
    )


def _screen_replicate(
    binding: Binding,
    on_grid: GridTerms,
    data: DeviceData,
    gram: jax.Array,
    weight: jax.Array,
    observed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Objective [G] and coefficients [G, K] of one replicate; gram [G, K, K], weight
    and observed [n].
    """
    k = len(binding.linear)
    theta, offset = on_grid.theta, on_grid.offset
    loss = jnp.where(data.log, jnp.exp(observed), observed)
    target = jax.vmap(lambda theta: invert_link(binding, theta, loss, data))(theta)
    target = jnp.broadcast_to(target, offset.shape) - offset
    terms, precision = on_grid.terms, on_grid.precision
    if data.trunks is not None:
        root = jnp.sqrt(precision)
        terms = whiten_rows(terms * root[:, None, :], data)
        target = whiten_rows(target * root, data)
        precision = jnp.ones_like(precision)
    rhs = jnp.einsum("gkn,gn,gn->gk", terms, target, precision * weight[None, :])
    pull = (data.precision * data.mean)[:k]
    c = jax.vmap(solve_nnls)(gram, rhs + pull[None])

    total = jnp.einsum("gk,gkn->gn", _to_float32(c), _to_float32(on_grid.terms))
    total = total + _to_float32(offset)
    # Links may need the range of float64.
    total = total.astype(float if binding.law.link else jnp.float32)
    predicted = jax.vmap(lambda theta, sums: apply_link(binding, theta, sums, data))(
        theta, total
    )
    r = transform_loss(predicted, data) - observed.astype(predicted.dtype)[None, :]
    r = _to_float32(r) / _to_float32(data.scale)[None, :]
    if data.trunks is not None:
        r = _to_float32(whiten_rows(r.astype(float), data))
    side = compute_side_weight(r, _to_float32(data.quantile))
    rho = compute_huber_loss(r, _to_float32(data.delta))
    rows = (side * rho) @ _to_float32(weight)
    prior = 0.5 * ((c - data.mean[None, :k]) ** 2 @ data.precision[:k])
    return rows + prior + on_grid.penalty, c


def _to_float32(value: jax.Array) -> jax.Array:
    return value.astype(jnp.float32)


def differentiate_sum(binding: Binding, z: jax.Array, data: DeviceData) -> Response:
    """g(prediction) and its derivatives for a law that is a plain sum of terms.

    Only the exponents need second derivatives, by forward mode.
    """
    k = len(binding.linear)
    weights = jnp.append(z[:k], 1.0)
    theta = z[k:]
    directions = jnp.eye(len(z) - k)

    def stack_terms(theta: jax.Array) -> jax.Array:
        """[K + 1, n]; the part that fixed coefficients give comes last."""
        free, offset = normalize_terms(binding, theta, data)
        return jnp.concatenate([free, offset[None, :]])

    def differentiate(
        function: Callable[[jax.Array], jax.Array],
    ) -> Callable[[jax.Array], jax.Array]:
        """The derivatives of a function of theta, [Q, ...]."""
        return lambda theta: jax.vmap(
            lambda direction: jax.jvp(function, (theta,), (direction,))[1]
        )(directions)

    terms = stack_terms(theta)
    total = weights @ terms
    slope_of_g = jnp.where(data.log, 1 / jnp.maximum(total, _TINY), 1.0)
    slopes = differentiate(stack_terms)(theta)
    by_exponent = jnp.einsum("k,qkn->qn", weights, slopes)
    jacobian = jnp.concatenate([terms[:k], by_exponent]) * slope_of_g[None]

    def sum_curvature(pull: jax.Array) -> tuple[jax.Array, jax.Array]:
        along_g = pull * slope_of_g
        cross = slopes[:, :k] @ along_g
        seconds = differentiate(differentiate(stack_terms))(theta)
        corner = jnp.einsum("k,pqkn,n->pq", weights, seconds, along_g)
        blocks = jnp.block([[jnp.zeros((k, k)), cross.T], [cross, corner]])
        return jnp.where(data.log, -pull, 0.0), blocks

    return Response(transform_loss(total, data), jacobian, sum_curvature)


def differentiate_any_law(binding: Binding, z: jax.Array, data: DeviceData) -> Response:
    """g(prediction) and its derivatives for any law, by differentiating all of it."""

    def predict(z: jax.Array) -> jax.Array:
        return predict_response(binding, z, data)

    def sum_curvature(pull: jax.Array) -> tuple[jax.Array, jax.Array]:
        second = jax.jacfwd(jax.jacrev(lambda z: pull @ predict(z)))(z)
        return jnp.zeros_like(pull), second

    return Response(predict(z), jax.jacfwd(predict)(z).T, sum_curvature)


def compute_derivatives(
    binding: Binding,
    z: jax.Array,
    data: DeviceData,
    weight: jax.Array,
    observed: jax.Array,
) -> Derivatives:
    """The derivatives of the objective at z [P]; weight and observed [n]."""
    delta, scale = data.delta, data.scale
    if binding.law.link is None:
        response = differentiate_sum(binding, z, data)
    else:
        response = differentiate_any_law(binding, z, data)
    J = response.jacobian
    r = whiten_rows((response.value - observed) / scale, data)
    side = weight * compute_side_weight(r, data.quantile)
    pull = side * jnp.clip(r, -delta, delta) / scale
    inside = side * (jnp.abs(r) <= delta) / scale**2
    bounded_slope = jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(r), _TINY))
    reweighted = side * bounded_slope / scale**2
    smallest = jnp.minimum(1e-9, 1e-3 * delta)  # a smaller residual is rounding
    white = J
    if data.trunks is not None:
        white = whiten_rows(J / scale[None, :], data) * scale[None, :]
    gross = jnp.abs(white) @ (side * jnp.clip(jnp.abs(r), smallest, delta) / scale)
    off = z - data.mean
    objective = jnp.dot(side, compute_huber_loss(r, delta))
    objective = objective + 0.5 * jnp.dot(data.precision, off**2)
    prior = jnp.diag(data.precision)
    if data.trunks is None:
        bend, second = response.curvature(pull)
        hessian = (J * (inside + bend)[None, :]) @ J.T + second + prior
    else:
        bend, second = response.curvature(whiten_rows(pull * scale, data) / scale)
        hessian = (white * inside[None, :]) @ white.T + prior
        hessian = hessian + (J * bend[None, :]) @ J.T + second
    metric = (white * reweighted[None, :]) @ white.T + prior
    return Derivatives(
        objective=objective,
        gradient=white @ pull + data.precision * off,
        hessian=hessian,
        metric=metric,
        gross=gross + data.precision * jnp.abs(off),
    )


def take_step(
    binding: Binding,
    trajectory: Trajectory,
    bounds: Bounds,
    data: DeviceData,
    weight: jax.Array,
    observed: jax.Array,
) -> Trajectory:
    """One damped, projected Newton step, kept if the objective does not grow."""
    low, high = bounds
    here = compute_derivatives(binding, trajectory.z, data, weight, observed)
    # A coordinate is held where it sits on a bound and the objective falls beyond it.
    held_low = (trajectory.z <= low) & (here.gradient >= 0)
    held_high = (trajectory.z >= high) & (here.gradient <= 0)
    is_free = ~(held_low | held_high)
    smallest = _TINY + 1e-14 * jnp.max(jnp.diag(here.metric))
    scale = 1 / jnp.sqrt(jnp.maximum(jnp.diag(here.metric), smallest))
    # The diagonal part turns the step towards the gradient where the metric is nearly
    # singular (Marquardt 1963).
    damped = here.hessian + trajectory.damping * here.metric
    damped = damped * jnp.outer(scale, scale)
    added = DIAGONAL * trajectory.damping + 1e-13
    damped = damped + added * jnp.eye(len(scale))
    system = jnp.where(jnp.outer(is_free, is_free), damped, jnp.eye(len(scale)))
    downhill = jnp.where(is_free, -here.gradient * scale, 0.0)
    step = scale * solve_positive(system, downhill)
    z = jnp.clip(trajectory.z + step, low, high)
    after = compute_objective(binding, z, data, weight, observed)
    # Near the optimum the decrease drowns in the rounding of the sum while the gradient
    # can still shrink.
    is_better = after <= here.objective * (1 + 1e-13)
    damping = jnp.where(
        is_better, jnp.maximum(trajectory.damping * 0.2, 1e-12), trajectory.damping * 5
    )
    # The gradient is the one at the z before the step: a trajectory that is reported as
    # converged has not got worse since.
    cancellation = jnp.abs(here.gradient) / jnp.maximum(here.gross, _TINY)
    scaled_gradient = jnp.max(jnp.where(is_free, cancellation, 0.0))
    return Trajectory(
        z=jnp.where(is_better, z, trajectory.z),
        damping=damping,
        objective=jnp.where(is_better, after, here.objective),
        gradient=scaled_gradient,
    )


@functools.partial(jax.jit, static_argnums=0)
def advance_trajectories(
    binding: Binding,
    blocks: jax.Array,
    trajectories: Trajectory,
    bounds: Bounds,
    data: DeviceData,
    weight: jax.Array,
    observed: jax.Array,
) -> Trajectory:
    """A few Newton steps of every trajectory of the first blocks.

    Args:
        binding: the law with what is fixed and tied.
        blocks: how many blocks of `size_block(cells)` trajectories are to be advanced.
        trajectories: [L].
        bounds: two [L, P].
        data: the rows.
        weight: [L, n].
        observed: [L, n].
    """
    size = size_block(count_cells(data))

    def advance_one(
        trajectory: Trajectory, bounds: Bounds, weight: jax.Array, observed: jax.Array
    ) -> Trajectory:
        return take_step(binding, trajectory, bounds, data, weight, observed)

    def advance_block(block: jax.Array | int, trajectories: Trajectory) -> Trajectory:
        start = block * size

        def select(whole: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(whole, start, size)

        moved, *fixed = jax.tree.map(select, (trajectories, bounds, weight, observed))
        for_all = jax.vmap(advance_one)
        moved = jax.lax.fori_loop(
            0, STEPS_PER_DISPATCH, lambda _, moved: for_all(moved, *fixed), moved
        )
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(
                whole, part, start, 0
            ),
            trajectories,
            moved,
        )

    return jax.lax.fori_loop(0, blocks, advance_block, trajectories)


def count_cells(data: DeviceData) -> int:
    """Values of the variable that has most: the rows, times its values in each row."""
    return max(values.size for values in data.x.values())


def size_block(cells: int) -> int:
    """Trajectories that are advanced together, for variables of so many values: what
    they need stays in cache.
    """
    return max(1, min(2**15 // cells, LARGEST_BLOCK))
