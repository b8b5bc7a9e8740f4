"""The schedule with the lowest final loss that a law predicts.

Among the schedules that warm up linearly and never rise afterwards the final loss is
minimized over the drops of the learning rate, which are positive parts of the peak (Luo
et al. 2025, arXiv:2503.12811, section 5). The knots between which the learning rate is
linear stand at single steps before the end, and further apart the earlier they are. The
search starts from common schedules, of which the best is returned if the search finds
none that is better.

Shapes: M segments between knots, G pieces of warm-up and segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from analysis.curves.features import SMALLEST_SHARE, compute_features
from analysis.curves.schedule import Schedule
from analysis.laws.base import Array
from analysis.laws.curves import CurveLaw

KNOT_RATIO = 1.06
WARMUP_PIECES = 32
COOLDOWN_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
HIGHER_END = 0.1  # of the peak, where common schedules end as well
SMALLEST_DROP = 1e-7  # of the peak: a start has no drop of exactly 0
MOST_ITERATIONS = 250
STARTS = 3


@dataclass(frozen=True, eq=False)
class OptimalSchedule:
    """A schedule of lowest predicted final loss.

    Attributes:
        schedule: learning rates.
        loss: predicted at its last step, nats per token.
        compared: name -> predicted final loss of common schedules with the same peak,
            warm-up and steps. "wsd, linear 20 %" cools down linearly in the last 20 % of
            the steps after the warm-up.
    """

    schedule: Schedule
    loss: float
    compared: dict[str, float]

    @property
    def best_common(self) -> str:
        """The name of the best common schedule."""
        return min(self.compared, key=lambda name: self.compared[name])

    def __str__(self) -> str:
        lines = [f"predicted final loss {self.loss:.5f}"]
        for name in ("cosine", self.best_common):
            lines.append(f"  {name}: {self.compared[name]:.5f}")
        return "\n".join(dict.fromkeys(lines))


def find_optimal_schedule(
    law: CurveLaw,
    params: Mapping[str, float],
    peak: float,
    steps: int,
    warmup_steps: int,
    lowest: float,
) -> OptimalSchedule:
    """The schedule of lowest predicted final loss; see `CurveFit.optimal_schedule`."""
    common = make_common_schedules(peak, steps, warmup_steps, lowest)

    def predict_end(schedule: Schedule) -> float:
        last = np.array([schedule.steps])
        features = compute_features(schedule, last, law.warmup)
        x = {name: features[name] for name in law.variables}
        return float(law.predict(params, **x)[0])

    compared = {name: predict_end(schedule) for name, schedule in common.items()}
    order = sorted(compared, key=lambda name: compared[name])
    best, least = common[order[0]], compared[order[0]]
    knots = place_knots(steps, warmup_steps)
    minimize = make_minimizer(law, params, peak, warmup_steps, lowest, knots)
    for name in order[:STARTS]:
        lr = minimize(common[name].lr[knots])
        candidate = Schedule(_fill(common[name].lr, knots, lr))
        loss = predict_end(candidate)
        if loss < least:
            best, least = candidate, loss
    return OptimalSchedule(best, least, compared)


def make_common_schedules(
    peak: float, steps: int, warmup_steps: int, lowest: float
) -> dict[str, Schedule]:
    """Constant, cosine and WSD schedules with several cooldowns, by name, which end at
    `lowest` and at a tenth of the peak.
    """
    common = {"constant": Schedule.constant(peak, steps, warmup_steps)}
    ends = {"": lowest}
    if lowest < HIGHER_END * peak:
        ends[f", to {100 * HIGHER_END:.0f} %"] = HIGHER_END * peak
    for suffix, end in ends.items():
        common[f"cosine{suffix}"] = Schedule.cosine(peak, steps, warmup_steps, end)
        for share in COOLDOWN_SHARES:
            cooldown = max(1, round(share * (steps - warmup_steps)))
            for shape in ("linear", "sqrt"):
                name = f"wsd, {shape} {100 * share:.0f} %{suffix}"
                common[name] = Schedule.wsd(
                    peak, steps, warmup_steps, cooldown, end, shape
                )
    return common


def place_knots(steps: int, warmup_steps: int) -> Int[np.ndarray, " knots"]:
    """[M + 1] steps at which the learning rate is chosen, from the end of the warm-up to
    the last step.
    """
    before_end = [0, 1]
    while before_end[-1] < steps - warmup_steps:
        before_end.append(max(before_end[-1] + 1, int(before_end[-1] * KNOT_RATIO)))
    before_end[-1] = steps - warmup_steps
    return steps - np.array(before_end[::-1])


def make_minimizer(
    law: CurveLaw,
    params: Mapping[str, float],
    peak: float,
    warmup_steps: int,
    lowest: float,
    knots: Int[np.ndarray, " knots"],
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the learning rates at the knots, [M + 1], to better ones.

    The free numbers are logarithms: drop j is their softmax times what the learning rate
    may lose, and the last share is what it keeps above `lowest`.
    """
    import jax
    import jax.numpy as jnp
    from scipy.optimize import minimize

    from analysis.fitting.data import use_float64

    steps_of_segment = np.diff(knots).astype(float)

    def make_rates(logits: jax.Array) -> jax.Array:
        shares = jax.nn.softmax(logits)
        lost = jnp.concatenate([jnp.zeros(1), jnp.cumsum(shares)[:-1]])
        return lowest + (peak - lowest) * (1.0 - lost)

    def compute_loss(logits: jax.Array) -> jax.Array:
        x = _describe_end(law, make_rates(logits), peak, warmup_steps, steps_of_segment)
        terms = law.terms(params, x)
        total: Array = 0.0
        for name, term in zip(law.linear, terms, strict=True):
            total = total + params[name] * jnp.sum(jnp.asarray(term))
        return total

    with use_float64():
        evaluate = jax.jit(jax.value_and_grad(compute_loss))

    def run_search(start: np.ndarray) -> np.ndarray:
        if peak <= lowest:
            return start
        shares = np.append(-np.diff(start), start[-1] - lowest) / (peak - lowest)
        logits = np.log(np.maximum(shares, SMALLEST_DROP))

        def evaluate_floats(z: np.ndarray) -> tuple[float, np.ndarray]:
            with use_float64():
                value, slope = evaluate(jnp.asarray(z))
            return float(value), np.asarray(slope, float)

        found = minimize(
            evaluate_floats,
            logits,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MOST_ITERATIONS, "ftol": 1e-14, "gtol": 1e-10},
        )
        with use_float64():
            rates = np.asarray(make_rates(jnp.asarray(found.x)), float)
        return np.clip(rates, lowest, peak)

    return run_search


