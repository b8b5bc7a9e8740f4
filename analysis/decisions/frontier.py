"""The compute-optimal frontier of a law, for many draws of its parameters at once.

A frontier answers two questions: which is the lowest loss that C FLOPs buy, and how few
FLOPs reach a given loss.

Shapes: R draws of the parameters, S sizes of the coarse search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from analysis.fitting.bootstrap import find_central_interval
from analysis.laws.base import ClosedFormFrontier, Law

FlopsPerToken = Callable[[np.ndarray], np.ndarray]
Params = Mapping[str, np.ndarray]  # parameter -> [R], one value per draw
Numbers = np.ndarray | float  # an array, or a single number

MAX_FLOPS = 1e60  # a loss that needs more FLOPs counts as unreachable
COARSE_SIZES = 65  # sizes of the first, coarse search
GOLDEN_RATIO = (np.sqrt(5) - 1) / 2
BISECTIONS = 12  # the first steps of `find_least_flops`
FALSE_POSITIONS = 12  # its steps after those


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """How C FLOPs may be divided between parameters N and training tokens D.

    With f(N) training FLOPs per token, training costs f(N) D. Inference on T tokens
    costs T f(N) / 3, because it needs the forward pass alone. For f = 6 N the total is
    C = 6 N D + 2 N T (Sardana et al. 2024, arXiv:2401.00448, equation 2).

    Attributes:
        law: a law of N and D.
        flops_per_token: f, on arrays and increasing in N; 6 N when None.
        inference_tokens: T.
        max_tokens: the number of training tokens that exist; None for no limit.
        at: values of the law's variables other than N and D.
    """

    law: Law
    flops_per_token: FlopsPerToken | None = None
    inference_tokens: float = 0.0
    max_tokens: float | None = None
    at: Mapping[str, float] = field(default_factory=dict)

    def training_flops_per_token(self, N: Numbers) -> Numbers:
        """f(N), of N's shape."""
        sizes = np.asarray(N, float)
        if self.flops_per_token is None:
            return 6 * sizes
        return self.flops_per_token(sizes)

    def affordable_tokens(self, N: Numbers, C: Numbers) -> Numbers:
        """The D that C FLOPs leave after inference, between 1 and `max_tokens`.

        N and C broadcast.
        """
        limit = np.inf if self.max_tokens is None else self.max_tokens
        per_token = self.training_flops_per_token(N)
        tokens = np.asarray(C, float) / per_token - self.inference_tokens / 3
        return np.clip(tokens, 1.0, limit)

    def split_flops(self, N: Numbers, D: Numbers) -> tuple[Numbers, Numbers]:
        """(training FLOPs, inference FLOPs) of a model of size N on D tokens."""
        per_token = self.training_flops_per_token(N)
        return per_token * np.asarray(D), per_token * self.inference_tokens / 3

    def predict_loss(self, params: Params, N: Numbers, D: Numbers) -> np.ndarray:
        """Loss in nats per token. The parameters, N and D broadcast."""
        return self.law.predict(params, N=N, D=D, **self.at)

    def log_size_bounds(self, C: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """The sizes to search at C FLOPs, as ln N; each bound has C's shape.

        The lower bound is a model of one parameter. The upper bound is the model for
        which C pays for one training token.

        Raises:
            ValueError: C does not buy one token of a model of one parameter.
        """
        flops = np.asarray(C, float)
        max_flops_per_token = flops / (1 + self.inference_tokens / 3)
        if self.flops_per_token is None:
            high = np.log(max_flops_per_token / 6)
        else:
            high = self._bisect_log_size(flops, max_flops_per_token)
        if not np.all(high > 1e-9):
            inference = ""
            if self.inference_tokens:
                inference = f" after inference on {self.inference_tokens:g} tokens"
            raise ValueError(
                f"{np.min(flops):g} FLOPs do not buy one token of a model of one "
                f"parameter{inference}; raise C"
            )
        return np.zeros_like(flops), np.asarray(high)

    def _bisect_log_size(
        self, flops: np.ndarray, max_flops_per_token: Numbers
    ) -> np.ndarray:
        """The ln N at which a token costs `max_flops_per_token`, by bisection."""
        low = np.zeros_like(flops)
        high = np.log(np.maximum(flops, 1.0))
        for _ in range(60):
            middle = (low + high) / 2
            is_affordable = (
                self.training_flops_per_token(np.exp(middle)) < max_flops_per_token
            )
            low = np.where(is_affordable, middle, low)
            high = np.where(is_affordable, high, middle)
        return high

    def optimal_size(
        self, params: Params, C: Numbers, steps: int = 56
    ) -> Float[np.ndarray, " R"]:
        """[R] the N that minimizes the loss at C FLOPs, a number or [R].

        Without a closed form, a coarse grid brackets the minimum, and `steps` steps of
        golden section refine it.
        """
        n_draws = count_draws(params)
        flops = np.broadcast_to(np.asarray(C, float), (n_draws,))
        low, high = self.log_size_bounds(flops)
        closed_form = self._find_closed_form()
        if closed_form is not None:
            sizes = np.clip(closed_form.size(params, flops), np.exp(low), np.exp(high))
            if self.max_tokens is None:
                return sizes
            # FLOPs that cannot be spent on tokens go into a larger model.
            return np.maximum(sizes, flops / (6 * self.max_tokens))

        log_sizes_RxS = low[:, None] + (high - low)[:, None] * np.linspace(
            0, 1, COARSE_SIZES
        )
        sizes_RxS = np.exp(log_sizes_RxS)
        params_Rx1 = {name: np.asarray(v)[:, None] for name, v in params.items()}
        tokens_RxS = self.affordable_tokens(sizes_RxS, flops[:, None])
        losses_RxS = self.predict_loss(params_Rx1, sizes_RxS, tokens_RxS)
        best = np.argmin(losses_RxS, axis=1)
        draw = np.arange(n_draws)
        low = log_sizes_RxS[draw, np.maximum(best - 1, 0)]
        high = log_sizes_RxS[draw, np.minimum(best + 1, COARSE_SIZES - 1)]

        def loss_at_log_size(log_size: np.ndarray) -> np.ndarray:
            sizes = np.exp(log_size)
            tokens = self.affordable_tokens(sizes, flops)
            return self.predict_loss(params, sizes, tokens)

        return np.exp(minimize_by_golden_section(loss_at_log_size, low, high, steps))

    def best_loss(
        self, params: Params, C: Numbers, N: float | None = None
    ) -> Float[np.ndarray, " R"]:
        """[R] the lowest loss at C FLOPs, a number or [R].

        The minimum is over all sizes, or at size N alone if N is given.
        """
        sizes = np.asarray(N, float)
        if N is None:
            sizes = self.optimal_size(params, C, steps=40)
        return self.predict_loss(params, sizes, self.affordable_tokens(sizes, C))

    def least_flops(
        self, params: Params, loss: Numbers, N: float | None = None
    ) -> Float[np.ndarray, " R"]:
        """[R] the fewest FLOPs, inference included, that reach the loss.

        The loss is a number or [R]. The result is inf where no number of FLOPs reaches
        it.
        """
        closed_form = self._find_closed_form()
        is_unconstrained = N is None and self.max_tokens is None
        if closed_form is not None and is_unconstrained:
            # The closed form takes logarithms of the coefficients that multiply powers.
            factors = set(self.law.linear) - set(self.law.asymptotes)
            if all(np.all(np.asarray(params[name]) > 0) for name in factors):
                return closed_form.flops(params, loss)
        smallest = self.training_flops_per_token(1.0 if N is None else N)
        first = float(smallest) * (1 + self.inference_tokens / 3) * 1.0001

        def best_loss_at(C: np.ndarray) -> np.ndarray:
            return self.best_loss(params, C, N)

        return find_least_flops(best_loss_at, loss, count_draws(params), first)

    def _find_closed_form(self) -> ClosedFormFrontier | None:
        """The law's own frontier, which holds for C = 6 N D."""
        if self.flops_per_token is None and not self.inference_tokens:
            return self.law.frontier
        return None


@dataclass(frozen=True, eq=False)
class ComputeLaw:
    """A law of C itself, which is its own frontier.

    Attributes:
        law: a law of C, but of neither N nor D.
        at: values of its other variables.
    """

    law: Law
    at: Mapping[str, float] = field(default_factory=dict)

    def best_loss(self, params: Params, C: Numbers) -> np.ndarray:
        """[R] the loss at C FLOPs, a number or [R]."""
        return self.law.predict(params, C=C, **self.at)

    def least_flops(self, params: Params, loss: Numbers) -> np.ndarray:
        """[R] the fewest FLOPs that reach the loss, a number or [R].

        The result is inf where no number of FLOPs reaches it.
        """

        def best_loss_at(C: np.ndarray) -> np.ndarray:
            return self.best_loss(params, C)

        return find_least_flops(best_loss_at, loss, count_draws(params), 1.0)


Frontier = AllocationProblem | ComputeLaw  # both have best_loss and least_flops


def make_frontier(
    law: Law,
    flops_per_token: FlopsPerToken | None = None,
    at: Mapping[str, float] | None = None,
) -> Frontier:
    """The frontier of a law of N and D, or of a law of C.

    Raises:
        ValueError: the law is of neither kind, or `at` does not name exactly the law's
            other variables.
    """
    variables = set(law.variables)
    if {"N", "D"} <= variables:
        others = read_other_variables(law, ("N", "D"), at)
        return AllocationProblem(law, flops_per_token, at=others)
    if "C" in variables and not {"N", "D"} & variables:
        return ComputeLaw(law, read_other_variables(law, ("C",), at))
    raise ValueError(
        f"law {law.name!r} is a function of {', '.join(law.variables)}; a frontier in "
        "compute needs a law of N and D, such as 'chinchilla', or one of C"
    )


def read_other_variables(
    law: Law, solved: tuple[str, ...], at: Mapping[str, float] | None
) -> dict[str, float]:
    """Check that `at` gives every variable of the law besides those that are solved
    for.

    Returns:
        The values of `at` as floats.

    Raises:
        ValueError: a variable is missing, unknown, or not positive.
    """
    given = dict(at or {})
    others = [name for name in law.variables if name not in solved]
    for name in others:
        if name not in given:
            raise ValueError(
                f"law {law.name!r} reads {name} as well; give its value, as "
                f"at={{{name!r}: ...}}"
            )
    for name, value in given.items():
        if name not in others:
            known = ", ".join(others) or "no variable besides " + " and ".join(solved)
            raise ValueError(
                f"at[{name!r}]: law {law.name!r} has {known}; leave {name!r} out"
            )
        if not (np.isfinite(value) and value > 0):
            raise ValueError(
                f"at[{name!r}] is {value!r}; it must be positive and finite"
            )
    return {name: float(value) for name, value in given.items()}


def count_draws(params: Params) -> int:
    """R, the number of draws that every parameter has."""
    return len(next(iter(params.values())))


def make_single_draw(params: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Parameter values as one draw, [1] each."""
    return {name: np.array([value], float) for name, value in params.items()}


def minimize_by_golden_section(
    function: Callable[[np.ndarray], np.ndarray],
    low: Float[np.ndarray, " R"],
    high: Float[np.ndarray, " R"],
    steps: int = 56,
) -> Float[np.ndarray, " R"]:
    """[R] the points between low and high where `function` is least (Kiefer 1953).

    `function` works on [R] points and must have one minimum in each interval.
    """
    left = high - GOLDEN_RATIO * (high - low)
    right = low + GOLDEN_RATIO * (high - low)
    at_left = function(left)
    at_right = function(right)
    for _ in range(steps):
        is_in_left_part = at_left <= at_right
        low = np.where(is_in_left_part, low, left)
        high = np.where(is_in_left_part, right, high)
        new = np.where(
            is_in_left_part,
            high - GOLDEN_RATIO * (high - low),
            low + GOLDEN_RATIO * (high - low),
        )
        at_new = function(new)
        # One of the two inner points stays an inner point of the smaller interval.
        old = np.where(is_in_left_part, left, right)
        at_old = np.where(is_in_left_part, at_left, at_right)
        left = np.where(is_in_left_part, new, old)
        right = np.where(is_in_left_part, old, new)
        at_left = np.where(is_in_left_part, at_new, at_old)
        at_right = np.where(is_in_left_part, at_old, at_new)
    return (low + high) / 2


def find_least_flops(
    best_loss: Callable[[np.ndarray], np.ndarray],
    loss: Numbers,
    n_draws: int,
    first: float,
) -> Float[np.ndarray, " R"]:
    """[R] the smallest C from `first` on at which best_loss is at most the loss.

    The search bisects ln C, then uses false position with halved ends (the Illinois
    rule; Dowell & Jarratt 1971).

    Args:
        best_loss: the lowest loss at C, [R] to [R]; it falls in C.
        loss: a number or [R].
        n_draws: R.
        first: the smallest C to consider, FLOPs.

    Returns:
        C in FLOPs; inf where it would exceed 10^60.
    """
    low = np.full(n_draws, np.log(first))
    high = np.full(n_draws, np.log(MAX_FLOPS))
    # How far the loss at each end lies above (at low) or below (at high) the target.
    above = best_loss(np.exp(low)) - loss
    below = best_loss(np.exp(high)) - loss
    is_reached_at_first = above <= 0
    is_reached = below < 0

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        excess = best_loss(np.exp(middle)) - loss
        is_enough = excess <= 0
        above = np.where(is_enough, above, excess)
        below = np.where(is_enough, excess, below)
        low = np.where(is_enough, low, middle)
        high = np.where(is_enough, middle, high)

    # The interval is narrow now, and the loss is nearly straight in it.
    last_kept_low = np.zeros(n_draws, bool)
    last_kept_high = np.zeros(n_draws, bool)
    for _ in range(FALSE_POSITIONS):
        middle = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            straight = low + (high - low) * above / (above - below)
        middle = np.where((straight > low) & (straight < high), straight, middle)
        excess = best_loss(np.exp(middle)) - loss
        is_enough = excess <= 0
        # An end that stays for a second time has its value halved: without that, false
        # position would approach the root from one side only.
        halved_above = np.where(last_kept_low, above / 2, above)
        halved_below = np.where(last_kept_high, below / 2, below)
        above = np.where(is_enough, halved_above, excess)
        below = np.where(is_enough, excess, halved_below)
        low = np.where(is_enough, low, middle)
        high = np.where(is_enough, middle, high)
        last_kept_low = is_enough
        last_kept_high = ~is_enough

    nearer = np.where(np.abs(above) < np.abs(below), low, high)
    found = np.where(is_reached, np.exp(nearer), np.inf)
    return np.where(is_reached_at_first, first, found)


def compute_interval(
    draws: Float[np.ndarray, " R"], level: float
) -> tuple[float, float]:
    """The central interval of draws, some of which may be infinite.

    NaN draws are left out. Between a finite and an infinite draw nothing can be
    interpolated: the interval ends at the outer one.

    Raises:
        ValueError: the level lies outside (0, 1), or no draw is left.
    """
    known = draws[~np.isnan(draws)]
    if not len(known):
        raise ValueError(
            "every bootstrap draw is NaN, so there is no interval; check the fit's "
            "certificate"
        )
    if np.all(np.isfinite(known)):
        low, high = find_central_interval(known, level)
        return float(low), float(high)
    find_central_interval(np.zeros(1), level)  # raises if the level is outside (0, 1)
    low = np.quantile(known, (1 - level) / 2, method="lower")
    high = np.quantile(known, (1 + level) / 2, method="higher")
    return float(low), float(high)
