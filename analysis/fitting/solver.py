"""Robust fits of laws: global search over the exponents, then Newton, for many starts
and replicates at once.

One trajectory is one (bootstrap replicate, start). Trajectories share compiled float64 programs of
one fixed shape; a trajectory that has converged, or has run into a better trajectory of its own
replicate, leaves and the next one takes its place, so that nobody waits for the
slowest.

The global search is variable projection (Golub & Pereyra 1973): for each point of a
grid over the exponents the best coefficients are a small non-negative least-squares
problem, solved in closed form over its active sets. The local search is Newton on the
objective of `analysis.fitting.newton`, damped by the Gauss-Newton matrix of the
iteratively reweighted least squares (Huber 1981, 7.8), in the box c >= 0, theta in its
range.

Shapes: n rows, P parameters, K coefficients, Q others, R replicates, G grid points, S
starts, L trajectories.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from scipy.spatial import cKDTree  # type: ignore[attr-defined]

from analysis.fitting import newton
from analysis.fitting.newton import STEPS_PER_DISPATCH, Data, Trajectory, float64
from analysis.laws.base import Binding

MAX_STEPS = 360
PATIENCE = 90  # steps after which a trajectory above another's minimum, or well above where another is, is lost
TOLERANCE = 1e-9  # of the scaled projected gradient
AGREE = 1e-8  # starts agree when their objectives differ by less than this, relatively
SEARCH_ROWS = 2048  # larger tables are searched globally on so many of their rows, then fitted on all
SAME = (
    1e-3  # trajectories of one replicate closer than this, relatively, are in one basin
)


class Solution(NamedTuple):
    """z [R, P]; objective [R]; gradient [R]: scaled projected gradient; starts [R];
    agree [R]: starts that reach it.
    """

    z: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    starts: np.ndarray
    agree: np.ndarray


def exponent_grid(binding: Binding) -> np.ndarray:
    """[G, Q] points in z that cover the ranges of the free nonlinear parameters;
    positive ranges logarithmically.
    """
    ranges = binding.nonlinear
    unit = make_unit_grid(len(ranges))
    columns = []
    for entry, u in zip(ranges, unit.T, strict=True):
        if entry.low > 0:
            value = np.log(entry.low) + np.log(entry.high / entry.low) * u
            columns.append(value if entry.log else np.exp(value))
        else:
            columns.append(entry.low + (entry.high - entry.low) * u)
    return np.stack(columns, axis=1) if columns else unit


def make_unit_grid(q: int) -> np.ndarray:
    """[G, q] points in the unit cube."""
    if q <= 2:
        axis = np.linspace(0.02, 0.98, {0: 1, 1: 48, 2: 16}[q])
        return np.array(list(itertools.product(axis, repeat=q)), float).reshape(
            len(axis) ** q, q
        )
    return scipy.stats.qmc.Halton(q, scramble=False).random(512 if q == 3 else 2048)[1:]


@functools.cache
def find_neighbors(q: int) -> np.ndarray:
    """[G, m] indices of the grid points around each, itself included."""
    unit = make_unit_grid(q)
    if q == 0:
        return np.zeros((1, 1), int)
    return (
        cKDTree(unit)
        .query(unit, k=min(len(unit), 3 ** min(q, 3)))[1]
        .reshape(len(unit), -1)
    )


def find_local_minima(q: int, objective: np.ndarray, most: int) -> np.ndarray:
    """[R, most] indices of the lowest grid points that no neighbor undercuts; -1 where
    there are fewer.
    """
    lowest = objective.copy()
    for column in find_neighbors(q).T:
        np.minimum(lowest, objective[:, column], out=lowest)
    candidate = np.where(objective <= lowest, objective, np.inf)
    order = np.argsort(candidate, axis=1, kind="stable")[:, :most]
    return np.where(
        np.isfinite(np.take_along_axis(candidate, order, axis=1)), order, -1
    )


def pad_row_count(n: int) -> int:
    """Rows of the compiled program for n runs: few distinct sizes, so that tables of
    about n rows share it.
    """
    step = max(64, 2 ** (n.bit_length() - 3))
    return -(-n // step) * step


def count_trajectories(n: int) -> int:
    """Trajectories per dispatch: the working set of a program stays in cache."""
    return int(np.clip(2**15 // n, 1, 64))


class Solver:
    """Fits one binding to one table, again and again: to the runs themselves, then to
    replicates of them.
    """

    def __init__(self, binding: Binding, data: Data) -> None:
        self.binding, self.data = binding, data
        self.grid = exponent_grid(binding)
        self._n = len(data.loss)
        self._rows = np.minimum(
            np.arange(pad_row_count(self._n)), self._n - 1
        )  # rows beyond n repeat the last, weight 0
        with float64():
            self._arrays = newton.device_arrays(binding, data, self._rows)

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest z, [P] each."""
        k = len(self.binding.linear)
        ends = [
            (np.log(e.low), np.log(e.high)) if e.log else (e.low, e.high)
            for e in self.binding.nonlinear
        ]
        return np.array([0.0] * k + [a for a, _ in ends]), np.array(
            [np.inf] * k + [b for _, b in ends]
        )

    def global_fit(self) -> Solution:
        """The fit from starts all over the exponents' ranges, and how many of the
        starts reach it.
        """
        if self._n > SEARCH_ROWS:
            return self._large_fit()
        weight, observed = self._weights(np.ones((1, self._n)))
        objective, coefficients = self._screen(weight, observed)
        every = np.arange(0, len(self.grid), -(-len(self.grid) // 56))
        best = find_local_minima(self.grid.shape[1], objective, 8)[0]
        chosen = np.unique(np.concatenate([every, best[best >= 0]]))
        starts = np.concatenate([coefficients[0, chosen], self.grid[chosen]], axis=1)
        return self._polish(starts, weight, observed)

    def _large_fit(self) -> Solution:
        """Search on a sample of the rows, then polish on all of them."""
        found = self._sample.global_fit()
        weight, observed = self._weights(np.ones((1, self._n)))
        polished = self._polish(
            self._same_point(self._sample, found.z[0], self)[None], weight, observed
        )
        return polished._replace(starts=found.starts, agree=found.agree)

    @functools.cached_property
    def _sample(self) -> Solver:
        """The same problem on an even sample of the rows in the order of their values."""
        order = np.lexsort((self.data.loss, *self.data.x.values()))
        rows = order[np.linspace(0, self._n - 1, SEARCH_ROWS).astype(int)]
        return Solver(self.binding, self.data.take(rows))

    @staticmethod
    def _same_point(source: Solver, z: np.ndarray, target: Solver) -> np.ndarray:
        """z of one solver in the coordinates of another: their reference runs differ."""
        return target.coordinates(
            {name: float(v[0]) for name, v in source.params(z[None]).items()}
        )

    def searched(self, z: np.ndarray) -> tuple[Solver, np.ndarray]:
        """The solver on which global questions about the fit z [P] are asked, and z
        there: itself, or its sample.
        """
        if self._n <= SEARCH_ROWS:
            return self, z
        some = self._sample
        start = self._same_point(self, z, some)
        return some, some.replicate_fits(np.ones((1, some._n)), start).z[0]

    def residuals(self, z: np.ndarray) -> np.ndarray:
        """[n] scaled residuals at z [P]."""
        with float64():
            value = np.asarray(
                newton.predict_response(self.binding, np.asarray(z), self._arrays)
            )[: self._n]
        target = np.log(self.data.loss) if self.data.log else self.data.loss
        return (value - target) / (1.0 if self.data.scale is None else self.data.scale)

    def replicate_fits(
        self, counts: np.ndarray, warm: np.ndarray, loss: np.ndarray | None = None
    ) -> Solution:
        """One fit per row of counts [R, n], multiples of the row weights, to `loss` [R,
        n] or the runs' own.

        Starts: the lowest minima of each replicate's own grid, and `warm` [P].
        """
        weight, observed = self._weights(counts, loss)
        objective, coefficients = self._screen(weight, observed)
        trajectories = _Trajectories(self.bounds, len(counts))
        trajectories.add(
            np.repeat(warm[None, :], len(counts), axis=0), np.arange(len(counts))
        )
        self._run(trajectories, weight, observed)
        lowest = find_local_minima(self.grid.shape[1], objective, 3)
        lowest = np.where(self._beside(lowest, trajectories.solution().z), -1, lowest)
        replicate, column = np.nonzero(lowest >= 0)
        chosen = lowest[replicate, column]
        trajectories.add(
            np.concatenate(
                [coefficients[replicate, chosen], self.grid[chosen]], axis=1
            ),
            replicate,
        )
        self._run(trajectories, weight, observed)
        return trajectories.solution()

    def _beside(self, points: np.ndarray, z: np.ndarray) -> np.ndarray:
        """[R, m] whether a grid point (index, or -1) neighbors the solution z [R, P]:
        it is then in its basin.
        """
        place, theta = (
            self._place(self.grid),
            self._place(z[:, len(self.binding.linear) :]),
        )
        nearest = (
            cKDTree(place).query(theta)[1] if place.shape[1] else np.zeros(len(z), int)
        )
        return (
            find_neighbors(place.shape[1])[nearest][:, None, :] == points[:, :, None]
        ).any(axis=2)

    def _place(self, theta: np.ndarray) -> np.ndarray:
        """[.., Q] the exponents where the grid is even: logarithms of the positive
        ones.
        """
        positive = [e.low > 0 and not e.log for e in self.binding.nonlinear]
        return np.where(positive, np.log(np.where(positive, theta, 1.0)), theta)

    def profile_fits(
        self, index: int, values: np.ndarray, warm: np.ndarray
    ) -> Solution:
        """The best fit with coordinate `index` of z held at each of the values [V]."""
        v, k = len(values), len(self.binding.linear)
        weight, observed = self._weights(np.ones((1, self._n)))
        objective, coefficients = self._screen(weight, observed)
        starts = [
            np.repeat(warm[None, :], v, axis=0)
        ]  # then the lowest points of the grid, beside the value
        near = np.repeat(objective, v, axis=0)
        if index >= k:
            distance = np.abs(self.grid[:, index - k][None, :] - values[:, None])
            near = np.where(
                distance <= np.quantile(distance, 0.1, axis=1, keepdims=True),
                near,
                np.inf,
            )
        for column in np.argsort(near, axis=1, kind="stable")[:, :4].T:
            starts.append(
                np.concatenate([coefficients[0, column], self.grid[column]], axis=1)
            )
        z = np.concatenate(starts)
        z[:, index] = np.tile(values, len(starts))
        low, high = (np.repeat(end[None, :], len(z), axis=0) for end in self.bounds)
        low[:, index] = high[:, index] = z[:, index]
        trajectories = _Trajectories((low, high), v)
        trajectories.add(z, np.tile(np.arange(v), len(starts)))
        self._run(
            trajectories, np.repeat(weight, v, axis=0), np.repeat(observed, v, axis=0)
        )
        return trajectories.solution()

    def params(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """Every parameter of the law, in its own units, [R] each, from z [R, P]."""
        known = {
            name: np.full(len(z), value) for name, value in self.data.fixed.items()
        }
        known |= {name: z[:, i] for i, name in enumerate(self.binding.free)}
        for entry in self.binding.nonlinear:
            if entry.log:
                known[entry.name] = self.data.unit(entry) * np.exp(known[entry.name])
        for name, at_reference in zip(
            self.binding.linear, self._reference_terms(known), strict=True
        ):
            known[name] = known[name] / np.abs(at_reference)
        return {
            name: np.array(value)
            for name, value in self.binding.complete(known).items()
        }

    def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
        """[P] z of the given parameters: the inverse of `params`."""
        linear = [
            params[n] * abs(s)
            for n, s in zip(
                self.binding.linear, self._reference_terms(params), strict=True
            )
        ]
        others = [
            np.log(params[e.name] / self.data.unit(e)) if e.log else params[e.name]
            for e in self.binding.nonlinear
        ]
        return np.array([*linear, *others], float)

    def _reference_terms(self, known: Mapping[str, Any]) -> list[Any]:
        """Per free coefficient, its term at the geometric-mean run."""
        theta = {entry.name: known[entry.name] for entry in self.binding.nonlinear}
        return self.binding.columns(theta, self.data.fixed, self.data.reference)[0]

    def jacobian(self, z: np.ndarray) -> np.ndarray:
        """[n, P] derivative of g(prediction), over the noise's scale, by z [P]."""
        with float64():
            slopes = np.asarray(newton.compute_jacobian(self.binding, z, self._arrays))[
                : self._n
            ]
        return slopes if self.data.scale is None else slopes / self.data.scale[:, None]

    def _weights(
        self, counts: np.ndarray, loss: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights and g(loss) of the padded rows, [R, padded n] each."""
        if self.data.weight is not None:
            counts = counts * self.data.weight[None, :]
        weight = np.where(
            np.arange(len(self._rows)) < self._n, counts[:, self._rows], 0.0
        )
        values = (self.data.loss[None, :] if loss is None else loss)[:, self._rows]
        return weight, np.broadcast_to(
            np.log(values) if self.data.log else values, weight.shape
        )

    def _screen(
        self, weight: np.ndarray, observed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Objective [R, G] and coefficients [R, G, K]."""
        k, n = len(self.binding.linear), weight.shape[1]
        block = int(np.clip(2**22 // (max(k, 1) ** 2 * n), 1, len(self.grid)))
        objective = np.empty((len(weight), len(self.grid)))
        coefficients = np.empty((len(weight), len(self.grid), k))
        with float64():
            for g in split_blocks(len(self.grid), block):
                for r in split_blocks(len(weight), 8 if n <= 512 else 1):
                    f, c = newton.screen_grid(
                        self.binding, self.grid[g], self._arrays, weight[r], observed[r]
                    )
                    objective[np.ix_(r, g)], coefficients[np.ix_(r, g)] = f, c
        return np.where(np.isfinite(objective), objective, np.inf), coefficients

    def _polish(
        self, starts: np.ndarray, weight: np.ndarray, observed: np.ndarray
    ) -> Solution:
        """The best of the starts [S, P] for one replicate, every one followed to its
        own end.
        """
        trajectories = _Trajectories(self.bounds, 1, merge=False)
        trajectories.add(starts, np.zeros(len(starts), int))
        self._run(trajectories, weight, observed)
        return trajectories.solution()

    def _run(
        self, trajectories: _Trajectories, weight: np.ndarray, observed: np.ndarray
    ) -> None:
        """Newton on all trajectories that wait, in dispatches of one width."""
        width = count_trajectories(weight.shape[1])
        with float64():
            while len(active := trajectories.next(width)):
                some = np.resize(
                    active, width
                )  # a last, partly filled dispatch repeats trajectories
                mine = trajectories.owner[some]
                state, bounds = trajectories.state(some)
                trajectories.update(
                    some,
                    newton.advance_trajectories(
                        self.binding,
                        state,
                        bounds,
                        self._arrays,
                        weight[mine],
                        observed[mine],
                    ),
                )


class _Trajectories:
    """Starts of R replicates: waiting, under way, done.

    bounds: of all trajectories, [P] each, or of each trajectory of the first `add`, [S, P] each.
    merge: a trajectory that has run into a lower one of its replicate leaves.
    """

    def __init__(
        self, bounds: tuple[np.ndarray, np.ndarray], replicates: int, merge: bool = True
    ) -> None:
        self.bounds, self.merge = bounds, merge
        p = bounds[0].shape[-1]
        self.z = np.empty((0, p))
        self.low = np.empty((0, p))
        self.high = np.empty((0, p))
        self.owner = np.empty(0, int)
        self.steps = np.empty(0, int)
        self.damping = np.empty(0)
        self.objective = np.empty(0)
        self.gradient = np.empty(0)
        self.active = np.empty(0, int)
        self.waiting = np.empty(0, int)
        self.best = np.full(
            replicates, -1
        )  # trajectory of lowest objective of each replicate, so far

    def add(self, starts: np.ndarray, owner: np.ndarray) -> None:
        """More starts [S, P] of replicates owner [S]."""
        new = len(starts)
        low, high = (np.broadcast_to(end, starts.shape) for end in self.bounds)
        self.waiting = np.concatenate([self.waiting, len(self.z) + np.arange(new)])
        self.z = np.concatenate([self.z, np.clip(starts, low, high)])
        self.low = np.concatenate([self.low, low])
        self.high = np.concatenate([self.high, high])
        self.owner = np.concatenate([self.owner, owner])
        self.steps = np.append(self.steps, np.zeros(new, int))
        self.damping = np.append(self.damping, np.ones(new))
        self.objective = np.append(self.objective, np.full(new, np.inf))
        self.gradient = np.append(self.gradient, np.full(new, np.inf))

    def next(self, width: int) -> np.ndarray:
        """Indices of the trajectories under way, topped up from those waiting."""
        room = width - len(self.active)
        self.active = np.concatenate([self.active, self.waiting[:room]])
        self.waiting = self.waiting[room:]
        return self.active

    def state(
        self, trajectories: np.ndarray
    ) -> tuple[Trajectory, tuple[np.ndarray, np.ndarray]]:
        """Trajectories as the compiled program takes them, and their bounds."""
        state = Trajectory(
            self.z[trajectories],
            self.damping[trajectories],
            self.objective[trajectories],
            self.gradient[trajectories],
        )
        return state, (self.low[trajectories], self.high[trajectories])

    def update(self, trajectories: np.ndarray, out: Trajectory) -> None:
        """What the program made of the trajectories; those that are done leave."""
        self.z[trajectories] = np.asarray(out.z)
        self.damping[trajectories] = np.asarray(out.damping)
        self.objective[trajectories] = np.asarray(out.objective)
        self.gradient[trajectories] = np.asarray(out.gradient)
        active = self.active
        self.steps[active] += STEPS_PER_DISPATCH
        converged = self.gradient[active] <= TOLERANCE
        going = (
            ~converged
            & (self.damping[active] < 1e10)
            & (self.steps[active] < MAX_STEPS)
        )
        self._rank(active)
        self.active = active[going & ~self._beaten(active)]

    def _rank(self, active: np.ndarray) -> None:
        """Keep `best`: of the trajectories that have moved, the lowest of each replicate may
        take the place.
        """
        for trajectory in active[np.argsort(-self.objective[active], kind="stable")]:
            rival = self.best[self.owner[trajectory]]
            if rival < 0 or not self.objective[rival] <= self.objective[trajectory]:
                self.best[self.owner[trajectory]] = trajectory

    def _beaten(self, active: np.ndarray) -> np.ndarray:
        """[active] true where another trajectory of the replicate is lower, at the same place
        or done long since.
        """
        best = self.best[self.owner[active]]
        gap = np.abs(self.z[active] - self.z[best]) / (np.abs(self.z[best]) + 0.05)
        done = self.gradient[best] <= TOLERANCE
        behind = self.objective[active] / np.maximum(self.objective[best], 1e-300) - 1
        late = (self.steps[active] >= PATIENCE) & (behind > np.where(done, 1e-6, 0.01))
        return (best != active) & (late | (self.merge & (gap.max(axis=1) < SAME)))

    def solution(self) -> Solution:
        """The best trajectory of each replicate."""
        winner = self.best
        objective = np.where(np.isfinite(self.objective), self.objective, np.inf)
        close = objective <= objective[winner][self.owner] * (1 + AGREE) + 1e-25
        starts = np.bincount(self.owner, minlength=len(winner))
        agree = np.bincount(self.owner, weights=close, minlength=len(winner)).astype(
            int
        )
        return Solution(
            self.z[winner], objective[winner], self.gradient[winner], starts, agree
        )


def split_blocks(total: int, size: int) -> list[np.ndarray]:
    """Index blocks of one size that cover range(total); the last repeats the final
    index, to keep one shape.
    """
    return [
        np.minimum(np.arange(i, i + size), total - 1) for i in range(0, total, size)
    ]
