"""Robust fits of laws: global search over the exponents, then Newton, for many starts
and replicates at once.

One trajectory is one (bootstrap replicate, start). Trajectories share compiled float64
programs of one fixed shape. A trajectory leaves when it has converged, or has run into
a better trajectory of its own replicate, and the next one takes its place, so that no
trajectory waits for the slowest.

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
from typing import NamedTuple

import numpy as np

from analysis.fitting import newton
from analysis.fitting.data import Data, load_rows, use_float64
from analysis.fitting.effects import Trunks
from analysis.fitting.newton import STEPS_PER_DISPATCH, Trajectory
from analysis.fitting.programs import Call, compile_programs, run_program
from analysis.laws.base import Array, Binding, Params
from analysis.progress import show_progress

MAX_STEPS = 360
# After this many steps a trajectory is given up if it is above the minimum that another
# one reached, or well above where another one is.
PATIENCE = 90
TYPICAL_STEPS = 15  # of a trajectory, from which the time left is estimated
NEAR = 1e-3  # damping of the first step of a start that is beside its optimum
TOLERANCE = 1e-9  # of the scaled projected gradient
AGREE = 1e-8  # starts agree when their objectives differ by less than this, relatively
# A larger table is searched globally on so many of its rows, then fitted on all.
SEARCH_ROWS = 2048
FEWEST_SEARCH_ROWS = 128  # where the variables have many values in each row
PROFILE_STARTS = 4  # points of the grid from which each point of a profile is searched,
FEW_PROFILE_STARTS = 1  # and where the variables have many values in each row
SPREAD_STARTS = 56  # of the global search, beside the lowest minima of the grid
FEW_SPREAD_STARTS = 16  # where the variables have many values in each row
# Trajectories of one replicate that are closer than this, relatively, are in one basin.
SAME = 1e-3


class Solution(NamedTuple):
    """The best fit of each replicate.

    Attributes:
        z: [R, P].
        objective: [R].
        gradient: [R] scaled projected gradient.
        starts: [R] starts tried.
        agree: [R] starts that reach this objective.
    """

    z: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    starts: np.ndarray
    agree: np.ndarray


def make_exponent_grid(binding: Binding) -> np.ndarray:
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
    if q > 2:
        from scipy.stats import qmc  # a quarter of a second, and most laws have q = 2

        count = 512 if q == 3 else 2048
        return qmc.Halton(q, scramble=False).random(count)[1:]
    points_per_axis = (1, 48, 16)[q]
    axis = np.linspace(0.02, 0.98, points_per_axis)
    points = list(itertools.product(axis, repeat=q))
    return np.array(points, float).reshape(len(points), q)


@functools.cache
def find_neighbors(q: int) -> np.ndarray:
    """[G, m] indices of the grid points around each, itself included."""
    if q == 0:
        return np.zeros((1, 1), int)
    unit = make_unit_grid(q)
    return find_nearest(unit, unit, min(len(unit), 3 ** min(q, 3)))


def find_nearest(grid: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """[S, count] indices of the grid points [G, q] nearest to each point [S, q]."""
    if grid.shape[1] > 2:
        from scipy.spatial import cKDTree  # type: ignore[attr-defined]

        # Not for small grids: SciPy takes longer to import than they to search.
        return cKDTree(grid).query(points, k=count)[1].reshape(len(points), count)
    distance = sum((a[:, None] - b) ** 2 for a, b in zip(points.T, grid.T, strict=True))
    return np.argsort(distance, axis=1, kind="stable")[:, :count]


def find_local_minima(q: int, objective: np.ndarray, most: int) -> np.ndarray:
    """[R, most] indices of the lowest grid points that no neighbor undercuts; -1 where
    there are fewer.
    """
    lowest = objective.copy()
    for column in find_neighbors(q).T:
        np.minimum(lowest, objective[:, column], out=lowest)
    candidate = np.where(objective <= lowest, objective, np.inf)
    order = np.argsort(candidate, axis=1, kind="stable")[:, :most]
    is_minimum = np.isfinite(np.take_along_axis(candidate, order, axis=1))
    return np.where(is_minimum, order, -1)


def pad_row_count(n: int) -> int:
    """Rows of the compiled program for n runs: few distinct sizes, so that tables of
    about n rows share it.
    """
    if n <= 256:
        # To compile for a further size takes longer than to fit the added rows.
        return max(32, 2 ** (n - 1).bit_length())
    step = 2 ** (n.bit_length() - 3)
    return -(-n // step) * step


def count_trajectories(cells: int) -> int:
    """The most trajectories per dispatch, for variables of so many values: many where a
    dispatch takes longer than its steps.
    """
    block = newton.size_block(cells)
    return 16 * block if block == newton.LARGEST_BLOCK else block


class Solver:
    """Fits one binding to one table: to the runs themselves, then to replicates of
    them.
    """

    def __init__(self, binding: Binding, data: Data) -> None:
        self.binding = binding
        self.data = data
        self.grid = make_exponent_grid(binding)
        self._n = len(data.loss)
        # Rows beyond n repeat the last one, with weight 0.
        padded = np.arange(pad_row_count(self._n))
        self._rows = np.minimum(padded, self._n - 1)
        # A variable may have several values in each row.
        self._row_cells = max(values.size // self._n for values in data.x.values())
        self._cells = self._row_cells * len(self._rows)
        with use_float64():
            self._device_data = load_rows(binding, data, self._rows)

    @property
    def _search_rows(self) -> int:
        """A table of more rows is searched globally on so many of them."""
        return max(SEARCH_ROWS // self._row_cells, FEWEST_SEARCH_ROWS)

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest z, [P] each."""
        low = [0.0] * len(self.binding.linear)
        high = [np.inf] * len(self.binding.linear)
        for entry in self.binding.nonlinear:
            low.append(np.log(entry.low) if entry.log else entry.low)
            high.append(np.log(entry.high) if entry.log else entry.high)
        return np.array(low), np.array(high)

    def global_fit(self) -> Solution:
        """The fit from starts all over the exponents' ranges, and how many of the
        starts reach it.
        """
        if self._n > self._search_rows:
            return self._fit_large_table()
        weight, observed = self._pad_rows(np.ones((1, self._n)))
        self._compile_ahead()
        objective, coefficients = self._screen(weight, observed)
        spread = SPREAD_STARTS if self._row_cells == 1 else FEW_SPREAD_STARTS
        every = np.arange(0, len(self.grid), -(-len(self.grid) // spread))
        best = find_local_minima(self.grid.shape[1], objective, 8)[0]
        chosen = np.unique(np.concatenate([every, best[best >= 0]]))
        starts = np.concatenate([coefficients[0, chosen], self.grid[chosen]], axis=1)
        return self._polish(starts, weight, observed)

    def _fit_large_table(self) -> Solution:
        """Search on a sample of the rows, then polish on all of them."""
        found = self._sample.global_fit()
        start = _convert_coordinates(found.z[0], self._sample, self)
        polished = self.local_fits(np.ones((1, self._n)), start[None])
        return polished._replace(starts=found.starts, agree=found.agree)

    @functools.cached_property
    def _sample(self) -> Solver:
        """The same problem on an even sample of the rows in the order of their values."""
        keys = [values for values in self.data.x.values() if values.ndim == 1]
        order = np.lexsort((self.data.loss, *keys))
        rows = order[np.linspace(0, self._n - 1, self._search_rows).astype(int)]
        return Solver(self.binding, self.data.take(rows))

    def restrict_to_sample(self, z: np.ndarray) -> tuple[Solver, np.ndarray]:
        """The solver that answers global questions about the fit z [P], and z in its
        coordinates: itself, or for a large table the solver of a sample of the rows.
        """
        if self._n <= self._search_rows:
            return self, z
        sample = self._sample
        start = _convert_coordinates(z, self, sample)
        return sample, sample.replicate_fits(np.ones((1, sample._n)), start).z[0]

    def residuals(self, z: np.ndarray) -> np.ndarray:
        """[n] scaled residuals at z [P], whitened if runs share the effect of a trunk."""
        values = self.params(np.asarray(z)[None])
        params = {name: float(value[0]) for name, value in values.items()}
        predicted = self.binding.law.predict(params, **self.data.x)
        measured = self.data.loss
        if self.data.log:
            predicted = np.log(np.maximum(predicted, np.finfo(float).tiny))
            measured = np.log(measured)
        scale = 1.0 if self.data.scale is None else self.data.scale
        return self._whiten((predicted - measured) / scale)

    def replicate_fits(
        self, counts: np.ndarray, warm: np.ndarray, loss: np.ndarray | None = None
    ) -> Solution:
        """One fit per row of counts [R, n], multiples of the row weights, to `loss` [R,
        n] or the runs' own.

        Starts: the lowest minima of each replicate's own grid, and `warm` [P].
        """
        weight, observed = self._pad_rows(counts, loss)
        objective, coefficients = self._screen(weight, observed)
        trajectories = _Trajectories(self.bounds, len(counts))
        trajectories.add(
            np.repeat(warm[None, :], len(counts), axis=0), np.arange(len(counts))
        )
        self._follow(trajectories, weight, observed)
        lowest = find_local_minima(self.grid.shape[1], objective, 3)
        is_known = self._is_beside(lowest, trajectories.solution().z)
        lowest = np.where(is_known, -1, lowest)
        replicate, column = np.nonzero(lowest >= 0)
        chosen = lowest[replicate, column]
        starts = [coefficients[replicate, chosen], self.grid[chosen]]
        trajectories.add(np.concatenate(starts, axis=1), replicate)
        self._follow(trajectories, weight, observed)
        return trajectories.solution()

    def fit_beside(self, z: np.ndarray) -> Solution:
        """The fit to the runs themselves, which is expected beside z [P]. Only a large
        table is not searched for others.
        """
        one = np.ones((1, self._n))
        if self._n > self._search_rows:
            return self.local_fits(one, z[None])
        return self.replicate_fits(one, z)

    def local_fits(
        self, counts: np.ndarray, starts: np.ndarray, loss: np.ndarray | None = None
    ) -> Solution:
        """The fit for each row of counts [R, n] that its start [R, P] leads to, without
        a search of the exponents; to `loss` [R, n] or the runs' own.
        """
        weight, observed = self._pad_rows(counts, loss)
        trajectories = _Trajectories(self.bounds, len(counts))
        trajectories.add(starts, np.arange(len(counts)), NEAR)
        self._follow(trajectories, weight, observed)
        return trajectories.solution()

    def _is_beside(self, points: np.ndarray, z: np.ndarray) -> np.ndarray:
        """[R, m] whether a grid point (index, or -1) neighbors the solution z [R, P]:
        it is then in its basin.
        """
        even_grid = self._make_even(self.grid)
        theta = self._make_even(z[:, len(self.binding.linear) :])
        exponents = even_grid.shape[1]
        nearest = np.zeros(len(z), int)
        if exponents:
            nearest = find_nearest(even_grid, theta, 1)[:, 0]
        neighbors = find_neighbors(exponents)[nearest]
        return (neighbors[:, None, :] == points[:, :, None]).any(axis=2)

    def _make_even(self, theta: np.ndarray) -> np.ndarray:
        """[.., Q] the exponents on the scale where the grid is even: logarithms of the
        positive ones.
        """
        positive = [e.low > 0 and not e.log for e in self.binding.nonlinear]
        return np.where(positive, np.log(np.where(positive, theta, 1.0)), theta)

    def profile_fits(
        self, index: int | np.ndarray, values: np.ndarray, warm: np.ndarray
    ) -> Solution:
        """The best fit with one coordinate of z held at each of the values [V].

        Args:
            index: of the coordinate, one or [V].
            values: where it is held.
            warm: [P] a start.
        """
        count = len(values)
        held = np.broadcast_to(index, count)
        k = len(self.binding.linear)
        weight, observed = self._pad_rows(np.ones((1, self._n)))
        objective, coefficients = self._screen(weight, observed)
        near = np.repeat(objective, count, axis=0)
        on_grid = held >= k
        distance = np.abs(self.grid.T[held[on_grid] - k] - values[on_grid, None])
        nearest_tenth = np.quantile(distance, 0.1, axis=1, keepdims=True)
        near[on_grid] = np.where(distance <= nearest_tenth, near[on_grid], np.inf)
        # The given start, then the lowest points of the grid near each value.
        starts = [np.repeat(warm[None, :], count, axis=0)]
        lowest = PROFILE_STARTS if self._row_cells == 1 else FEW_PROFILE_STARTS
        for column in np.argsort(near, axis=1, kind="stable")[:, :lowest].T:
            parts = [coefficients[0, column], self.grid[column]]
            starts.append(np.concatenate(parts, axis=1))
        z = np.concatenate(starts)
        low = np.repeat(self.bounds[0][None, :], len(z), axis=0)
        high = np.repeat(self.bounds[1][None, :], len(z), axis=0)
        for bounded in (z, low, high):
            bounded[np.arange(len(z)), np.tile(held, len(starts))] = np.tile(
                values, len(starts)
            )
        trajectories = _Trajectories((low, high), count)
        trajectories.add(z, np.tile(np.arange(count), len(starts)))
        self._follow(
            trajectories,
            np.repeat(weight, count, axis=0),
            np.repeat(observed, count, axis=0),
        )
        return trajectories.solution()

    def params(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """Every parameter of the law, in its own units, [R] each, from z [R, P]."""
        known: dict[str, np.ndarray] = {}
        for name, value in self.data.fixed.items():
            known[name] = np.full(len(z), value)
        for i, name in enumerate(self.binding.free):
            known[name] = z[:, i]
        for entry in self.binding.nonlinear:
            if entry.log:
                known[entry.name] = self.data.unit(entry) * np.exp(known[entry.name])
        at_reference = self._evaluate_reference_terms(known)
        for name, term in zip(self.binding.linear, at_reference, strict=True):
            known[name] = known[name] / np.abs(term)
        completed = self.binding.complete(known)
        return {name: np.array(value) for name, value in completed.items()}

    def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
        """[P] z of the given parameters: the inverse of `params`."""
        z = []
        at_reference = self._evaluate_reference_terms(params)
        for name, term in zip(self.binding.linear, at_reference, strict=True):
            z.append(params[name] * abs(term))
        for entry in self.binding.nonlinear:
            value = params[entry.name]
            z.append(np.log(value / self.data.unit(entry)) if entry.log else value)
        return np.array(z, float)

    def _evaluate_reference_terms(self, known: Params) -> list[Array]:
        """Per free coefficient, its term at the geometric-mean run."""
        theta = {entry.name: known[entry.name] for entry in self.binding.nonlinear}
        columns, _ = self.binding.columns(theta, self.data.fixed, self.data.reference)
        return columns

    def jacobian(self, z: np.ndarray) -> np.ndarray:
        """[n, P] derivative by z [P] of the residuals that `residuals` gives."""
        with use_float64():
            padded = run_program(
                newton.compute_jacobian, self.binding, z, self._device_data
            )
            slopes = np.asarray(padded)[: self._n]
        if self.data.scale is not None:
            slopes = slopes / self.data.scale[:, None]
        return self._whiten(slopes)

    def _whiten(self, values: np.ndarray) -> np.ndarray:
        if self.data.trunk is None:
            return values
        return Trunks.from_labels(self.data.trunk).whiten(values, self.data.ratio)

    def _pad_rows(
        self, counts: np.ndarray, loss: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights and g(loss) of the padded rows, [R, padded n] each."""
        if self.data.weight is not None:
            counts = counts * self.data.weight[None, :]
        is_run = np.arange(len(self._rows)) < self._n
        weight = np.where(is_run, counts[:, self._rows], 0.0)
        measured = self.data.loss[None, :] if loss is None else loss
        values = measured[:, self._rows]
        observed = np.log(values) if self.data.log else values
        return weight, np.broadcast_to(observed, weight.shape)

    def _screen(
        self, weight: np.ndarray, observed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Objective [R, G] and coefficients [R, G, K]."""
        k = len(self.binding.linear)
        replicate_block, grid_block = self._size_screen()
        objective = np.empty((len(weight), len(self.grid)))
        coefficients = np.empty((len(weight), len(self.grid), k))
        with use_float64():
            for g in split_blocks(len(self.grid), grid_block):
                for r in split_blocks(len(weight), replicate_block):
                    values, best = run_program(
                        newton.screen_grid,
                        self.binding,
                        self.grid[g],
                        self._device_data,
                        weight[r],
                        observed[r],
                    )
                    objective[np.ix_(r, g)] = values
                    coefficients[np.ix_(r, g)] = best
        return np.where(np.isfinite(objective), objective, np.inf), coefficients

    def _size_screen(self) -> tuple[int, int]:
        """Replicates and grid points per call of the screen."""
        k = max(len(self.binding.linear), 1)
        n = len(self._rows)
        cells = max(k**2, self._row_cells) * n
        grid_block = int(np.clip(2**22 // cells, 1, len(self.grid)))
        replicate_block = 32 if n <= 64 else 8 if n <= 512 else 1
        return replicate_block, grid_block

    def _compile_ahead(self) -> None:
        """Compile the programs of a fit side by side; only shapes matter here."""
        replicates, points = self._size_screen()
        width = count_trajectories(self._cells)
        trajectories = _Trajectories(self.bounds, 1)
        z = np.zeros(len(self.binding.free))
        trajectories.add(np.tile(z, (width, 1)), np.zeros(width, int))
        state, bounds = trajectories.load_state(np.arange(width))
        data = self._device_data
        of_screen = np.zeros((replicates, len(self._rows)))
        of_steps = np.zeros((width, len(self._rows)))
        screened = (self.grid[:points], data, of_screen, of_screen)
        advanced = (np.array(0), state, bounds, data, of_steps, of_steps)
        compile_programs(
            [
                Call(newton.advance_trajectories, self.binding, advanced),
                Call(newton.screen_grid, self.binding, screened),
                Call(newton.compute_jacobian, self.binding, (z, data)),
            ]
        )

    def _polish(
        self, starts: np.ndarray, weight: np.ndarray, observed: np.ndarray
    ) -> Solution:
        """The best of the starts [S, P] for one replicate, each followed to its own
        end.
        """
        trajectories = _Trajectories(self.bounds, 1, merge=False)
        trajectories.add(starts, np.zeros(len(starts), int))
        self._follow(trajectories, weight, observed)
        return trajectories.solution()

    def _follow(
        self, trajectories: _Trajectories, weight: np.ndarray, observed: np.ndarray
    ) -> None:
        """Newton on all trajectories that wait, in dispatches of one width."""
        width = count_trajectories(self._cells)
        block = newton.size_block(self._cells)
        title = f"fit of {self._n} rows"
        total = TYPICAL_STEPS * len(trajectories.waiting)
        with use_float64(), show_progress(title, total) as progress:
            while len(active := trajectories.fill_up(width)):
                # A partly filled block repeats trajectories.
                dispatched = np.resize(active, width)
                blocks = -(-len(active) // block)
                owner = trajectories.owner[dispatched]
                state, bounds = trajectories.load_state(dispatched)
                advanced = run_program(
                    newton.advance_trajectories,
                    self.binding,
                    np.array(blocks),
                    state,
                    bounds,
                    self._device_data,
                    weight[owner],
                    observed[owner],
                )
                trajectories.update(len(active), advanced)
                progress.move_to(total - trajectories.count_steps_left())


def _convert_coordinates(z: np.ndarray, source: Solver, target: Solver) -> np.ndarray:
    """z [P] of one solver in the coordinates of another: their reference runs differ."""
    draws = source.params(z[None])
    params = {name: float(values[0]) for name, values in draws.items()}
    return target.coordinates(params)


class _Trajectories:
    """Starts of R replicates: waiting, active, done.

    Args:
        bounds: of all trajectories, [P] each, or of each trajectory of the first `add`,
            [S, P] each.
        replicates: R.
        merge: a trajectory that has run into a lower one of its replicate leaves.
    """

    def __init__(
        self, bounds: tuple[np.ndarray, np.ndarray], replicates: int, merge: bool = True
    ) -> None:
        self.bounds = bounds
        self.merge = merge
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
        # The trajectory of lowest objective of each replicate, so far.
        self.best = np.full(replicates, -1)

    def add(self, starts: np.ndarray, owner: np.ndarray, damping: float = 1.0) -> None:
        """Append starts [S, P] of the replicates owner [S].

        Args:
            starts: points in z.
            owner: the replicate of each.
            damping: of the first step, small for starts beside their optimum.
        """
        new = len(starts)
        low = np.broadcast_to(self.bounds[0], starts.shape)
        high = np.broadcast_to(self.bounds[1], starts.shape)
        self.waiting = np.concatenate([self.waiting, len(self.z) + np.arange(new)])
        self.z = np.concatenate([self.z, np.clip(starts, low, high)])
        self.low = np.concatenate([self.low, low])
        self.high = np.concatenate([self.high, high])
        self.owner = np.concatenate([self.owner, owner])
        self.steps = np.append(self.steps, np.zeros(new, int))
        self.damping = np.append(self.damping, np.full(new, damping))
        self.objective = np.append(self.objective, np.full(new, np.inf))
        self.gradient = np.append(self.gradient, np.full(new, np.inf))

    def fill_up(self, width: int) -> np.ndarray:
        """Indices of the active trajectories, filled up from those waiting."""
        room = width - len(self.active)
        self.active = np.concatenate([self.active, self.waiting[:room]])
        self.waiting = self.waiting[room:]
        return self.active

    def load_state(
        self, trajectories: np.ndarray
    ) -> tuple[Trajectory, tuple[np.ndarray, np.ndarray]]:
        """Trajectories as the compiled program takes them, and their bounds."""
        state = Trajectory(
            z=self.z[trajectories],
            damping=self.damping[trajectories],
            objective=self.objective[trajectories],
            gradient=self.gradient[trajectories],
        )
        return state, (self.low[trajectories], self.high[trajectories])

    def update(self, count: int, out: Trajectory) -> None:
        """Take over what the program computed for those active, the first `count`;
        those that are done leave.
        """
        active = self.active
        self.z[active] = np.asarray(out.z)[:count]
        self.damping[active] = np.asarray(out.damping)[:count]
        self.objective[active] = np.asarray(out.objective)[:count]
        self.gradient[active] = np.asarray(out.gradient)[:count]
        self.steps[active] += STEPS_PER_DISPATCH
        converged = self.gradient[active] <= TOLERANCE
        can_move = self.damping[active] < 1e10
        has_time = self.steps[active] < MAX_STEPS
        self._update_best(active)
        is_going = ~converged & can_move & has_time & ~self._is_beaten(active)
        self.active = active[is_going]

    def _update_best(self, active: np.ndarray) -> None:
        """Record in `best` those of the trajectories that are now the lowest of their
        replicate.
        """
        order = active[np.argsort(self.objective[active], kind="stable")]
        owner, first = np.unique(self.owner[order], return_index=True)
        lowest = order[first]
        rival = self.best[owner]
        is_lowest = (rival < 0) | ~(self.objective[rival] <= self.objective[lowest])
        self.best[owner[is_lowest]] = lowest[is_lowest]

    def _is_beaten(self, active: np.ndarray) -> np.ndarray:
        """[active] whether another trajectory of the replicate is lower, and is at the
        same point or has been lower for long.
        """
        best = self.best[self.owner[active]]
        gap = np.abs(self.z[active] - self.z[best]) / (np.abs(self.z[best]) + 0.05)
        done = self.gradient[best] <= TOLERANCE
        behind = self.objective[active] / np.maximum(self.objective[best], 1e-300) - 1
        late = (self.steps[active] >= PATIENCE) & (behind > np.where(done, 1e-6, 0.01))
        return (best != active) & (late | (self.merge & (gap.max(axis=1) < SAME)))

    def count_steps_left(self) -> int:
        """Steps that those active and waiting are expected to take."""
        left = np.maximum(TYPICAL_STEPS - self.steps[self.active], 1)
        return int(left.sum()) + TYPICAL_STEPS * len(self.waiting)

    def solution(self) -> Solution:
        """The best trajectory of each replicate."""
        winner = self.best
        objective = np.where(np.isfinite(self.objective), self.objective, np.inf)
        close = objective <= objective[winner][self.owner] * (1 + AGREE) + 1e-25
        starts = np.bincount(self.owner, minlength=len(winner))
        agree = np.bincount(self.owner, weights=close, minlength=len(winner))
        return Solution(
            z=self.z[winner],
            objective=objective[winner],
            gradient=self.gradient[winner],
            starts=starts,
            agree=agree.astype(int),
        )


def split_blocks(total: int, size: int) -> list[np.ndarray]:
    """Index blocks of one size that cover range(total); the last repeats the final
    index, to keep one shape.
    """
    return [
        np.minimum(np.arange(i, i + size), total - 1) for i in range(0, total, size)
    ]
