"""Robust fits of laws to log loss: global search over the exponents, then Newton, for many starts at once.

One lane is one (bootstrap replicate, start). Lanes share compiled float64 programs of one fixed shape; a
lane that has converged leaves and the next one takes its place, so that nobody waits for the slowest.

Coordinates: z = (c, theta). c_k = coefficient times its term at the geometric-mean run, in nats per token,
so that every c is of the order of the loss and rescaling N or D changes A or B alone; theta = the exponents.

The global search is variable projection (Golub & Pereyra 1973): for each exponent on a grid the best
coefficients are a small non-negative least-squares problem, solved in closed form over its active sets. The
local search is Newton on the sum of rho(log prediction - log loss), damped by the Gauss-Newton matrix of
the iteratively reweighted least squares (Huber 1981, 7.8), in the box c >= 0, theta in its range.

Shapes: n rows, P parameters, K coefficients, Q exponents, R replicates, G grid points, S starts, L lanes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from analysis.laws import Binding

STEPS_PER_DISPATCH = 6
MAX_STEPS = 240
TOLERANCE = 1e-9  # of the scaled projected gradient
AGREE = 1e-8  # starts agree when their objectives differ by less than this, relatively
_TINY = 1e-300


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Float64 on the CPU inside the block; the caller's precision and default device stay as they are."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


@dataclass(frozen=True)
class Data:
    """What a law is fitted to. x: variables [n] each; loss [n]; delta: Huber's threshold, inf for least squares."""

    x: Mapping[str, np.ndarray]
    loss: np.ndarray
    fixed: Mapping[str, float]
    delta: float

    @property
    def reference(self) -> dict[str, float]:
        """The geometric-mean run."""
        return {name: float(np.exp(np.mean(np.log(values)))) for name, values in self.x.items()}


class Solution(NamedTuple):
    """z [R, P]; objective [R]; gradient [R]: scaled projected gradient; starts [R]; agree [R]: starts that reach it."""

    z: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    starts: np.ndarray
    agree: np.ndarray


class _Lane(NamedTuple):
    z: Any  # [P]
    damping: Any
    objective: Any
    gradient: Any


def huber(r: Any, delta: Any) -> Any:
    """r^2/2 up to delta, delta (|r| - delta/2) beyond (Huber 1964)."""
    size = jnp.abs(r)
    inner = jnp.minimum(size, delta)
    return inner * (size - 0.5 * inner)


