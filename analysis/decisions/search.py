"""The search for the runs that determine a quantity best within a budget.

A run adds one noisy measurement of the log loss. With L the covariance of the noise,
the information on the parameters of the chosen runs S is M = prior + J_S' L_SS^-1 J_S.
One more run j, given those chosen, has the remaining derivatives
e = j - L_jS L_SS^-1 J_S and the remaining variance s = L_jj - L_jS L_SS^-1 L_Sj, and
adds e e' / s (the update of Gaussian variables; Chaloner & Verdinelli 1995). So runs of
one trunk, which share an effect, each count for what they add to the others.

Where the runs depart from the law by x, the fit is off by M^-1 J_S' L_SS^-1 x_S. What
is made small is the mean squared error: the variance and the squares of such shifts
(Box & Draper 1959, J. Am. Stat. Assoc. 54).

Runs are added one after another (greedily), and the result is improved by exchange: a
run or a whole trunk is taken out and the budget spent anew (Fedorov 1972; Mitchell
1974, Technometrics 16).

Shapes: K existing runs, M candidates, P parameters, B departures from the law, S chosen
runs with the existing, n = K + M.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit

from analysis.progress import show_progress, track_progress

# The greedy order takes the largest gain / cost^power. None is the best in all cases
# (the problem is a knapsack), so each is tried.
COST_POWERS = (1.0, 0.5, 0.0)
MIN_IMPROVEMENT = 1e-4  # relative, of the criterion, that an exchange has to bring
MAX_ROUNDS = 8
SURE = 0.95  # the quantile of Student's t by which noise of few trunks is charged
EXACT = 1 + 1e-9  # budgets are held to rounding
HUGE = 1e100  # shifts beyond it are as bad as this one
TINY = 1e-300  # keeps a division by zero out


@dataclass(frozen=True, eq=False)
class Pool:
    """Runs to choose from, and runs that exist.

    Attributes:
        jacobian: [K+M, P] derivatives of the log losses, existing runs first.
        covariance: [K+M, K+M] of the noise.
        gradient: [P] derivatives of the quantity.
        departures: [K+M, B] log losses by which runs may depart from the law.
        information: [P, P] on the parameters besides that of the runs.
        trunk: [K+M] integer of the trunk of each run.
        shared: [M] FLOPs of a candidate until it leaves its trunk.
        paid: [M] the part of these FLOPs from which its trunk can resume.
        own: [M] FLOPs of a candidate after it has left its trunk.
        too_near: [M, M] pairs of candidates that must not both be chosen.
        is_closed: [M] candidates that must not be chosen.
        existing: K.
    """

    jacobian: Float[np.ndarray, "n P"]
    covariance: Float[np.ndarray, "n n"]
    gradient: Float[np.ndarray, " P"]
    departures: Float[np.ndarray, "n B"]
    information: Float[np.ndarray, "P P"]
    trunk: Int[np.ndarray, " n"]
    shared: Float[np.ndarray, " M"]
    paid: Float[np.ndarray, " M"]
    own: Float[np.ndarray, " M"]
    too_near: Bool[np.ndarray, "M M"]
    is_closed: Bool[np.ndarray, " M"]
    existing: int

    @property
    def candidates(self) -> int:
        """M."""
        return len(self.own)

    def compute_cost(self, chosen: Iterable[int]) -> float:
        """FLOPs to train the chosen candidates.

        A trunk costs its steps once, from where it can resume before the first of its
        runs leaves it until the last one does; each run adds its cooldown.
        """
        trunks: dict[int, list[int]] = {}
        for j in chosen:
            trunks.setdefault(int(self.trunk[self.existing + j]), []).append(j)
        total = 0.0
        for rows in trunks.values():
            shared = self.shared[rows].max() - self.paid[rows].min()
            total += float(shared + self.own[rows].sum())
        return total

    def compute_marginal_costs(self, chosen: list[int]) -> Float[np.ndarray, " M"]:
        """[M] FLOPs that each candidate adds to the chosen ones."""
        trunk = self.trunk[self.existing :]
        count = int(self.trunk.max()) + 1
        last = np.full(count, -np.inf)
        first_paid = np.full(count, np.inf)
        np.maximum.at(last, trunk[chosen], self.shared[chosen])
        np.minimum.at(first_paid, trunk[chosen], self.paid[chosen])
        spent = np.where(np.isfinite(last), last - first_paid, 0.0)[trunk]
        end = np.maximum(last[trunk], self.shared)
        start = np.minimum(first_paid[trunk], self.paid)
        return end - start - spent + self.own


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the chosen runs say.

    Attributes:
        criterion: logarithm of the mean squared error of the quantity, with a charge
            for few trunks.
        criterion_after: [M] the same with each candidate added.
        gain: [M] by how much each candidate lowers it, the charge aside.
    """

    criterion: float
    criterion_after: np.ndarray
    gain: np.ndarray


