"""S7: distributed training speeds training up.

On a CPU each device is one thread on a core of its own. The losses must be equal anywhere.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from analysis.plots.style import BLUE, VERMILLION, make_figure, use_style
from experiments.documents.devices import (
    DeviceMeasurement,
    measure_in_new_process,
)
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

SPEED_UP = "speed-up"
APART = "devices apart"
EQUAL = "largest difference of loss"


def summarize_devices(found: DeviceMeasurement) -> dict[str, Estimate]:
    """S7: tokens per second on all devices over those on one, how many devices have
    something of their own to compute on, and the largest difference of the loss over
    the steps.
    """
    slow = np.asarray(found["single"]["tokens_per_second"])
    fast = np.asarray(found["pmap"]["tokens_per_second"])
    alone = np.asarray(found["single"]["losses"])
    split = np.asarray(found["pmap"]["losses"])
    apart = found["devices"]
    if found["platform"] == "cpu":
        apart = min(apart, found["cores"])
    return {
        SPEED_UP: estimate_mean(fast / slow),
        EQUAL: make_exact(float(np.abs(split - alone).max())),
        APART: make_exact(apart),
    }


def _examine_s7(evidence: Evidence) -> Finding:
    found = evidence.measured("devices", measure_in_new_process)
    kind = found["platform"]
    if kind == "cpu":
        kind = f"CPU devices of one thread each, on {found['cores']} cores"
    return Finding(
        numbers=summarize_devices(found),
        remark=(
            f"{len(found['single']['losses'])} steps on one device and, each batch "
            f"split, on {found['devices']} ({kind}). The difference is in nats per "
            "token, of float32 sums in another order. Cores of one machine exchange "
            "gradients through its memory: over a network the gain is smaller, and it "
            "falls as the devices become more."
        ),
        figure=plot_devices(found),
        caption="Training loss step by step on one device and on all.",
    )


def _decide_s7(n: Numbers) -> str:
    if n[APART].value < 2:
        return NOT_TESTABLE
    return name_verdict(n[SPEED_UP].above(1.0))


@use_style
def plot_devices(found: DeviceMeasurement) -> Figure:
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
        id="S7",
        documents="A, C, D",
        short="distributed training is faster",
        statement="Distributed training speeds training up.",
        rule=(
            "Not testable where the devices share one core; elsewhere "
            "supported if tokens per second on all devices over those on one are "
            "above 1 (95 % interval), refuted if below."
        ),
        decide=_decide_s7,
        change=(
            "A model so small that exchanging gradients takes longer than computing "
            "them; a slow network between the devices."
        ),
        experiment=_examine_s7,
    ),
)