def normalised_terms(binding: Binding, theta: Any, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """([K, n] terms over their value at the reference run, [n] loss given by fixed coefficients)."""
    exponents = {name: theta[i] for i, (name, _, _) in enumerate(binding.nonlinear)}
    columns, offset = binding.columns(exponents, arrays["fixed"], arrays["x"])
    at_reference, _ = binding.columns(exponents, arrays["fixed"], arrays["reference"])
    n = arrays["loss"].shape[-1]
    scaled = [jnp.broadcast_to(jnp.asarray(c) / r, (n,)) for c, r in zip(columns, at_reference, strict=True)]
    return jnp.stack(scaled) if scaled else jnp.zeros((0, n)), jnp.broadcast_to(jnp.asarray(offset, float), (n,))


def log_prediction(binding: Binding, z: Any, arrays: Mapping[str, Any]) -> Any:
    """[n] log of the predicted loss."""
    k = len(binding.linear)
    terms, offset = normalised_terms(binding, z[k:], arrays)
    return jnp.log(jnp.maximum(z[:k] @ terms + offset, _TINY))


@functools.partial(jax.jit, static_argnums=0)
def _jacobian(binding: Binding, z: Any, arrays: Any) -> Any:
    """[n, P]"""
    return jax.jacfwd(lambda z: log_prediction(binding, z, arrays))(z)


def _cholesky_solve(A: Any, b: Any) -> Any:
    """x with A x = b for a small symmetric A, unrolled so that vmap makes it elementwise; NaN unless A > 0."""
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


def _nnls(gram: Any, rhs: Any) -> Any:
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
        best, best_value = jnp.where(better, c, best), jnp.where(better, value, best_value)
    return best


@functools.partial(jax.jit, static_argnums=0)
def _screen(binding: Binding, grid: Any, arrays: Any, counts: Any, log_loss: Any) -> tuple[Any, Any]:
    """Objective [B, G] and coefficients [B, G, K] at each grid point [G, Q], for B replicates [B, n]."""
    terms, offset = jax.vmap(lambda theta: normalised_terms(binding, theta, arrays))(grid)  # [G, K, n], [G, n]
    weight = 1 / arrays["loss"] ** 2  # relative residuals stand in for log residuals
    gram = jnp.einsum("gkn,gln,bn->bgkl", terms, terms, counts * weight[None, :])

    def one(gram_r: Any, counts_r: Any, log_loss_r: Any) -> tuple[Any, Any]:
        target = jnp.exp(log_loss_r)[None, :] - offset
        rhs = jnp.einsum("gkn,gn->gk", terms, target * (counts_r * weight)[None, :])
        c = jax.vmap(_nnls)(gram_r, rhs)
        prediction = jnp.maximum(jnp.einsum("gk,gkn->gn", c, terms) + offset, _TINY)
        return huber(jnp.log(prediction) - log_loss_r[None, :], arrays["delta"]) @ counts_r, c

    return jax.lax.map(lambda args: one(*args), (gram, counts, log_loss))


def _derivatives(binding: Binding, z: Any, arrays: Any, counts: Any, log_loss: Any) -> tuple[Any, ...]:
    """Objective, its gradient [P], Hessian and reweighted Gauss-Newton matrix [P, P], and gross gradient [P].

    The gross gradient sums the rows' contributions without their signs: gradient / gross says how exactly
    they cancel, whatever the units of loss, parameters and objective.
    """

    k, delta = len(binding.linear), arrays["delta"]
    weights = jnp.append(z[:k], 1.0)

    def terms(theta: Any) -> Any:  # [K + 1, n]: the loss that fixed coefficients give comes last
        free, offset = normalised_terms(binding, theta, arrays)
        return jnp.concatenate([free, offset[None, :]])

    def along(function: Any, q: int) -> Any:  # derivative by the q-th exponent
        direction = jnp.zeros(len(z) - k).at[q].set(1.0)
        return lambda theta: jax.jvp(function, (theta,), (direction,))[1]

    theta, exponents = z[k:], range(len(z) - k)
    T = terms(theta)
    inverse = 1 / jnp.maximum(weights @ T, _TINY)
    r = -jnp.log(inverse) - log_loss
    psi = jnp.clip(r, -delta, delta)
    pull = counts * psi
    slopes = [along(terms, q)(theta) for q in exponents]  # [K + 1, n] each
    J = jnp.stack([*(T[i] * inverse for i in range(k)), *((weights @ slope) * inverse for slope in slopes)])
    cross = jnp.stack([slope[:k] @ (pull * inverse) for slope in slopes]) if slopes else jnp.zeros((0, k))
    bend = [[weights @ (along(along(terms, q), p)(theta) @ (pull * inverse)) for p in exponents] for q in exponents]
    corner = jnp.stack([jnp.stack(row) for row in bend]) if bend else jnp.zeros((0, 0))
    curvature = jnp.block([[jnp.zeros((k, k)), cross.T], [cross, corner]])
    inside = counts * (jnp.abs(r) <= delta)
    irls = counts * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(r), _TINY))
    floor = jnp.minimum(1e-9, 1e-3 * delta)  # below it a residual is rounding
    gross = jnp.abs(J) @ (counts * jnp.maximum(jnp.abs(psi), floor))
    hessian = (J * (inside - pull)[None, :]) @ J.T + curvature
    return jnp.dot(counts, huber(r, delta)), J @ pull, hessian, (J * irls[None, :]) @ J.T, gross