def evaluate_choice(pool: Pool, chosen: list[int]) -> Knowledge:
    """What the existing and the chosen runs say, and with each candidate besides."""
    K = pool.existing
    rows = [*range(K), *(K + j for j in chosen)]
    information = pool.information
    pull = np.zeros((len(pool.gradient), pool.departures.shape[1]))
    remaining = pool.jacobian[K:]
    departing = pool.departures[K:]
    noise = np.diag(pool.covariance)[K:].copy()
    if rows:
        factor = np.linalg.cholesky(pool.covariance[np.ix_(rows, rows)])
        known = np.linalg.solve(factor, pool.jacobian[rows])
        departed = np.linalg.solve(factor, pool.departures[rows])
        shared = np.linalg.solve(factor, pool.covariance[rows, K:])
        information = information + known.T @ known
        pull = known.T @ departed
        remaining = remaining - shared.T @ known
        departing = departing - shared.T @ departed
        noise = noise - np.sum(shared**2, axis=0)
    inverse = np.linalg.inv(information)
    direction = inverse @ pool.gradient
    variance = float(pool.gradient @ direction)
    shift = direction @ pull
    spread = np.einsum("mp,pq,mq->m", remaining, inverse, remaining)
    # A chosen run has no noise left to tell; it is not a candidate any more.
    total = np.maximum(noise + spread, TINY)
    reach = remaining @ direction
    variance_after = np.maximum(variance - reach**2 / total, 1e-12 * variance)
    surprise = departing - remaining @ (inverse @ pull)
    shift_after = shift + (reach / total)[:, None] * surprise
    charge, charge_after = _charge_for_noise(pool, rows)
    error = variance + float(np.sum(np.clip(shift, -HUGE, HUGE) ** 2))
    # The first runs leave parameters open, and shifts without limit.
    error_after = variance_after + np.sum(
        np.clip(shift_after, -HUGE, HUGE) ** 2, axis=1
    )
    return Knowledge(
        criterion=np.log(error) + charge,
        criterion_after=np.log(error_after) + charge_after,
        gain=np.log(error) - np.log(error_after),
    )


def _charge_for_noise(pool: Pool, rows: list[int]) -> tuple[float, np.ndarray]:
    """(charge for few trunks of these rows, [M] the same with each candidate added)."""
    parameters = len(pool.gradient)
    trunks = set(pool.trunk[rows].tolist())
    is_new = ~np.isin(pool.trunk[pool.existing :], list(trunks))
    charge = _charge_few_trunks(len(trunks), len(rows), parameters)
    on_known = _charge_few_trunks(len(trunks), len(rows) + 1, parameters)
    on_new = _charge_few_trunks(len(trunks) + 1, len(rows) + 1, parameters)
    return charge, np.where(is_new, on_new, on_known)


def _charge_few_trunks(trunks: int, runs: int, parameters: int) -> float:
    """Logarithm of the squared factor by which a half-width grows where the noise has
    to be estimated from few runs.

    The degrees of freedom of the trunks' noise are taken as the number of trunks less
    those parameters that differences within trunks do not determine, about half.
    """
    freedom = min(trunks - (parameters + 1) / 2, runs - parameters)
    return 2 * float(np.log(stdtrit(max(freedom, 0.5), SURE)))


