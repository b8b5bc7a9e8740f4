"""S7: distributed training speeds training up. Testable where devices are apart; losses
must be equal anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.documents import draw_signals
from experiments.documents.devices import measure_apart
from experiments.documents.evidence import Evidence
from experiments.documents.statement import (
    NOT_TESTABLE,
    Claim,
    Estimate,
    Finding,
    Numbers,
    exact,
    verdict,
)
from experiments.documents.stats import mean

SPEED_UP, APART, EQUAL = "speed-up", "devices apart", "largest difference of loss"


def speed_up_numbers(found: dict[str, Any]) -> dict[str, Estimate]:
    """Tokens per second on all devices over those on one, how many devices do not share
    a machine's cores, and the largest difference of the loss over the steps."""
    fast, slow = (
        np.asarray(found[name]["tokens_per_second"]) for name in ("pmap", "single")
    )
    losses = [np.asarray(found[name]["losses"]) for name in ("pmap", "single")]
    return {
        EQUAL: exact(float(np.abs(losses[0] - losses[1]).max())),
        SPEED_UP: mean(fast / np.median(slow)),
        APART: exact(1 if found["platform"] == "cpu" else found["devices"]),
    }


def _s7(evidence: Evidence) -> Finding:
    found = evidence.measured("devices", measure_apart)
    shared = " that share this machine's cores" if found["platform"] == "cpu" else ""
    return Finding(
        speed_up_numbers(found),
        f"{len(found['single']['losses'])} steps on one device and, each batch split, on {found['devices']} "
        f"({found['platform']}){shared}. The difference is in nats per token, of float32 sums in another order. What "
        "devices that share cores gain or lose in speed says nothing of separate ones.",
        draw_signals.devices(found),
        "Training loss step by step on one device and on all.",
    )


def _decide_s7(n: Numbers) -> str:
    return verdict(n[SPEED_UP].above(1.0)) if n[APART].value >= 2 else NOT_TESTABLE


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
        _s7,
    ),
)