def _step(binding: Binding, lane: _Lane, arrays: Any, counts: Any, log_loss: Any) -> _Lane:
    """One damped, projected Newton step, kept if the objective does not grow."""
    low, high = arrays["low"], arrays["high"]
    before, gradient, hessian, metric, gross = _derivatives(binding, lane.z, arrays, counts, log_loss)
    free = _free(lane.z, gradient, low, high)
    scale = 1 / jnp.sqrt(jnp.maximum(jnp.diag(metric), _TINY + 1e-14 * jnp.max(jnp.diag(metric))))
    damped = (hessian + lane.damping * metric) * jnp.outer(scale, scale) + 1e-13 * jnp.eye(len(scale))
    system = jnp.where(jnp.outer(free, free), damped, jnp.eye(len(scale)))
    step = scale * jax.scipy.linalg.cho_solve(
        jax.scipy.linalg.cho_factor(system), jnp.where(free, -gradient * scale, 0.0)
    )
    z = jnp.clip(lane.z + step, low, high)
    after = jnp.dot(counts, huber(log_prediction(binding, z, arrays) - log_loss, arrays["delta"]))
    # Near the optimum the decrease drowns in rounding while the gradient can still shrink.
    better = after <= before * (1 + 4e-16)
    damping = jnp.where(better, jnp.maximum(lane.damping * 0.2, 1e-12), lane.damping * 5)
    # gradient is the one at the z before the step: a lane reported as converged has not got worse since.
    return _Lane(jnp.where(better, z, lane.z), damping, jnp.where(better, after, before), _size(gradient, gross, free))


def _free(z: Any, gradient: Any, low: Any, high: Any) -> Any:
    """[P] false where z sits on a bound and the objective falls beyond it."""
    return ~(((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0)))


def _size(gradient: Any, gross: Any, free: Any) -> Any:
    """Scaled projected gradient: 0 at an optimum, at most 1."""
    return jnp.max(jnp.where(free, jnp.abs(gradient) / jnp.maximum(gross, _TINY), 0.0))


@functools.partial(jax.jit, static_argnums=0)
def _advance(binding: Binding, lanes: _Lane, arrays: Any, counts: Any, log_loss: Any) -> _Lane:
    """A few Newton steps of every lane; counts and log_loss [L, n]."""

    def body(_: Any, lanes: _Lane) -> _Lane:
        return jax.vmap(lambda lane, c, y: _step(binding, lane, arrays, c, y))(lanes, counts, log_loss)

    return jax.lax.fori_loop(0, STEPS_PER_DISPATCH, body, lanes)


def device_arrays(binding: Binding, data: Data, rows: np.ndarray) -> dict[str, Any]:
    """The given rows as arrays that the compiled programs take. Call inside `float64()`."""
    k = len(binding.linear)
    ranges = binding.nonlinear
    return {
        "x": {name: jnp.asarray(v[rows], float) for name, v in data.x.items()},
        "loss": jnp.asarray(data.loss[rows], float),
        "fixed": {name: jnp.asarray(v, float) for name, v in data.fixed.items()},
        "reference": {name: jnp.asarray(v, float) for name, v in data.reference.items()},
        "delta": jnp.asarray(data.delta, float),
        "low": jnp.array([0.0] * k + [low for _, low, _ in ranges]),
        "high": jnp.array([jnp.inf] * k + [high for _, _, high in ranges]),
    }


def exponent_grid(binding: Binding) -> np.ndarray:
    """[G, Q] points that cover the ranges of the free exponents, logarithmically."""
    q = len(binding.nonlinear)
    low, high = (np.array([entry[i] for entry in binding.nonlinear]).reshape(1, q) for i in (1, 2))
    if q <= 2:
        axis = np.linspace(0.02, 0.98, {0: 1, 1: 48, 2: 16}[q])
        unit = np.array(list(itertools.product(axis, repeat=q)), float).reshape(len(axis) ** q, q)
    else:
        unit = scipy.stats.qmc.Halton(q, scramble=False).random(512)[1:]
    return low * (high / low) ** unit