def add_greedily(
    pool: Pool,
    chosen: list[int],
    budget: float,
    power: float,
    forbidden: set[int],
    most: int | None,
    min_gain: float,
) -> list[int]:
    """The chosen candidates and as many more as the budget affords, each the one of
    largest gain / cost^power given those before it.

    Args:
        pool: to choose from.
        chosen: what is taken to begin with.
        budget: FLOPs of all chosen candidates together.
        power: of the cost.
        forbidden: candidates that are not taken.
        most: candidates altogether; None for no limit.
        min_gain: of the mean squared error, the share that a run has to remove.
    """
    chosen = list(chosen)
    spent = pool.compute_cost(chosen)
    while most is None or len(chosen) < most:
        knowledge = evaluate_choice(pool, chosen)
        cost = pool.compute_marginal_costs(chosen)
        gain = knowledge.criterion - knowledge.criterion_after
        is_open = ~pool.is_closed & (spent + cost <= budget * EXACT) & (gain > 1e-9)
        is_open &= knowledge.gain >= min_gain
        is_open[chosen] = False
        is_open[list(forbidden)] = False
        if chosen:
            is_open &= ~pool.too_near[chosen].any(axis=0)
        if not is_open.any():
            break
        score = np.where(is_open, gain / cost**power, -np.inf)
        best = int(np.argmax(score))
        chosen.append(best)
        spent = pool.compute_cost(chosen)
    return chosen


def list_parts(pool: Pool, chosen: list[int]) -> list[set[int]]:
    """What an exchange takes out: each single run, and each trunk of several."""
    parts = [{j} for j in chosen]
    trunks: dict[int, set[int]] = {}
    for j in chosen:
        trunks.setdefault(int(pool.trunk[pool.existing + j]), set()).add(j)
    parts += [rows for rows in trunks.values() if len(rows) > 1]
    return parts


def improve_by_exchange(
    pool: Pool,
    chosen: list[int],
    budget: float,
    powers: tuple[float, ...],
    most: int | None,
    min_gain: float,
) -> list[int]:
    """The chosen candidates after exchanges, as long as one brings an improvement.

    An exchange takes a run or a trunk out, and spends the budget anew without it.
    """
    best = evaluate_choice(pool, chosen).criterion
    for round_ in range(1, MAX_ROUNDS + 1):
        has_improved = False
        title = f"design search, round {round_} of at most {MAX_ROUNDS}"
        for part in track_progress(title, list_parts(pool, chosen)):
            if not part <= set(chosen):
                continue  # an earlier exchange has taken it out
            kept = [j for j in chosen if j not in part]
            for power in powers[:2]:
                trial = add_greedily(pool, kept, budget, power, part, most, min_gain)
                criterion = evaluate_choice(pool, trial).criterion
                if criterion < best - MIN_IMPROVEMENT:
                    chosen = trial
                    best = criterion
                    has_improved = True
                    break
        if not has_improved:
            break
    return chosen


def search_design(
    pool: Pool, budget: float, most: int | None = None, min_gain: float = -np.inf
) -> list[int]:
    """The candidates to train.

    Args:
        pool: to choose from.
        budget: FLOPs of all of them together; inf for no limit, where the cost does not
            count.
        most: candidates; None for no limit.
        min_gain: of the mean squared error, the share that a run has to remove.
    """
    powers = COST_POWERS if np.isfinite(budget) else (0.0,)
    best: list[int] = []
    best_criterion = np.inf
    for power in powers:
        with show_progress("design search, first choice", 1):
            chosen = add_greedily(pool, [], budget, power, set(), most, min_gain)
        chosen = improve_by_exchange(pool, chosen, budget, powers, most, min_gain)
        criterion = evaluate_choice(pool, chosen).criterion
        if criterion < best_criterion:
            best = chosen
            best_criterion = criterion
    return best
