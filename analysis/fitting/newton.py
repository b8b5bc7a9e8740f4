"""The compiled float64 programs of the solver: the objective, a screen of the
exponents, and damped Newton.

Residual of row i: r_i = (g(prediction_i) - g(loss_i)) / scale_i, with g the logarithm
or the identity. Objective: sum of weight_i * side(r_i) * huber(r_i) + sum of precision
* (z - mean)^2 / 2 over the parameters with a prior. side is 2 q where the prediction is
below the run and 2 (1 - q) above it, 1 for the median q = 1/2.

Coordinates: z = (c, theta). c_k = coefficient times its term at the geometric-mean run,
so that every c is of the order of the loss and rescaling N or D changes A or B alone;
theta = the other parameters, or ln(parameter / unit) where they are scales.

Shapes: n rows, P parameters, K coefficients, Q others, B replicates, G grid points, L
trajectories.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis.laws.base import Binding

STEPS_PER_DISPATCH = 3
DIAGONAL = 0.001  # share of the damping that does not know of correlations
_TINY = 1e-300


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Float64 on the CPU inside the block; the caller's precision and default device
    stay as they are.
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


@dataclass(frozen=True)
class Data:
    """What a law is fitted to.

    Attributes:
        x: variables [n] each. loss: [n], the law's target. fixed: values of the fixed
        parameters.
        delta: Huber's threshold on the scaled residual, inf for least squares.
        log: residuals in the logarithm of the target, else in its own units.
        quantile: 1/2 fits the middle; 0.1 a lower envelope. scale: [n] of the noise.
        weight: [n] of the rows.
        prior: parameter -> (mean, precision) in z.
    """

    x: Mapping[str, np.ndarray]
    loss: np.ndarray
    fixed: Mapping[str, float]
    delta: float
    log: bool = True
    quantile: float = 0.5
    scale: np.ndarray | None = None
    weight: np.ndarray | None = None
    prior: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def reference(self) -> dict[str, float]:
        """The geometric-mean run."""
        return {
            name: float(np.exp(np.mean(np.log(values))))
            for name, values in self.x.items()
        }

    def unit(self, entry: Any) -> float:
        """What the range of a `Nonlinear` counts in."""
        size = {
            **self.reference,
            "loss": float(np.exp(np.mean(np.log(np.abs(self.loss))))),
        }
        return float(np.prod([size[name] ** exponent for name, exponent in entry.unit]))

    def take(self, rows: np.ndarray) -> Data:
        """The given rows alone."""
        some = {
            name: None if v is None else v[rows]
            for name, v in (("scale", self.scale), ("weight", self.weight))
        }
        x = {name: values[rows] for name, values in self.x.items()}
        return Data(
            x,
            self.loss[rows],
            self.fixed,
            self.delta,
            self.log,
            self.quantile,
            **some,
            prior=self.prior,
        )


class Trajectory(NamedTuple):
    """One (replicate, start) on its way to a minimum."""

    z: Any  # [P]
    damping: Any
    objective: Any
    gradient: Any


def huber(r: Any, delta: Any) -> Any:
    """r^2/2 up to delta, delta (|r| - delta/2) beyond (Huber 1964)."""
    size = jnp.abs(r)
    inner = jnp.minimum(size, delta)
    return inner * (size - 0.5 * inner)


def weigh_side(r: Any, quantile: Any) -> Any:
    return 2.0 * jnp.where(r < 0, quantile, 1.0 - quantile)


def device_arrays(binding: Binding, data: Data, rows: np.ndarray) -> dict[str, Any]:
    """The given rows as arrays that the compiled programs take. Call inside
    `float64()`.
    """
    prior = [data.prior.get(name, (0.0, 0.0)) for name in binding.free]
    scale = np.ones(len(data.loss)) if data.scale is None else data.scale
    return {
        "x": {name: jnp.asarray(v[rows], float) for name, v in data.x.items()},
        "loss": jnp.asarray(data.loss[rows], float),
        "scale": jnp.asarray(scale[rows], float),
        "fixed": {name: jnp.asarray(v, float) for name, v in data.fixed.items()},
        "reference": {
            name: jnp.asarray(v, float) for name, v in data.reference.items()
        },
        "unit": {
            entry.name: jnp.asarray(data.unit(entry), float)
            for entry in binding.nonlinear
        },
        "delta": jnp.asarray(data.delta, float),
        "log": jnp.asarray(data.log),
        "quantile": jnp.asarray(data.quantile, float),
        "mean": jnp.asarray([mean for mean, _ in prior], float),
        "precision": jnp.asarray([precision for _, precision in prior], float),
    }


def scale_parameters(
    binding: Binding, theta: Any, arrays: Mapping[str, Any]
) -> dict[str, Any]:
    """The free nonlinear parameters in their own units."""
    named = zip(binding.nonlinear, theta, strict=True)
    return {
        e.name: arrays["unit"][e.name] * jnp.exp(t) if e.log else t for e, t in named
    }


def normalize_terms(
    binding: Binding, theta: Any, arrays: Mapping[str, Any]
) -> tuple[Any, Any]:
    """([K, n] terms over their value at the reference run, [n] sum given by fixed
    coefficients).
    """
    known = scale_parameters(binding, theta, arrays)
    columns, offset = binding.columns(known, arrays["fixed"], arrays["x"])
    at_reference, _ = binding.columns(known, arrays["fixed"], arrays["reference"])
    n = arrays["loss"].shape[-1]
    scaled = [
        jnp.broadcast_to(jnp.asarray(c) / jnp.abs(r), (n,))
        for c, r in zip(columns, at_reference, strict=True)
    ]
    return jnp.stack(scaled) if scaled else jnp.zeros((0, n)), jnp.broadcast_to(
        jnp.asarray(offset, float), (n,)
    )


def apply_link(
    binding: Binding,
    theta: Any,
    value: Any,
    arrays: Mapping[str, Any],
    inverse: bool = False,
) -> Any:
    """The loss of a sum of terms, or the reverse."""
    link = binding.law.link
    if link is None:
        return value
    known = binding.complete(
        {**arrays["fixed"], **scale_parameters(binding, theta, arrays)}
    )
    return (
        link.inverse(known, value)
        if inverse
        else link.forward(known, jnp.maximum(value, _TINY))
    )


def transform_loss(value: Any, arrays: Mapping[str, Any]) -> Any:
    """g: the logarithm or the value itself."""
    return jnp.where(
        arrays["log"], jnp.log(jnp.maximum(value, jnp.finfo(value.dtype).tiny)), value
    )


@functools.partial(jax.jit, static_argnums=0)
def predict_response(binding: Binding, z: Any, arrays: Any) -> Any:
    """[n] g(prediction)."""
    k = len(binding.linear)
    terms, offset = normalize_terms(binding, z[k:], arrays)
    return transform_loss(
        apply_link(binding, z[k:], z[:k] @ terms + offset, arrays), arrays
    )


@functools.partial(jax.jit, static_argnums=0)
def compute_jacobian(binding: Binding, z: Any, arrays: Any) -> Any:
    """[n, P] of g(prediction) by z."""
    return jax.jacfwd(lambda z: predict_response(binding, z, arrays))(z)


def compute_objective(
    binding: Binding, z: Any, arrays: Any, weight: Any, observed: Any
) -> Any:
    r = (predict_response(binding, z, arrays) - observed) / arrays["scale"]
    rows = jnp.dot(
        weight, weigh_side(r, arrays["quantile"]) * huber(r, arrays["delta"])
    )
    return rows + 0.5 * jnp.dot(arrays["precision"], (z - arrays["mean"]) ** 2)


def _cholesky_solve(A: Any, b: Any) -> Any:
    """x with A x = b for a small symmetric A, unrolled so that vmap makes it
    elementwise; NaN unless A > 0.
    """
    p = A.shape[0]
    low: dict[tuple[int, int], Any] = {}
    for i, j in itertools.combinations_with_replacement(range(p), 2):
        rest = A[i, j] - sum(low[i, k] * low[j, k] for k in range(i))
        low[j, i] = jnp.sqrt(rest) if i == j else rest / low[i, i]
    y: list[Any] = []
    for i in range(p):
        y.append((b[i] - sum(low[i, k] * y[k] for k in range(i))) / low[i, i])
    x: dict[int, Any] = {}
    for i in reversed(range(p)):
        x[i] = (y[i] - sum(low[k, i] * x[k] for k in range(i + 1, p))) / low[i, i]
    return jnp.stack([x[i] for i in range(p)])


def solve_nnls(gram: Any, rhs: Any) -> Any:
    """argmin_{c >= 0} c.gram.c/2 - rhs.c over all active sets; gram [K, K]."""
    k = gram.shape[0]
    best, best_value = jnp.zeros(k), jnp.asarray(0.0)
    for mask in itertools.product((0.0, 1.0), repeat=k):
        if not any(mask):
            continue
        m = jnp.array(mask)
        c = _cholesky_solve(gram * jnp.outer(m, m) + jnp.diag(1 - m), rhs * m)
        value = -0.5 * jnp.dot(rhs, c)
        better = jnp.all(c >= 0) & (value < best_value)  # NaN compares false
        best, best_value = (
            jnp.where(better, c, best),
            jnp.where(better, value, best_value),
        )
    return best


@functools.partial(jax.jit, static_argnums=0)
def screen_grid(
    binding: Binding, grid: Any, arrays: Any, weight: Any, observed: Any
) -> tuple[Any, Any]:
    """Objective [B, G] and coefficients [B, G, K] at each grid point [G, Q]; weight,
    observed g(loss) [B, n].

    The coefficients are found in float64, the losses they give in float32: good enough
    to rank grid points by.
    """

    def single(value: Any) -> Any:
        return value.astype(jnp.float32)

    k = len(binding.linear)
    terms, offset = jax.vmap(lambda theta: normalize_terms(binding, theta, arrays))(
        grid
    )  # [G, K, n], [G, n]
    base = jax.vmap(
        lambda theta: apply_link(binding, theta, arrays["loss"], arrays, inverse=True)
    )(grid)
    base = jnp.broadcast_to(base, offset.shape)
    relative = arrays["log"] | (
        binding.law.link is not None
    )  # relative residuals stand in for log residuals
    precise = (
        jnp.where(relative, 1 / base**2, 1.0) / arrays["scale"][None, :] ** 2
    )  # [G, n]
    products = jnp.einsum("gkn,gln,gn->gkln", terms, terms, precise).reshape(
        -1, weight.shape[1]
    )
    gram = (weight @ products.T).reshape(len(weight), len(grid), k, k)
    gram = gram + jnp.diag(arrays["precision"][:k])[None, None]
    pull = (arrays["precision"] * arrays["mean"])[:k]
    coarse = single(terms)
    single_if_plain = (
        float if binding.law.link else jnp.float32
    )  # links may need the range of float64
    away = 0.5 * ((grid - arrays["mean"][k:][None]) ** 2 @ arrays["precision"][k:])

    def one(gram_r: Any, weight_r: Any, observed_r: Any) -> tuple[Any, Any]:
        loss = jnp.where(arrays["log"], jnp.exp(observed_r), observed_r)
        target = jax.vmap(
            lambda theta: apply_link(binding, theta, loss, arrays, inverse=True)
        )(grid)
        target = jnp.broadcast_to(target, offset.shape) - offset
        rhs = (
            jnp.einsum("gkn,gn,gn->gk", terms, target, precise * weight_r[None, :])
            + pull[None]
        )
        c = jax.vmap(solve_nnls)(gram_r, rhs)
        total = (jnp.einsum("gk,gkn->gn", single(c), coarse) + single(offset)).astype(
            single_if_plain
        )
        predicted = jax.vmap(lambda theta, s: apply_link(binding, theta, s, arrays))(
            grid, total
        )
        r = (
            transform_loss(predicted, arrays)
            - observed_r.astype(predicted.dtype)[None, :]
        )
        r = single(r) / single(arrays["scale"])[None, :]
        rows = (
            weigh_side(r, single(arrays["quantile"]))
            * huber(r, single(arrays["delta"]))
        ) @ single(weight_r)
        prior = 0.5 * ((c - arrays["mean"][None, :k]) ** 2 @ arrays["precision"][:k])
        return rows + prior + away, c

    return jax.lax.map(lambda args: one(*args), (gram, weight, observed))


def differentiate_sum(binding: Binding, z: Any, arrays: Any) -> tuple[Any, Any, Any]:
    """g(prediction) [n], its Jacobian J [P, n], and pull [n] -> (w [n], H [P, P]) with
    J diag(w) J' + H = sum of pull times second derivatives.

    A plain sum of terms: only the exponents need second derivatives, by forward mode.
    """
    k = len(binding.linear)
    weights = jnp.append(z[:k], 1.0)

    def terms(
        theta: Any,
    ) -> Any:  # [K + 1, n]: the loss that fixed coefficients give comes last
        free, offset = normalize_terms(binding, theta, arrays)
        return jnp.concatenate([free, offset[None, :]])

    def along(function: Any, q: int) -> Any:  # derivative by the q-th exponent
        direction = jnp.zeros(len(z) - k).at[q].set(1.0)
        return lambda theta: jax.jvp(function, (theta,), (direction,))[1]

    theta, exponents = z[k:], range(len(z) - k)
    T = terms(theta)
    total = weights @ T
    inverse = jnp.where(arrays["log"], 1 / jnp.maximum(total, _TINY), 1.0)  # g'
    slopes = [along(terms, q)(theta) for q in exponents]  # [K + 1, n] each
    J = jnp.stack(
        [
            *(T[i] * inverse for i in range(k)),
            *((weights @ slope) * inverse for slope in slopes),
        ]
    )

    def curvature(pull: Any) -> Any:
        along_g = pull * inverse
        cross = (
            jnp.stack([slope[:k] @ along_g for slope in slopes])
            if slopes
            else jnp.zeros((0, k))
        )
        bend = [
            [weights @ (along(along(terms, q), p)(theta) @ along_g) for p in exponents]
            for q in exponents
        ]
        corner = (
            jnp.stack([jnp.stack(row) for row in bend]) if bend else jnp.zeros((0, 0))
        )
        return jnp.where(arrays["log"], -pull, 0.0), jnp.block(
            [[jnp.zeros((k, k)), cross.T], [cross, corner]]
        )

    return transform_loss(total, arrays), J, curvature


def differentiate_any_law(
    binding: Binding, z: Any, arrays: Any
) -> tuple[Any, Any, Any]:
    """The same for any law, by differentiating all of it."""

    def f(z: Any) -> Any:
        return predict_response(binding, z, arrays)

    def curvature(pull: Any) -> Any:
        return jnp.zeros_like(pull), jax.jacfwd(jax.jacrev(lambda z: pull @ f(z)))(z)

    return f(z), jax.jacfwd(f)(z).T, curvature


def compute_derivatives(
    binding: Binding, z: Any, arrays: Any, weight: Any, observed: Any
) -> tuple[Any, ...]:
    """Objective, its gradient [P], Hessian and reweighted Gauss-Newton matrix [P, P],
    and gross gradient [P].

    The gross gradient sums the rows' contributions without their signs: gradient /
    gross says how exactly they cancel, whatever the units of loss, parameters and
    objective.
    """
    delta, scale = arrays["delta"], arrays["scale"]
    way = differentiate_sum if binding.law.link is None else differentiate_any_law
    value, J, curvature = way(binding, z, arrays)
    r = (value - observed) / scale
    side = weight * weigh_side(r, arrays["quantile"])
    pull = side * jnp.clip(r, -delta, delta) / scale
    inside = side * (jnp.abs(r) <= delta) / scale**2
    irls = side * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(r), _TINY)) / scale**2
    floor = jnp.minimum(1e-9, 1e-3 * delta)  # below it a residual is rounding
    gross = jnp.abs(J) @ (side * jnp.clip(jnp.abs(r), floor, delta) / scale)
    off, precision = z - arrays["mean"], arrays["precision"]
    objective = jnp.dot(side, huber(r, delta)) + 0.5 * jnp.dot(precision, off**2)
    prior = jnp.diag(precision)
    bent, second = curvature(pull)
    hessian = (J * (inside + bent)[None, :]) @ J.T + second + prior
    metric = (J * irls[None, :]) @ J.T + prior
    return (
        objective,
        J @ pull + precision * off,
        hessian,
        metric,
        gross + precision * jnp.abs(off),
    )


def take_step(
    binding: Binding,
    trajectory: Trajectory,
    bounds: Any,
    arrays: Any,
    weight: Any,
    observed: Any,
) -> Trajectory:
    """One damped, projected Newton step, kept if the objective does not grow."""
    low, high = bounds
    before, gradient, hessian, metric, gross = compute_derivatives(
        binding, trajectory.z, arrays, weight, observed
    )
    # A coordinate is held where it sits on a bound and the objective falls beyond it.
    free = ~(
        ((trajectory.z <= low) & (gradient >= 0))
        | ((trajectory.z >= high) & (gradient <= 0))
    )
    scale = 1 / jnp.sqrt(
        jnp.maximum(jnp.diag(metric), _TINY + 1e-14 * jnp.max(jnp.diag(metric)))
    )
    # The diagonal part turns the step towards the gradient where the metric is nearly
    # singular (Marquardt 1963).
    damped = (hessian + trajectory.damping * metric) * jnp.outer(scale, scale)
    damped = damped + (DIAGONAL * trajectory.damping + 1e-13) * jnp.eye(len(scale))
    system = jnp.where(jnp.outer(free, free), damped, jnp.eye(len(scale)))
    step = scale * jax.scipy.linalg.cho_solve(
        jax.scipy.linalg.cho_factor(system), jnp.where(free, -gradient * scale, 0.0)
    )
    z = jnp.clip(trajectory.z + step, low, high)
    after = compute_objective(binding, z, arrays, weight, observed)
    # Near the optimum the decrease drowns in the rounding of the sum while the gradient
    # can still shrink.
    better = after <= before * (1 + 1e-14)
    damping = jnp.where(
        better, jnp.maximum(trajectory.damping * 0.2, 1e-12), trajectory.damping * 5
    )
    # gradient is the one at the z before the step: a trajectory reported as converged has not
    # got worse since.
    size = jnp.max(jnp.where(free, jnp.abs(gradient) / jnp.maximum(gross, _TINY), 0.0))
    return Trajectory(
        jnp.where(better, z, trajectory.z),
        damping,
        jnp.where(better, after, before),
        size,
    )


@functools.partial(jax.jit, static_argnums=0)
def advance_trajectories(
    binding: Binding,
    trajectories: Trajectory,
    bounds: Any,
    arrays: Any,
    weight: Any,
    observed: Any,
) -> Trajectory:
    """A few Newton steps of every trajectory; bounds: two [L, P]; weight and observed [L, n]."""

    def body(_: Any, trajectories: Trajectory) -> Trajectory:
        step = jax.vmap(
            lambda trajectory, b, w, y: take_step(binding, trajectory, b, arrays, w, y)
        )
        return step(trajectories, bounds, weight, observed)

    return jax.lax.fori_loop(0, STEPS_PER_DISPATCH, body, trajectories)
