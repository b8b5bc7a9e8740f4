"""S7: distributed training speeds training up. Testable where devices are apart; losses
must be equal anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.plots.style import BLUE, VERMILLION, make_figure, use_style
from experiments.documents.devices import measure_in_new_process
from experiments.documents.evidence import Evidence
from experiments.documents.figures import FREE, HEIGHT
from experiments.documents.statement import (
    NOT_TESTABLE,
    Claim,
    Estimate,
    Finding,
    Numbers,
    make_exact,
    name_verdict,
)
from experiments.documents.stats import estimate_mean

SPEED_UP, APART, EQUAL = "speed-up", "devices apart", "largest difference of loss"


def measure_speed_up(found: dict[str, Any]) -> dict[str, Estimate]:
    """Tokens per second on all devices over those on one, how many devices do not share
    a machine's cores, and the largest difference of the loss over the steps."""
    fast, slow = (
        np.asarray(found[name]["tokens_per_second"]) for name in ("pmap", "single")
    )
    losses = [np.asarray(found[name]["losses"]) for name in ("pmap", "single")]
    return {
        EQUAL: make_exact(float(np.abs(losses[0] - losses[1]).max())),
        SPEED_UP: estimate_mean(fast / np.median(slow)),
        APART: make_exact(1 if found["platform"] == "cpu" else found["devices"]),
    }


def _examine_s7(evidence: Evidence) -> Finding:
    found = evidence.measured("devices", measure_in_new_process)
    shared = " that share this machine's cores" if found["platform"] == "cpu" else ""
    return Finding(
        measure_speed_up(found),
        f"{len(found['single']['losses'])} steps on one device and, each batch split, on {found['devices']} "
        f"({found['platform']}){shared}. The difference is in nats per token, of float32 sums in another order. What "
        "devices that share cores gain or lose in speed says nothing of separate ones.",
        plot_devices(found),
        "Training loss step by step on one device and on all.",
    )


def _decide_s7(n: Numbers) -> str:
    return name_verdict(n[SPEED_UP].above(1.0)) if n[APART].value >= 2 else NOT_TESTABLE


@use_style
def plot_devices(found: dict[str, Any]) -> Figure:
    """Losses step by step on one device and on all."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    steps = np.arange(1, len(found["single"]["losses"]) + 1)
    ax.plot(steps, found["single"]["losses"], color=BLUE, label="one device")
    ax.plot(
        steps,
        found["pmap"]["losses"],
        "o",
        color=VERMILLION,
        **FREE,
        label=f"{found['devices']} devices",
    )
    ax.set(xlabel="Step", ylabel="Training loss (nats per token)")
    fig.legend(loc="outside right upper")
    return fig


CLAIMS = (
    Claim(
        "S7",
        "A, C, D",
        "distributed training is faster",
        "Distributed training speeds training up.",
        "Not testable where all devices share one machine's cores; elsewhere supported if tokens per second on all "
        "devices over those on one are above 1 (95 % interval), refuted if below.",
        _decide_s7,
        "Two or more accelerators: the same experiment then measures the speed-up.",
        _examine_s7,
    ),
)