def _local_minima(grid: np.ndarray, objective: np.ndarray, most: int) -> np.ndarray:
    """[R, most] indices of the lowest grid points that no neighbour undercuts; -1 where there are fewer."""
    log_grid = np.log(grid)
    distance = np.linalg.norm(log_grid[:, None, :] - log_grid[None, :, :], axis=-1)
    neighbours = np.argsort(distance, axis=1, kind="stable")[:, : min(len(grid), 3 ** grid.shape[1])]
    lowest = objective[:, neighbours].min(axis=-1)
    candidate = np.where(objective <= lowest, objective, np.inf)
    order = np.argsort(candidate, axis=1, kind="stable")[:, :most]
    return np.where(np.isfinite(np.take_along_axis(candidate, order, axis=1)), order, -1)


def _padded(n: int) -> int:
    """Rows of the compiled program for n runs: few distinct sizes, so that tables of about n rows share it."""
    step = max(32, 2 ** (n.bit_length() - 3))
    return -(-n // step) * step


def _lane_count(n: int) -> int:
    """Lanes per dispatch: the working set of a program stays in cache."""
    return int(np.clip(2**15 // n, 4, 64))


class Solver:
    """Fits one binding to one table, again and again: to the runs themselves, then to replicates of them."""

    def __init__(self, binding: Binding, data: Data) -> None:
        self.binding, self.data = binding, data
        self.grid = exponent_grid(binding)
        self._n = len(data.loss)
        self._rows = np.minimum(np.arange(_padded(self._n)), self._n - 1)  # rows beyond n repeat the last, weight 0
        self._log_loss = np.log(data.loss)[self._rows]
        with float64():
            self._arrays = device_arrays(binding, data, self._rows)

    def global_fit(self) -> Solution:
        """The fit from starts all over the exponents' ranges, and how many of the starts reach it."""
        counts, log_loss = self._weights(np.ones((1, self._n)))
        objective, coefficients = self._screen(counts, log_loss)
        spread = int(np.clip(2**20 // self._n, 8, 56))  # fewer starts where each is dear
        every = np.arange(0, len(self.grid), -(-len(self.grid) // spread))
        best = _local_minima(self.grid, objective, 8)[0]
        chosen = np.unique(np.concatenate([every, best[best >= 0]]))
        starts = np.concatenate([coefficients[0, chosen], self.grid[chosen]], axis=1)
        return self._refine(starts, np.zeros(len(starts), int), counts, log_loss)

    def replicate_fits(self, counts: np.ndarray, warm: np.ndarray) -> Solution:
        """One fit per row of counts [R, n], row weights: from the lowest minima of its own grid and from `warm` [P]."""
        replicates = len(counts)
        counts, log_loss = self._weights(counts)
        objective, coefficients = self._screen(counts, log_loss)
        best = _local_minima(self.grid, objective, 3)
        replicate, column = np.nonzero(best >= 0)
        chosen = best[replicate, column]
        cold = np.concatenate([coefficients[replicate, chosen], self.grid[chosen]], axis=1)
        starts = np.concatenate([np.repeat(warm[None, :], replicates, axis=0), cold])
        return self._refine(starts, np.concatenate([np.arange(replicates), replicate]), counts, log_loss)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest z, [P] each."""
        return np.asarray(self._arrays["low"]), np.asarray(self._arrays["high"])

    def params(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """Every parameter of the law, in its own units, [R] each, from z [R, P]."""
        known = {name: np.full(len(z), value) for name, value in self.data.fixed.items()}
        known |= {name: z[:, i] for i, name in enumerate(self.binding.free)}
        for name, at_reference in zip(self.binding.linear, self._reference_terms(known), strict=True):
            known[name] = known[name] / at_reference
        return {name: np.array(value) for name, value in self.binding.complete(known).items()}

    def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
        """[P] z of the given parameters: the inverse of `params`."""
        scale = [*self._reference_terms(params), *(1.0 for _ in self.binding.nonlinear)]
        return np.array([params[name] * s for name, s in zip(self.binding.free, scale, strict=True)], float)

    def _reference_terms(self, known: Mapping[str, Any]) -> list[Any]:
        """Per free coefficient, its term at the geometric-mean run."""
        theta = {name: known[name] for name, _, _ in self.binding.nonlinear}
        return self.binding.columns(theta, self.data.fixed, self.data.reference)[0]

    def jacobian(self, z: np.ndarray) -> np.ndarray:
        """[n, P] derivative of the log prediction by z [P]."""
        with float64():
            return np.asarray(_jacobian(self.binding, z, self._arrays))[: self._n]

    def _weights(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights and log losses of the padded rows, [R, padded n] each."""
        counts = np.where(np.arange(len(self._rows)) < self._n, counts[:, self._rows], 0.0)
        return counts, np.broadcast_to(self._log_loss, counts.shape)

    def _screen(self, counts: np.ndarray, log_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Objective [R, G] and coefficients [R, G, K]."""
        k, n = len(self.binding.linear), counts.shape[1]
        block = int(np.clip(2**22 // (max(k, 1) ** 2 * n), 1, len(self.grid)))
        objective = np.empty((len(counts), len(self.grid)))
        coefficients = np.empty((len(counts), len(self.grid), k))
        with float64():
            for g in _blocks(len(self.grid), block):
                for r in _blocks(len(counts), 8 if n < 4096 else 1):
                    f, c = _screen(self.binding, self.grid[g], self._arrays, counts[r], log_loss[r])
                    objective[np.ix_(r, g)], coefficients[np.ix_(r, g)] = f, c
        return np.where(np.isfinite(objective), objective, np.inf), coefficients

    def _refine(self, starts: np.ndarray, owner: np.ndarray, counts: np.ndarray, log_loss: np.ndarray) -> Solution:
        """Newton from every start [T, P], whose replicate is owner [T]; the best start of each replicate."""
        total, width = len(starts), _lane_count(counts.shape[1])
        z = np.clip(starts, *self.bounds)
        damping, steps = np.ones(total), np.zeros(total, int)
        objective, gradient = np.full(total, np.inf), np.full(total, np.inf)
        active, waiting = np.arange(0), np.arange(total)
        with float64():
            while len(active) or len(waiting):
                room = width - len(active)
                active, waiting = np.concatenate([active, waiting[:room]]), waiting[room:]
                lanes = np.resize(active, width)  # a last, partly filled dispatch repeats lanes
                state = _Lane(z[lanes], damping[lanes], objective[lanes], gradient[lanes])
                out = _advance(self.binding, state, self._arrays, counts[owner[lanes]], log_loss[owner[lanes]])
                z[lanes], damping[lanes], objective[lanes], gradient[lanes] = (np.asarray(a) for a in out)
                steps[active] += STEPS_PER_DISPATCH
                going = (gradient[active] > TOLERANCE) & (damping[active] < 1e10) & (steps[active] < MAX_STEPS)
                active = active[going]
        objective = np.where(np.isfinite(objective), objective, np.inf)
        order = np.lexsort((gradient, objective, owner))
        replicates, first = np.unique(owner[order], return_index=True)
        winner = order[first]
        close = objective <= objective[winner][owner] * (1 + AGREE) + 1e-25
        starts_of = np.bincount(owner, minlength=len(replicates))
        agree = np.bincount(owner, weights=close, minlength=len(replicates)).astype(int)
        return Solution(z[winner], objective[winner], gradient[winner], starts_of, agree)


def _blocks(total: int, size: int) -> list[np.ndarray]:
    """Index blocks of one size that cover range(total); the last repeats the final index, to keep one shape."""
    return [np.minimum(np.arange(i, i + size), total - 1) for i in range(0, total, size)]