def _describe_end(
    law: CurveLaw,
    rates: Array,
    peak: float,
    warmup_steps: int,
    steps_of_segment: Float[np.ndarray, " segments"],
) -> dict[str, Array]:
    """The law's variables at the last step, with one group for each piece of the warm-up
    and each segment: S1 [1], the others [1, G].

    The changes within a group count as at its middle.
    """
    import jax.numpy as jnp

    pieces = min(WARMUP_PIECES, warmup_steps)
    edges = np.linspace(0.0, peak, pieces + 1)
    if law.warmup == "peak":
        edges = np.full(pieces + 1, peak)
    warmup_lengths = np.full(pieces, warmup_steps / max(pieces, 1))
    length = jnp.concatenate(
        [jnp.asarray(warmup_lengths), jnp.asarray(steps_of_segment)]
    )
    before = jnp.concatenate([jnp.asarray(edges[:-1]), rates[:-1]])
    after = jnp.concatenate([jnp.asarray(edges[1:]), rates[1:]])
    middle = 0.5 * (before + after)
    # A sum over steps takes the value at the end of each, so that a linear fall gives
    # half a step less than the trapezoid.
    area = middle * length - 0.5 * (before - after)
    later_area = jnp.cumsum(area[::-1])[::-1] - area
    later_steps = jnp.cumsum(length[::-1])[::-1] - length
    own_area = 0.5 * length * 0.5 * (middle + after) + 0.5 * middle
    smallest = SMALLEST_SHARE * peak
    return {
        "S1": jnp.sum(area)[None],
        "drop": (before - after)[None],
        "log_lr": jnp.log(jnp.maximum(middle, smallest))[None],
        "S": (later_area + jnp.minimum(own_area, area))[None],
        "age": (later_steps + 0.5 * (length + 1.0))[None],
    }


def _fill(
    lr: np.ndarray, knots: Int[np.ndarray, " knots"], rates: np.ndarray
) -> np.ndarray:
    """The schedule of every step: the warm-up of `lr`, then linear between the knots."""
    filled = np.array(lr)
    start = int(knots[0])
    filled[start:] = np.interp(np.arange(start, len(lr)), knots, rates)
    return filled
